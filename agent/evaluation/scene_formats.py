"""Writes a COCO folder, such as composed scenes, in the formats of the other benchmarks.

Pictures stay where they are: `--images` of a benchmark is the folder they lie in.

So every benchmark can be run where its own data cannot be had, and a user's own COCO folder can be
asked in all these ways. Knows the files, no metric and no model.
"""

from __future__ import annotations

import base64
import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agent.evaluation.average_precision import xywh
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.multiple_choice import LETTERS
from agent.evaluation.text_match import words_of
from agent.frame import load_frame
from agent.training.mixture import yes_no_turns
from agent.training.referring import refer_to

_MOST = 4
"""Questions of a kind about one image."""


def write_formats(data: CocoFolder, folder: Path) -> dict[str, Path]:
    """Every format below, each in a folder of its own; returns where."""
    writers: dict[str, Callable[[CocoFolder, Path], None]] = {
        "refcoco": write_refcoco,
        "countbench": write_countbench,
        "pixmo-count": write_pixmo_count,
        "ovdeval": write_ovdeval,
        "odinw": write_odinw,
        "lvis": write_named_regions,
        "cocotext": write_cocotext,
        "ferret-bench": write_ferret_bench,
        "mmbench": write_multiple_choice,
        "pope": write_pope,
    }
    for name, write in writers.items():
        write(data, folder / name)
    return {name: folder / name for name in writers}


def write_refcoco(data: CocoFolder, folder: Path) -> None:
    """`refs(composed).json` and `instances.json`: one of several alike, or the only one."""
    refs: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, rng in _images(data, 1):
        relative = image.xyxy / np.array([image.width, image.height] * 2)
        drawn = [
            refer_to(name, indices, relative.astype(np.float32), rng)
            for name, indices in _places(data, image).items()
        ]
        for words, index in [found for found in drawn if found is not None][:_MOST]:
            number = len(refs) + 1
            annotations.append(_annotation(number, image, index))
            sentence = {"sent_id": number, "sent": words, "raw": words, "tokens": words.split()}
            refs.append(
                {
                    "ref_id": number, "ann_id": number, "image_id": image.image_id, "split": "val",
                    "category_id": image.category[index], "file_name": image.path.name,
                    "sent_ids": [number], "sentences": [sentence],
                }
            )  # fmt: skip
    _write_json(folder / "refs(composed).json", refs)
    _write_json(
        folder / "instances.json",
        _coco(data, [_entry(image) for image in data.images], annotations),
    )


def write_countbench(data: CocoFolder, folder: Path) -> None:
    """`CountBench.json` and `countbench_paired_questions.json`: the commonest thing of an image."""
    rows, questions = [], []
    for image, label, count in _counted(data, 1):
        rows.append({"image_url": image.path.name, "text": label, "number": count})
        questions.append(f"How many {label} are there in the image?")
    _write_json(folder / "CountBench.json", rows)
    _write_json(folder / "countbench_paired_questions.json", questions)


def write_pixmo_count(data: CocoFolder, folder: Path) -> None:
    """`pixmo_count.json`: a few things of every image, with their centres."""
    rows = []
    for image, label, count in _counted(data, _MOST):
        centres = [
            {"x": float(x1 + x2) / 2, "y": float(y1 + y2) / 2}
            for (x1, y1, x2, y2), category in zip(image.xyxy, image.category, strict=True)
            if data.categories[category] == label
        ]
        path = image.path.name
        rows.append({"image_url": path, "label": label, "count": count, "points": centres})
    _write_json(folder / "pixmo_count.json", rows)


def write_ovdeval(data: CocoFolder, folder: Path) -> None:
    """One sub-task: labels that are there, and absent ones that share a word with one of them."""
    numbers = {name: category for category, name in data.categories.items()}
    entries = []
    (folder / "images" / "composed").mkdir(parents=True, exist_ok=True)
    for image, rng in _images(data, 2):
        present = sorted(_places(data, image))[:_MOST]
        alike = {word for name in present for word in words_of(name)}
        absent = sorted(set(numbers) - set(_places(data, image)))
        absent = [absent[k] for k in rng.permutation(len(absent))]
        # Stable: those that share a word come first.
        absent.sort(key=lambda name: not alike & set(words_of(name)))
        texts = {"text": present, "neg_text": absent[: len(present)]}
        entries.append({**_entry(image, folder / "images" / "composed"), **texts})
    annotations = [
        _annotation(0, image, index)
        for image, entry in zip(data.images, entries, strict=True)
        for index, category in enumerate(image.category)
        if data.categories[category] in entry["text"]
    ]
    _write_json(folder / "annotations" / "composed.json", _coco(data, entries, annotations))


