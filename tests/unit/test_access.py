"""Who gets in and who does not: keys, web tokens and certificates at the real server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from agent.server_settings import AccessSettings, JwtSettings, ServerSettings, TlsSettings
from deployments.front_end.api_keys import add_api_key, digest_of, read_api_keys
from deployments.front_end.reloaded_file import ReloadedFile
from groundstream import aio
from groundstream.channel import TlsOptions
from groundstream.errors import NotAuthenticated, SettingsError
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.rpc_errors import ServiceError
from groundstream.types import FrameResult, Query
from tests.certificates import Authority, Certificate
from tests.fakes import SECRET
from tests.in_process import SETTINGS, Service, conversation, running_service
from tests.pictures import encoded_image

ISSUER, AUDIENCE = "https://issuer.example", "groundstream"


# ---- web tokens ----


class Issuer:
    """Makes tokens and publishes its public key."""

    def __init__(self, folder: Path, name: str = "key-1") -> None:
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        public = jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        self.path = folder / f"{name}.json"
        self.path.write_text(json.dumps({"keys": [public | {"kid": name, "use": "sig"}]}))

    def token(self, key: Any = None, algorithm: str = "ES256", **claims: Any) -> str:
        """A good token, but for what is told; None leaves a claim out."""
        good = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 60, "tenant": "acme"}
        said = {name: value for name, value in (good | claims).items() if value is not None}
        return jwt.encode(
            said, self.key if key is None else key, algorithm, headers={"kid": self.name}
        )


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    """Whose tokens are accepted."""
    return Issuer(tmp_path_factory.mktemp("issuer"))


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of API keys, empty but for one whose key nobody has."""
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    add_api_key(path, name="lost", tenant="nobody")
    return path


@contextlib.asynccontextmanager
async def guarded(
    *,
    access: AccessSettings | None = None,
    server: ServerSettings | None = None,
) -> AsyncIterator[Service]:
    """A service that asks for credentials."""
    settings = dataclasses.replace(
        SETTINGS, access=access or AccessSettings(), server=server or SETTINGS.server
    )
    async with running_service(settings=settings) as service:
        yield service


def tokens_of(issuer: Issuer, **more: Any) -> AccessSettings:
    """Settings that accept an issuer's tokens."""
    settings = JwtSettings(keys=str(issuer.path), issuer=ISSUER, audience=AUDIENCE, leeway_s=0.0)
    return AccessSettings(jwt=settings, **more)


async def verdict(target: str, token: str | None, **options: Any) -> str:
    """What the service says to a call: the name of its model, or why not."""
    async with aio.Client(target, token=token, **options) as client:
        try:
            return (await client.capabilities()).model_name
        except NotAuthenticated as error:
            return f"refused: {error}"


async def test_web_tokens(issuer: Issuer, tmp_path: Path) -> None:
    stranger = Issuer(tmp_path)
    cases = [
        (issuer.token(), "fake"),
        (issuer.token(aud=["other", AUDIENCE]), "fake"),
        (issuer.token(exp=time.time() - 1), "refused: the token has expired"),
        (issuer.token(nbf=time.time() + 60), "refused: the token is not valid yet"),
        (issuer.token(aud="other"), "refused: the token is meant for another audience"),
        (issuer.token(aud=None), "refused: the token lacks one of"),
        (issuer.token(iss="https://evil.example"), "refused: the token is from another issuer"),
        (issuer.token(iss=None), "refused: the token lacks one of"),
        (issuer.token(exp=None), "refused: the token lacks one of"),
        (issuer.token(tenant=None), "refused: the token has no claim 'tenant'"),
        (issuer.token(tenant=""), "refused: the token has no claim 'tenant'"),
        (issuer.token(tenant=7), "refused: the token has no claim 'tenant'"),
        (issuer.token(tenant="x" * 300), "refused: the token has no claim 'tenant'"),
        (stranger.token(), "refused: the token's signature"),
        (issuer.token() + "x", "refused: the token's signature"),
        ("a.b.c", "refused: the token's signature"),
        ("", "refused: "),
        (None, "refused: the call has no credentials"),
        ("gsk_unknown", "refused: this key is not known"),
    ]
    async with guarded(access=tokens_of(issuer)) as service:
        for token, expected in cases:
            said = await verdict(service.target, token)
            assert said.startswith(expected), (token, said)


