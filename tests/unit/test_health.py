"""`groundstream health`, as a container's health check calls it."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from deployments.cli import build_app
from deployments.local.service_process import free_port
from groundstream.errors import SettingsError

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("", 0, "serving"),
        ("pocket", 1, "not serving"),
        ("other", 1, "knows nothing called 'other'"),
    ],
)
async def test_exit_status_by_name(name: str, status: int, said: str) -> None:
    servicer = health.aio.HealthServicer()
    await servicer.set("", SERVING)
    await servicer.set("pocket", NOT_SERVING)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    command = ["health", f"127.0.0.1:{port}", "--name", name]
    result = await asyncio.to_thread(CliRunner().invoke, build_app(), command)
    await server.stop(None)
    assert result.exit_code == status, result.output
    assert said in result.output


def test_a_name_that_is_no_text() -> None:
    result = CliRunner().invoke(build_app(), ["health", "--name", "a\udcff"])
    assert isinstance(result.exception, SettingsError)


def test_nobody_there() -> None:
    target = f"127.0.0.1:{free_port()}"
    result = CliRunner().invoke(build_app(), ["health", target, "--timeout-s", "2"])
    assert result.exit_code == 1
    assert f"no answer from {target}" in result.output
