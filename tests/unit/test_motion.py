"""Optical flow: boxes go where their pixels go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.detections import box_iou
from agent.streaming.camera_path import CameraPath, movement_between
from agent.streaming.motion import Motion, PointField, apply, compose, identity
from agent.streaming.view import View
from tests.moving_pictures import HEIGHT, WIDTH, MovingPicture


def test_an_object_is_followed_while_the_camera_pans() -> None:
    picture, field = MovingPicture(), PointField(200)
    box = picture.box((60, 80))[None]
    start = box
    for step in range(16):
        view = picture.view(camera=(2 * step, step), at=(60 + 5 * step, 80))
        motion = field.advance(view, box)
        if motion is None:
            field.set_bookmark(7)
            continue
        box, support = motion.carry(box)
        assert support[0] > 0.6
        assert motion.camera[:, 2] == pytest.approx([-2, -1], abs=0.2)
    there = picture.box((60 + 75, 80))[None]
    assert box_iou(box, there)[0, 0] > 0.85
    # A key frame whose answer comes late finds its boxes again.
    since = field.since(7, start)
    late, support = since.carry(start)
    assert support[0] > 0.6
    assert box_iou(late, there)[0, 0] > 0.85
    assert since.camera[:, 2] == pytest.approx([-30, -15], abs=2.0)
    field.forget(7)
    assert len(field.since(7, start).before) == 0


@pytest.mark.parametrize("num_points", [0, 200])
def test_a_thing_that_nobody_followed_is_found_again_behind_a_late_answer(num_points: int) -> None:
    picture, field = MovingPicture(), PointField(num_points)
    nothing = np.zeros((0, 4), np.float32)
    for step in range(6):
        field.advance(picture.view(at=(60 + 2 * step, 80)), nothing)
        if step == 1:
            field.set_bookmark(7)
    box = picture.box((62, 80))[None]
    late, support = field.since(7, box).carry(box)
    assert support[0] > 0.6
    assert box_iou(late, picture.box((70, 80))[None])[0, 0] > 0.95


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_it_is_found_again_in_frames_of_another_size(factor: float) -> None:
    picture, field = MovingPicture(), PointField(0)
    nothing = np.zeros((0, 4), np.float32)
    field.advance(picture.view(at=(60, 80)), nothing)
    field.set_bookmark(7)
    both = np.array([factor, factor], dtype=np.float32)
    field.rescale(both)
    field.advance(View(picture.grey(at=(68, 80)), both), nothing)
    box = factor * picture.box((60, 80))[None]
    late, support = field.since(7, box).carry(box)
    assert support[0] > 0.6
    assert late[0] == pytest.approx(factor * picture.box((68, 80)), abs=factor)


def test_a_box_is_compared_with_what_stood_there() -> None:
    picture, field = MovingPicture(), PointField(200)
    box = picture.box((60, 80))
    field.advance(picture.view(at=(60, 80)), box[None])
    field.set_bookmark(7)
    (look,) = field.looks(7, box[None])
    went = field.advance(picture.view(at=(120, 80)), box[None])
    assert went is not None
    assert went.likeness(look, picture.box((120, 80))) == pytest.approx(1.0, abs=1e-3)
    assert went.likeness(look, box) < 0.3
    # Nothing can be said without a look, a picture, or enough of the box.
    assert went.likeness(None, box) == Motion().likeness(look, box) == 1.0
    assert went.likeness(look, np.array([-50, 0, 2, 20], dtype=np.float32)) == 1.0
    field.forget(7)
    assert field.looks(7, box[None]) == [None]


def test_a_plain_box_looks_like_anything_and_nothing_looks_like_it() -> None:
    plain = View.of_grey(np.full((HEIGHT, WIDTH), 90, np.uint8), WIDTH, HEIGHT, longest_px=400)
    box = np.array([60, 80, 120, 130], dtype=np.float32)
    textured = MovingPicture().view().look(box)
    assert textured is not None
    assert float(np.linalg.norm(textured)) == pytest.approx(1.0)
    assert Motion(view=plain).likeness(plain.look(box), box) == 1.0
    assert Motion(view=plain).likeness(textured, box) == 0.0


def test_a_box_without_points_moves_with_the_camera() -> None:
    camera = np.array([[1.0, 0.0, 5.0], [0.0, 1.0, -3.0]])
    moved, support = Motion(camera=camera).carry(np.array([[10, 20, 30, 40]], dtype=np.float32))
    assert moved.tolist() == [[15, 17, 35, 37]]
    assert support.tolist() == [0.0]


def test_what_the_client_says_of_its_camera_helps_where_flow_loses_the_way() -> None:
    picture = MovingPicture()
    jump = (90, 0)  # Far beyond what flow finds by itself.
    told = np.array([[1.0, 0.0, -90.0], [0.0, 1.0, 0.0]])
    shares = []
    for ego_motion in (None, told):
        field = PointField(200)
        field.advance(picture.view(), np.zeros((0, 4), np.float32))
        motion = field.advance(picture.view(camera=jump), np.zeros((0, 4), np.float32), ego_motion)
        assert motion is not None
        right = np.abs(motion.after - motion.before - [-90, 0]).max(axis=1) < 1.0
        shares.append(right.sum())
    assert shares[1] > 50
    assert shares[1] > 5 * shares[0]


def test_a_picture_of_another_size_starts_anew() -> None:
    picture, field = MovingPicture(), PointField(50)
    none = np.zeros((0, 4), np.float32)
    assert field.advance(picture.view(), none) is None
    half = np.ascontiguousarray(picture.grey()[::2, ::2])
    assert field.advance(View.of_grey(half, 160, 120, longest_px=400), none) is None


affines = st.builds(
    lambda angle, x, y: np.array(
        [[np.cos(angle), -np.sin(angle), x], [np.sin(angle), np.cos(angle), y]]
    ),
    st.floats(-0.5, 0.5),
    st.floats(-50, 50),
    st.floats(-50, 50),
)


@given(st.lists(affines, min_size=1, max_size=6), st.data())
def test_camera_movements_add_up_over_dropped_frames(
    steps: list[np.ndarray], data: st.DataObject
) -> None:
    path = CameraPath()
    poses = [path.step(None)] + [path.step(step) for step in steps]
    first = data.draw(st.integers(0, len(steps)))
    then = data.draw(st.integers(first, len(steps)))
    expected = identity()
    for step in steps[first:then]:
        expected = compose(expected, step)
    movement = movement_between(poses[first], poses[then])
    assert movement is not None
    assert movement == pytest.approx(expected, abs=1e-6)
    point = np.array([[3.0, 4.0]], dtype=np.float32)
    assert apply(movement, point) == pytest.approx(apply(expected, point), abs=1e-3)


def test_a_frame_without_a_word_breaks_the_path() -> None:
    path = CameraPath()
    first = path.step(identity())
    path.step(None)
    assert movement_between(first, path.step(identity())) is None
    assert movement_between(None, first) is None


def test_a_sketch_sees_what_has_changed_and_where() -> None:
    picture = MovingPicture()
    still = picture.view(at=(60, 80)).sketch()
    assert still.largest_difference(picture.view(at=(60, 80)).sketch()) == 0.0
    moved = picture.view(at=(160, 80)).sketch()
    assert still.largest_difference(moved) > 0.05
    covered = moved.mask(np.stack([picture.box((60, 80)), picture.box((160, 80))]))
    differs = np.abs(still.blocks - moved.blocks) > 10
    assert differs.any()
    assert not (differs & ~covered).any()
    assert covered.mean() == pytest.approx(2 * 60 * 50 / (WIDTH * HEIGHT), rel=0.4)
