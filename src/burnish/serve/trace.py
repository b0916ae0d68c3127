"""OpenTelemetry traces, where the environment asks for them (OTEL_TRACES_EXPORTER=otlp or console) and the package is installed.

A request is a span `infer` with two children, `queue` and `compute`; it continues the trace that the header `traceparent` names. Whatever
else OpenTelemetry reads from the environment (endpoint, service name, sampling) holds.
"""

from __future__ import annotations

import os
import time
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from burnish.errors import ServeError


def wanted() -> bool:
    return os.environ.get("OTEL_TRACES_EXPORTER", "none") not in ("", "none")


def missing() -> str | None:
    """None, or the sentence that says what is not installed."""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        return "OTEL_TRACES_EXPORTER asks for traces, which need OpenTelemetry. Install it: pip install 'burnish[trace]'"
    return None


class Spans:
    """The spans of one worker. Exported by a thread of OpenTelemetry's own."""

    def __init__(self) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = os.environ["OTEL_TRACES_EXPORTER"]
        name = {"otlp": "otlp_proto_http"}.get(name, name)
        found = [point for point in entry_points(group="opentelemetry_traces_exporter") if point.name == name]
        if not found:
            raise ServeError(
                f"no OpenTelemetry exporter {name!r} is installed: pip install 'burnish[trace]', or set OTEL_TRACES_EXPORTER=console"
            )
        resource = Resource.create() if "OTEL_SERVICE_NAME" in os.environ else Resource.create({"service.name": "burnish"})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
        self._tracer = self._provider.get_tracer("burnish")
        self._propagator = TraceContextTextMapPropagator()

    def request(self, model: Any, rows: int, key: str, parent: str | None, times: tuple[float, float, float]) -> None:
        """One request that was scored. `times`: arrival, beginning and end of its scoring, as time.perf_counter tells them."""
        from opentelemetry.trace import set_span_in_context

        ahead = time.time() - time.perf_counter()
        arrived, computing, computed = (round(1e9 * (ahead + t)) for t in times)
        context = self._propagator.extract({"traceparent": parent}) if parent else None
        facts = {"burnish.model": model.name, "burnish.version": model.version, "burnish.rows": rows, "burnish.request_id": key}
        whole = self._tracer.start_span("infer", context, attributes=facts, start_time=arrived)
        inside = set_span_in_context(whole)
        for name, begin, end in (("queue", arrived, computing), ("compute", computing, computed)):
            self._tracer.start_span(name, inside, start_time=begin).end(end)
        whole.end(computed)

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()
