"""The `groundstream` command. Each command imports what it needs when it runs, so help is quick."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from agent.devices import checked_device
from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.server_settings import TlsSettings

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "serve_config.yaml"


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
    model: Annotated[str | None, typer.Option(help="'pocket' or a checkpoint folder.")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, cuda:1 ...", callback=lambda device: device and checked_device(device)
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option(help="Allow other machines to connect without encryption.")
    ] = False,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="Encrypt, with this certificate chain (PEM).")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
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
    stop_with_parent: Annotated[
        bool, typer.Option(help="End when the process that started this one is gone.")
    ] = False,
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
    from deployments.local_service import LocalService, override, serve_forever

    loaded = load_serve_config(config)
    settings = override(
        loaded,
        host=host,
        port=port,
        model=model,
        device=device,
        insecure=insecure,
        observe=console is not None,
        tls=_tls(tls_certificate, tls_key, tls_client_ca),
        api_keys=api_keys,
    )
    service = LocalService(settings, logs=logs, report=typer.echo)
    with console_beside(settings.service.server, console):
        serve_forever(service, report=typer.echo, stop_with_parent=stop_with_parent)


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
    from deployments.api_keys import add_api_key

    typer.echo(add_api_key(keys, name=name or tenant, tenant=tenant))


def doctor(
    config: Annotated[
        Path,
        typer.Option(help="The settings to check with.", show_default="serve_config.yaml"),
    ] = DEFAULT_CONFIG,
) -> None:
    """Check this installation and say what to fix; exit status 1 when something is wrong."""
    from deployments.doctor import examine

    findings = examine(config)
    for finding in findings:
        typer.echo(finding.line)
    raise typer.Exit(0 if all(finding.is_well for finding in findings) else 1)


def demo() -> None:
    """Start the service, stream the shipped videos through it, and show what it answered."""
    from client.demo import run_demo

    raise typer.Exit(run_demo())


def _show_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(f"groundstream {importlib.metadata.version('groundstream')}")
        raise typer.Exit


def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show it.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Of no command."""


def build_app() -> typer.Typer:
    """All commands of the package under one name."""
    from agent.benchmark_cli import eval_app
    from agent.cli import ground, model_app
    from client.cli import health, watch
    from deployments.console.command import console
    from deployments.training_cli import train_app

    app = typer.Typer(
        help="Find named things in pictures and video streams.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    app.command()(ground)
    app.command()(watch)
    app.command()(serve)
    app.command()(console)
    app.command()(health)
    app.command()(doctor)
    app.command()(key)
    app.command()(demo)
    app.add_typer(eval_app, name="eval")
    app.add_typer(model_app, name="model")
    app.add_typer(train_app, name="train")
    _hide_type_of_flags(app)
    return app


class _Command(TyperCommand):
    """Its help shows no type beside flags, which take no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See the base class."""
        return _without_type_of_flags(super().get_params(ctx))


class _Group(TyperGroup):
    """As `_Command`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See the base class."""
        return _without_type_of_flags(super().get_params(ctx))


def _without_type_of_flags(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


def _hide_type_of_flags(app: typer.Typer) -> None:
    app.info.cls = _Group
    for command in app.registered_commands:
        command.cls = _Command
    for group in app.registered_groups:
        group.cls = _Group
        if group.typer_instance is not None:
            _hide_type_of_flags(group.typer_instance)


def main() -> None:
    """Run the command line; an error the caller can mend is one line and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        build_app()()
    except AgentError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
