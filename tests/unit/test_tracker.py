"""Identity over time: one number for one thing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.detections import FloatArray
from agent.prompts import Task
from agent.settings import TrackerSettings
from agent.streaming.answers import Claim, Evidence, FollowedBox, Source
from agent.streaming.association import best_pairs, place_affinity, similarity
from agent.streaming.box_filter import BoxFilter
from agent.streaming.motion import Motion
from agent.streaming.session import StandingQuery
from agent.streaming.tracker import Observation, Tracker

DOG = StandingQuery("dog", Task.detect("dog"), 1)
CAT = StandingQuery("cat", Task.detect("cat"), 1)
SIZE = {"width": 1000, "height": 1000}
MEAN = np.zeros(16, dtype=np.float32)
STILL = Motion()


def looks(seed: int) -> FloatArray:
    """A region feature."""
    return np.random.default_rng(seed).normal(size=16).astype(np.float32)


def seen(x: float, y: float, *queries: StandingQuery, look: int = 0, frame: int = 0) -> Observation:
    """A thing of 60 x 60 pixels."""
    box = (x, y, x + 60, y + 60)
    claims = {
        query.id: Claim(query, query.id, 0.9, 0, 0.8, box, Evidence(frame, 0))
        for query in queries or (DOG,)
    }
    return Observation(np.array(box, dtype=np.float32), looks(look), claims)


def moved(x: float, y: float) -> Motion:
    """Everything moves by that much."""
    grid = np.stack(np.meshgrid(np.arange(0, 1000, 10), np.arange(0, 1000, 10)), -1)
    before = grid.reshape(-1, 2).astype(np.float32)
    return Motion(before, before + np.array([x, y], dtype=np.float32))


class Scene:
    """A tracker and what it is told."""

    def __init__(self, **settings: float) -> None:
        self.tracker = Tracker(TrackerSettings(**settings))  # type: ignore[arg-type]

    def answer(
        self, *things: Observation, asked: tuple[StandingQuery, ...] = (DOG, CAT)
    ) -> list[int]:
        """A key frame, answered at once."""
        places = self.tracker.places()
        return self.tracker.update(
            things, asked=asked, places=places, since=STILL, mean_appearance=MEAN
        )

    def go(self, dt_s: float, motion: Motion | None = STILL, *, steps: int = 1) -> None:
        """Some frames."""
        for _ in range(steps):
            self.tracker.advance(dt_s, motion, **SIZE)

    def ids(self, query: StandingQuery = DOG) -> list[int]:
        """What is reported."""
        return [track.id for track, _ in self.tracker.seen(query)]


def test_a_thing_keeps_its_number_and_a_new_one_gets_the_next() -> None:
    scene = Scene()
    assert scene.answer(seen(100, 100)) == [1]
    scene.go(0.1, moved(5, 0), steps=10)
    assert scene.answer(seen(150, 100), seen(500, 500, look=1)) == [1, 2]
    assert scene.ids() == [1, 2]


def test_time_is_in_seconds_however_many_frames_there_were() -> None:
    ends = []
    for steps in (1, 3, 30):
        scene = Scene()
        scene.answer(seen(100, 100))
        for _ in range(20):
            scene.go(0.03, moved(3, 0))  # Learns 100 pixels a second.
        scene.go(0.3 / steps, None, steps=steps)  # Then sees nothing for 0.3 s.
        ends.append(scene.tracker.boxes()[0, 0])
    assert ends == pytest.approx([190, 190, 190], abs=6)


def test_a_thing_is_reported_briefly_and_known_longer_than_it_is_seen() -> None:
    scene = Scene(show_coasting_s=0.25, max_coasting_s=1.0, memory_s=60.0)
    scene.answer(seen(100, 100))
    scene.go(0.2, None)
    assert scene.ids() == [1]
    scene.go(0.2, None)
    assert scene.ids() == []
    # Found again behind what hid it, it is the same thing.
    assert scene.answer(seen(110, 100)) == [1]
    scene.go(5.0, None)
    assert scene.tracker.tracks == ()


def test_a_box_that_went_on_with_the_background_is_not_reported() -> None:
    class ElsewhereMotion(Motion):
        """Flow agrees, and something else stands in the boxes."""

        def likeness(self, look: FloatArray | None, box: FloatArray) -> float:
            return 1.0 if look is None else 0.29

    still = moved(0, 0)
    elsewhere = ElsewhereMotion(still.before, still.after)
    for look, reported in ((np.ones(288, dtype=np.float32), []), (None, [1])):
        scene = Scene(show_coasting_s=0.25, max_coasting_s=1.0)
        scene.answer(dataclasses.replace(seen(100, 100), look=look))
        scene.go(0.1, still, steps=5)
        assert scene.ids() == [1]
        scene.go(0.1, elsewhere, steps=3)
        assert scene.ids() == reported


def test_a_new_thing_that_has_gone_elsewhere_is_not_reported_until_it_is_seen() -> None:
    class AloofMotion(Motion):
        """Where things were at the key frame stands something else now."""

        def likeness(self, look: FloatArray | None, box: FloatArray) -> float:
            return 0.0

    scene = Scene()
    (number,) = scene.tracker.update(
        [seen(100, 100)], asked=(DOG,), places={}, since=AloofMotion(), mean_appearance=MEAN
    )
    assert scene.ids() == []
    scene.go(0.1, moved(0, 0))
    assert scene.ids() == [number]


def test_what_an_answer_passed_over_is_not_shown_where_it_named_another_thing() -> None:
    scene = Scene()
    scene.answer(seen(100, 100), seen(160, 100, look=1))
    grid = np.stack(np.meshgrid(np.arange(160, 220, 4), np.arange(100, 160, 4)), -1)
    before = grid.reshape(-1, 2).astype(np.float32)
    scene.go(0.1, Motion(before, before - np.array([45, 0], dtype=np.float32)))
    # One answer named both: two things, however close.
    assert scene.ids() == [1, 2]
    assert scene.answer(seen(100, 100, frame=1)) == [1]
    assert scene.ids() == [1]
    assert scene.answer(seen(100, 100, frame=2), seen(140, 100, look=1, frame=2)) == [1, 2]
    assert scene.ids() == [1, 2]


def test_what_left_and_comes_back_elsewhere_is_known_by_its_looks() -> None:
    scene = Scene()
    assert scene.answer(seen(100, 100, look=1), seen(500, 500, look=2)) == [1, 2]
    scene.go(0.1, moved(-200, 0))  # Thing 1 leaves the picture.
    assert scene.ids() == [2]
    scene.go(10.0, None)
    back = seen(800, 800, look=1)
    stranger = seen(300, 800, look=3)
    assert scene.answer(back, stranger) == [1, 3]
    scene.go(5.0, None)
    scene.go(120.0, None)
    assert scene.answer(seen(50, 50, look=1)) == [4]  # Forgotten by now.


def test_quick_proposals_hold_a_thing_that_flow_has_lost() -> None:
    scene = Scene()
    scene.answer(seen(100, 100))
    for step in range(1, 10):
        scene.go(0.1, None)
        scene.tracker.snap(np.array([[100 + 4 * step, 100, 160 + 4 * step, 160],
                                     [500, 500, 600, 600]], dtype=np.float32))  # fmt: skip
    assert scene.ids() == [1]
    assert scene.tracker.boxes()[0] == pytest.approx([136, 100, 196, 160], abs=6)


def test_an_answer_about_the_past_is_carried_to_the_present() -> None:
    scene = Scene()
    places = scene.tracker.places()
    scene.go(0.1, moved(30, 0), steps=4)
    (number,) = scene.tracker.update(
        [seen(100, 100)], asked=(DOG,), places=places, since=moved(120, 0), mean_appearance=MEAN
    )
    assert number == 1
    assert scene.tracker.boxes()[0] == pytest.approx([220, 100, 280, 160], abs=1)


def test_silence_counts_against_a_thing_only_from_the_query_that_named_it() -> None:
    scene = Scene(max_misses=2)
    scene.answer(seen(100, 100))
    for _ in range(3):
        scene.answer(asked=(CAT,))
    assert scene.ids() == [1]
    scene.answer(asked=(DOG,))
    assert scene.ids() == [1]  # Once may be a mistake.
    scene.answer(asked=(DOG,))
    assert scene.ids() == []


def test_one_thing_may_be_the_answer_to_two_queries() -> None:
    scene = Scene()
    assert scene.answer(seen(100, 100, DOG, CAT)) == [1]
    assert (scene.ids(DOG), scene.ids(CAT)) == ([1], [1])
    assert scene.answer(seen(102, 100, DOG), asked=(DOG, CAT)) == [1]
    scene.answer(seen(102, 100, DOG), asked=(DOG, CAT))
    assert (scene.ids(DOG), scene.ids(CAT)) == ([1], [])


def test_a_query_put_anew_starts_without_answers_but_the_thing_keeps_its_number() -> None:
    scene = Scene()
    scene.answer(seen(100, 100))
    again = StandingQuery("dog", Task.detect("dog"), 2)
    scene.tracker.keep_only([again])
    assert scene.ids(DOG) == scene.ids(again) == []
    assert scene.answer(seen(100, 100, again), asked=(again,)) == [1]
    assert scene.ids(again) == [1]


def test_neighbours_do_not_swap_names() -> None:
    scene = Scene()
    assert scene.answer(seen(100, 100, DOG, look=1), seen(150, 100, CAT, look=2)) == [1, 2]
    assert scene.answer(seen(146, 100, CAT, look=2), seen(104, 100, DOG, look=1)) == [2, 1]


positions = st.tuples(st.integers(0, 9), st.integers(0, 9))


@given(st.lists(st.lists(positions, unique=True, max_size=6), min_size=1, max_size=8))
def test_numbers_are_never_shared_and_depend_on_the_session_alone(
    history: list[list[tuple[int, int]]],
) -> None:
    def run() -> list[list[int]]:
        scene, numbers = Scene(), []
        for things in history:
            numbers.append(scene.answer(*(seen(100.0 * x, 100.0 * y) for x, y in things)))
            scene.go(0.1)
        return numbers

    first, other = run(), run()
    assert first == other
    for numbers in first:
        assert len(set(numbers)) == len(numbers)


boxes = st.tuples(
    st.floats(0, 500, width=32), st.floats(0, 500, width=32), st.floats(1, 400), st.floats(1, 400)
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(proposal=boxes, box=boxes)
def test_every_box_is_its_proposal_mapped_to_the_frame(
    proposal: tuple[float, float, float, float], box: tuple[float, float, float, float]
) -> None:
    claim = Claim(DOG, "dog", 0.5, 3, 0.5, proposal, Evidence(0, 0))
    followed = FollowedBox(box, 1, claim, Source.TRACKED)
    x1, y1, x2, y2 = proposal
    for scale_x, scale_y, offset_x, offset_y in followed.step:
        x1, x2 = scale_x * x1 + offset_x, scale_x * x2 + offset_x
        y1, y2 = scale_y * y1 + offset_y, scale_y * y2 + offset_y
    assert (x1, y1, x2, y2) == pytest.approx(box, abs=1e-3)
    assert FollowedBox(proposal, 1, claim, Source.GROUNDED).step == ()


def test_a_filter_learns_a_velocity_and_grows_unsure_without_measurements() -> None:
    box = BoxFilter(np.array([0, 0, 50, 50], dtype=np.float32), 0.05)
    for step in range(1, 20):
        box.predict(0.05)
        box.correct(np.array([10 * step, 0, 10 * step + 50, 50], dtype=np.float32), 0.02)
    assert box.velocity[0] == pytest.approx(200, rel=0.05)
    sure = box.uncertainty
    box.predict(0.5)
    assert box.uncertainty > 5 * sure
    assert box.xyxy[0] == pytest.approx(290, rel=0.1)


def test_places_agree_by_overlap_or_else_by_nearness() -> None:
    a = np.array([[0, 0, 10, 10]], dtype=np.float32)
    b = np.array(
        [[0, 0, 10, 10], [5, 0, 15, 10], [0, 11, 10, 21], [0, 5, 40, 45], [100, 0, 110, 10]],
        dtype=np.float32,
    )
    same, half, near, larger, far = place_affinity(a, b)[0].tolist()
    assert same == 1.0
    assert same > half > larger
    assert (near, far) == (0.0, 0.0)


def test_pairs_that_may_not_be_do_not_keep_others_apart() -> None:
    affinity = np.array([[0.9, 0.8], [0.85, -1.0]], dtype=np.float32)
    assert sorted(best_pairs(affinity, 0.0)) == [(0, 1), (1, 0)]
    assert best_pairs(np.zeros((0, 3), dtype=np.float32), 0.0) == []


def test_likeness_is_measured_from_the_mean_of_the_scene() -> None:
    common = 10 * looks(99)
    a, b = common + looks(1), common + looks(2)
    alike = similarity(a[None], np.stack([a, b]), common)[0]
    assert alike[0] == pytest.approx(1.0)
    assert alike[1] < 0.7


def test_a_thing_keeps_its_number_when_another_model_sees_it() -> None:
    scene = Scene()
    scene.answer(seen(100, 100))
    wider = np.ones(20, dtype=np.float32)
    again = dataclasses.replace(seen(102, 100), appearance=wider)
    places = scene.tracker.places()
    for _ in range(2):
        ids = scene.tracker.update(
            [again], asked=(DOG,), places=places, since=STILL, mean_appearance=0 * wider
        )
        assert ids == [1]
    assert scene.tracker.tracks[0].appearance.shape == wider.shape
