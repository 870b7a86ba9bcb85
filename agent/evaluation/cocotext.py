"""COCO-Text region OCR: the true box of a word is given, the answer says what is written there.

Benchmark: Veit et al. (arXiv 1601.07140), second edition: `cocotext.v2.json` of bgshih/cocotext
with `imgs`, `anns` and `imgToAnns`. Words that are legible, machine printed, English and not empty
are asked, which is what readers of printed words are tested on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.detections import FloatArray
from agent.evaluation.asking import Picture, ask_all, corners
from agent.evaluation.tally import Tally
from agent.evaluation.text_match import edit_similarity
from agent.pipeline import Pipeline
from agent.prompts import Task
from groundstream.errors import SourceError

_ASKED = {"legibility": "legible", "class": "machine printed", "language": "english"}


@dataclass(frozen=True)
class WrittenImage:
    """An image and the words in it."""

    path: Path
    boxes: FloatArray
    """(num_words, 4) xyxy pixels."""
    words: tuple[str, ...]


def load_cocotext(
    annotations: Path, images: Path, *, split: str = "val", limit: int | None = None
) -> tuple[WrittenImage, ...]:
    """The first `limit` images of a split that have a word to be asked for.

    Raises:
        SourceError: the file is not COCO-Text's, or no image has such a word.
    """
    found = []
    try:
        raw = json.loads(annotations.read_text())
        for key, entry in raw["imgs"].items():
            if entry["set"] != split:
                continue
            written = [raw["anns"][str(number)] for number in raw["imgToAnns"].get(key, [])]
            asked = [
                (corners(word["bbox"], entry["width"], entry["height"]), word["utf8_string"])
                for word in written
                if word.get("utf8_string") and all(word[k] == v for k, v in _ASKED.items())
            ]
            kept = [(box, text) for box, text in asked if box is not None]
            if kept:
                boxes = np.array([box for box, _ in kept], dtype=np.float32)
                texts = tuple(str(text) for _, text in kept)
                found.append(WrittenImage(images / entry["file_name"], boxes, texts))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{annotations} is not a COCO-Text file ({error!r})") from error
    if not found:
        raise SourceError(f"{annotations} has no legible word in split {split!r}")
    return tuple(found[:limit])


async def evaluate_cocotext(pipeline: Pipeline, data: tuple[WrittenImage, ...]) -> Tally:
    """`exact` (case counts), `exact_caseless` and `edit_similarity`, averaged over words."""
    pictures = [
        Picture(str(number), image.path,
                tuple(Task.read_region(index) for index in range(len(image.boxes))), image.boxes)
        for number, image in enumerate(data)
    ]  # fmt: skip
    tally = Tally()
    async for picture, grounding in ask_all(pipeline, pictures, title="words"):
        for answer, word in zip(grounding.answers, data[int(picture.name)].words, strict=True):
            said = answer.reply.strip()
            tally.add(picture.name, "exact", said == word)
            tally.add(picture.name, "exact_caseless", said.casefold() == word.casefold())
            tally.add(picture.name, "edit_similarity", edit_similarity(said, word))
    return tally
