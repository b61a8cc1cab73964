"""Figures for Prometheus: what was asked and answered, how long each stage took, how old is what answers.

No label holds a user, an item, a path as it was asked for or a key: every set of labels is bounded by what the server
is made of.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from twotower.bundle import Bundle

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `render` gives."""
STAGES = ("queue", "query", "retrieval", "ranking", "explain", "total")
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.5, 10.0)
FEW_SECONDS = (0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0)
"""Where there is a histogram for each route: fewer, as writing all figures out takes the time of an answer or two."""
COUNTS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
TENTHS = tuple(tenth / 10 for tenth in range(11))
MOST_NAMES = 16
"""Variants and bundles that are counted apart: those seen last. One that swaps daily would gather them for ever."""

Swap = Literal["taken", "refused", "rolled_back"]


class Telemetry:
    """One server's figures."""

    def __init__(self) -> None:
        """Count from nought, in a registry of its own."""
        # When a series began would double their number, and nobody asks.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("requests", "Requests that were answered.", "route", "status")
        self._request_seconds = self._histogram("request_seconds", "Head to answer, by route.", FEW_SECONDS, "route")
        self._stage_seconds = self._histogram("stage_seconds", "Parts of a recommendation.", SECONDS, "stage")
        self._answers = self._counter("recommendations", "Answers by who gave them.", "variant", "bundle", "fallback")
        self._candidates = self._histogram("candidates", "Items that retrieval brought for an answer.", COUNTS)
        self._items = self._histogram("items", "Items in an answer.", COUNTS)
        self._shed = self._counter("shed", "Requests sent away because there was no room.")
        self._swaps = self._counter("swaps", "Bundles that took over, were refused, or came back.", "outcome")
        self._events = self._counter("events", "Events that were sent in.", "outcome")
        self._item_writes = self._counter("item_writes", "Items put and removed.", "kind")
        self._ended = self._counter("connections_ended", "Connections ended before their time.", "reason")
        self._shadow_seconds = self._histogram("shadow_seconds", "Answers that nobody sees.", SECONDS, "variant")
        self._shadow_overlap = self._histogram(
            "shadow_overlap", "Share of the items shown that a shadow has too.", TENTHS, "variant"
        )
        self._shadow_refused = self._counter("shadow_refused", "Requests that only a shadow refused.", "variant")
        self._stage = {stage: self._stage_seconds.labels(stage) for stage in STAGES}
        self._request_of: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._answers_of: dict[tuple[str, str], dict[str, Counter]] = {}
        self._shadows: set[str] = set()
        self._ages = _Ages()
        self.registry.register(self._ages)

    def watch(self, *, queue_depth: Callable[[], float], in_flight: Callable[[], float]) -> None:
        """Read these whenever the figures are asked for."""
        for name, told, read in (
            ("queue_depth", "Requests that wait for their turn.", queue_depth),
            ("in_flight", "Requests that have not been answered.", in_flight),
        ):
            Gauge(f"twotower_{name}", told, registry=self.registry).set_function(read)

    def deployed(self, bundles: "Mapping[str, Bundle]") -> None:
        """From now on these answer, by variant: their age is told."""
        self._ages.deployed = {
            variant: (bundle.id, _unix(str(bundle.metadata["created"])), int(bundle.metadata["last_us"]) / 1e6)
            for variant, bundle in bundles.items()
        }

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered; `route` is a template, never a path as it was asked for."""
        of = self._request_of.get((route, status))
        if of is None:
            of = self._requests.labels(route, status), self._request_seconds.labels(route)
            self._request_of[route, status] = of
        of[0].inc()
        of[1].observe(seconds)

    def recommended(
        self,
        *,
        variant: str,
        bundle: str,
        fallback: str | None,
        timings_ms: Mapping[str, float],
        candidates: int,
        items: int,
    ) -> None:
        """A recommendation was made; stages that were skipped are not in `timings_ms`."""
        for stage, milliseconds in timings_ms.items():
            self._stage[stage].observe(milliseconds / 1000)
        of = self._answers_of.get((variant, bundle)) or self._answers_by(variant, bundle)
        of[fallback or "none"].inc()
        self._candidates.observe(candidates)
        self._items.observe(items)

    def shed(self) -> None:
        """A request was sent away."""
        self._shed.inc()

    def swap(self, outcome: Swap) -> None:
        """A bundle took over, was refused, or came back."""
        self._swaps.labels(outcome).inc()

    def events(self, *, accepted: int, duplicates: int) -> None:
        """Events were sent in."""
        self._events.labels("accepted").inc(accepted)
        self._events.labels("duplicate").inc(duplicates)

    def items(self, *, put: int, removed: int) -> None:
        """Items were written."""
        self._item_writes.labels("put").inc(put)
        self._item_writes.labels("removed").inc(removed)

    def connection_ended(self, reason: str) -> None:
        """A connection was ended; `reason` is one of those of `connection_protocol`."""
        self._ended.labels(reason).inc()

    def shadowed(self, *, variant: str, seconds: float, overlap: float | None) -> None:
        """A shadow answered: `overlap` is the share of the items shown that it has too, nothing where it refused."""
        if variant not in self._shadows:
            if len(self._shadows) >= MOST_NAMES:
                variant = "other"
            self._shadows.add(variant)
        self._shadow_seconds.labels(variant).observe(seconds)
        if overlap is None:
            self._shadow_refused.labels(variant).inc()
        else:
            self._shadow_overlap.labels(variant).observe(overlap)

    def render(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)

    def _answers_by(self, variant: str, bundle: str) -> dict[str, Counter]:
        """The counters of who answers; those of who answered first make room."""
        if len(self._answers_of) >= MOST_NAMES:
            oldest = next(iter(self._answers_of))
            for fallback in self._answers_of.pop(oldest):
                self._answers.remove(*oldest, fallback)
        counters = {name: self._answers.labels(variant, bundle, name) for name in ("none", "popular", "retrieval")}
        self._answers_of[variant, bundle] = counters
        return counters

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"twotower_{name}", told, labels, registry=self.registry)

    def _histogram(self, name: str, told: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(f"twotower_{name}", told, labels, registry=self.registry, buckets=tuple(buckets))


class _Ages(Collector):
    """How old each bundle that answers is, and the log that it learned from."""

    def __init__(self) -> None:
        self.deployed: dict[str, tuple[str, float, float]] = {}
        """Variant -> the bundle's id, when it was made, and when its log ended, both in seconds since 1970."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        bundle_age = GaugeMetricFamily(
            "twotower_bundle_age_seconds", "Since it was made.", labels=("variant", "bundle")
        )
        log_age = GaugeMetricFamily("twotower_log_age_seconds", "Since its log ended.", labels=("variant", "bundle"))
        now = time.time()
        for variant, (bundle, created, log_end) in self.deployed.items():
            bundle_age.add_metric((variant, bundle), now - created)
            log_age.add_metric((variant, bundle), now - log_end)
        yield bundle_age
        yield log_age


def _unix(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
