"""Annotated pictures of one's own: what is read, left out, asked, and learned from."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent.errors import SettingsError, SourceError
from agent.frame import load_frame
from agent.prompts import Task
from agent.stages import local_pipeline
from agent.training.annotated_turns import AnnotatedRegions, annotated_turns
from agent.training.annotations import AnnotatedPictures, DataSource, load_pictures
from agent.training.batches import BatchSettings, Said
from agent.training.curves import read_log
from agent.training.loop import load_module_state
from agent.training.mixture import MixtureSettings
from agent.training.nano import WEIGHTS, NanoTraining, with_own_pictures
from agent.training.own_pictures import PictureBatches, nearest_size, scaled_boxes
from agent.training.recipe import load_recipe
from agent.training.scenes import SceneSettings
from tests.own_pictures import write_coco, write_json, write_picture

NAMES = ("red square", "blue square", "green square")
SIZES = ((84, 112), (112, 84))


def coco(path: Path) -> AnnotatedPictures:
    return load_pictures([DataSource("coco", str(path))])


def changed(folder: Path, **lists: Any) -> Path:
    """The folder's annotation file with some of its lists replaced."""
    file = folder / "annotations.json"
    return write_json(file, json.loads(file.read_text()) | lists)


def test_a_coco_folder_is_read(tmp_path: Path) -> None:
    data = coco(write_coco(tmp_path))
    assert data.names == NAMES
    assert len(data.pictures) == 6
    assert data.left_out == {}
    assert {picture.path.parent.name for picture in data.pictures} == {"images"}


def test_what_cannot_be_learned_from_is_counted(tmp_path: Path) -> None:
    write_coco(tmp_path)
    image = {"id": 1, "file_name": "001.png", "width": 160, "height": 120}
    boxes = [
        [10, 10, 30, 30],  # sound
        [-20, 100, 60, 60],  # clipped
        [200, 10, 30, 30],  # outside
        [10, 10, 0, 30],  # without a pixel
        [10, 10, float("nan"), 30],
    ]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 7 if i < 2 else 9, "bbox": box}
        for i, box in enumerate(boxes)
    ]
    crowd = {"id": 9, "image_id": 1, "category_id": 11, "bbox": [0, 0, 90, 90], "iscrowd": 1}
    data = coco(changed(
        tmp_path,
        images=[image, image | {"id": 2, "file_name": "missing.png"}, image | {"id": 3}],
        annotations=[*annotations, crowd],
    ))  # fmt: skip
    assert data.left_out == {
        "pictures that do not exist": 1,
        "boxes outside the picture, or without a pixel": 2,
        "boxes that are not numbers": 1,
        "crowds (their names are known to be there)": 1,
    }
    first, empty = data.pictures
    np.testing.assert_array_equal(first.xyxy, [[10, 10, 40, 40], [0, 100, 40, 120]])
    assert first.names == ("red square", "red square")
    assert first.incomplete == {"blue square", "green square"}
    assert len(empty.xyxy) == 0, "a picture of nothing is worth asking about"


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("coco", "no json", "not a coco file"),
        ("coco", "[]", "not a coco file"),
        ("coco", '{"images": [], "annotations": [], "categories": []}', "no picture"),
        ("lvis", '{"images": [{"id": 1}], "annotations": []}', "not a lvis file"),
        ("visualgenome", '[{"image_id": 3, "objects": []}]', "pictures that do not exist"),
        ("refcoco", "[1, 2]", "not a refcoco file"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, kind: str, text: str, said: str) -> None:
    file = tmp_path / "file.json"
    file.write_text(text)
    with pytest.raises(SourceError, match=said):
        load_pictures([DataSource(kind, str(file))])


def test_a_source_is_a_format_and_a_file() -> None:
    assert DataSource.parse("lvis:a:b.json") == DataSource("lvis", "a:b.json")
    for wrong in ("annotations.json", "coco:", "voc:a.json"):
        with pytest.raises(SettingsError, match=r"FORMAT:FILE|unknown"):
            DataSource.parse(wrong)


def test_lvis_says_what_is_absent_and_what_is_not_all(tmp_path: Path) -> None:
    file = write_coco(tmp_path, num_images=1)
    raw = json.loads(file.read_text())
    entry = {k: v for k, v in raw["images"][0].items() if k != "file_name"} | {
        "coco_url": "http://images.cocodataset.org/images/001.png",
        "neg_category_ids": [11],
        "not_exhaustive_category_ids": [9],
    }
    changed(tmp_path, images=[entry])
    (picture,) = load_pictures([DataSource("lvis", str(file))]).pictures
    assert picture.absent == {"green square"}
    assert picture.incomplete == {"blue square"}


