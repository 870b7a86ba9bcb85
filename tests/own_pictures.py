"""Small annotated folders of pictures, in the formats people have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "red square"}, {"id": 9, "name": "blue_square"},
              {"id": 11, "name": "green square"}]  # fmt: skip
_COLOURS = {7: (220, 30, 30), 9: (30, 30, 220), 11: (30, 200, 30)}


def write_picture(path: Path, size: tuple[int, int], squares: list[dict[str, Any]]) -> None:
    """Squares on noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(squares)).integers(90, 160, (size[1], size[0], 3))
    rgb = noise.astype(np.uint8)
    for square in squares:
        x, y, w, h = (int(value) for value in square["bbox"])
        rgb[max(0, y) : y + h, max(0, x) : x + w] = _COLOURS[square["category_id"]]
    Image.fromarray(rgb).save(path)


def write_coco(folder: Path, *, num_images: int = 6) -> Path:
    """Pictures of two shapes with two or three squares each; returns the annotation file."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, num_images + 1):
        size = (160, 120) if number % 2 else (90, 130)
        squares = []
        for category in rng.choice([7, 9, 11], size=2 + number % 2).tolist():
            side = int(rng.integers(24, 44))
            x, y = (int(rng.integers(0, limit - side)) for limit in size)
            squares.append({"category_id": category, "bbox": [x, y, side, side], "iscrowd": 0})
        name = f"{number:03}.png"
        write_picture(folder / "images" / name, size, squares)
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for square in squares:
            square |= {"id": len(annotations) + 1, "image_id": number}
            annotations.append(square)
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    return write_json(folder / "annotations.json", document)


def write_json(path: Path, document: Any) -> Path:
    """The document's path."""
    path.write_text(json.dumps(document))
    return path
