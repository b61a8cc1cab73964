"""What a run tells when it ends, however it ended: a page for people, JSON for programs, a message to a webhook."""

import http.client
import json
import urllib.request
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twotower import storage
from twotower.errors import RecipeError, TwotowerError
from twotower.release.registry import Registry

WEBHOOK_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended, as Kubeflow tells its exit task."""

    run: str
    """The run's name or id."""
    name: str
    """The recipe's name."""
    state: str
    """`SUCCEEDED`, `FAILED` or `CANCELLED`."""
    error: str = ""
    """Kubeflow's message; empty on success."""


def write_summary(outcome: Outcome, *, registry: str, webhook: str, out: Path) -> dict[str, Any]:
    """Write `summary.json` and `summary.md` into a directory, and tell the webhook.

    A registry or webhook that cannot be reached is told in the summary; it never hides how the run ended.

    Args:
        outcome: How the run ended.
        registry: Where the champion is looked up; "" for none.
        webhook: An `http(s)://` address that gets the JSON by POST; "" for none.
        out: Made where it does not exist.

    Raises:
        RecipeError: the webhook is no such address; the summary is written nevertheless.
    """
    content: dict[str, Any] = asdict(outcome) | {"ended": datetime.now(UTC).isoformat(timespec="seconds")}
    content["champion"] = _champion(outcome.name, registry)
    content["webhook"] = _tell(webhook, content) if webhook else "none"
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / "summary.md").write_text(_page(content), encoding="utf-8")
    if webhook and not webhook.startswith(storage.WEB):
        raise RecipeError(f"webhook {webhook!r}: no http:// or https:// address. Name one, or leave it out.")
    return content


def _champion(name: str, registry: str) -> str | None:
    if not registry or not name:
        return None
    try:
        champion = Registry(address=registry, name=name).champion()
    except TwotowerError as fault:
        return f"unknown ({fault})"
    return champion.version if champion else None


def _tell(webhook: str, content: dict[str, Any]) -> str:
    if not webhook.startswith(storage.WEB):
        return "not told (no http:// or https:// address)"
    try:
        request = urllib.request.Request(webhook, json.dumps(content).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WEBHOOK_WITHIN_S) as response:
            return f"told, answered {response.status}"
    except (OSError, ValueError, http.client.HTTPException) as fault:
        return f"not told ({getattr(fault, 'reason', fault)})"


def _page(content: dict[str, Any]) -> str:
    told = {key: " ".join(str(value).split()).replace("|", "\\|") for key, value in content.items() if value}
    rows = [f"| {key} | {value} |" for key, value in told.items()]
    return "\n".join([f"# {content['name'] or 'run'}: {content['state']}", "", "| | |", "|---|---|", *rows, ""])
