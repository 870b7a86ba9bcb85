"""Fetches and renders the artwork and photographs that training scenes are composed from.

Knows the concept list, which artwork family may be trained on, and how the rendered files are
laid out. It does not know how a scene is composed, nor anything of models.
"""

import json
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.vocabulary import vocabulary
from groundstream.errors import SettingsError, SourceError
from groundstream.video.pictures import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]

TRAINING_FAMILIES = ("noto", "openmoji", "fluent-flat", "fluent-3d")
# Held out: only evaluation may draw from these, see `require_training_families`.
TEST_FAMILIES = ("twemoji",)
ALL_FAMILIES = TRAINING_FAMILIES + TEST_FAMILIES

SPRITE_PX = 128
MASK_ALPHA = 64
"""A pixel belongs to an object where its alpha is above this."""

_VECTOR_PACKAGES = {
    "noto": "@iconify-json/noto",
    "openmoji": "@iconify-json/openmoji",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
    "twemoji": "@iconify-json/twemoji",
}
_RASTER_PACKAGES = {"fluent-3d": "@lobehub/fluent-emoji-3d"}
_PACKAGE_VERSIONS = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/openmoji": "1.2.29",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/twemoji": "1.2.5",
    "@lobehub/fluent-emoji-3d": "1.1.0",
}

_PHOTO_PACKAGES = ("lomiri-wallpapers-20.04", "gnome-backgrounds", "opencv-doc")
_PHOTO_SUFFIXES = IMAGE_SUFFIXES | {".svg"}
_PHOTO_LONG_PX = 768
_PHOTO_MIN_PX = 240
# Chessboards, logos, masks, film stills, pictures of people, and photographs whose subject is
# itself a concept: an unlabelled apple in the background would teach that apples are background.
_PHOTO_EXCLUDED = (
    "left", "right", "megamind", "messi", "basketball", "logo", "mask", "chess", "digits",
    "apple", "orange", "fruits", "butterfly", "squirrel", "fish", "baboon", "cards", "chicky",
    "aloe", "pca_test", "templ", "tmpl", "scenetext_segmented", "scenetext_char", "gradient",
    "ela_", "opencv", "detect_blob", "sudoku", "notes", "imagetext", "suzanne", "ellipses",
    "pic1", "pic3", "pic5", "pic6", "aero",
    "peilin", "_result", "polygonstanford", "stanford", "vnc", "ml", "home", "smarties",
    "pixels", "symbolic", "000", "002", "input", "plant", "stuff", "licenseplate", "scenetext01",
)  # fmt: skip


@dataclass(frozen=True)
class Concept:
    """One nameable kind of thing; its position in `load_concepts()` is its id."""

    code: str
    """Unicode code point, lower-case hexadecimal."""
    label: str
    """English name, one to three words."""
    tags: tuple[str, ...]
    """Related English words, not all of them names of the thing."""
    group: int
    """Emoji group: 3 animals, 4 food, 5 travel, 6 activities, 7 objects."""


def load_concepts() -> tuple[Concept, ...]:
    """Return every concept, in the order that defines concept ids."""
    rows = json.loads(Path(__file__).with_name("concepts.json").read_text(encoding="utf-8"))
    return tuple(
        Concept(row["code"], row["label"], tuple(row["tags"]), int(row["group"])) for row in rows
    )


def everyday_concepts() -> tuple[int, ...]:
    """Ids, in order, of the concepts that ImageNet or COCO have a class for."""
    known = vocabulary()
    words = frozenset().union(*(thing.words for thing in (*known.imagenet, *known.coco)))
    return tuple(k for k, concept in enumerate(load_concepts()) if concept.label.lower() in words)


def concept_ids(labels_file: Path) -> tuple[int, ...]:
    """Ids, in order, of the concepts whose labels a JSON list names."""
    names = set(json.loads(labels_file.read_text(encoding="utf-8")))
    return tuple(k for k, concept in enumerate(load_concepts()) if concept.label in names)


def require_training_families(families: tuple[str, ...]) -> None:
    """Raise ValueError unless every family may be trained on."""
    held_out = [family for family in families if family not in TRAINING_FAMILIES]
    if held_out:
        raise ValueError(f"families not allowed in training: {', '.join(held_out)}")


