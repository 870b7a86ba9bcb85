"""Annotated pictures of one's own: COCO, LVIS, RefCOCO and Visual Genome files.

Reads what a file says and leaves out, counted, what cannot be learned from. Knows no pixels but
those of boxes, no tensors and no questions.

COCO names every object of its categories (a crowd is there, but has no box of its own). LVIS is
federated (arXiv 1908.03195): only `neg_category_ids` are known to be absent, and what stands in
`not_exhaustive_category_ids` is there more often than it has boxes. Visual Genome names what its
annotators cared to (arXiv 1602.07332), so nothing is known to be absent, and nothing to be all.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.detections import FloatArray
from agent.errors import InvalidFrame, InvalidQuery, SettingsError, SourceError
from agent.evaluation.refcoco import read_refs
from agent.frame import load_frame
from agent.prompts import clean_query

logger = logging.getLogger(__name__)
FORMATS = ("coco", "lvis", "refcoco", "visualgenome")
MOST_BOXES = 80
"""A prompt holds 100 regions, and some are to be background."""
_LEAST_SIDE_PX = 1.0


@dataclass(frozen=True)
class DataSource:
    """Where annotated pictures lie."""

    format: str
    annotations: str
    """The file: COCO or LVIS instances, RefCOCO's refs (.p or .json), or Visual Genome's
    objects.json or region_descriptions.json."""
    images: str | None = None
    """Folder that file names are relative to; the annotations' own folder if not given."""
    instances: str | None = None
    """RefCOCO only: the COCO file the refs are about; instances.json beside them if not given."""
    split: str = "train"
    """RefCOCO only."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise SettingsError(
                f"data format {self.format!r} is unknown; use one of {', '.join(FORMATS)}"
            )

    @classmethod
    def parse(cls, text: str, images: Path | None = None) -> DataSource:
        """`FORMAT:FILE`, as on a command line.

        Raises:
            SettingsError: it is not of that form.
        """
        kind, colon, file = text.partition(":")
        if not colon or not file:
            raise SettingsError(f"{text!r}: write FORMAT:FILE, for example coco:annotations.json")
        return cls(kind, file, None if images is None else str(images))

    @property
    def folder(self) -> Path:
        """Of the pictures."""
        return Path(self.annotations).parent if self.images is None else Path(self.images)


@dataclass(frozen=True)
class Remark:
    """Words of an annotator about one box."""

    words: str
    box: int
    """Index into the picture's boxes."""
    is_referring: bool
    """Whether the words single the box out, or merely describe it."""


@dataclass(frozen=True)
class AnnotatedPicture:
    """One picture and what its file says about it."""

    path: Path
    width: int
    height: int
    xyxy: FloatArray
    """(num_boxes, 4) pixels, inside the picture."""
    names: tuple[str, ...]
    """(num_boxes,)."""
    remarks: tuple[Remark, ...] = ()
    absent: frozenset[str] | None = None
    """Names known not to be there; None where all that is not named is not there."""
    incomplete: frozenset[str] = frozenset()
    """Names that are there more often than they have boxes."""
    is_complete: bool = True
    """Whether the boxes of a name are all there are, but for `incomplete`."""


@dataclass(frozen=True)
class AnnotatedPictures:
    """What several files hold together."""

    pictures: tuple[AnnotatedPicture, ...]
    names: tuple[str, ...]
    """All names of the files, whether they occur or not."""
    left_out: dict[str, int]
    """What was left out, by reason."""


