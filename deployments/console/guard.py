"""What stands before every request of the console: whose it is, and what the browser may do.

A console speaks to the service with its own credentials, so a stranger's web page must not
be able to use it through a visitor's browser: requests are refused unless they come from the
console's own page (`Origin`) and name an address of it (`Host`; a foreign name that was made to
resolve to this machine is DNS rebinding). Knows no gRPC.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "groundstream-console"
_HEADERS = {
    # No script or style but our own files; pico draws its icons from data: addresses.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Guard:
    """ASGI middleware."""

    app: ASGIApp
    key: str | None
    """Who opens `/?key=...` gets a cookie, without which nothing is shown; None: not needed."""
    hosts: frozenset[str] | None
    """Names in the browser's address bar under which the console answers; None: any."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it here."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _hostname(host) not in self.hosts:
            return PlainTextResponse(f"this console is not {host}", 421)
        origin = headers.get("origin")
        if origin is None and scope["type"] == "websocket":
            return PlainTextResponse("only the console's own page may connect", 403)
        if origin is not None and _netloc(origin) != host:
            return PlainTextResponse("only the console's own page may ask", 403)
        return None if self.key is None else self._stranger(scope, headers, self.key)

    def _stranger(self, scope: Scope, headers: Headers, key: str) -> Response | None:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        if scope["type"] == "http" and scope["path"] == "/" and _equal(given, key):
            # Without the key in the address, where it would stay in the history.
            welcome = RedirectResponse("/", 303)
            secure = scope["scheme"] == "https"
            welcome.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=secure)
            return welcome
        if _equal(_cookie(headers), key):
            return None
        return PlainTextResponse("open the address that the console printed when it started", 401)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
        await send(message)

    return sending


def _netloc(origin: str) -> str:
    """Nothing's, where it is no address at all."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _equal(given: str, key: str) -> bool:
    return hmac.compare_digest(given.encode(), key.encode())