@dataclass(frozen=True)
class Atlas:
    """Sprites of several artwork families, aligned by concept id."""

    families: tuple[str, ...]
    """Family names, in the order of the arrays below."""
    sprites: tuple[Image, ...]
    """Per family (num_concepts, 128, 128, 4), RGBA premultiplied by alpha."""
    boxes: NDArray[np.int32]
    """(num_families, num_concepts, 4) xyxy of the drawn part, sprite pixels; zeros if none."""

    @classmethod
    def from_arrays(cls, families: tuple[str, ...], sprites: tuple[Image, ...]) -> "Atlas":
        """Wrap arrays of shape (num_concepts, 128, 128, 4); they are not copied."""
        boxes = np.stack([_content_boxes(family_sprites) for family_sprites in sprites])
        return cls(families, sprites, boxes)

    @classmethod
    def load(cls, cache_dir: Path, families: tuple[str, ...] = TRAINING_FAMILIES) -> "Atlas":
        """Memory-map families that `build_atlas` rendered, so processes share their pages.

        Raises SourceError if a family was not rendered, or its file is of another kind.
        """
        try:
            mapped = [np.load(cache_dir / f"{family}.npy", mmap_mode="r") for family in families]
        except (OSError, ValueError) as error:
            raise SourceError(
                f"no drawings can be read from {cache_dir} ({error}): "
                "`groundstream train artwork` renders them"
            ) from error
        # Plain views of the same pages: indexing numpy's memmap class costs more than a resize.
        sprites = tuple(np.asarray(family_sprites) for family_sprites in mapped)
        return cls.from_arrays(families, sprites)

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """(num_families, num_concepts), true where the family has a drawing of the concept."""
        drawn: NDArray[np.bool_] = self.boxes[:, :, 2] > self.boxes[:, :, 0]
        return drawn

    def content(self, row: int, concept: int) -> tuple[int, int, int, int]:
        """Return the xyxy of the drawn part of one sprite, in sprite pixels."""
        left, top, right, bottom = self.boxes[row, concept].tolist()
        return left, top, right, bottom

    @property
    def num_concepts(self) -> int:
        return int(self.boxes.shape[1])


