"""Options that several commands share, and the pipeline that they choose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.devices import checked_device

if TYPE_CHECKING:
    from agent.pipeline import Pipeline

ModelOption = Annotated[str, typer.Option(help="'pocket' or a checkpoint folder.")]
DtypeOption = Annotated[
    str, typer.Option(help="Type of the weights: auto, stored, float32, bfloat16, float16.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...", callback=checked_device)]

ImagesOption = Annotated[Path, typer.Option(help="Folder of the pictures.")]
LimitOption = Annotated[int | None, typer.Option(help="Only the first pictures.", min=1)]
JsonOption = Annotated[bool, typer.Option("--json", help="Last line: one JSON object.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="The table as Markdown.")]
ArtworkOption = Annotated[Path, typer.Option(help="Rendered artwork.")]
CacheOption = Annotated[Path, typer.Option(help="Where composed sets and results are kept.")]
NumOption = Annotated[int, typer.Option(help="Pictures of each set.", min=1)]

DEFAULT_ARTWORK = Path(".artwork")
DEFAULT_CACHE = Path(".evaluation")


def load_pipeline(
    model: str, device: str, dtype: str = "auto", proposals: str | None = None
) -> Pipeline:
    """A ready pipeline in this process; says first that it is loading, which takes seconds."""
    typer.echo(f"loading {model} on {device} ...", err=True)
    from agent.stages import local_pipeline

    return local_pipeline(model, device=device, dtype=dtype, proposal_network=proposals)
