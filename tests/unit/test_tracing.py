"""One span per answer with children per stage, in the client's trace where it brings one."""

from __future__ import annotations

import asyncio
import builtins
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agent.server_settings import ObserveSettings
from deployments.observability.tracing import Tracing, open_tracing
from groundstream import aio
from groundstream.errors import SettingsError
from groundstream.events import KeyframeAnswer
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from tests.handles import remote_pipeline
from tests.in_process import conversation, running_service
from tests.pictures import encoded_image

_STAGES = {"proposal", "primary_encoder", "auxiliary_encoder", "language"}
_TRACE, _PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def recorded() -> tuple[Tracing, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider), exporter


async def test_a_call_is_one_span_with_its_stages_in_the_clients_trace(recorded) -> None:
    tracing, exporter = recorded
    async with (
        running_service(grounder=remote_pipeline, tracing=tracing) as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        request = pb.GroundRequest(
            frame=pb.Frame(encoded_image=encoded_image(1)), queries=[pb.Query(text="dog")]
        )
        metadata = (
            ("traceparent", f"00-{_TRACE}-{_PARENT}-01"), ("x-request-id", "robot-7"),
        )  # fmt: skip
        await pb_grpc.VisionAgentStub(channel).Ground(request, metadata=metadata)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"ground"} | _STAGES
    answer = spans["ground"]
    assert f"{answer.context.trace_id:032x}" == _TRACE
    assert f"{answer.parent.span_id:016x}" == _PARENT
    assert answer.attributes["groundstream.request_id"] == "robot-7"
    for name in _STAGES:
        assert spans[name].parent.span_id == answer.context.span_id
    assert "dog" not in "".join(span.to_json() for span in spans.values())


async def test_a_stream_is_one_span_for_each_key_frame(recorded) -> None:
    tracing, exporter = recorded
    async with (
        running_service(grounder=remote_pipeline, tracing=tracing) as service,
        aio.Client(service.target) as client,
        conversation(client, "dog") as talk,
    ):
        for number in range(3):
            talk.send(number)
            assert not isinstance(await talk.next(), KeyframeAnswer)
        talk.end()
        await talk.rest()
    spans = exporter.get_finished_spans()
    answers = [span for span in spans if span.name == "keyframe"]
    assert len(answers) == 3
    assert len({span.context.trace_id for span in answers}) == 3
    for answer in answers:
        own = answer.context.span_id
        assert "language" in [s.name for s in spans if s.parent and s.parent.span_id == own]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What OpenTelemetry's own collector listens for."""

    def __init__(self) -> None:
        self.services: set[str] = set()
        self.spans: list[str] = []

    async def Export(self, request: Any, _context: Any) -> Any:
        for resource in request.resource_spans:
            self.services |= {
                about.value.string_value
                for about in resource.resource.attributes
                if about.key == "service.name"
            }
            self.spans += [span.name for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_spans_reach_a_collector() -> None:
    server, collector = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tracing = open_tracing(ObserveSettings(traces=f"http://127.0.0.1:{port}"), version="1")
    async with (
        running_service(grounder=remote_pipeline, tracing=tracing) as service,
        aio.Client(service.target) as client,
    ):
        await client.ground(encoded_image(1), ["dog"])
    await asyncio.to_thread(tracing.close)  # Sends what waits, to this very loop.
    await server.stop(None)
    assert set(collector.spans) == {"ground"} | _STAGES
    assert collector.services == {"groundstream"}


def test_without_a_collector_nothing_is_recorded() -> None:
    with open_tracing(ObserveSettings(), version="1").call(()):
        pass


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("opentelemetry.exporter.otlp"):
            raise ImportError(name, name=name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r"groundstream\[traces\]"):
        open_tracing(ObserveSettings(traces="http://127.0.0.1:4317"), version="1")
