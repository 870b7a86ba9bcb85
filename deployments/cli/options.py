"""Options that several commands share, and the pipeline that they choose."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from agent.devices import checked_device
from agent.model_directory import DEFAULT_MODEL, display_name
from agent.zoom_policy import ZoomPolicy

if TYPE_CHECKING:
    from agent.chosen_model import ChosenModel
    from agent.evaluation.tally import Tally
    from agent.pipeline import Pipeline
    from agent.proposer import Proposer

DTYPES = ("auto", "stored", "float32", "bfloat16", "float16", "int8")


def _checked_dtype(dtype: str | None) -> str | None:
    if dtype is not None and dtype not in DTYPES:
        raise typer.BadParameter(f"{dtype!r} is none of {', '.join(DTYPES)}")
    return dtype


def _checked_device(device: str | None) -> str | None:
    return device and checked_device(device)


_MODEL = typer.Option(
    help="'pocket', a checkpoint folder, or a hub name such as omlab/VLM-FO1-3B-v01, which may end "
    "in @REVISION.",
    show_default=DEFAULT_MODEL,
)
ModelOption = Annotated[str, _MODEL]
MODEL_OPTIONS: dict[str, Any] = {
    "model": Annotated[str | None, _MODEL],
    "device": Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1 ...", callback=_checked_device, show_default="cpu"),
    ],
    "dtype": Annotated[
        str | None,
        typer.Option(
            help=f"Type of the weights: {', '.join(DTYPES)}.",
            callback=_checked_dtype,
            show_default="auto",
        ),
    ],
    "proposals": Annotated[
        str | None,
        typer.Option(
            help="What proposes boxes: a hub name, a folder, UPN's .pth, or none where every "
            "request brings its own.",
            show_default="the model's own",
        ),
    ],
    "max_new_tokens": Annotated[
        int | None,
        typer.Option(
            help="Longest answer.", min=1, show_default="256; 4,096 for the published model"
        ),
    ],
    "as_published": Annotated[
        bool | None,
        typer.Option(
            "--as-published",
            help="As VLM-FO1's published code: rotary tables in bfloat16, UPN's choice of boxes.",
        ),
    ],
}
"""What every command that runs a model lets its user choose about it."""


@dataclass(frozen=True)
class ModelChoice:
    """What a user chose; None: the usual."""

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    proposals: str | None = None
    max_new_tokens: int | None = None
    as_published: bool | None = None

    @property
    def name(self) -> str:
        """What the model is called."""
        return display_name(self.model or DEFAULT_MODEL)

    @property
    def place(self) -> str:
        """Where it computes."""
        return self.device or "cpu"

    @functools.cached_property
    def ready(self) -> ChosenModel:
        """Model and proposal network, fetched and pinned if they are the hub's."""
        from agent.chosen_model import choose_model

        return choose_model(self.model or DEFAULT_MODEL, self.proposals, report=_say)

    def proposer(self, **settings: Any) -> Proposer:
        """The proposal network by itself; `settings` are those of `Proposer.from_pretrained`."""
        from agent.proposer import Proposer

        chosen = self.ready
        return Proposer.from_pretrained(
            chosen.model,
            device=self.place,
            network=chosen.proposal_network,
            as_published=bool(self.as_published),
            **settings,
        )

    def pipeline(self, *, model: str | None = None, proposals: str | None = None) -> Pipeline:
        """A ready pipeline in this process; says first that it is loading, which takes a while.

        Args:
            model: another model in place of the chosen one.
            proposals: another proposal network.
        """
        chosen = self.ready
        if model is not None or proposals is not None:
            from agent.chosen_model import choose_model

            chosen = choose_model(
                model or chosen.model, proposals or chosen.proposal_network, report=_say
            )
        _say(f"loading {display_name(chosen.model)} on {self.place} ...")
        from agent.model_directory import is_published, longest_answer
        from agent.stages import local_pipeline

        published = longest_answer(chosen.model) if is_published(chosen.model) else None
        return local_pipeline(
            chosen.model,
            device=self.place,
            dtype=self.dtype or "auto",
            proposal_network=chosen.proposal_network,
            max_new_tokens=self.max_new_tokens or published,
            as_published=bool(self.as_published),
        )


