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
    rerun: Annotated[Path | None, typer.Option(help="Write a Rerun recording here (.rrd).")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per event, no table.")
    ] = False,
    every_frame: Annotated[
        bool, typer.Option(help="Have the model answer every frame it can; no tracking between.")
    ] = False,
    max_age_ms: Annotated[
        float, typer.Option(help="Refuse answers older than this; 0: any age.", min=0.0)
    ] = 0.0,
    tls_ca: Annotated[
        Path | None, typer.Option(help="Encrypt, trusting this certificate authority (PEM).")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Sent with every call.", envvar="GROUNDSTREAM_TOKEN", show_envvar=True),
    ] = None,
) -> None:
    """Stream a video to a running service and show its answers."""
    from client.channel import TlsOptions
    from client.types import AnswerMode, StreamPolicy
    from client.vision_agent_client import VisionAgentClient
    from client.watch import watch_source

    mode = AnswerMode.GROUND if every_frame else AnswerMode.FOLLOW
    policy = StreamPolicy(mode=mode, max_age_ms=max_age_ms)
    tls = None if tls_ca is None else TlsOptions(root_certificates=tls_ca)

    async def run() -> None:
        async with VisionAgentClient(target, tls=tls, token=token) as client:
            await watch_source(
                client, source, queries, policy=policy, output=output, rerun=rerun, as_json=as_json
            )

    asyncio.run(run())
