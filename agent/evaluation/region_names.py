"""LVIS and PACO region classification: the true box is given, the answer names what is in it.

Protocol: Osprey (arXiv 2312.10032; CircleRadon/Osprey, osprey/eval/lvis_paco_eval.py), with
semantic similarity and semantic IoU, which VLM-FO1 reports too. Reads Osprey's own samples
(`lvis_val_1k_category.json`, `paco_val_1k_category.json`: a list of images, each with parallel
`categories` and `annotations`) and the sets themselves (`lvis_v1_val.json`,
`paco_lvis_v1_val.json`: COCO's layout, pictures named by `coco_url` or `file_name`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from agent.detections import FloatArray
from agent.evaluation.asking import Picture, ask_all, corners
from agent.evaluation.tally import Tally
from agent.evaluation.text_match import TextEncoder, category_words, semantic_iou
from agent.pipeline import Pipeline
from agent.prompts import Task
from groundstream.errors import SourceError


@dataclass(frozen=True)
class NamedRegions:
    """An image with boxes and what is in them."""

    path: Path
    boxes: FloatArray
    """(num_regions, 4) xyxy pixels."""
    names: tuple[str, ...]


def load_named_regions(
    annotations: Path, images: Path, *, limit: int | None = None
) -> tuple[NamedRegions, ...]:
    """The first `limit` images that have a region.

    Raises:
        SourceError: the file is in neither of the two layouts.
    """
    try:
        raw = json.loads(annotations.read_text())
        found = _from_lists(raw, images) if isinstance(raw, list) else _from_coco(raw, images)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise SourceError(
            f"{annotations} is neither Osprey's sample nor an LVIS or PACO file ({error!r})"
        ) from error
    return tuple(image for image in found if len(image.boxes))[:limit]


def _from_lists(raw: list[dict[str, Any]], images: Path) -> list[NamedRegions]:
    return [
        _named(images, entry, list(zip(entry["annotations"], entry["categories"], strict=True)))
        for entry in raw
    ]


def _from_coco(raw: dict[str, Any], images: Path) -> list[NamedRegions]:
    names = {category["id"]: category["name"] for category in raw["categories"]}
    regions: dict[int, list[tuple[dict[str, Any], str]]] = defaultdict(list)
    for annotation in raw["annotations"]:
        regions[annotation["image_id"]].append((annotation, names[annotation["category_id"]]))
    return [_named(images, entry, regions[entry["id"]]) for entry in raw["images"]]


def _named(
    images: Path, entry: dict[str, Any], regions: list[tuple[dict[str, Any], str]]
) -> NamedRegions:
    name = str(entry.get("file_name") or entry["coco_url"].split("/", 3)[-1])
    # LVIS says train2017/x.jpg; a folder may hold that tree or the pictures themselves.
    path = images / name if (images / name).is_file() else images / Path(name).name
    width, height = int(entry["width"]), int(entry["height"])
    boxes = [corners(_xywh(annotation, width, height), width, height) for annotation, _ in regions]
    kept = [(box, name) for box, (_, name) in zip(boxes, regions, strict=True) if box is not None]
    return NamedRegions(
        path,
        np.array([box for box, _ in kept], dtype=np.float32).reshape(-1, 4),
        tuple(name for _, name in kept),
    )


def _xywh(annotation: dict[str, Any], width: int, height: int) -> list[float]:
    """The annotation's box, or that around its outline where it has none (Osprey's sample)."""
    if "bbox" in annotation:
        return list(annotation["bbox"])
    outline = annotation["segmentation"]
    if isinstance(outline, list):
        points = np.concatenate([np.reshape(part, (-1, 2)) for part in outline])
        low, high = points.min(axis=0), points.max(axis=0)
        return [*low, *(high - low)]
    if isinstance(outline["counts"], list):
        outline = coco_mask.frPyObjects(outline, height, width)
    return list(coco_mask.toBbox(outline))


async def evaluate_named_regions(
    pipeline: Pipeline, data: tuple[NamedRegions, ...], *, encoder: TextEncoder | None = None
) -> Tally:
    """`exact`, `semantic_iou` and, where an encoder is given, `semantic_similarity`.

    Names and answers are compared as `category_words`; similarity is the cosine of their vectors.
    """
    pictures = [
        Picture(str(number), image.path,
                tuple(Task.describe_region(index) for index in range(len(image.boxes))),
                image.boxes)
        for number, image in enumerate(data)
    ]  # fmt: skip
    tally = Tally()
    async for picture, grounding in ask_all(pipeline, pictures, title="regions"):
        names = data[int(picture.name)].names
        for answer, name in zip(grounding.answers, names, strict=True):
            said, truth = category_words(answer.reply), category_words(name)
            tally.add(picture.name, "exact", said == truth)
            tally.add(picture.name, "semantic_iou", semantic_iou(said, truth))
            if encoder is not None:
                a, b = encoder([said, truth])
                tally.add(picture.name, "semantic_similarity", float(a @ b))
    return tally