def load_pictures(sources: Iterable[DataSource]) -> AnnotatedPictures:
    """Everything the files hold that can be learned from; what is left out is counted and logged.

    Raises:
        SourceError: a file cannot be read or is not of its format, or nothing is left of it.
    """
    pictures: list[AnnotatedPicture] = []
    names: dict[str, None] = {}
    left_out: Counter[str] = Counter()
    for source in sources:
        reader = _Reader(source)
        found = reader.read()
        if not found:
            reasons = ", ".join(f"{n} {why}" for why, n in reader.left_out.items()) or "it is empty"
            raise SourceError(
                f"{source.annotations} holds no picture to learn from ({reasons}); pictures are "
                f"looked for in {source.folder}"
            )
        boxes = sum(len(picture.xyxy) for picture in found)
        logger.info(
            "%s: %d pictures, %d boxes, %d names; left out: %s",
            source.annotations, len(found), boxes, len(reader.names), dict(reader.left_out),
        )  # fmt: skip
        pictures += found
        names |= dict.fromkeys(name for name in reader.names if name)
        left_out += reader.left_out
    return AnnotatedPictures(tuple(pictures), tuple(names), dict(left_out))


class _Reader:
    """One file; counts what it leaves out."""

    def __init__(self, source: DataSource) -> None:
        self._source = source
        self.names: dict[str, None] = {}
        self.left_out: Counter[str] = Counter()

    def read(self) -> list[AnnotatedPicture]:
        """Pictures that exist, with their boxes."""
        kind, file = self._source.format, Path(self._source.annotations)
        try:
            if kind == "refcoco":
                return self._refcoco(file)
            raw = json.loads(file.read_text(encoding="utf-8"))
            return self._visual_genome(raw) if kind == "visualgenome" else self._coco(raw)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
            raise SourceError(f"{file} is not a {kind} file ({error!r})") from error
        except pickle.UnpicklingError as error:
            raise SourceError(f"{file} is no list of refs ({error})") from error

    def _coco(
        self, raw: dict[str, Any], said: dict[Any, list[tuple[Any, str]]] | None = None
    ) -> list[AnnotatedPicture]:
        """COCO and LVIS; `said` are RefCOCO's (annotation id, words) by image id."""
        called = {c["id"]: _clean(c["name"]) for c in raw["categories"]}
        self.names = dict.fromkeys(called.values())
        objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in raw["annotations"]:
            objects[annotation["image_id"]].append(annotation)
        pictures = []
        for entry in sorted(raw["images"], key=lambda entry: entry["id"]):
            here = objects[entry["id"]]
            crowds = [o for o in here if o.get("iscrowd", 0)]
            alone = [o for o in here if not o.get("iscrowd", 0)]
            if crowds:
                self.left_out["crowds (their names are known to be there)"] += len(crowds)
            picture = self._picture(
                str(entry.get("file_name") or "/".join(str(entry["coco_url"]).split("/")[-2:])),
                (entry["width"], entry["height"]),
                [(o["bbox"], called[o["category_id"]], o["id"]) for o in alone],
                (said or {}).get(entry["id"], []),
            )
            if picture is not None:
                uncounted = {called[o["category_id"]] for o in crowds}
                uncounted |= {called[c] for c in entry.get("not_exhaustive_category_ids", ())}
                absent = entry.get("neg_category_ids")
                pictures.append(
                    replace(
                        picture,
                        incomplete=picture.incomplete | uncounted,
                        absent=None if absent is None else frozenset(called[c] for c in absent),
                    )
                )
        return pictures

    def _refcoco(self, refs: Path) -> list[AnnotatedPicture]:
        source = self._source
        said: dict[Any, list[tuple[Any, str]]] = defaultdict(list)
        for ref in read_refs(refs):
            if ref["split"] == source.split:
                said[ref["image_id"]] += [
                    (ref["ann_id"], str(sentence["sent"])) for sentence in ref["sentences"]
                ]
        instances = Path(source.instances or refs.parent / "instances.json")
        raw = json.loads(instances.read_text(encoding="utf-8"))
        # Pictures of other splits are there too, and are for measuring.
        raw["images"] = [entry for entry in raw["images"] if entry["id"] in said]
        return self._coco(raw, said)

    def _visual_genome(self, raw: list[dict[str, Any]]) -> list[AnnotatedPicture]:
        """objects.json names boxes, region_descriptions.json describes them."""
        pictures = []
        for entry in raw:
            boxes, said = [], []
            for number, thing in enumerate(entry.get("objects") or entry.get("regions") or ()):
                xywh = [thing[k] for k in (("x", "y", "w", "h") if "w" in thing else
                                           ("x", "y", "width", "height"))]  # fmt: skip
                boxes.append((xywh, _clean((thing.get("names") or [""])[0]).lower(), number))
                if "phrase" in thing:
                    said.append((number, str(thing["phrase"])))
            self.names |= dict.fromkeys(name for _, name, _ in boxes if name)
            image_id = entry.get("image_id", entry.get("id"))
            file = Path(str(entry.get("image_url") or f"VG_100K/{image_id}.jpg"))
            size = (entry.get("width"), entry.get("height"))
            picture = self._picture("/".join(file.parts[-2:]), size, boxes, said, referring=False)
            if picture is not None:
                pictures.append(replace(picture, is_complete=False, absent=frozenset()))
        return pictures

    def _picture(
        self,
        file_name: str,
        size: tuple[Any, Any],
        boxes: list[tuple[Any, str, Any]],
        said: list[tuple[Any, str]],
        *,
        referring: bool = True,
    ) -> AnnotatedPicture | None:
        """A picture from (xywh, name, id) of its boxes; None if it is left out."""
        path = self._find(file_name)
        if path is None:
            self.left_out["pictures that do not exist"] += 1
            return None
        try:
            width, height = (int(side) for side in (size if all(size) else _size_of(path)))
        except InvalidFrame:
            self.left_out["pictures that cannot be read"] += 1
            return None
        if len(boxes) > MOST_BOXES:
            self.left_out[f"pictures with more than {MOST_BOXES} boxes"] += 1
            return None
        sound: list[tuple[float, ...]] = []
        names: list[str] = []
        rank: dict[Any, int] = {}
        lost: set[str] = set()
        for xywh, name, box_id in boxes:
            corners = self._corners(xywh, width, height)
            if corners is None:
                lost.add(name)
            else:
                rank[box_id] = len(sound)
                sound.append(corners)
                names.append(name)
        remarks = []
        for box_id, words in said:
            if box_id not in rank:
                self.left_out["words about a box that is left out"] += 1
                continue
            sayable = _sayable(words)
            if sayable is None:
                self.left_out["words that cannot be asked"] += 1
            else:
                remarks.append(Remark(sayable, rank[box_id], referring))
        return AnnotatedPicture(
            path, width, height, np.array(sound, dtype=np.float32).reshape(-1, 4), tuple(names),
            tuple(remarks), incomplete=frozenset(lost),
        )  # fmt: skip

    def _corners(self, xywh: Any, width: int, height: int) -> tuple[float, ...] | None:
        x, y, w, h = (float(value) for value in xywh)
        if not all(map(math.isfinite, (x, y, w, h))):
            self.left_out["boxes that are not numbers"] += 1
            return None
        corners = (max(0.0, x), max(0.0, y), min(x + w, float(width)), min(y + h, float(height)))
        if min(corners[2] - corners[0], corners[3] - corners[1]) < _LEAST_SIDE_PX:
            self.left_out["boxes outside the picture, or without a pixel"] += 1
            return None
        return corners

    def _find(self, file_name: str) -> Path | None:
        folder = self._source.folder
        for name in (file_name, f"images/{file_name}", Path(file_name).name):
            if (folder / name).is_file():
                return folder / name
        return None


def _sayable(words: str) -> str | None:
    """The words as a question would hold them; None where it may not."""
    try:
        return clean_query(words)
    except InvalidQuery:
        return None


def _clean(name: Any) -> str:
    """A category's name in words (LVIS writes `bow_(weapon)`); empty where it has none."""
    return _sayable(str(name).replace("_", " ")) or ""


def _size_of(path: Path) -> tuple[int, int]:
    """(width, height) where the file does not say; raises InvalidFrame if it is no picture."""
    frame = load_frame(path)
    return frame.width, frame.height