@pytest.mark.parametrize("suffix", [".p", ".json"])
def test_refcoco_gives_expressions_of_its_split(tmp_path: Path, suffix: str) -> None:
    write_coco(tmp_path).rename(tmp_path / "instances.json")
    refs = [
        {"ref_id": 1, "ann_id": 2, "image_id": 1, "split": "train",
         "sentences": [{"sent_id": 1, "sent": "the  lower one"}, {"sent_id": 2, "sent": " "}]},
        {"ref_id": 2, "ann_id": 4, "image_id": 2, "split": "val", "sentences": []},
    ]  # fmt: skip
    file = tmp_path / f"refs(unc){suffix}"
    file.write_bytes(pickle.dumps(refs) if suffix == ".p" else json.dumps(refs).encode())
    data = load_pictures([DataSource("refcoco", str(file))])
    (picture,) = data.pictures
    assert [(r.words, r.box, r.is_referring) for r in picture.remarks] == [
        ("the lower one", 1, True)
    ]
    assert data.left_out == {"words that cannot be asked": 1}


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(pickle.dumps([Path]))
    with pytest.raises(SourceError, match=r"pathlib"):
        load_pictures([DataSource("refcoco", str(tmp_path / "refs.p"))])


def test_visual_genome_names_and_describes_what_it_cares_to(tmp_path: Path) -> None:
    write_picture(tmp_path / "VG_100K" / "5.png", (80, 60), [])
    place = {"image_id": 5, "image_url": "https://x/VG_100K/5.png"}
    box = {"x": 4, "y": 4, "w": 20, "h": 20}
    objects = write_json(tmp_path / "objects.json", [place | {"objects": [
        box | {"names": ["Lamp Shade"], "object_id": 1}, box | {"names": [], "object_id": 2},
    ]}])  # fmt: skip
    regions = write_json(tmp_path / "region_descriptions.json", [{"id": 5, **place, "regions": [
        {"x": 4, "y": 4, "width": 30, "height": 20, "phrase": "a lamp that is off"},
    ]}])  # fmt: skip
    named, described = load_pictures(
        [DataSource("visualgenome", str(file)) for file in (objects, regions)]
    ).pictures
    assert named.names == ("lamp shade", "")
    assert (named.width, named.height) == (80, 60)
    assert not named.is_complete
    assert described.remarks[0].words == "a lamp that is off"
    assert not described.remarks[0].is_referring


def test_pictures_are_scaled_to_the_size_of_nearest_shape(tmp_path: Path) -> None:
    first, second = coco(write_coco(tmp_path, num_images=2)).pictures
    assert nearest_size(first, SIZES) == (112, 84)
    assert nearest_size(second, SIZES) == (84, 112)
    small = scaled_boxes(first, (8, 6))
    assert len(small.xyxy) == 0
    assert small.incomplete == set(first.names), "too small to see, but still there"


def settings(**changes: Any) -> BatchSettings:
    return BatchSettings(Path("nowhere"), SceneSettings(), batch_size=3, sizes=SIZES, **changes)


RANKS = {name: rank for rank, name in enumerate(NAMES)}


def test_batches_hold_the_pictures_as_annotated(tmp_path: Path) -> None:
    data = coco(write_coco(tmp_path))
    stream = iter(PictureBatches(data, RANKS, settings(jitter=0.0)))
    colours = torch.tensor([[220, 30, 30], [30, 30, 220], [30, 200, 30]])
    shapes = set()
    for batch in (next(stream) for _ in range(8)):
        shapes.add(tuple(batch.rgb.shape))
        assert batch.said is not None
        for row, kind in torch.nonzero(batch.classes >= 0).tolist():
            rank = batch.classes[row, kind]
            assert NAMES[rank] in batch.said[row].present
            x1, y1, x2, y2 = batch.truth[row, kind].round().int().tolist()
            inside = batch.rgb[row, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].reshape(-1, 3)
            # Squares drawn later may hide it, but never all other colours.
            assert (inside.int() - colours[rank]).abs().sum(-1).min() < 40
    assert shapes == {(3, 84, 112, 3), (3, 112, 84, 3)}


def test_shared_numbers_are_the_same_batches(tmp_path: Path) -> None:
    data = coco(write_coco(tmp_path))
    straight = iter(PictureBatches(data, RANKS, settings()))
    shared = [iter(PictureBatches(data, RANKS, settings(), first=k, stride=2)) for k in (0, 1)]
    for number in range(4):
        torch.testing.assert_close(next(straight).rgb, next(shared[number % 2]).rgb)


def test_unreadable_pictures_are_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = coco(write_coco(tmp_path))
    (tmp_path / "images" / "001.png").write_bytes(b"not a picture")
    write_picture(tmp_path / "images" / "002.png", (50, 50), [])
    stream = iter(PictureBatches(data, RANKS, settings()))
    for _ in range(6):
        assert len(next(stream).rgb) == 3
    told = "\n".join(record.message for record in caplog.records)
    assert "001.png" in told
    assert "annotated as 90x130" in told
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(SourceError, match="none of"):
        next(iter(PictureBatches(data, RANKS, settings())))


