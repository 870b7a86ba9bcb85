"""Region zoom over the fake stages: what is looked at again, and how answers are revised."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from agent.answer_rules import AnswerRules
from agent.detections import Proposals
from agent.features import FrameFeatures, Generation
from agent.frame import Frame, read_frame
from agent.parsing import AnswerStatus
from agent.pipeline import Pipeline
from agent.prompts import Task, TaskKind
from agent.region_cache import MemoryRegionCache
from agent.revisions import Revision
from agent.settings import ZoomSettings
from agent.zoom import RegionZoom, _Seen
from agent.zoom_policy import Arrangement, Zoom, ZoomPolicy
from groundstream.errors import Overloaded
from tests.fakes import SLOW_S, FakeStages
from tests.pictures import encoded_image

ALWAYS, AUTO = Zoom(ZoomPolicy.ALWAYS), Zoom(ZoomPolicy.AUTO)


def large() -> Frame:
    """A frame that the fakes see reduced 14 times (56 x 56 pixels)."""
    return read_frame(encoded_image(1, width=960, height=640))


def pipeline_of(stages: FakeStages) -> Pipeline:
    return Pipeline(stages, MemoryRegionCache(), model_digest="m")


async def looked(
    zoom: Zoom,
    *tasks: Task,
    stages: FakeStages | None = None,
    frame: Frame | None = None,
    deadline_s: float = float("inf"),
    boxes: np.ndarray | None = None,
) -> list[Revision]:
    """All revisions."""
    zoomer = RegionZoom(pipeline_of(stages or FakeStages()), deadline_s=deadline_s)
    return [r async for r in zoomer.look(frame or large(), list(tasks), zoom, boxes=boxes)]


def assert_inside_crops(revision: Revision) -> None:
    """Every refined box lies inside the crop it names, and its crop leads there."""
    refined = 0
    for answer, origins in zip(revision.grounding.answers, revision.origins, strict=True):
        for box, origin in zip(answer.detections.xyxy, origins, strict=True):
            if origin is None:
                continue
            refined += 1
            crop = revision.crops[origin.crop]
            assert (box >= np.array(crop.box[:2] * 2) - 1e-3).all()
            assert (box <= np.array(crop.box[2:] * 2) + 1e-3).all()
            led = crop.to_frame(np.array([origin.found], dtype=np.float32))[0]
            assert led == pytest.approx(box, abs=1e-3)
    assert refined


def test_how_far_the_first_look_reduced_the_frame() -> None:
    none = np.zeros((0, 1), dtype=np.float32)
    seen = FrameFeatures(2048, 1024, Proposals(), none, (24, 48), none, none)
    assert _Seen.of(seen) == _Seen(672, pytest.approx(2048 / 672))
    for seen_px, expected in ((512, _Seen(512, 4.0)), (4096, _Seen(2048, 1.0))):
        assert _Seen.of(replace(seen, grid=(5, 5), seen_px=seen_px)) == expected


async def test_off_is_one_look_and_the_answers_of_the_pipeline() -> None:
    stages = FakeStages()
    (only,) = await looked(Zoom(ZoomPolicy.OFF), Task.detect("dog"), stages=stages)
    assert only.final
    assert (only.number, only.crops, only.vision_tokens) == (0, (), 4)
    assert stages.calls.answer == 1


async def test_the_first_answer_comes_first_and_the_last_one_is_final() -> None:
    first, *later = await looked(ALWAYS, Task.detect("dog"))
    assert not first.final
    assert [revision.number for revision in later] == list(range(1, len(later) + 1))
    assert [revision.final for revision in later] == [False] * (len(later) - 1) + [True]
    assert not later[-1].cut_short
    assert_inside_crops(later[-1])
    assert [r.vision_tokens for r in later] == sorted(r.vision_tokens for r in later)


@pytest.mark.parametrize("arrangement", Arrangement)
async def test_every_arrangement_keeps_its_boxes_inside_its_crops(arrangement: Arrangement) -> None:
    *_, last = await looked(Zoom(ZoomPolicy.ALWAYS, arrangement=arrangement), Task.detect("dog"))
    assert_inside_crops(last)
    answer = last.grounding.answers[0]
    proposals = last.grounding.proposals
    assert answer.detections.region.max() < len(proposals)
    for box, region in zip(answer.detections.xyxy, answer.detections.region, strict=True):
        assert proposals.xyxy[region] == pytest.approx(box, abs=1e-3)


async def test_small_finds_of_the_first_look_give_way_to_what_crops_show() -> None:
    class Nothing(FakeStages):
        """Sees dogs on the whole frame only."""

        async def answer(self, features, task):  # type: ignore[no-untyped-def]
            if features.width == 960:
                return await super().answer(features, task)
            return await super().answer(features, Task.detect("absent dog"))

    first, *_, last = await looked(ALWAYS, Task.detect("dog"), stages=Nothing())
    assert len(first.grounding.answers[0].detections) == 1
    assert len(last.grounding.answers[0].detections) == 0
    assert last.grounding.answers[0].status is AnswerStatus.NOT_PRESENT


async def test_a_count_is_the_number_of_boxes() -> None:
    *_, last = await looked(ALWAYS, Task.count("dog"))
    answer = last.grounding.answers[0]
    assert answer.count == len(answer.detections) > 1


async def test_automatic_zoom_leaves_small_frames_and_large_finds_alone() -> None:
    small = read_frame(encoded_image(1, width=56, height=56))
    assert len(await looked(AUTO, Task.detect("dog"), frame=small)) == 1
    settings = ZoomSettings(small_px=10.0)
    zoomer = RegionZoom(pipeline_of(FakeStages()), settings)
    # Box 0 is a quarter of the frame: 28 px of the 56 that were seen.
    assert len([r async for r in zoomer.look(large(), [Task.detect("dog")], AUTO)]) == 1
    # What is not found may be too small to be found.
    assert len([r async for r in zoomer.look(large(), [Task.detect("absent")], AUTO)]) > 1


async def test_a_question_about_a_box_is_answered_from_its_crop() -> None:
    stages = FakeStages()
    boxes = np.array([[0, 0, 400, 400], [700, 300, 720, 330]], dtype=np.float32)
    first, last = await looked(AUTO, Task.describe_region(1), stages=stages, boxes=boxes)
    assert first.grounding.answers[0].reply == "thing 1"
    answer = last.grounding.answers[0]
    assert answer.reply == "thing 0"  # the crop's only region
    assert answer.task.region == 1
    (crop,) = last.crops
    x1, y1, x2, y2 = crop.box
    assert x1 <= 700 < 720 <= x2
    assert y1 <= 300 < 330 <= y2
    assert stages.calls.propose == 0


async def test_boxes_of_the_client_are_the_only_ones_looked_at() -> None:
    stages = FakeStages()
    boxes = np.array([[10, 10, 30, 30], [700, 300, 720, 330]], dtype=np.float32)
    *_, last = await looked(ALWAYS, Task.detect("dog"), stages=stages, boxes=boxes)
    assert stages.calls.propose == 0
    assert len(last.crops) == 2


class LabelByLabel(FakeStages):
    """Finds each label in the first box."""

    async def answer(self, features, task):  # type: ignore[no-untyped-def]
        pieces = tuple(
            piece
            for label in task.labels
            for piece in (f"<ground>{label}</ground><objects>", "<region0>", "</objects>")
        )
        return Generation(pieces, (0.9,) * len(pieces), False, 10, 0, 1)


async def read_and_looked(*labels: str) -> list[Revision]:
    rules = AnswerRules(reads_descriptions=True)
    pipeline = Pipeline(LabelByLabel(), MemoryRegionCache(), model_digest="m", rules=rules)
    looks = RegionZoom(pipeline).look(large(), [Task.detect(*labels)], ALWAYS)
    return [revision async for revision in looks]


async def test_what_was_chosen_by_its_place_in_the_frame_is_not_asked_of_a_part() -> None:
    (only,) = await read_and_looked("leftmost dog", "dogs on the left")
    assert only.final


async def test_labels_beside_one_with_a_place_are_looked_at_again() -> None:
    first, *_, last = await read_and_looked("dog", "leftmost dog")

    def boxes(revision: Revision, label: str) -> list[list[float]]:
        (answer,) = revision.grounding.answers
        found = answer.detections
        return sorted(found.xyxy[[own == label for own in found.label]].tolist())

    assert boxes(last, "leftmost dog") == boxes(first, "leftmost dog")
    assert boxes(last, "dog") != boxes(first, "dog")
    (alone,) = (await read_and_looked("dog"))[-1:]
    assert boxes(last, "dog") == boxes(alone, "dog")


@pytest.mark.parametrize("kind", [TaskKind.GROUNDED_CAPTION, TaskKind.CHAT])
async def test_words_about_the_whole_picture_have_nothing_to_zoom_into(kind: TaskKind) -> None:
    class Words(FakeStages):
        """Names no box."""

        async def answer(self, features, task):  # type: ignore[no-untyped-def]
            return Generation(("A street.",), (0.9,), False, 10, 0, 1)

    task = Task.chat("What is this?") if kind is TaskKind.CHAT else Task.describe_image()
    assert len(await looked(ALWAYS, task, stages=Words())) == 1


async def test_the_budget_in_time_leaves_the_answer_that_stands() -> None:
    first, last = await looked(
        Zoom(ZoomPolicy.ALWAYS, budget_s=1.4 * SLOW_S), Task.detect("slow dog")
    )
    assert (first.final, last.final, last.cut_short) == (False, True, True)
    assert last.crops == ()
    assert last.grounding.answers == first.grounding.answers


async def test_a_deadline_that_has_passed_leaves_the_first_answer() -> None:
    *_, last = await looked(ALWAYS, Task.detect("dog"), deadline_s=time.monotonic())
    assert last.cut_short
    assert len(last.grounding.answers[0].detections) == 1


async def test_the_budget_in_tokens_is_kept() -> None:
    *_, last = await looked(Zoom(ZoomPolicy.ALWAYS, vision_tokens=9), Task.detect("dog"))
    assert len(last.crops) == 2  # of four tokens each


async def test_a_stage_that_fails_later_only_ends_the_revisions() -> None:
    class Busy(FakeStages):
        """Has time for one answer."""

        async def answer(self, features, task):  # type: ignore[no-untyped-def]
            if self.calls.answer:
                raise Overloaded("too much to do")
            return await super().answer(features, task)

    first, *_, last = await looked(ALWAYS, Task.detect("dog"), stages=Busy())
    assert last.final
    assert last.cut_short
    assert last.grounding.answers == first.grounding.answers


async def test_a_first_look_that_fails_is_an_error() -> None:
    with pytest.raises(Overloaded):
        await looked(ALWAYS, Task.detect("busy"))


async def test_crops_are_cached_under_their_own_keys() -> None:
    stages = FakeStages()
    zoomer = RegionZoom(pipeline_of(stages))
    boxes = np.array([[10, 10, 30, 30], [700, 300, 720, 330]], dtype=np.float32)
    for query in ("dog", "cat"):
        revisions = zoomer.look(large(), [Task.detect(query)], ALWAYS, boxes=boxes)
        assert [r.number async for r in revisions] == [0, 1, 2]
    assert stages.calls.encode_primary == 3  # the frame and two crops, once


async def test_one_failed_proposal_ends_the_search_and_nothing_else() -> None:
    class Blind(FakeStages):
        """Proposes on the whole frame only."""

        def propose(self, frame):  # type: ignore[no-untyped-def]
            if frame.width != 960:
                raise Overloaded("no")
            return super().propose(frame)

    *_, last = await looked(ALWAYS, Task.detect("dog"), stages=Blind())
    assert last.cut_short
    assert isinstance(last.grounding.proposals, Proposals)