def write_odinw(data: CocoFolder, folder: Path) -> None:
    """Sets of five labels each, from the commonest on: three folders of COCO files."""
    common = [c for c, _ in Counter(c for i in data.images for c in i.category).most_common(15)]
    for number in range(0, len(common), 5):
        chosen = common[number : number + 5]
        images = [image for image in data.images if set(image.category) & set(chosen)]
        annotations = [
            _annotation(0, image, index)
            for image in images
            for index, category in enumerate(image.category)
            if category in chosen
        ]
        valid = folder / f"composed{number // 5}" / "valid"
        document = _coco(data, [_entry(image, valid) for image in images], annotations)
        document["categories"] = [c for c in document["categories"] if c["id"] in chosen]
        _write_json(valid / "annotations_without_background.json", document)


def write_named_regions(data: CocoFolder, folder: Path) -> None:
    """`lvis_val_category.json`, laid out as Osprey's sample; outlines are the boxes."""
    rows = []
    for image in data.images:
        outlines = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in image.xyxy.tolist()]
        names = [data.categories[category] for category in image.category]
        annotations = [{"segmentation": outline} for outline in outlines]
        rows.append({**_entry(image), "categories": names, "annotations": annotations})
    _write_json(folder / "lvis_val_category.json", rows)


def write_cocotext(data: CocoFolder, folder: Path) -> None:
    """`cocotext.v2.json` and pictures with words printed on plates over them."""
    raw: dict[str, dict[str, Any]] = {"imgs": {}, "anns": {}, "imgToAnns": {}}
    vocabulary = sorted({word for name in data.categories.values() for word in words_of(name)})
    for image, rng in _images(data, 3):
        canvas = Image.fromarray(load_frame(image.path).rgb())
        key = str(image.image_id)
        raw["imgToAnns"][key] = []
        for row in range(3):
            word = vocabulary[int(rng.integers(len(vocabulary)))]
            word = (word, word.capitalize(), word.upper())[int(rng.integers(3))]
            box = _print_word(canvas, word, row / 3, rng)
            number = len(raw["anns"]) + 1
            raw["imgToAnns"][key].append(number)
            raw["anns"][str(number)] = {
                "id": number, "image_id": image.image_id, "utf8_string": word, "bbox": box,
                "area": box[2] * box[3], "legibility": "legible", "class": "machine printed",
                "language": "english",
            }  # fmt: skip
        name = f"images/{key}.jpg"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        canvas.save(folder / name, quality=92)
        raw["imgs"][key] = {**_entry(image), "file_name": name, "set": "val"}
    _write_json(folder / "cocotext.v2.json", raw)


def _print_word(
    canvas: Image.Image, word: str, top: float, rng: np.random.Generator
) -> list[float]:
    """Print a word within the third of the picture that begins at `top`; x, y, width, height."""
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=int(rng.integers(14, 33)))
    left, up, right, down = draw.textbbox((0, 0), word, font=font)
    width, height = right - left, down - up
    x = int(rng.integers(4, max(5, canvas.width - int(width) - 4)))
    y = int((top + rng.uniform(0.05, 0.15)) * canvas.height)
    light = bool(rng.integers(2))
    plate, ink = ("white", "black") if light else ("black", "white")
    draw.rectangle((x - 3, y - 3, x + width + 3, y + height + 3), fill=plate)
    draw.text((x - left, y - up), word, font=font, fill=ink)
    return [float(x), float(y), float(width), float(height)]