def build_atlas(cache_dir: Path) -> None:
    """Install the artwork packages with npm and render each family to `cache_dir/FAMILY.npy`.

    Families already rendered are kept. Raises SettingsError if npm is missing or fails.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    missing = [family for family in ALL_FAMILIES if not (cache_dir / f"{family}.npy").exists()]
    if not missing:
        return
    modules = _install_packages(cache_dir / "npm")
    concepts = load_concepts()
    for family in missing:
        if family in _VECTOR_PACKAGES:
            drawings = _vector_drawings(modules / _VECTOR_PACKAGES[family], concepts)
        else:
            drawings = _raster_drawings(modules / _RASTER_PACKAGES[family], concepts)
        sprites = np.zeros((len(concepts), SPRITE_PX, SPRITE_PX, 4), np.uint8)
        for concept_id, rgba in drawings:
            sprites[concept_id] = rgba
        # Renamed when whole, so that an interrupted run is not taken for a rendered family.
        partial = cache_dir / f"{family}.partial.npy"
        np.save(partial, sprites)
        partial.rename(cache_dir / f"{family}.npy")
        drawn = int(sprites.any(axis=(1, 2, 3)).sum())
        log.info("rendered %s: %d of %d concepts", family, drawn, len(concepts))


def build_backgrounds(cache_dir: Path) -> int:
    """Extract photographs from Debian packages into `cache_dir/backgrounds/*.jpg`.

    Returns how many there are; 0 where there is no apt, and scenes are then wholly procedural.
    """
    directory = cache_dir / "backgrounds"
    if not directory.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            log.warning("no apt on this machine: backgrounds will be procedural only")
            return 0
        partial = cache_dir / "backgrounds.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for package in _PHOTO_PACKAGES:
            with tempfile.TemporaryDirectory() as scratch:
                _extract_photos(package, Path(scratch), partial)
        partial.rename(directory)
    num_photos = len(list(directory.glob("*.jpg")))
    log.info("%d background photographs", num_photos)
    return num_photos


def load_backgrounds(cache_dir: Path) -> tuple[Image, ...]:
    """Return the photographs as (H, W, 3) RGB, long side at most 768; empty if none were built."""
    photos = []
    for path in sorted((cache_dir / "backgrounds").glob("*.jpg")):
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if bgr is not None:
            photos.append(cast(Image, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)))
    return tuple(photos)


def _install_packages(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    packages = [f"{name}@{version}" for name, version in _PACKAGE_VERSIONS.items()]
    command = ["npm", "i", "--ignore-scripts", "--no-save", "--prefix", str(directory), *packages]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise SettingsError("the drawings come as npm packages: install npm") from error
    except subprocess.CalledProcessError as error:
        raise SettingsError("npm could not install the drawings; it says why above") from error
    return directory / "node_modules"


def _plain_code(code: str) -> str:
    # Packages disagree on whether the emoji presentation selector is part of a name.
    return code.lower().replace("-fe0f", "")


def _vector_drawings(package: Path, concepts: tuple[Concept, ...]) -> Iterator[tuple[int, Image]]:
    # Imported here: only building the atlas needs the renderer, composing scenes does not.
    import resvg_py

    collection = json.loads((package / "icons.json").read_text(encoding="utf-8"))
    chars = json.loads((package / "chars.json").read_text(encoding="utf-8"))
    names = {_plain_code(code): name for code, name in chars.items()}
    for concept_id, concept in enumerate(concepts):
        name = names.get(_plain_code(concept.code))
        icon = None if name is None else _find_icon(collection, name)
        if icon is None:
            continue
        png = resvg_py.svg_to_bytes(
            svg_string=_svg_document(collection, icon),
            width=SPRITE_PX,
            height=SPRITE_PX,
            skip_system_fonts=True,
        )
        yield concept_id, _decode_sprite(bytes(png))


def _find_icon(collection: dict[str, Any], name: str) -> dict[str, Any] | None:
    aliases = collection.get("aliases", {})
    while name not in collection["icons"] and name in aliases:
        name = aliases[name]["parent"]
    return cast("dict[str, Any] | None", collection["icons"].get(name))


def _svg_document(collection: dict[str, Any], icon: dict[str, Any]) -> str:
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", collection.get("width", 16))
    height = icon.get("height", collection.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def _raster_drawings(package: Path, concepts: tuple[Concept, ...]) -> Iterator[tuple[int, Image]]:
    files = {_plain_code(path.stem): path for path in (package / "assets").glob("*.webp")}
    for concept_id, concept in enumerate(concepts):
        path = files.get(_plain_code(concept.code))
        if path is not None:
            yield concept_id, _decode_sprite(path.read_bytes())


def _decode_sprite(encoded: bytes) -> Image:
    bgra = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if bgra is None or bgra.ndim != 3 or bgra.shape[2] != 4:
        raise ValueError("artwork is not an image with alpha")
    rgba = cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA).astype(np.float32)
    # Premultiplied before any resampling, or transparent black bleeds into the outline.
    rgba[:, :, :3] *= rgba[:, :, 3:] / 255.0
    if rgba.shape[:2] != (SPRITE_PX, SPRITE_PX):
        size = (SPRITE_PX, SPRITE_PX)
        rgba = cv2.resize(rgba, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.clip(np.rint(rgba), 0, 255).astype(np.uint8)


def _content_boxes(sprites: Image) -> NDArray[np.int32]:
    boxes = np.zeros((len(sprites), 4), np.int32)
    for concept_id, sprite in enumerate(sprites):
        mask = (sprite[:, :, 3] > MASK_ALPHA).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        boxes[concept_id] = (left, top, left + width, top + height)
    return boxes


def _extract_photos(package: str, scratch: Path, directory: Path) -> None:
    download = ["apt-get", "download", package]
    if subprocess.run(download, cwd=scratch, capture_output=True, check=False).returncode:
        subprocess.run(["apt-get", "update"], capture_output=True, check=False)
        if subprocess.run(download, cwd=scratch, capture_output=True, check=False).returncode:
            log.warning("could not download %s: carrying on without its photographs", package)
            return
    for archive in scratch.glob("*.deb"):
        unpack = ["dpkg-deb", "-x", str(archive), str(scratch / "tree")]
        subprocess.run(unpack, check=True)
    for path in sorted((scratch / "tree").rglob("*")):
        # These folders of opencv-doc hold diagrams and silhouettes, not photographs.
        if path.suffix.lower() not in _PHOTO_SUFFIXES or {"html", "shape"} & set(path.parts):
            continue
        if any(word in path.stem.lower() for word in _PHOTO_EXCLUDED):
            continue
        _store_photo(path, directory / f"{package}-{path.stem}.jpg")


def _store_photo(source: Path, target: Path) -> None:
    bgr = _read_photo(source)
    if bgr is None or min(bgr.shape[:2]) < _PHOTO_MIN_PX:
        return
    scale = min(1.0, _PHOTO_LONG_PX / max(bgr.shape[:2]))
    if scale < 1.0:
        size = (round(bgr.shape[1] * scale), round(bgr.shape[0] * scale))
        bgr = cast(Image, cv2.resize(bgr, size, interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(target), bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])


def _read_photo(source: Path) -> Image | None:
    if source.suffix.lower() != ".svg":
        return cast(Image | None, cv2.imread(str(source), cv2.IMREAD_COLOR))
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_path=str(source), width=_PHOTO_LONG_PX))
    return cast("Image | None", cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR))
