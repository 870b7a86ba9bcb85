"""One OpenTelemetry span per answer, with a child for each stage; never one for a whole stream.

A call's metadata may bring the client's trace (W3C traceparent); what is answered inside the call
continues it. Which call that is follows asyncio's tasks; the stages need not be told, for what they
did comes back with the answer. Without an address of a collector nothing is imported and nothing
recorded. Spans hold names, ids and counts.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from agent.server_settings import ObserveSettings
from deployments.observability.request_context import request_id
from deployments.observability.stage_meter import WorkDone
from groundstream.errors import SettingsError

_SERVICE = "groundstream"
_HEADERS = ("traceparent", "tracestate")


@dataclass(frozen=True)
class _Call:
    """The call under way: who records, and what the client's own span is."""

    tracer: Any
    parent: Any


_call: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("traced_call", default=None)


class Tracing:
    """Records the answers of one front end; without a provider it does nothing."""

    def __init__(self, provider: Any = None) -> None:
        """`provider`: an OpenTelemetry SDK TracerProvider, or None."""
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer(_SERVICE)

    @contextlib.contextmanager
    def call(self, metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[None]:
        """Answers given inside belong to the call with this metadata."""
        if self._tracer is None:
            yield
            return
        token = _call.set(_Call(self._tracer, _clients_span(metadata)))
        try:
            yield
        finally:
            _call.reset(token)

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


@contextlib.contextmanager
def answer_span(name: str) -> Iterator[None]:
    """One answer; what the stages do inside becomes its children."""
    call = _call.get()
    if call is None:
        yield
        return
    attributes = {"groundstream.request_id": request_id()}
    with call.tracer.start_as_current_span(name, context=call.parent, attributes=attributes):
        yield


def stage_spans(work: Iterable[WorkDone], began_ns: int) -> None:
    """The calls of stages that were made elsewhere for the answer under way.

    Args:
        work: what was done.
        began_ns: when it was asked for, on `time.time_ns`'s clock; the way there is short.
    """
    call = _call.get()
    if call is None:
        return
    from opentelemetry import trace

    # Boxes for following alone are asked for outside any answer, and so are not recorded.
    if not trace.get_current_span().get_span_context().is_valid:
        return
    for done in work:
        start_ns = began_ns + round(1e9 * done.began_s)
        span = call.tracer.start_span(done.stage, start_time=start_ns)
        span.end(end_time=start_ns + round(1e9 * done.took_s))


def open_tracing(settings: ObserveSettings, *, version: str) -> Tracing:
    """As the settings say.

    Raises:
        SettingsError: traces are asked for and the optional packages are missing.
    """
    if settings.traces is None:
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise SettingsError(
            f"observe.traces needs the package {error.name}; pip install 'groundstream[traces]'"
        ) from error
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.traced_share)),
        resource=Resource.create({"service.name": _SERVICE, "service.version": version}),
    )
    exporter = OTLPSpanExporter(
        endpoint=settings.traces, insecure=settings.traces.startswith("http://")
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def _clients_span(metadata: Iterable[tuple[str, str | bytes]]) -> Any:
    """The context that the client's headers name; an empty one without."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {
        name: value for name, value in metadata if name in _HEADERS and isinstance(value, str)
    }
    return TraceContextTextMapPropagator().extract(carrier, context=Context())
