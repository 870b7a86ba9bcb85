"""Scenes and moving scenes over a tiny atlas of drawn shapes; needs no downloaded artwork."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.training.artwork import (
    ALL_FAMILIES,
    SPRITE_PX,
    TEST_FAMILIES,
    TRAINING_FAMILIES,
    Atlas,
    Concept,
    load_concepts,
    require_training_families,
)
from agent.training.moving import MovingScene, MovingSettings, write_video
from agent.training.occupancy import Occupancy
from agent.training.scenes import (
    SPLITS,
    Scene,
    SceneComposer,
    SceneSettings,
    scene_seed,
    write_coco,
)
from agent.training.sprites import Look, Patch, Pose, colour_matrix, draw_sprite, paste

NUM_SHAPES = 6
UNDRAWN = 5
PLAIN = SceneSettings(
    size=(320, 256),
    num_objects=(3, 12),
    families=("noto", "openmoji"),
    restyle_probability=0.0,
    degrade_probability=0.0,
)


def _shapes(hue: int) -> np.ndarray:
    sprites = np.zeros((NUM_SHAPES, SPRITE_PX, SPRITE_PX, 4), np.uint8)
    for index in range(UNDRAWN):
        colour = (hue, 40 * index, 255 - 40 * index, 255)
        corners = cv2.ellipse2Poly((64, 64), (56, 30 + 5 * index), 0, 0, 359, 360 // (index + 3))
        cv2.fillPoly(sprites[index], [corners.astype(np.int32)], colour)
    return sprites


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    families = ("noto", "openmoji", "twemoji")
    return Atlas.from_arrays(families, tuple(_shapes(hue) for hue in (30, 120, 220)))


@pytest.fixture(scope="module")
def composer(atlas: Atlas) -> SceneComposer:
    return SceneComposer(atlas, (), PLAIN)


def test_concepts_are_distinct_and_complete() -> None:
    concepts = load_concepts()

    assert len(concepts) == 716
    assert len({concept.code for concept in concepts}) == 716
    assert len({concept.label for concept in concepts}) == 716


def test_held_out_families_cannot_be_trained_on(atlas: Atlas) -> None:
    assert not set(TRAINING_FAMILIES) & set(TEST_FAMILIES)
    assert set(SceneSettings().families) <= set(TRAINING_FAMILIES)
    require_training_families(TRAINING_FAMILIES)
    with pytest.raises(ValueError, match="twemoji"):
        require_training_families(("noto", "twemoji"))

    held_out = SceneComposer(atlas, (), replace(PLAIN, families=("twemoji",)))
    with pytest.raises(ValueError, match="twemoji"):
        held_out.compose_split("train", 0)
    family = held_out.compose_split("test", 0).family
    assert set(family.tolist()) == {ALL_FAMILIES.index("twemoji")}


def test_same_seed_same_scene(atlas: Atlas) -> None:
    settings = replace(PLAIN, size=None, restyle_probability=1.0, degrade_probability=1.0)
    first, second = SceneComposer(atlas, (), settings), SceneComposer(atlas, (), settings)
    second.compose(7)  # what was composed before must not matter

    for seed in range(10):
        one, other = first.compose(seed), second.compose(seed)
        for name in ("rgb", "xyxy", "concept", "family", "visible"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert not np.array_equal(first.compose(0).xyxy, first.compose(1).xyxy)


def test_splits_are_disjoint() -> None:
    seeds = {scene_seed(split, index) for split in SPLITS for index in range(2000)}

    assert len(seeds) == len(SPLITS) * 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    with pytest.raises(ValueError, match="holdout"):
        scene_seed("holdout", 0)


@pytest.mark.parametrize("seed", range(20))
def test_scene_keeps_its_promises(composer: SceneComposer, seed: int) -> None:
    scene = composer.compose(seed)

    assert scene.rgb.shape == (256, 320, 3)
    assert scene.rgb.dtype == np.uint8
    assert 1 <= len(scene.xyxy) <= PLAIN.num_objects[1]
    assert (scene.xyxy[:, :2] >= 0).all()
    assert (scene.xyxy[:, 2:] <= [320, 256]).all()
    assert (scene.xyxy[:, 2:] > scene.xyxy[:, :2]).all()
    assert (scene.visible >= PLAIN.min_visible).all()
    assert (scene.visible <= 1.0).all()
    assert UNDRAWN not in scene.concept


def test_random_size_stays_within_settings(atlas: Atlas) -> None:
    composer = SceneComposer(atlas, (), replace(PLAIN, size=None))

    for seed in range(40):
        height, width = composer.compose(seed).rgb.shape[:2]
        assert 256 <= width <= 448
        assert 256 <= height <= 448
        assert 0.69 <= width / height <= 1.41


def test_photographs_are_used(atlas: Atlas) -> None:
    photo = np.full((300, 500, 3), (10, 200, 90), np.uint8)
    composer = SceneComposer(atlas, (photo,), replace(PLAIN, photo_probability=1.0))

    rgb = composer.compose(0).rgb
    # One flat photograph: most of the picture keeps a single colour, whatever its brightness.
    _, counts = np.unique(rgb.reshape(-1, 3), axis=0, return_counts=True)
    assert counts.max() > rgb.shape[0] * rgb.shape[1] * 0.3


@pytest.mark.parametrize(
    "settings",
    [
        replace(PLAIN, families=("fluent-3d",)),  # not in this atlas
        replace(PLAIN, families=()),  # nothing to draw from
        replace(PLAIN, concepts=(UNDRAWN,)),  # no drawing of the only concept
    ],
)
def test_settings_that_cannot_be_drawn(atlas: Atlas, settings: SceneSettings) -> None:
    with pytest.raises(ValueError, match="famil"):
        SceneComposer(atlas, (), settings)


@pytest.mark.parametrize(
    ("pose", "centre"),
    [
        (Pose(112.0, 60.0), (80.0, 70.0)),  # natural size
        (Pose(20.0, 12.0), (33.5, 41.25)),  # shrunk by mips, between pixels
        (Pose(60.0, 40.0, 90.0), (80.0, 70.0)),  # on its side
        (Pose(60.0, 40.0, 0.0, True), (80.0, 70.0)),  # mirrored
    ],
)
def test_drawn_where_asked(atlas: Atlas, pose: Pose, centre: tuple[float, float]) -> None:
    content = atlas.content(0, 1)
    patch = draw_sprite(atlas.sprites[0][1], content, pose, Look(), centre)

    x0, y0, x1, y1 = patch.box
    width, height = pose.width, pose.height
    if pose.angle_deg == 90.0:
        width, height = height, width
    assert x1 - x0 == pytest.approx(width, abs=2)
    assert y1 - y0 == pytest.approx(height, abs=2)
    assert patch.left + (x0 + x1) / 2 == pytest.approx(centre[0], abs=1)
    assert patch.top + (y0 + y1) / 2 == pytest.approx(centre[1], abs=1)
    # Tight: every side of the box touches the mask.
    tight = patch.mask[y0:y1, x0:x1]
    assert tight[0].any()
    assert tight[-1].any()
    assert tight[:, 0].any()
    assert tight[:, -1].any()
    assert patch.mask.sum() == tight.sum()


def test_restyling_stays_premultiplied(atlas: Atlas) -> None:
    look = Look(colour_matrix(180.0, 1.4, 1.3, 0.6), posterise=4, blur_px=1.0, outline_px=2)
    patch = draw_sprite(atlas.sprites[0][2], atlas.content(0, 2), Pose(50.0, 40.0, 15.0), look)

    assert (patch.rgba[:, :, :3] <= patch.rgba[:, :, 3:].astype(int) + 2).all()


def test_grey_survives_any_hue() -> None:
    grey = np.array([0.5, 0.5, 0.5, 1.0])

    np.testing.assert_allclose(colour_matrix(hue_deg=77.0) @ grey, grey, atol=1e-6)


def test_paste_blends_and_clips() -> None:
    canvas = np.full((10, 10, 3), 100, np.uint8)
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:] = (128, 0, 0, 128)
    paste(canvas, Patch(rgba, rgba[:, :, 3] > 64, -2, -2, (0, 0, 4, 4)))

    np.testing.assert_allclose(canvas[0, 0], [178, 50, 50], atol=1)
    assert (canvas[2:, 2:] == 100).all()


def _block(left: int, top: int, size: int) -> Patch:
    mask = np.ones((size, size), np.bool_)
    return Patch(np.full((size, size, 4), 255, np.uint8), mask, left, top, (0, 0, size, size))


def test_occupancy_refuses_to_hide_too_much() -> None:
    occupancy = Occupancy(100, 100)

    assert occupancy.try_add(_block(10, 10, 20), 400, 0.35)
    assert not occupancy.try_add(_block(10, 12, 20), 400, 0.35)  # would leave a tenth of the first
    assert not occupancy.try_add(_block(-15, 50, 20), 400, 0.35)  # a quarter inside the frame
    assert occupancy.try_add(_block(10, 20, 20), 400, 0.35)  # leaves half of the first
    np.testing.assert_allclose(occupancy.visible_fraction(), [0.5, 1.0])
    np.testing.assert_array_equal(occupancy.visible_boxes(), [[10, 10, 30, 20], [10, 20, 30, 40]])


def test_coco_round_trip(composer: SceneComposer, tmp_path: Path) -> None:
    concepts = tuple(Concept(f"{k:x}", f"shape {k}", (), 3) for k in range(NUM_SHAPES))
    scenes: list[Scene] = [composer.compose_split("val", index) for index in range(3)]
    write_coco(tmp_path, iter(scenes), concepts)

    document = json.loads((tmp_path / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in document["categories"]}
    assert names == {k + 1: f"shape {k}" for k in range(NUM_SHAPES)}
    assert len({row["id"] for row in document["annotations"]}) == len(document["annotations"])
    for image, scene in zip(document["images"], scenes, strict=True):
        bgr = cv2.imread(str(tmp_path / image["file_name"]))
        assert bgr is not None
        assert bgr.shape == (image["height"], image["width"], 3)
        rows = [row for row in document["annotations"] if row["image_id"] == image["id"]]
        boxes = np.array([row["bbox"] for row in rows])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, scene.xyxy)
        assert [row["category_id"] - 1 for row in rows] == scene.concept.tolist()
        assert all(row["iscrowd"] == 0 and row["area"] > 0 for row in rows)


MOVING = MovingSettings(
    size=(240, 180),
    fps=10.0,
    duration_s=4.0,
    num_objects=6,
    object_px=(24.0, 60.0),
    families=("noto",),
)


def test_tracks_are_consistent(atlas: Atlas) -> None:
    frames = list(MovingScene(atlas, (), MOVING, seed=3))

    assert len(frames) == 40
    concept_of: dict[int, int] = {}
    previous: dict[int, np.ndarray] = {}
    for frame in frames:
        assert frame.rgb.shape == (180, 240, 3)
        assert len(frame.xyxy) == len(frame.concept) == len(frame.track_id)
        assert (frame.xyxy[:, :2] >= 0).all()
        assert (frame.xyxy[:, 2:] <= [240, 180]).all()
        assert (frame.xyxy[:, 2:] > frame.xyxy[:, :2]).all()
        boxes = dict(zip(frame.track_id.tolist(), frame.xyxy, strict=True))
        assert len(boxes) == len(frame.track_id)
        for track_id, concept in zip(boxes, frame.concept.tolist(), strict=True):
            assert concept_of.setdefault(track_id, concept) == concept
        for track_id in boxes.keys() & previous.keys():
            # Nothing jumps: a box changes by less than its object's size between frames.
            assert np.abs(boxes[track_id] - previous[track_id]).max() < 60
        previous = boxes
    assert set(concept_of) <= set(range(1, 7))


def test_objects_enter_and_leave(atlas: Atlas) -> None:
    scene = MovingScene(atlas, (), replace(MOVING, crossing=1.0), seed=1)
    present = [set(frame.track_id.tolist()) for frame in scene]

    assert len({frozenset(ids) for ids in present}) > 2
    assert set.union(*present) - present[0]


def test_moving_scene_repeats(atlas: Atlas) -> None:
    one, other = (MovingScene(atlas, (), MOVING, seed=5).frame(1.3) for _ in range(2))

    np.testing.assert_array_equal(one.rgb, other.rgb)
    np.testing.assert_array_equal(one.xyxy, other.xyxy)


def test_video_and_its_truth(atlas: Atlas, tmp_path: Path) -> None:
    path = tmp_path / "scene.mp4"
    labels = tuple(f"shape {k}" for k in range(NUM_SHAPES))
    write_video(path, MovingScene(atlas, (), replace(MOVING, duration_s=1.0), 2), labels)

    truth = json.loads((tmp_path / "scene.json").read_text())
    capture = cv2.VideoCapture(str(path))
    assert (truth["width"], truth["height"]) == (240, 180)
    assert len(truth["frames"]) == 10
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 10
    objects = truth["frames"][0]["objects"]
    assert {entry["label"] for entry in objects} <= set(labels)


def test_real_sprites_compose() -> None:
    with np.load(Path(__file__).parents[1] / "assets" / "sprites.npz") as archive:
        families = tuple(str(family) for family in archive["families"])
        atlas = Atlas.from_arrays(families, tuple(archive["sprites"]))
    assert atlas.valid.all()

    settings = replace(PLAIN, families=("noto", "fluent-flat"), num_objects=(20, 20))
    scene = SceneComposer(atlas, (), settings).compose(0)
    assert len(scene.concept) >= 15
    assert (scene.concept < 24).all()
