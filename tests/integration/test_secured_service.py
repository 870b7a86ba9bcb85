"""The whole service behind mutual TLS and API keys, killed in the end; the real command."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.cli import build_app
from groundstream import aio
from groundstream.channel import TlsOptions
from groundstream.errors import NotAuthenticated
from groundstream.rpc_errors import ServiceError
from tests.certificates import Authority
from tests.integration.serving_process import serving_process
from tests.pictures import encoded_image

_READY_S = 120.0


async def test_the_command_serves_those_with_a_certificate_and_a_key_and_killed_leaves_nothing(
    empty_model: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "authority")
    server, own = authority.sign("service"), authority.sign("robot")
    keys = tmp_path / "keys.yaml"
    made = CliRunner().invoke(build_app(), ["key", "acme", "--keys", str(keys)])
    key = made.stdout.strip()
    options = (
        "--tls-certificate", server.chain, "--tls-key", server.key,
        "--tls-client-ca", authority.path, "--api-keys", keys,
    )  # fmt: skip
    with serving_process(empty_model, tmp_path, *options) as service:
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
        logs = [
            path.read_text(errors="replace")
            for path in service.temporary.rglob("logs/**/*.*")
            if path.is_file()
        ]
        # Nobody is left to clean up but the session itself.
        service.end(signal.SIGKILL)
    assert len(logs) > 5
    assert not [text for text in logs if key in text or "guess" in text]
