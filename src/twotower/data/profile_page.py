"""The profile to be read: one self-contained page, and the same as JSON."""

import json
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from twotower.data.profile import Profile, shown


def write_profile(profile: Profile, out: Path) -> None:
    """Write `profile.html` and `profile.json` into an open directory."""
    (out / "profile.json").write_text(json.dumps(asdict(profile), indent=1) + "\n", encoding="utf-8")
    (out / "profile.html").write_text(render_profile(profile), encoding="utf-8")


def render_profile(profile: Profile) -> str:
    """The page, without any reference outside itself."""
    loader = PackageLoader("twotower.data")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    figures = [(name, shown(value)) for name, value in profile.figures.items()]
    return environment.get_template("profile.html").render(profile=profile, figures=figures)
