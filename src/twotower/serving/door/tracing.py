"""Traces by OpenTelemetry: a span for each request under the caller's own, and below it one for each stage.

Spans are made when a request is over, from what is known of it by then: where nobody asks for them, they cost nothing.
"""

import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from twotower.errors import MissingExtraError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Either of them in the environment asks for traces."""
STAGES = ("queue", "query", "retrieval", "ranking")
"""In the order in which they follow each other."""
ATTRIBUTES = {
    "method": "http.request.method",
    "route": "http.route",
    "request_id": "twotower.request_id",
    "bundle": "twotower.bundle",
    "variant": "twotower.variant",
    "fallback": "twotower.fallback",
}
"""Of a request's state -> as a span has it; never a user, an item or a path as it was asked for."""
MAX_TRACEPARENT = 128
"""Characters of a header that is worth reading."""
END_S = 3.0
"""How long the last spans may take to be sent when the server ends."""


class Tracing:
    """Sends the spans of requests that are over."""

    def __init__(self, provider: "TracerProvider") -> None:
        """Make spans by a provider of the SDK."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("twotower", version("twotower"))
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def open(cls, environment: Mapping[str, str], *, endpoint: str | None = None) -> "Tracing | None":
        """Send spans to a collector that speaks OTLP over HTTP; nothing where neither argument names one.

        The SDK reads the other variables of the environment that OpenTelemetry knows, such as those for sampling.

        Args:
            environment: As `os.environ`.
            endpoint: The collector's address, as in `http://localhost:4318`; goes before the environment's.

        Raises:
            MissingExtraError: OpenTelemetry is not installed.
        """
        if endpoint is None and not any(environment.get(name) for name in ENDPOINTS):
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as fault:
            raise MissingExtraError(
                f'{fault.name} is not installed, and traces need it: pip install "twotower[telemetry]"'
            ) from fault
        known = {"service.version": version("twotower")}
        if not environment.get("OTEL_SERVICE_NAME"):
            known["service.name"] = "twotower"
        provider = TracerProvider(resource=Resource.create(known), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def request(self, state: Mapping[str, Any], status: int, seconds: float) -> None:
        """A request is over; see `door.Finished`. Its stages are those of `timings_ms`, if the state has them."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        end = time.time_ns()
        begin = end - int(seconds * 1e9)
        attributes: dict[str, str | int] = {
            ATTRIBUTES[name]: state[name] for name in ATTRIBUTES if state.get(name) is not None
        }
        span = self._tracer.start_span(
            f"{state['method']} {state['route']}",
            context=self._caller(state),
            kind=SpanKind.SERVER,
            attributes={**attributes, "http.response.status_code": status},
            start_time=begin,
        )
        if span.is_recording():
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            self._stages(state.get("timings_ms", {}), set_span_in_context(span), begin=begin)
        span.end(end)

    def close(self) -> None:
        """Send what has not been sent, as long as that takes no longer than `END_S`."""
        # The SDK would try for half a minute where nobody listens.
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(END_S)

    def _stages(self, timings_ms: Mapping[str, float], parent: "Context", *, begin: int) -> None:
        """One span for each stage, where it was: they follow each other from the request's begin."""
        for stage in STAGES:
            if stage in timings_ms:
                span = self._tracer.start_span(stage, context=parent, start_time=begin)
                begin += int(timings_ms[stage] * 1e6)
                span.end(begin)

    def _caller(self, state: Mapping[str, Any]) -> "Context":
        given = state.get("traceparent", "")
        return self._propagator.extract({"traceparent": given} if len(given) <= MAX_TRACEPARENT else {})
