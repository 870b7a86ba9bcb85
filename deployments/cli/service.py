"""Commands that run a service on this machine, or prepare one: serve, doctor, key, demo."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from deployments.cli.options import (
    USUAL_MODEL,
    ModelChoice,
    StopWithParentOption,
    TlsKeyOption,
    takes_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.chosen_model import ChosenModel
    from agent.server_settings import TlsSettings
    from agent.settings import ServiceSettings

T = TypeVar("T")

DEFAULT_CONFIG = Path(str(files("deployments"))) / "serve_config.yaml"
"""The shipped settings, which are part of the package."""


@takes_model
def serve(
    config: Annotated[
        Path,
        typer.Option(
            help="Serve config file with every operational number.",
            show_default="serve_config.yaml",
        ),
    ] = DEFAULT_CONFIG,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", min=1, max=65535)] = None,
    chosen: ModelChoice = USUAL_MODEL,
    insecure: Annotated[
        bool, typer.Option(help="Allow other machines to connect without encryption.")
    ] = False,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="Encrypt, with this certificate chain (PEM).")
    ] = None,
    tls_key: TlsKeyOption = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(help="Let in only clients whose certificate this authority signed (PEM)."),
    ] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help="Let in only calls with a key from this list.")
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(help="Keep the logs of all processes in this folder.")
    ] = None,
    stop_with_parent: StopWithParentOption = False,
    console: Annotated[
        int | None,
        typer.Option(
            help="Show the console in browsers of this machine, on this port.", min=1, max=65535
        ),
    ] = None,
) -> None:
    """Start the whole service on this machine and serve until Ctrl-C."""
    from agent.settings import load_serve_config
    from deployments.console.server import console_beside
    from deployments.local.supervisor import LocalService, serve_forever

    loaded = load_serve_config(config)
    ready = _chosen(loaded.service, chosen, report=typer.echo)
    settings = _replaced(
        replace(loaded.service, model=ready.model, proposal_network=ready.proposal_network),
        device=chosen.device,
        dtype=chosen.dtype,
        as_published=chosen.as_published or None,
        server=_replaced(
            loaded.service.server,
            host=host,
            port=port,
            insecure=insecure or None,
            observe=console is not None or None,
            tls=_tls(tls_certificate, tls_key, tls_client_ca),
        ),
        # The front end may run in another folder than the one the path was typed in.
        access=_replaced(loaded.service.access, api_keys=api_keys and str(api_keys.resolve())),
        stream=_replaced(
            loaded.service.stream,
            max_new_tokens=chosen.max_new_tokens or _longest(loaded.service, chosen),
        ),
    )
    service = LocalService(replace(loaded, service=settings), logs=logs, report=typer.echo)
    with console_beside(settings.server, console):
        serve_forever(service, report=typer.echo, stop_with_parent=stop_with_parent)


def _replaced(settings: T, **values: object) -> T:
    """The settings with those values that were given; None: not given."""
    given = {name: value for name, value in values.items() if value is not None}
    return replace(settings, **given)  # type: ignore[type-var]


def _longest(settings: ServiceSettings, choice: ModelChoice) -> int | None:
    """What the chosen model was measured with, unless the settings say something of their own."""
    from agent.model_directory import longest_answer
    from agent.settings import StreamSettings

    if choice.model is None or settings.stream.max_new_tokens != StreamSettings.max_new_tokens:
        return None
    return longest_answer(choice.model)


def _chosen(
    settings: ServiceSettings, choice: ModelChoice, *, report: Callable[[str], object]
) -> ChosenModel:
    """The model that a service is to run, brought onto this machine.

    Args:
        settings: say what is not chosen; a proposal network belongs to the model beside it.
        choice: made on the command line.
        report: told what is fetched.

    Raises:
        CheckpointMismatch: there is no such model, or it cannot be fetched.
    """
    from agent.chosen_model import choose_model

    proposals = choice.proposals
    if proposals is None and choice.model is None:
        proposals = settings.proposal_network
    return choose_model(choice.model or settings.model, proposals, report=report)


def _tls(
    certificate: Path | None, key: Path | None, client_authorities: Path | None
) -> TlsSettings | None:
    """Settings for the files that were named; None when none was."""
    from agent.server_settings import TlsSettings

    paths = (certificate, key, client_authorities)
    if not any(paths):
        return None
    return TlsSettings(*(None if path is None else str(path.resolve()) for path in paths))


def key(
    tenant: Annotated[str, typer.Argument(help="Whose calls those with the key are.")],
    keys: Annotated[Path, typer.Option(help="The list it is added to; made if need be.")],
    name: Annotated[str, typer.Option(help="Who has the key; to find it again.")] = "",
) -> None:
    """Make an API key: shown this once, kept in the list as a digest only."""
    from deployments.front_end.api_keys import add_api_key

    typer.echo(add_api_key(keys, name=name or tenant, tenant=tenant))


@takes_model
def doctor(
    config: Annotated[
        Path,
        typer.Option(help="The settings to check with.", show_default="serve_config.yaml"),
    ] = DEFAULT_CONFIG,
    chosen: ModelChoice = USUAL_MODEL,
) -> None:
    """Check this installation, and whether its model fits; exit status 1 when something is wrong.

    The model is not loaded.
    """
    from deployments.local.doctor import examine

    findings = examine(
        config,
        model=chosen.model,
        device=chosen.device,
        dtype=chosen.dtype,
        proposal_network=chosen.proposals,
    )
    for finding in findings:
        typer.echo(finding.line)
    raise typer.Exit(0 if all(finding.is_well for finding in findings) else 1)


def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for the annotated video and picture.")
    ] = Path(),
    config: Annotated[
        Path | None,
        typer.Option(help="The service's settings.", show_default="serve_config.yaml"),
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(help="Folder of videos and labels in place of the shipped ones.")
    ] = None,
) -> None:
    """Start the service, stream the shipped videos through it, and show what it answered."""
    from deployments.demo.run import VIDEOS, run_demo

    raise typer.Exit(run_demo(videos or VIDEOS, output, config))
