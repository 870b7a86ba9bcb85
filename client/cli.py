"""The command line's part that talks to a service; `deployments/cli.py` registers it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer


def watch(
    source: Annotated[
        str, typer.Argument(help="Video or image file, folder of images, camera:0, or a URL.")
    ],
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="What to look for.")],
    target: Annotated[
        str, typer.Option(help="The service, host:port; start one with `groundstream serve`.")
    ] = "127.0.0.1:50051",
    output: Annotated[
        Path | None, typer.Option(help="Write the annotated video here (.mp4).")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per event, no table.")
    ] = False,
) -> None:
    """Stream a video to a running service and show its answers."""
    from client.watch import watch_source

    asyncio.run(watch_source(source, queries, target=target, output=output, as_json=as_json))
