"""The whole service behind mutual TLS and API keys: real processes, the real command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.cli import build_app
from deployments.local.service_process import ServiceProcess
from groundstream import aio
from groundstream.channel import TlsOptions
from groundstream.errors import NotAuthenticated
from groundstream.rpc_errors import ServiceError
from tests.certificates import Authority
from tests.integration.conftest import ROOT, write_fake_config
from tests.pictures import encoded_image

_READY_S = 120.0


async def test_the_command_serves_those_with_a_certificate_and_a_key(
    empty_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path, "authority")
    server, own = authority.sign("service"), authority.sign("robot")
    keys = tmp_path / "keys.yaml"
    made = CliRunner().invoke(build_app(), ["key", "acme", "--keys", str(keys)])
    key = made.stdout.strip()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("REDIS_URL", raising=False)
    options = [
        "--config", write_fake_config(empty_model, tmp_path), "--host", "127.0.0.1",
        "--tls-certificate", server.chain, "--tls-key", server.key,
        "--tls-client-ca", authority.path, "--api-keys", keys, "--logs", tmp_path / "logs",
    ]  # fmt: skip
    with ServiceProcess([str(option) for option in options]) as service:
        tls = TlsOptions(authority.path, own.chain, own.key)
        async with aio.Client(service.target, tls=tls, token=key) as client:
            await client.wait_until_ready(_READY_S)
            assert (await client.ground(encoded_image(1), ["dog"]))["dog"].detections
        async with aio.Client(service.target, tls=tls, token="guess") as client:
            with pytest.raises(NotAuthenticated):
                await client.capabilities()
        nobody = TlsOptions(authority.path)
        async with aio.Client(service.target, tls=nobody, token=key) as client:
            with pytest.raises(ServiceError, match="UNAVAILABLE"):
                await client.capabilities()
    logs = [path.read_text(errors="replace") for path in (tmp_path / "logs").rglob("*.*")]
    assert logs
    assert not [text for text in logs if key in text or "guess" in text]
