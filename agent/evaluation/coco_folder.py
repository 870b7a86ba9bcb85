"""Reading a folder of images with a COCO annotation file. Knows no model and no metric.

Beyond COCO's format an image entry may list names that are surely `absent`, and an annotation names
that are `also` right for its box.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agent.detections import FloatArray, clip_boxes
from agent.frame import load_frame
from groundstream.errors import InvalidFrame, SourceError


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
    also: tuple[frozenset[str], ...] = ()
    """(num_objects,) other names that are right; empty where the file lists none for any box."""
    absent: tuple[str, ...] = ()
    """Names that the file says are not there."""
    crowds: frozenset[int] = frozenset()
    """Categories of crowd regions."""

    def also_of(self, index: int) -> frozenset[str]:
        """What else the file calls an object."""
        return self.also[index] if self.also else frozenset()

    def sound_boxes(self) -> tuple[FloatArray, tuple[int, ...]]:
        """Boxes cut to the picture, without those of which less than a pixel remains, and the
        numbers of their objects."""
        boxes = clip_boxes(self.xyxy, width=self.width, height=self.height)
        kept = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= 1.0).all(axis=1))
        return boxes[kept], tuple(kept.tolist())


@dataclass(frozen=True)
class CocoFolder:
    """Images and category names."""

    images: tuple[CocoImage, ...]
    categories: dict[int, str]
    raw: dict[str, list[dict[str, Any]]]
    """The parsed annotation file, for evaluation tools that want it whole."""
    absent_names: dict[int, str] = field(default_factory=dict)
    """Names of `absent` lists that are no categories, under numbers that no category has."""

    def name_of(self, category: int) -> str:
        """The name of a category, or of something that is absent only."""
        return self.categories.get(category) or self.absent_names[category]

    def numbers_of(self, names: Iterable[str]) -> list[int]:
        """Categories, or numbers of absent names, in order of the names."""
        number = {name: key for key, name in {**self.absent_names, **self.categories}.items()}
        return [number[name] for name in names]


def load_coco(images: Path, annotations: Path, *, limit: int | None = None) -> CocoFolder:
    """The first `limit` images of an annotation file.

    Raises:
        SourceError: the file is not COCO JSON, contradicts itself, or an image it names does not
            exist.
    """
    raw = _read(annotations)
    try:
        entries = sorted(raw["images"], key=lambda entry: entry["id"])[:limit]
        categories = {int(c["id"]): str(c["name"]) for c in raw["categories"]}
        objects: dict[int, list[dict[str, Any]]] = {}
        for annotation in raw["annotations"]:
            objects.setdefault(annotation["image_id"], []).append(annotation)
        found = tuple(_image(images, entry, objects.get(entry["id"], [])) for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SourceError(f"{annotations} is not a COCO annotation file ({error!r})") from error
    if len({image.image_id for image in found}) < len(found):
        raise SourceError(f"{annotations} has several images of one id; ids must differ")
    if not images.is_dir() and found:
        raise SourceError(f"{images} is not a folder; give the one of the pictures with --images")
    for image in found:
        if not image.path.is_file():
            raise SourceError(f"{image.path} does not exist; does --images name the right folder?")
        _check(image, categories, annotations)
    extra = sorted({name for image in found for name in image.absent} - set(categories.values()))
    first = min([0, *categories]) - 1
    return CocoFolder(found, categories, raw, {first - k: name for k, name in enumerate(extra)})


def open_coco(images: Path, annotations: Path, *, limit: int | None = None) -> CocoFolder:
    """The same, every picture looked at: for those who load a model next.

    Raises:
        SourceError: see `load_coco` and `check_pictures`.
    """
    data = load_coco(images, annotations, limit=limit)
    check_pictures(data)
    return data


def check_pictures(data: CocoFolder) -> None:
    """Open every picture once, so that a long run does not end at a broken one.

    Raises:
        SourceError: there is none, one cannot be read, or has another size than its annotations.
    """
    if not data.images:
        raise SourceError("the annotation file lists no pictures; nothing can be measured")
    for image in data.images:
        try:
            frame = load_frame(image.path)
        except InvalidFrame as error:
            raise SourceError(f"{image.path}: {error}; replace it or leave it out") from error
        if (frame.width, frame.height) != (image.width, image.height):
            raise SourceError(
                f"{image.path} is {frame.width}x{frame.height}, its annotations are of "
                f"{image.width}x{image.height}; their boxes would be elsewhere"
            )


def _read(annotations: Path) -> dict[str, Any]:
    try:
        raw = json.loads(annotations.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(
            f"{annotations} cannot be read ({error.strerror}); give a COCO annotation file"
        ) from error
    except ValueError as error:
        raise SourceError(f"{annotations} is not a COCO annotation file ({error})") from error
    if not isinstance(raw, dict):
        raise SourceError(f"{annotations} is not a COCO annotation file (it holds no object)")
    return raw


def _image(folder: Path, entry: dict[str, Any], listed: list[dict[str, Any]]) -> CocoImage:
    objects = [o for o in listed if not o.get("iscrowd", 0)]
    if not all(_is_box(o["bbox"]) for o in listed):
        raise ValueError(f"image {entry['id']} has a bbox that is not four numbers")
    boxes = np.array([o["bbox"] for o in objects], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    path = folder / entry["file_name"]
    if not path.is_file() and (folder / path.name).is_file():
        path = folder / path.name
    named = any("also" in o for o in objects)
    return CocoImage(
        int(entry["id"]), path, int(entry["width"]), int(entry["height"]), boxes,
        tuple(int(o["category_id"]) for o in objects),
        tuple(frozenset(_names(o.get("also", []))) for o in objects) if named else (),
        tuple(_names(entry.get("absent", []))),
        frozenset(int(o["category_id"]) for o in listed if o.get("iscrowd", 0)),
    )  # fmt: skip


def _is_box(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(side, int | float) and math.isfinite(side) for side in value)
    )


def _names(listed: object) -> list[str]:
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{listed!r} is not a list of names")
    return list(dict.fromkeys(listed))


def _check(image: CocoImage, categories: dict[int, str], annotations: Path) -> None:
    unknown = sorted(set(image.category) - set(categories))
    if unknown:
        raise SourceError(
            f"{annotations}: image {image.image_id} has objects of category {unknown[0]}, which "
            "is not among the file's categories"
        )
    present = {categories[c] for c in image.category}.union(*image.also)
    both = sorted(present & set(image.absent))
    if both:
        raise SourceError(
            f"{annotations}: image {image.image_id} lists {both[0]!r} as absent, but has a box of "
            "that name"
        )