USUAL_MODEL = ModelChoice()

CocoFileOption = Annotated[Path, typer.Option(help="COCO annotation file.")]
LimitOption = Annotated[int | None, typer.Option(help="Only the first pictures.", min=1)]
JsonOption = Annotated[bool, typer.Option("--json", help="Last line: one JSON object.")]


@dataclass(frozen=True)
class BenchmarkRun(ModelChoice):
    """How a benchmark is run."""

    limit: int | None = None
    as_json: bool = False

    def show(self, title: str, measuring: Coroutine[Any, Any, Tally | dict[str, float]]) -> None:
        """Measure, and print the figures."""
        from agent.evaluation.report import print_figures

        found = asyncio.run(measuring)
        figures = found if isinstance(found, dict) else found.estimates()
        print_figures(title, figures, as_json=self.as_json)


USUAL_RUN = BenchmarkRun()
_OPTIONS: dict[type[ModelChoice], dict[str, Any]] = {
    ModelChoice: MODEL_OPTIONS,
    BenchmarkRun: {"limit": LimitOption, **MODEL_OPTIONS, "as_json": JsonOption},
}


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """The command with options in place of its one parameter that is a `ModelChoice`, or more."""
    hints = get_type_hints(command, include_extras=True)
    parameters, chosen, kind = [], "", ModelChoice
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if hint not in _OPTIONS:
            parameters.append(parameter.replace(annotation=hint))
            continue
        chosen, kind = parameter.name, hint
        for name, annotation in _OPTIONS[kind].items():
            default = getattr(parameter.default, name)
            parameters.append(
                inspect.Parameter(name, parameter.kind, default=default, annotation=annotation)
            )

    @functools.wraps(command)
    def with_options(**arguments: Any) -> None:
        choice = kind(**{name: arguments.pop(name) for name in _OPTIONS[kind]})
        command(**arguments, **{chosen: choice})

    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options


def _say(words: str) -> None:
    """Beside a command's output, which may be read by a program."""
    typer.echo(words, err=True)


TlsCaOption = Annotated[
    Path | None, typer.Option(help="Encrypt, trusting this certificate authority (PEM).")
]
TlsCertificateOption = Annotated[
    Path | None, typer.Option(help="Our own certificate, for mutual TLS (PEM).")
]
TlsKeyOption = Annotated[Path | None, typer.Option(help="Its private key (PEM).")]
TokenFileOption = Annotated[
    Path | None, typer.Option(help="File with the API key or token; or set GROUNDSTREAM_TOKEN.")
]
StopWithParentOption = Annotated[
    bool, typer.Option(help="End when the process that started this one is gone.")
]


class Protocol(StrEnum):
    """Whose way of asking and scoring a benchmark is used."""

    AUTO = "auto"
    PUBLISHED = "published"
    OWN = "own"

    def is_published(self, chosen: ModelChoice) -> bool:
        """Whether it is that of VLM-FO1's authors, which is the usual one for their model."""
        from agent.model_directory import is_published

        if self is Protocol.AUTO:
            return is_published(chosen.ready.model)
        return self is Protocol.PUBLISHED


ProtocolOption = Annotated[
    Protocol,
    typer.Option(help="Words and scores: those of VLM-FO1's authors, or this project's own."),
]
PolicyOption = Annotated[
    ZoomPolicy,
    typer.Option("--zoom", help="Look again at a part of the picture.", case_sensitive=False),
]
TokensOption = Annotated[
    int | None, typer.Option("--zoom-tokens", help="Vision tokens of second looks.", min=1)
]
ImagesOption = Annotated[Path, typer.Option(help="Folder of the pictures.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="The table as Markdown.")]
ArtworkOption = Annotated[Path, typer.Option(help="Rendered artwork.")]
CacheOption = Annotated[Path, typer.Option(help="Where composed sets and results are kept.")]
PhotographsOption = Annotated[
    Path | None, typer.Option(help="Folder of pictures in place of composed ones.")
]
AnnotationsOption = Annotated[Path | None, typer.Option(help="Their COCO annotation file.")]
NumOption = Annotated[int, typer.Option(help="Pictures of each set.", min=1)]

DEFAULT_ARTWORK = Path(".artwork")
DEFAULT_CACHE = Path(".evaluation")