async def test_a_token_cannot_choose_its_algorithm(issuer: Issuer) -> None:
    public = issuer.path.read_bytes()
    forged = [
        issuer.token(key="", algorithm="none"),
        # The public key as the secret of a symmetric algorithm: everybody has it.
        issuer.token(key=public + b"-" * 32, algorithm="HS256"),
        issuer.token(key=rsa.generate_private_key(65537, 2048), algorithm="RS256"),
    ]
    async with guarded(access=tokens_of(issuer)) as service:
        for token in forged:
            assert (await verdict(service.target, token)).startswith("refused")


async def test_a_stream_ends_when_its_token_does(issuer: Issuer) -> None:
    token = issuer.token(exp=int(time.time()) + 2)
    async with (
        guarded(access=tokens_of(issuer)) as service,
        aio.Client(service.target, token=token) as client,
        conversation(client, "dog") as talk,
    ):
        talk.send(0)
        assert isinstance(await talk.next(), FrameResult)
        with pytest.raises(NotAuthenticated, match="expired; come back"):
            await talk.next()
        async with asyncio.timeout(5):
            while service.metrics.num_open_streams:
                await asyncio.sleep(0.01)


# ---- API keys ----


async def test_api_keys(key_file: Path) -> None:
    key = add_api_key(key_file, name="robot", tenant="acme")
    assert key not in key_file.read_text()
    assert digest_of(key) in key_file.read_text()
    assert key_file.stat().st_mode & 0o077 == 0
    async with guarded(access=AccessSettings(api_keys=str(key_file))) as service:
        assert await verdict(service.target, key) == "fake"
        for wrong in (None, "", key[:-1], key + "x", digest_of(key), "a.b.c"):
            assert (await verdict(service.target, wrong)).startswith("refused")


async def test_every_method_but_health_asks(key_file: Path) -> None:
    async with (
        guarded(access=AccessSettings(api_keys=str(key_file))) as service,
        aio.Client(service.target) as client,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        for call in (client.ground(b"", ["dog"]), client.stats(), client.capabilities()):
            with pytest.raises(NotAuthenticated):
                await call
        for stream in (client.ask(b"", "dog"), client.ground_anytime(b"", ["dog"])):
            with pytest.raises(NotAuthenticated):
                async for _ in stream:
                    pass
        with pytest.raises(NotAuthenticated):
            async with conversation(client, "dog"):
                pass
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        # Refused before the question, or after it.
        with contextlib.suppress(grpc.aio.AioRpcError):
            await reflect.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await reflect.read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        health = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest())
        assert service.metrics.totals().frames_received == 0


async def test_reflection_answers_those_who_may_ask(service: Service) -> None:
    async with grpc.aio.insecure_channel(service.target) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = [one.name for one in (await call.read()).list_services_response.service]
        await call.done_writing()
    assert "vision_agent.v1.VisionAgent" in names


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", "Basic abc"),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer a"), ("authorization", "Bearer b")),
    ],
)
async def test_other_schemes_are_refused(
    key_file: Path, metadata: tuple[tuple[str, str], ...]
) -> None:
    access = AccessSettings(api_keys=str(key_file))
    async with (
        guarded(access=access) as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        call = channel.unary_unary("/vision_agent.v1.VisionAgent/GetStats")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"", metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_key_that_was_taken_out_is_no_longer_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0
    path = tmp_path / "file"
    path.write_text("one")
    file = ReloadedFile(path, lambda content: content.decode(), reload_s=5.0, clock=lambda: now_s)
    path.write_text("three")
    assert file.value() == "one"  # Not looked at yet.
    now_s = 5.0
    assert file.value() == "three"
    path.write_bytes(b"\xff")
    now_s = 10.0
    assert file.value() == "three"
    assert "still holds" in caplog.text
    path.unlink()
    now_s = 15.0
    assert file.value() == "three"


@pytest.mark.parametrize(
    "content", [b"{", b"3", b"- {name: a}", b"- {name: a, tenant: b, sha256: c, more: d}", b"\xff"]
)
async def test_a_damaged_list_of_keys_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"keys\.yaml"):
        async with guarded(access=AccessSettings(api_keys=str(path))):
            pass


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"keys": [{"kty": "EC"}]}', b"\xff"])
async def test_a_damaged_key_set_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(content)
    jwt_settings = JwtSettings(keys=str(path), issuer=ISSUER, audience=AUDIENCE)
    with pytest.raises(SettingsError, match=r"jwks\.json"):
        async with guarded(access=AccessSettings(jwt=jwt_settings)):
            pass