def write_ferret_bench(data: CocoFolder, folder: Path) -> None:
    """`question.jsonl`, `answer.jsonl`, `context.jsonl`: what is the object in this box."""
    questions: list[dict[str, Any]] = []
    answers, contexts = [], []
    for image, rng in _images(data, 4):
        sides = np.array([image.width, image.height] * 2)
        boxes = [f"[{', '.join(f'{v:.3f}' for v in box)}]" for box in image.xyxy / sides]
        names = [data.categories[category] for category in image.category]
        things = [f"{name} {box}" for name, box in zip(names, boxes, strict=True)]
        path = image.path.name
        contexts.append({"image": path, "text": "Objects: " + "; ".join(things)})
        for index in rng.permutation(len(boxes))[:_MOST].tolist():
            number = len(questions)
            text = f"What is the object {boxes[index]}?"
            row = {"question_id": number, "image": path, "category": "refer_desc", "text": text}
            questions.append(row)
            answers.append({"question_id": number, "text": names[index]})
    for name, rows in (("question", questions), ("answer", answers), ("context", contexts)):
        _write_lines(folder / f"{name}.jsonl", rows)


def write_multiple_choice(data: CocoFolder, folder: Path) -> None:
    """`choices.tsv`: which of four things is in the image."""
    rows = []
    for image, rng in _images(data, 5):
        present = sorted(_places(data, image))
        absent = sorted(set(data.categories.values()) - set(present))
        if not present or len(absent) < 3:
            continue
        options = [str(name) for name in rng.choice(absent, size=3, replace=False)]
        answer = int(rng.integers(4))
        options.insert(answer, present[int(rng.integers(len(present)))])
        picture = base64.b64encode(image.path.read_bytes()).decode()
        rows.append(
            {
                "index": image.image_id, "question": "Which of these is in the image?", "hint": "",
                **dict(zip(LETTERS, options, strict=False)), "answer": LETTERS[answer],
                "category": "existence", "image": picture,
            }
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "choices.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["index"], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def write_pope(data: CocoFolder, folder: Path) -> None:
    """`composed_pope_random.json`: is something there, half of the questions about absent things.

    The words are those of the instruction mixture, which is how questions of this kind are put.
    """
    rows: list[dict[str, Any]] = []
    vocabulary = sorted(data.categories.values())
    for image, rng in _images(data, 6):
        names: list[str | None] = [data.categories[category] for category in image.category]
        for turn in yes_no_turns(names, vocabulary, _MOST, rng):
            rows.append(
                {
                    "question_id": len(rows) + 1, "image": image.path.name,
                    "text": turn.question, "label": turn.answer,
                }
            )  # fmt: skip
    _write_lines(folder / "composed_pope_random.json", rows)


def _images(data: CocoFolder, kind: int) -> Iterator[tuple[CocoImage, np.random.Generator]]:
    """Every image with randomness of its own, which is the same at every writing."""
    return ((image, np.random.default_rng((kind, image.image_id))) for image in data.images)


def _places(data: CocoFolder, image: CocoImage) -> dict[str, list[int]]:
    """Where each name of an image is; names with several places first."""
    places: dict[str, list[int]] = {}
    for index, category in enumerate(image.category):
        places.setdefault(data.categories[category], []).append(index)
    return dict(sorted(places.items(), key=lambda item: -len(item[1])))


def _counted(data: CocoFolder, most: int) -> Iterator[tuple[CocoImage, str, int]]:
    for image in data.images:
        for label, indices in list(_places(data, image).items())[:most]:
            yield image, label, len(indices)


def _entry(image: CocoImage, pictures: Path | None = None) -> dict[str, Any]:
    """An image of a COCO file; its name as seen from the folder of pictures, if given."""
    name = image.path.name if pictures is None else os.path.relpath(image.path, pictures)
    return {
        "id": image.image_id, "file_name": name, "width": image.width, "height": image.height
    }  # fmt: skip


def _annotation(number: int, image: CocoImage, index: int) -> dict[str, Any]:
    box = xywh(image.xyxy[index])
    return {
        "id": number, "image_id": image.image_id, "category_id": image.category[index],
        "bbox": box, "area": box[2] * box[3], "iscrowd": 0,
    }  # fmt: skip


def _coco(
    data: CocoFolder, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "images": images,
        "annotations": [{**a, "id": number} for number, a in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for number, name in data.categories.items()],
    }


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
