"""Settings of the front end: where it listens, who may call and how much; part of `agent.settings`.

Secrets are never settings: what stands here are paths of the files that hold them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from agent.checked_settings import (
    Count,
    CountOrNone,
    NonNegative,
    Port,
    Positive,
    Share,
    checked,
)
from groundstream.errors import SettingsError


@checked
@dataclass(frozen=True)
class TlsSettings:
    """Paths of PEM files; all None: plain text."""

    certificate_chain: str | None = None
    """The service's own certificate, then those that vouch for it."""
    private_key: str | None = None
    """Of the certificate's first entry."""
    client_authorities: str | None = None
    """Set: mutual TLS, where only clients whose certificate these authorities signed get in."""

    def __post_init__(self) -> None:
        if bool(self.certificate_chain) != bool(self.private_key):
            raise SettingsError("server.tls needs certificate_chain and private_key together")
        if self.client_authorities and not self.enabled:
            raise SettingsError("server.tls.client_authorities needs a certificate_chain of ours")

    @property
    def enabled(self) -> bool:
        """Whether anything is encrypted."""
        return self.certificate_chain is not None


@checked
@dataclass(frozen=True)
class ServerSettings:
    """The gRPC front end."""

    host: str = "127.0.0.1"
    """Address to listen on; other machines reach 0.0.0.0 or ::."""
    port: Port = 50051
    """Shared by the front-end replicas of one node."""
    max_message_bytes: Count = 33_554_432
    """Hard limit of one gRPC message; above the frame limit, so that ours speaks first."""
    max_concurrent_rpcs: Count = 256
    """Open calls and streams per front-end replica. For one more, a silent one of whoever has most
    ends; where all work, the newcomer is refused with RESOURCE_EXHAUSTED."""
    silent_s: Positive = 5.0
    """A call on which nothing came and nothing was done for so long may end for a newcomer."""
    max_fields_bytes: Count = 262_144
    """Of one message without its picture."""
    max_waiting_calls: Count = 128
    """Calls whose first message has not come; for one more, the oldest of whoever has most ends."""
    first_message_s: Positive = 30.0
    """A call whose first message has not come by then, picture and all, ends."""
    max_health_calls: Count = 64
    """Health checks at a time, and as many calls that watch it, beside all other calls."""
    max_connections: Count = 1024
    """Per front-end replica; fewer where the system allows fewer descriptors."""
    connection_idle_s: Positive = 300.0
    """A connection without calls is closed after this long; clients open another by themselves."""
    drain_grace_s: NonNegative = 5.0
    """Time given to open streams when a replica goes away."""
    reflection: bool = True
    """Tell tools such as grpcurl the service's messages."""
    observe: bool = False
    """Callers may look on at open streams of their own tenant, pictures and all."""
    insecure: bool = False
    """Listen without TLS on an address that other machines reach."""
    tls: TlsSettings = field(default_factory=TlsSettings)

    @property
    def address(self) -> str:
        """host:port, an IPv6 host in brackets."""
        return joined_address(self.host, self.port)

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the address; a name may come to mean any."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check_address(self) -> None:
        """Refuse to be heard by other machines in plain text, unless told to.

        Raises:
            SettingsError: other machines reach the address, and there is neither TLS nor
                permission to do without.
        """
        if not (self.is_local or self.tls.enabled or self.insecure):
            raise SettingsError(
                f"{self.host} can be reached by other machines and nothing would be encrypted: "
                "set server.tls (--tls-certificate, --tls-key), or say --insecure to do without"
            )


@checked
@dataclass(frozen=True)
class JwtSettings:
    """JSON Web Tokens of somebody else's making; all three are needed."""

    keys: str | None = None
    """Path of a JSON Web Key Set with the issuer's public keys."""
    issuer: str | None = None
    """What the claim `iss` must be."""
    audience: str | None = None
    """What the claim `aud` must be, or hold."""
    tenant_claim: str = "tenant"
    """The claim that says whose call it is."""
    leeway_s: NonNegative = 10.0
    """How far the issuer's clock may be from ours."""

    def __post_init__(self) -> None:
        given = [self.keys, self.issuer, self.audience]
        if any(given) and not all(given):
            raise SettingsError("access.jwt needs keys, issuer and audience together")


@checked
@dataclass(frozen=True)
class QuotaSettings:
    """What one tenant may use of the whole service; without a number, all there is."""

    streams: CountOrNone = None
    """Open at a time."""
    frames_per_s: Positive | None = None
    """Of all streams and calls together."""
    pixels_per_s: Positive | None = None
    """Of their pictures, as they are sent."""
    prompts_per_s: Positive | None = None
    """Questions the language model is asked: each counts once for every hundred boxes."""


@checked
@dataclass(frozen=True)
class AccessSettings:
    """Who may call, and how much. Without keys, tokens and mutual TLS everybody may."""

    api_keys: str | None = None
    """Path of a YAML list of keys, made by `groundstream key`."""
    jwt: JwtSettings = field(default_factory=JwtSettings)
    reload_s: Positive = 5.0
    """Changes of the files with keys are noticed after this long."""
    quota: QuotaSettings = field(default_factory=QuotaSettings)
    """Of every tenant that `quotas` does not name."""
    quotas: Mapping[str, QuotaSettings] = field(default_factory=dict)
    """By tenant."""
    burst_s: Positive = 1.0
    """What was not used may be used later, as far as it is worth so many seconds."""
    lease_ttl_s: Positive = 15.0
    """Streams of a replica that was killed count for this long."""


@checked
@dataclass(frozen=True)
class ObserveSettings:
    """What the service tells those who look after it; never what clients sent."""

    metrics_host: str = "127.0.0.1"
    metrics_port: Port | None = 9464
    """Page for Prometheus, one per front-end replica; None: none."""
    log_format: Literal["text", "json"] = "text"
    """text, or json: one object a line, with the id of the request it is about."""
    traces: str | None = None
    """Address of an OpenTelemetry collector (OTLP over gRPC), like http://127.0.0.1:4317."""
    traced_share: Share = 1.0
    """Share of answers that become a trace where the client brings none of its own."""


def joined_address(host: str, port: int) -> str:
    """host:port, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
