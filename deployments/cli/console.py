"""The command that shows the console: a page for browsers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployments.cli.options import (
    StopWithParentOption,
    TlsCertificateOption,
    TlsKeyOption,
    TokenFileOption,
)
from groundstream.types import DEFAULT_TARGET


def console(
    target: Annotated[
        str, typer.Option(help="The service, host:port; start one with `groundstream serve`.")
    ] = DEFAULT_TARGET,
    host: Annotated[str, typer.Option(help="Address to show the page on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Its port.", min=1, max=65535)] = 8080,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Stream this camera or video while it runs; may be said again."),
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option(help="What to look for in it; may be said again.")
    ] = None,
    cameras: Annotated[
        Path | None,
        typer.Option(help="Stream the cameras of this file (docs/cameras.md), zones and all."),
    ] = None,
    zones: Annotated[
        Path | None,
        typer.Option(help="Keep zones and lines in this file (.yaml); else while it runs."),
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option(help="Also add events to this file, one JSON object a line."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option(help="Show the page to other machines without encryption.")
    ] = False,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="Encrypt the page, with this certificate chain (PEM).")
    ] = None,
    tls_key: TlsKeyOption = None,
    service_ca: Annotated[
        Path | None,
        typer.Option(help="Talk TLS to the service, trusting this authority (PEM)."),
    ] = None,
    service_certificate: TlsCertificateOption = None,
    service_key: TlsKeyOption = None,
    token_file: TokenFileOption = None,
    stop_with_parent: StopWithParentOption = False,
) -> None:
    """Show a page in the browser: a wall of cameras, their zones and events, a box to ask in."""
    import asyncio

    from agent.server_settings import ServerSettings, TlsSettings
    from deployments.console.app import ConsoleSettings, cameras_from_sources
    from deployments.console.server import ServiceAccess, run_console
    from groundstream.cameras.schema import read_cameras
    from groundstream.channel import TlsOptions, find_token

    if source and not query:
        raise typer.BadParameter("say what to look for in --source with --query")
    named = {} if cameras is None else read_cameras(cameras)
    given = cameras_from_sources(source or (), query or (), taken=named)
    tls = None
    if service_ca is not None or service_certificate is not None:
        tls = TlsOptions(service_ca, service_certificate, service_key)
    own_tls = TlsSettings(
        *(None if path is None else str(path) for path in (tls_certificate, tls_key))
    )
    asyncio.run(
        run_console(
            ServiceAccess(target, tls, find_token(token_file)),
            ServerSettings(host=host, port=port, insecure=insecure, tls=own_tls),
            ConsoleSettings({**named, **given}, zones, events),
            report=typer.echo,
            stop_with_parent=stop_with_parent,
        )
    )
