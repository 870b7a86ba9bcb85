"""TLS and tokens, against a real server of this process."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.errors import SettingsError
from client.channel import TlsOptions, open_channel
from client.vision_agent_client import ServiceError, VisionAgentClient
from protos import vision_agent_pb2 as pb
from protos import vision_agent_pb2_grpc as pb_grpc


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate it signed itself, for this machine."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "groundstream test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_path, certificate_path = folder / "key.pem", folder / "certificate.pem"
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_path, certificate_path


class Guarded(pb_grpc.VisionAgentServicer):
    """Answers those who know the token."""

    async def GetCapabilities(self, _request: Any, context: Any) -> pb.Capabilities:
        """Its name, or UNAUTHENTICATED."""
        metadata = dict(context.invocation_metadata())
        if metadata.get("authorization") != "Bearer secret":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        return pb.Capabilities(model_name="guarded")


@contextlib.asynccontextmanager
async def guarded_service(credentials: Any = None) -> AsyncIterator[str]:
    """Where it listens."""
    server = grpc.aio.server()
    pb_grpc.add_VisionAgentServicer_to_server(Guarded(), server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_a_token_travels_over_tls_with_every_call(tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path)
    pair = ((key.read_bytes(), certificate.read_bytes()),)
    tls = TlsOptions(root_certificates=certificate)
    async with guarded_service(grpc.ssl_server_credentials(pair)) as target:
        async with VisionAgentClient(target, tls=tls, token="secret") as client:
            assert (await client.capabilities()).model_name == "guarded"
        async with VisionAgentClient(target, tls=tls, token="wrong") as client:
            with pytest.raises(ServiceError, match="UNAUTHENTICATED"):
                await client.capabilities()
        async with VisionAgentClient(target, tls=TlsOptions(), token="secret") as client:
            with pytest.raises(ServiceError, match="UNAVAILABLE"):  # Not vouched for.
                await client.capabilities()


async def test_a_token_travels_to_this_machine_in_plain_text() -> None:
    async with guarded_service() as target, VisionAgentClient(target, token="secret") as client:
        assert (await client.capabilities()).model_name == "guarded"


async def test_but_to_no_other() -> None:
    with pytest.raises(SettingsError, match="plain text"):
        open_channel("example.org:50051", token="secret")


async def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.pem"):
        open_channel("127.0.0.1:1", tls=TlsOptions(root_certificates=tmp_path / "nowhere.pem"))