# ---- TLS ----


@dataclasses.dataclass(frozen=True)
class Keyring:
    """Certificates of the service, of clients, and of strangers."""

    authority: Authority
    stranger: Authority
    server: Certificate

    def settings(self, *, mutual: bool, server: Certificate | None = None) -> ServerSettings:
        """A front end that encrypts."""
        pair = server or self.server
        authorities = str(self.authority.path) if mutual else None
        tls = TlsSettings(str(pair.chain), str(pair.key), authorities)
        return dataclasses.replace(SETTINGS.server, tls=tls)

    def options(self, own: Certificate | None = None) -> TlsOptions:
        """A client that trusts the authority."""
        if own is None:
            return TlsOptions(self.authority.path)
        return TlsOptions(self.authority.path, own.chain, own.key)


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    """Made once."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder, "authority")
    return Keyring(authority, Authority(folder, "stranger"), authority.sign("service"))


async def test_a_token_travels_over_tls(keyring: Keyring, key_file: Path) -> None:
    key = add_api_key(key_file, name="robot", tenant="acme")
    server, access = keyring.settings(mutual=False), AccessSettings(api_keys=str(key_file))
    async with guarded(server=server, access=access) as service:
        assert await verdict(service.target, key, tls=keyring.options()) == "fake"
        assert (await verdict(service.target, "no", tls=keyring.options())).startswith("refused")


async def test_clients_do_not_talk_to_strangers(keyring: Keyring, tmp_path: Path) -> None:
    expired = keyring.authority.sign("expired", valid_h=-1.0)
    for certificate in (keyring.stranger.sign("evil"), expired):
        server = keyring.settings(mutual=False, server=certificate)
        async with guarded(server=server) as service:
            with pytest.raises(ServiceError, match="UNAVAILABLE"):
                await verdict(service.target, None, tls=keyring.options())


async def test_plain_text_gets_no_answer_from_an_encrypting_service(keyring: Keyring) -> None:
    async with guarded(server=keyring.settings(mutual=False)) as service:
        with pytest.raises(ServiceError, match="UNAVAILABLE"):
            await verdict(service.target, None)


async def test_mutual_tls(keyring: Keyring) -> None:
    cases = [
        (keyring.options(), "none"),
        (keyring.options(keyring.stranger.sign("acme-forged")), "of another authority"),
        (keyring.options(keyring.authority.sign("acme-old", valid_h=-1.0)), "expired"),
    ]
    async with guarded(server=keyring.settings(mutual=True)) as service:
        own = keyring.options(keyring.authority.sign("acme"))
        assert await verdict(service.target, None, tls=own) == "fake"
        for options, what in cases:
            with pytest.raises(ServiceError, match="UNAVAILABLE"):
                assert not await verdict(service.target, None, tls=options), what


async def test_a_missing_certificate_is_named(keyring: Keyring) -> None:
    server = keyring.settings(mutual=False, server=Certificate(Path("no.pem"), Path("no.key")))
    with pytest.raises(SettingsError, match=r"no\.key"):
        async with guarded(server=server):
            pass


# ---- where it listens ----


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "robot.local", ""])
def test_no_plain_text_for_other_machines(host: str) -> None:
    settings = ServerSettings(host=host)
    with pytest.raises(SettingsError, match="--insecure"):
        settings.check_address()
    dataclasses.replace(settings, insecure=True).check_address()
    dataclasses.replace(settings, tls=TlsSettings("chain.pem", "key.pem")).check_address()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machine_may_talk_to_itself(host: str) -> None:
    ServerSettings(host=host).check_address()


def test_an_ipv6_address_is_written_in_brackets() -> None:
    assert ServerSettings(host="::1", port=7).address == "[::1]:7"


@pytest.mark.parametrize(
    "make",
    [
        lambda: TlsSettings(certificate_chain="a"),
        lambda: TlsSettings(private_key="a"),
        lambda: TlsSettings(client_authorities="a"),
        lambda: JwtSettings(keys="a", issuer="b"),
        lambda: JwtSettings(audience="a"),
    ],
)
def test_half_a_setting_is_refused(make: Any) -> None:
    with pytest.raises(SettingsError, match="need"):
        make()


# ---- tenants ----


async def test_tenants_share_neither_features_nor_sessions(key_file: Path) -> None:
    keys = [add_api_key(key_file, name=name, tenant=name) for name in ("acme", "umbrella")]
    async with (
        guarded(access=AccessSettings(api_keys=str(key_file))) as service,
        aio.Client(service.target, token=keys[0]) as acme,
        aio.Client(service.target, token=keys[1]) as umbrella,
    ):
        picture = encoded_image(3)
        assert not (await acme.ground(picture, ["dog"])).cache_hit
        assert (await acme.ground(picture, ["dog"])).cache_hit
        assert not (await umbrella.ground(picture, ["dog"])).cache_hit

        together = await asyncio.gather(
            *(client.ground(encoded_image(4), ["dog"]) for client in (acme, umbrella))
        )
        assert [result.cache_hit for result in together] == [False, False]

        async with conversation(acme, "dog") as talk:
            talk.send(0)
            await talk.next()
            service.agent.draining.set()  # Saves the session and ends the stream.
            await talk.rest()
            token = talk.openings[0].resume_token
        service.agent.draining.clear()
        assert not await resumes(umbrella, token)
        assert await resumes(acme, token)


async def resumes(client: aio.Client, token: str) -> bool:
    """Whether a session goes on."""
    call = client._stub.Watch()
    await call.write(pb.WatchRequest(open=pb.OpenStream(resume_token=token)))
    opened = (await call.read()).opened
    await call.write(pb.WatchRequest(end=pb.End()))
    return bool(opened.resumed)


# ---- logs ----


async def test_logs_hold_no_secrets_and_no_payloads(
    key_file: Path, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    key = add_api_key(key_file, name="robot", tenant="acme")
    expired = issuer.token(exp=time.time() - 5)
    access = tokens_of(issuer, api_keys=str(key_file))
    words = "a purple elephant on a bicycle"
    with caplog.at_level(logging.DEBUG):
        async with guarded(access=access) as service:
            for token in (expired, "gsk_guessed", issuer.token(tenant=None)):
                assert (await verdict(service.target, token)).startswith("refused")
            async with aio.Client(service.target, token=key) as client:
                await client.ground(encoded_image(1), [Query(words)])
                with pytest.raises(ServiceError):
                    await client.ground(encoded_image(1), [Query(f"crash {words}")])
    assert "refused a call" in caplog.text
    assert SECRET in caplog.text  # The bug itself is told, for those who run the service.
    for secret in (key, expired, "gsk_guessed", words, "Bearer", "JFIF"):
        assert secret not in caplog.text


@pytest.mark.parametrize("ending", ["", "\n", "\n\n", "  # old"])
def test_a_key_is_added_whatever_the_last_line_ends_in(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "keys.yaml"
    first = add_api_key(path, name="a", tenant="one")
    path.write_text(path.read_text().rstrip("\n") + ending)
    second = add_api_key(path, name="b", tenant="two")
    assert set(read_api_keys(path.read_bytes())) == {digest_of(first), digest_of(second)}


@pytest.mark.parametrize(("name", "tenant"), [("a\udcff", "one"), ("a", "one\udcff"), ("a", "")])
def test_no_key_is_made_for_nobody(tmp_path: Path, name: str, tenant: str) -> None:
    with pytest.raises(SettingsError):
        add_api_key(tmp_path / "keys.yaml", name=name, tenant=tenant)
    assert not (tmp_path / "keys.yaml").exists()


@pytest.mark.parametrize("content", ["[]", "keys: 1", "- name: a", "{", "words"])
def test_no_key_is_added_to_what_is_no_list_of_keys(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError, match="no list of keys"):
        add_api_key(path, name="a", tenant="one")
    assert path.read_text() == content
