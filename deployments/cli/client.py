"""Commands that talk to a running service: watch, cameras, console, health."""

from __future__ import annotations

import asyncio
import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli.options import (
    StopWithParentOption,
    TlsCaOption,
    TlsCertificateOption,
    TlsKeyOption,
    TokenFileOption,
)
from groundstream.types import DEFAULT_TARGET

if TYPE_CHECKING:
    from groundstream.channel import TlsOptions


def watch(
    source: Annotated[
        str,
        typer.Argument(
            help="Video or image file, folder of images, camera:0, a URL, a robot's recording "
            "(.mcap, rosbag2), or - for standard input."
        ),
    ],
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="What to look for.")],
    target: Annotated[
        str, typer.Option(help="The service, host:port; start one with `groundstream serve`.")
    ] = DEFAULT_TARGET,
    output: Annotated[
        Path | None, typer.Option(help="Write the annotated video here (.mp4).")
    ] = None,
    rerun: Annotated[Path | None, typer.Option(help="Write a Rerun recording here (.rrd).")] = None,
    bag: Annotated[
        Path | None,
        typer.Option(
            help="Write a robot's recording here, pictures and vision_msgs/Detection2DArray: a new "
            "folder, rosbag2 with MCAP."
        ),
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option(help="Add what happens to this file, one JSON object a line (.jsonl)."),
    ] = None,
    zone: Annotated[
        list[str] | None,
        typer.Option(
            help="A part of the picture to tell events of: NAME=x1,y1;x2,y2;x3,y3 in shares of the "
            "picture, NAME=px:x1,y1;... in pixels; as often as wanted."
        ),
    ] = None,
    line: Annotated[
        list[str] | None,
        typer.Option(help="A line to tell crossings of: NAME=x1,y1;x2,y2 or NAME=px:x1,y1;x2,y2."),
    ] = None,
    dwell: Annotated[
        float | None,
        typer.Option(help="Tell of things that are in a zone for so many seconds.", min=0.0),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per event, no table.")
    ] = False,
    every_frame: Annotated[
        bool, typer.Option(help="Have the model answer every frame it can; no tracking between.")
    ] = False,
    max_age_ms: Annotated[
        float, typer.Option(help="Refuse answers older than this; 0: any age.", min=0.0)
    ] = 0.0,
    patience: Annotated[
        float | None,
        typer.Option(
            help="Wait so many seconds for a service that is not there, or went away; 0: for ever.",
            show_default="10 at the start, 180 later",
            min=0.0,
        ),
    ] = None,
    source_patience: Annotated[
        float | None,
        typer.Option(
            help="Open a camera or stream again for so many seconds when it is lost; 0: at once "
            "an error.",
            show_default="for ever",
            min=0.0,
        ),
    ] = None,
    decode: Annotated[
        bool,
        typer.Option(
            "--decode",
            help="Decode here and send pictures; else H.264 and H.265 go to the service as they "
            "are, where nothing is drawn and nothing must be turned.",
        ),
    ] = False,
    tls_ca: TlsCaOption = None,
    tls_certificate: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Stream a video to a running service and show its answers.

    Exit status 0: the source has ended. 2: it was lost, or the service.
    """
    from deployments.local.event_file import EventFile
    from deployments.local.watch import watch_source
    from groundstream import aio
    from groundstream.channel import find_token
    from groundstream.event_detector import EventDetector
    from groundstream.locations import shown_location
    from groundstream.types import AnswerMode, StreamPolicy
    from groundstream.video.sources import Reopen
    from groundstream.zones import line_from_text, zone_from_text

    if events is None and (zone or line or dwell is not None):
        raise typer.BadParameter("--zone, --line and --dwell need --events FILE")
    zones = [zone_from_text(text, dwell_s=dwell) for text in zone or ()]
    lines = [line_from_text(text) for text in line or ()]

    mode = AnswerMode.GROUND if every_frame else AnswerMode.FOLLOW
    policy = StreamPolicy(mode=mode, max_age_ms=max_age_ms)
    tls, token = _tls(tls_ca, tls_certificate, tls_key), find_token(token_file)

    async def run(event_file: EventFile | None) -> None:
        async with aio.Client(target, tls=tls, token=token) as client:
            await watch_source(
                client,
                source,
                queries,
                policy=policy,
                output=output,
                rerun=rerun,
                bag=bag,
                events=event_file,
                as_json=as_json,
                patience_s=math.inf if patience == 0.0 else patience,
                reopen=Reopen() if source_patience is None else Reopen(source_patience),
                decode=decode,
            )

    with contextlib.ExitStack() as stack:
        event_file = None
        if events is not None:
            detector = EventDetector(zones, lines, stream=shown_location(source))
            event_file = stack.enter_context(EventFile(events, detector))
        asyncio.run(run(event_file))


def cameras(
    file: Annotated[
        Path,
        typer.Argument(help="Says which cameras, what to look for and whom to tell (.yaml)."),
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Only say what is wrong with the file.")
    ] = False,
) -> None:
    """Watch many cameras and tell others what happens; docs/cameras.md describes the file.

    Goes on until it is stopped, or until all sources have ended. The file is read again when it
    changes. Exit status 2: the file, or something that it names, cannot be used.
    """
    from groundstream.cameras.command import check_cameras, run_cameras

    if check:
        typer.echo(check_cameras(file))
    else:
        run_cameras(file)


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
    from agent.server_settings import ServerSettings, TlsSettings
    from deployments.console.app import ConsoleSettings, cameras_from_sources
    from deployments.console.server import ServiceAccess, run_console
    from groundstream.cameras.schema import read_cameras
    from groundstream.channel import find_token

    if source and not query:
        raise typer.BadParameter("say what to look for in --source with --query")
    named = {} if cameras is None else read_cameras(cameras)
    given = cameras_from_sources(source or (), query or (), taken=named)
    tls = _tls(service_ca, service_certificate, service_key)
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


def health(
    target: Annotated[str, typer.Argument(help="The service, host:port.")] = DEFAULT_TARGET,
    name: Annotated[str, typer.Option(help="'' (ready), 'live', or the name of a model.")] = "",
    timeout_s: Annotated[float, typer.Option(help="Wait so long for an answer.", min=0.1)] = 5.0,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            help="Encrypt, trusting this certificate authority (PEM).",
            envvar="GROUNDSTREAM_TLS_CA",
        ),
    ] = None,
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            help="Name in the certificate, where it is not the target's.",
            envvar="GROUNDSTREAM_TLS_SERVER_NAME",
        ),
    ] = None,
    tls_certificate: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
) -> None:
    """Ask a service how it is; exit status 0 when it serves, 1 otherwise."""
    from groundstream.health import health_of

    tls = _tls(tls_ca, tls_certificate, tls_key, tls_server_name)
    found = asyncio.run(health_of(target, name, tls=tls, timeout_s=timeout_s))
    typer.echo(found.words)
    raise typer.Exit(0 if found.is_serving else 1)


def _tls(
    authority: Path | None,
    certificate: Path | None,
    key: Path | None,
    server_name: str | None = None,
) -> TlsOptions | None:
    """How to encrypt; None: not at all, for neither an authority nor a certificate is given."""
    from groundstream.channel import TlsOptions

    if authority is None and certificate is None:
        return None
    return TlsOptions(authority, certificate, key, server_name)
