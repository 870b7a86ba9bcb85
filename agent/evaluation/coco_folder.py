"""Reading a folder of images with a COCO annotation file. Knows no model and no metric."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.detections import FloatArray
from agent.errors import SourceError


@dataclass(frozen=True)
class CocoImage:
    """One annotated image; crowd regions are left out."""

    image_id: int
    path: Path
    width: int
    height: int
    xyxy: FloatArray
    """(num_objects, 4) pixels."""
    category: tuple[int, ...]
    """(num_objects,) category ids."""


@dataclass(frozen=True)
class CocoFolder:
    """Images and category names."""

    images: tuple[CocoImage, ...]
    categories: dict[int, str]
    raw: dict[str, list[dict[str, Any]]]
    """The parsed annotation file, for evaluation tools that want it whole."""


def load_coco(images: Path, annotations: Path, *, limit: int | None = None) -> CocoFolder:
    """The first `limit` images of an annotation file.

    Raises:
        SourceError: the file is not COCO JSON, or an image it names does not exist.
    """
    try:
        raw = json.loads(annotations.read_text())
        entries = sorted(raw["images"], key=lambda entry: entry["id"])[:limit]
        categories = {int(c["id"]): str(c["name"]) for c in raw["categories"]}
        objects: dict[int, list[dict[str, Any]]] = {}
        for annotation in raw["annotations"]:
            if not annotation.get("iscrowd", 0):
                objects.setdefault(annotation["image_id"], []).append(annotation)
        found = tuple(_image(images, entry, objects.get(entry["id"], [])) for entry in entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{annotations} is not a COCO annotation file ({error!r})") from error
    for image in found:
        if not image.path.is_file():
            raise SourceError(f"{image.path} does not exist; does --images name the right folder?")
    return CocoFolder(found, categories, raw)


def _image(folder: Path, entry: dict[str, Any], objects: list[dict[str, Any]]) -> CocoImage:
    boxes = np.array([o["bbox"] for o in objects], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    path = folder / entry["file_name"]
    if not path.is_file() and (folder / path.name).is_file():
        path = folder / path.name
    return CocoImage(
        int(entry["id"]), path, int(entry["width"]), int(entry["height"]), boxes,
        tuple(int(o["category_id"]) for o in objects),
    )  # fmt: skip
