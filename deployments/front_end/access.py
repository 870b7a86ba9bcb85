"""Who is calling: API keys, JSON Web Tokens and client certificates become a tenant.

What a caller sent is never logged and never repeated to it. Knows no RPC and no message.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from agent.server_settings import AccessSettings, JwtSettings
from agent.settings import ServiceSettings
from deployments.front_end.api_keys import digest_of, read_api_keys
from deployments.front_end.reloaded_file import ReloadedFile
from groundstream.errors import NotAuthenticated

_SCHEME = "bearer "
_COMMON_NAME = "x509_common_name"
_REQUIRED_CLAIMS = ["exp", "iss", "aud"]
_MAX_TENANT_CHARS = 200

AuthContext = Mapping[str, Sequence[bytes]]
Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Caller:
    """Whose call it is."""

    tenant: str
    until_s: float | None = None
    """Unix time at which its credentials lapse; None: never."""


_CALLER: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")


@contextlib.contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """What runs in this context, and every task it starts, is the caller's."""
    token = _CALLER.set(caller)
    try:
        yield
    finally:
        _CALLER.reset(token)


def current_tenant() -> str:
    """Whose call is being answered; LookupError outside of calls that were let in."""
    return _CALLER.get().tenant


def tenant_or_empty() -> str:
    """The same, and empty where the service works for itself, as it does to warm up."""
    caller = _CALLER.get(None)
    return "" if caller is None else caller.tenant


class Access:
    """Lets callers in."""

    def __init__(self, settings: AccessSettings, *, anonymous: str, mutual_tls: bool) -> None:
        """Read the files with keys.

        Args:
            settings: which credentials are accepted.
            anonymous: the tenant of everybody, where no credentials are asked for.
            mutual_tls: whether clients have certificates, which name the tenant where there are
                neither keys nor tokens.

        Raises:
            SettingsError: a file cannot be read.
        """
        self.num_refused = 0
        """Calls that were not let in, as the interceptor counts them."""
        self._anonymous = anonymous
        self._mutual_tls = mutual_tls
        self._api_keys = None
        if settings.api_keys is not None:
            path = Path(settings.api_keys)
            self._api_keys = ReloadedFile(path, read_api_keys, reload_s=settings.reload_s)
        self._tokens = None
        if settings.jwt.keys is not None:
            self._tokens = _WebTokens(settings.jwt, reload_s=settings.reload_s)

    @property
    def is_open(self) -> bool:
        """Whether everybody may call."""
        return not (self._api_keys or self._tokens or self._mutual_tls)

    def caller(self, metadata: Metadata, auth_context: AuthContext) -> Caller:
        """Whose call it is.

        Args:
            metadata: of the call; lower-case names.
            auth_context: what the connection knows of the client.

        Raises:
            NotAuthenticated: the caller may not call.
        """
        if self._api_keys is None and self._tokens is None:
            return self._certified(auth_context) if self._mutual_tls else Caller(self._anonymous)
        token = _bearer(metadata)
        # A web token has two dots, an API key none.
        if self._tokens is not None and token.count(".") == 2:
            return self._tokens.caller(token)
        known = self._api_keys.value().get(digest_of(token)) if self._api_keys else None
        if known is None:
            raise NotAuthenticated("this key is not known here; ask who runs the service for one")
        return Caller(known.tenant)

    def _certified(self, auth_context: AuthContext) -> Caller:
        names = auth_context.get(_COMMON_NAME) or ()
        name = names[0].decode(errors="replace") if names else ""
        if not name:
            raise NotAuthenticated("the client's certificate has no common name to go by")
        return Caller(name)


def open_access(settings: ServiceSettings) -> Access:
    """As the service's settings say.

    Raises:
        SettingsError: a file with keys cannot be read.
    """
    mutual_tls = settings.server.tls.client_authorities is not None
    return Access(settings.access, anonymous=settings.tenant, mutual_tls=mutual_tls)


class _WebTokens:
    """Tokens of one issuer; every key belongs to exactly one algorithm."""

    def __init__(self, settings: JwtSettings, *, reload_s: float) -> None:
        assert settings.keys is not None
        self._settings = settings
        self._keys = ReloadedFile(Path(settings.keys), _read_key_set, reload_s=reload_s)

    def caller(self, token: str) -> Caller:
        """Whose token it is.

        Raises:
            NotAuthenticated: damaged, forged, too old or meant for another service.
        """
        settings = self._settings
        try:
            key = self._key(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_s,
                options={"require": _REQUIRED_CLAIMS},
            )
        except jwt.PyJWTError as error:
            raise NotAuthenticated(_reason(error)) from None
        tenant = claims.get(settings.tenant_claim)
        if not isinstance(tenant, str) or not 0 < len(tenant) <= _MAX_TENANT_CHARS:
            raise NotAuthenticated(f"the token has no claim {settings.tenant_claim!r} with a name")
        return Caller(tenant, float(claims["exp"]) + settings.leeway_s)

    def _key(self, name: object) -> jwt.PyJWK:
        keys = self._keys.value()
        if name is None and len(keys) == 1:
            return next(iter(keys.values()))
        found = keys.get(name) if isinstance(name, str) else None
        if found is None:
            raise jwt.InvalidKeyError
        return found


def _read_key_set(content: bytes) -> Mapping[str, jwt.PyJWK]:
    """Keys by name.

    Raises:
        ValueError: not a JSON Web Key Set, or one with a key that cannot be used.
    """
    try:
        loaded: Any = json.loads(content)
        keys = jwt.PyJWKSet.from_dict(loaded).keys
    except (ValueError, AttributeError, TypeError, jwt.PyJWTError):
        # What the libraries say may quote the keys.
        raise ValueError("not a JSON Web Key Set that can be used") from None
    return {key.key_id or str(number): key for number, key in enumerate(keys)}


def _bearer(metadata: Metadata) -> str:
    """The one token of a call."""
    values = [value for name, value in metadata if name == "authorization"]
    if not values:
        raise NotAuthenticated(
            "the call has no credentials; send `authorization: Bearer ...` with a key or token"
        )
    value = values[0]
    if len(values) > 1 or not isinstance(value, str) or not value.lower().startswith(_SCHEME):
        raise NotAuthenticated("authorization must be one `Bearer ...` with a key or token")
    return value[len(_SCHEME) :].strip()


def _reason(error: jwt.PyJWTError) -> str:
    """What is wrong with a token, in words that repeat nothing of it."""
    for kind, reason in (
        (jwt.ExpiredSignatureError, "the token has expired; get a new one"),
        (jwt.InvalidAudienceError, "the token is meant for another audience"),
        (jwt.InvalidIssuerError, "the token is from another issuer"),
        (jwt.ImmatureSignatureError, "the token is not valid yet"),
        (jwt.MissingRequiredClaimError, "the token lacks one of exp, iss and aud"),
    ):
        if isinstance(error, kind):
            return reason
    return "the token's signature is not by a key that is known here"
