"""Puts a benchmark's questions to a pipeline, picture by picture, with a bar on the terminal.

All questions about a picture go together, so its features are computed once. Knows no benchmark
and no metric.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from agent.detections import FloatArray
from agent.frame import Frame, load_frame, read_frame
from agent.pipeline import Grounding, Pipeline
from agent.prompts import Task


@dataclass(frozen=True)
class Picture:
    """A picture and what is asked about it."""

    name: str
    """Identifies it among its benchmark's pictures."""
    source: Path | bytes
    """A file or its bytes."""
    tasks: tuple[Task, ...]
    boxes: FloatArray | None = None
    """(n, 4) xyxy pixels in place of proposals, for questions about given boxes."""


async def ask_all(
    pipeline: Pipeline, pictures: Sequence[Picture], *, title: str
) -> AsyncIterator[tuple[Picture, Grounding]]:
    """Every picture with its answers, in order; a picture without questions is passed over.

    Raises:
        InvalidFrame: a picture cannot be read.
        InvalidQuery, InvalidBoxes: the benchmark asks what cannot be asked.
    """
    # The bar goes to stderr: stdout may be carrying JSON.
    console = Console(stderr=True)
    asked = [picture for picture in pictures if picture.tasks]
    for picture in track(asked, title, console=console, disable=not sys.stderr.isatty()):
        frame = frame_of(picture.source)
        yield picture, await pipeline.ground(frame, list(picture.tasks), boxes=picture.boxes)


def frame_of(source: Path | bytes) -> Frame:
    """The picture of a file, or of its bytes.

    Raises:
        InvalidFrame: it cannot be read.
    """
    return load_frame(source) if isinstance(source, Path) else read_frame(source)


def corners(xywh: Sequence[float], width: int, height: int) -> FloatArray | None:
    """(4,) xyxy of a COCO box clipped to its picture; None if less than a pixel remains."""
    x, y, w, h = (float(value) for value in xywh[:4])
    box = np.array([max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)], np.float32)
    return box if (box[2:] - box[:2] >= 1.0).all() else None
