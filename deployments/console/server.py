"""The console as a process: who may reach it, and its life. Knows no page."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import uvicorn

from agent.server_settings import ServerSettings
from deployments.console.app import ConsoleSettings, build
from deployments.console.connections import PatientProtocol
from groundstream import aio
from groundstream.channel import TlsOptions
from groundstream.errors import SettingsError

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_PARENT_POLL_S = 0.5
_STOP_S = 5.0


@dataclasses.dataclass(frozen=True)
class ServiceAccess:
    """The service that the console is a client of."""

    target: str
    tls: TlsOptions | None = None
    token: str | None = None


async def run_console(
    service: ServiceAccess,
    server: ServerSettings,
    settings: ConsoleSettings,
    *,
    report: Callable[[str], object],
    stop_with_parent: bool = False,
) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Where other machines reach it, visitors need the key in the address that is reported: whoever
    sees the page asks with the console's credentials.

    Args:
        service: whose client it is.
        server: address and TLS of the page; the rest of it is not used.
        settings: what is shown; key and hosts are found here.
        report: told the address once.
        stop_with_parent: end with the process that started this one.

    Raises:
        SettingsError: other machines would reach it in plain text, and that was not allowed; the
            port is taken; or a file of places or events cannot be used.
    """
    server.check_address()
    key = None if server.is_local else secrets.token_urlsafe(24)
    hosts = _LOOPBACK_NAMES | {server.host} if server.is_local else None
    settings = dataclasses.replace(settings, key=key, hosts=hosts)
    client = aio.Client(service.target, tls=service.tls, token=service.token)
    try:
        running = uvicorn.Server(_uvicorn_config(client, server, settings))
        listening = _listen(server)
    except SettingsError:
        await client.close()
        raise
    report(f"console of {service.target} on {_address(server, key)}")
    watcher = asyncio.create_task(_end_with_parent(running)) if stop_with_parent else None
    try:
        await running.serve(sockets=[listening])
    finally:
        listening.close()
        if watcher is not None:
            watcher.cancel()


def _uvicorn_config(
    client: aio.Client, server: ServerSettings, settings: ConsoleSettings
) -> uvicorn.Config:
    return uvicorn.Config(
        build(client, settings),
        host=server.host,
        port=server.port,
        ssl_certfile=server.tls.certificate_chain,
        ssl_keyfile=server.tls.private_key,
        ws="websockets-sansio",
        ws_max_size=settings.max_upload_bytes,
        http=PatientProtocol,
        timeout_graceful_shutdown=2,
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level="warning",
    )


def _listen(server: ServerSettings) -> socket.socket:
    """Taken before the address is announced."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    try:
        return socket.create_server((server.host, server.port), family=family)
    except OSError as error:
        raise SettingsError(
            f"cannot show the console on {server.address}: {error.strerror}; give another --port"
        ) from error


def _address(server: ServerSettings, key: str | None) -> str:
    scheme = "https" if server.tls.enabled else "http"
    query = "" if key is None else f"?key={key}"
    # All addresses of this machine; its name is one that a browser can open.
    is_any = server.host in ("0.0.0.0", "::")
    where = f"{socket.gethostname()}:{server.port}" if is_any else server.address
    return f"{scheme}://{where}/{query}"


async def _end_with_parent(running: uvicorn.Server) -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(_PARENT_POLL_S)
    running.should_exit = True


@contextlib.contextmanager
def console_beside(service: ServerSettings, port: int | None) -> Iterator[None]:
    """A console of the service on this machine, as a child process; None: nothing.

    It may be there before the service and says so; it gets what a token in GROUNDSTREAM_TOKEN gets.
    """
    if port is None:
        yield
        return
    command = [sys.executable, "-m", "deployments.cli", "console", "--stop-with-parent"]
    command += ["--target", service.address, "--port", str(port)]
    if service.tls.certificate_chain is not None:
        command += ["--service-ca", service.tls.certificate_chain]
    # Ctrl-C in the terminal is ours; the child is told below.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