BOXES = np.array([[0, 0, 40, 40], [50, 0, 90, 40], [10, 60, 30, 80]], dtype=np.float32)


def shown(names: list[str | None], **said: Any) -> AnnotatedRegions:
    known = Said((), frozenset(n for n in names if n), None, frozenset())
    return AnnotatedRegions(names, BOXES, BOXES / 100, BOXES, replace(known, **said))


def turns(regions: AnnotatedRegions, num: int = 400, **mixture: float) -> list[Any]:
    return annotated_turns(
        regions, list(NAMES), num, np.random.default_rng(0), MixtureSettings(**mixture),
        expression_share=0.5,
    )  # fmt: skip


def test_a_fifth_asks_for_something_absent_of_the_file() -> None:
    drawn = turns(shown(["red square", "red square", "blue square"]))
    absent = [turn for turn in drawn if turn.kind in ("absent", "no")]
    assert len(absent) / len(drawn) == pytest.approx(0.2, abs=0.05)
    assert all("green square" in turn.question for turn in absent)


def test_without_rejection_nothing_absent_is_asked() -> None:
    assert not {"absent", "no"} & {
        turn.kind for turn in turns(shown(["red square", None, None]), absent=0.0)
    }
    assert turns(shown([None, None, None]), absent=0.0) == []


def test_expressions_are_asked_about_the_region_that_covers_them() -> None:
    regions = shown(["red square"] * 3, remarks=(("the small one", 2, True), ("lone", 1, False)))
    moved = replace(regions, xyxy=BOXES[[2, 0, 1]] + 2, relative=BOXES[[2, 0, 1]] / 100)
    drawn = turns(moved)
    expression = next(turn for turn in drawn if "the small one" in turn.question)
    assert expression.answer == "<ground>the small one</ground><objects><region0></objects>"
    caption = next(turn for turn in drawn if turn.kind == "caption")
    assert (caption.region, caption.answer) == (2, "lone")


def test_what_is_not_all_is_named_but_neither_searched_nor_counted() -> None:
    names: list[str | None] = ["red square", "blue square", None]
    drawn = turns(shown(names, incomplete=frozenset({"red square"}), absent=frozenset()))
    searches = [turn for turn in drawn if turn.kind in ("detect", "count", "refer", "similar")]
    assert searches
    assert not any("red square" in turn.question for turn in searches)
    nothing_sure = shown(names, incomplete=frozenset(names) - {None}, absent=frozenset())
    assert {turn.kind for turn in turns(nothing_sure)} == {"name"}
    assert {turn.answer for turn in turns(nothing_sure)} == {"red square", "blue square"}


@pytest.mark.slow
async def test_a_coco_folder_trains_both_stages(tmp_path: Path) -> None:
    """From the embedded model to a model directory that answers, on six pictures."""
    source = DataSource("coco", str(write_coco(tmp_path / "mine")))
    recipe = load_recipe()
    for stage in ("align", "instruct"):
        recipe = with_own_pictures(recipe, stage, (source,), 2)
        section = getattr(recipe, stage)
        small = replace(
            section,
            loop=replace(section.loop, log_every=1),
            pictures=replace(section.pictures, batch_size=2, sizes=SIZES),
        )
        recipe = replace(recipe, **{stage: small})
    training = NanoTraining(
        tmp_path / "no artwork", tmp_path / "run", recipe, base="nano", output=tmp_path / "mine2"
    )
    for stage in ("align", "instruct", "export"):
        training.run(stage)
    for stage in ("align", "instruct"):
        assert [row["step"] for row in read_log(tmp_path / "run" / stage)] == [1, 2]
    begun, ended = (load_module_state(tmp_path / "run" / s) for s in ("align", "instruct"))
    changed_parts = {n.split(".")[1] for n in begun if not torch.equal(begun[n], ended[n])}
    assert changed_parts == {"region_projector", "region_encoder", "language_model"}
    with pytest.raises(SettingsError, match="--output"):
        replace(training, output=WEIGHTS).run("export")
    with pytest.raises(SourceError, match="--base nano"):
        replace(training, base=None, directory=tmp_path / "empty").run("align")
    composed = replace(recipe, align=replace(recipe.align, data=()))
    with pytest.raises(SettingsError, match="other pictures"):
        replace(training, recipe=composed).run("align")
    pipeline = local_pipeline(str(tmp_path / "mine2"))
    frame = load_frame(tmp_path / "mine" / "images" / "001.png")
    grounding = await pipeline.ground(frame, [Task.detect("red square")])
    assert len(grounding.answers) == 1


def test_only_the_stages_of_the_paper_learn_from_own_pictures() -> None:
    recipe = load_recipe()
    with pytest.raises(SettingsError, match="only align and instruct"):
        with_own_pictures(recipe, "vision", (DataSource("coco", "a"),), None)
    with pytest.raises(SettingsError, match="no steps"):
        with_own_pictures(recipe, "export", (), 3)
