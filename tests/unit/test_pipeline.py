"""The whole path in one process, on the real architecture with random weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.answer_rules import AnswerRules
from agent.frame import frame_from_rgb, read_frame
from agent.model_directory import find_model
from agent.pipeline import Pipeline
from agent.prompts import Exchange, Task, TaskKind
from agent.region_cache import MemoryRegionCache
from agent.stages import LocalStages
from groundstream.errors import InvalidBoxes, InvalidFrame, InvalidQuery
from tests.unit.tiny_model import write_tiny_model

TASKS = [Task(Task.detect("dog").kind, "dog", max_new_tokens=12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def stages(model):
    local = LocalStages.from_pretrained(model)
    yield local
    local.close()


@pytest.fixture
def pipeline(model, stages):
    stages.calls.clear()
    cache = MemoryRegionCache(budget_bytes=1 << 24)
    return Pipeline(stages, cache, model_digest=find_model(model).digest)


@pytest.fixture(scope="module")
def picture():
    rgb = np.random.default_rng(3).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    return frame_from_rgb(rgb)


async def test_a_repeated_frame_runs_no_vision_at_all(pipeline, stages, picture):
    first = await pipeline.ground(picture, TASKS)
    assert not first.cache_hit
    assert 0 < len(first.proposals) <= 8
    before = dict(stages.calls)
    second = await pipeline.ground(picture, TASKS)
    assert second.cache_hit
    for stage in ("propose", "encode_primary", "encode_auxiliary"):
        assert stages.calls[stage] == before[stage] == 1
    assert second.answers[0].text == first.answers[0].text
    assert second.answers[0].num_prefix_tokens_reused > 0


async def test_features_may_be_begun_before_the_questions_are_known(pipeline, stages, picture):
    begun = pipeline.begin(picture)
    _, cache_hit = await begun.result
    assert not cache_hit
    assert stages.calls["answer"] == 0
    answered = await pipeline.ground(picture, TASKS, begun=begun)
    assert answered.seen is not None
    assert not answered.cache_hit
    assert answered.timings.total_s >= answered.timings.propose_s > 0.0
    assert answered.answers[0].text == (await pipeline.ground(picture, TASKS)).answers[0].text
    for stage in ("propose", "encode_primary", "encode_auxiliary"):
        assert stages.calls[stage] == 1


async def test_proposals_lie_in_the_frame(pipeline, picture):
    boxes = (await pipeline.ground(picture, [])).proposals.xyxy
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 90).all()
    assert (boxes[:, 3] <= 70).all()


async def test_client_boxes_replace_the_proposal_network(pipeline, stages, picture):
    boxes = np.array([[1, 2, 30, 40], [5, 5, 60, 60]], dtype=np.float32)
    grounding = await pipeline.ground(picture, TASKS, boxes=boxes)
    assert stages.calls["propose"] == 0
    np.testing.assert_array_equal(grounding.proposals.xyxy, boxes)
    again = await pipeline.ground(picture, TASKS)
    assert not again.cache_hit, "boxes of the client must not be served to a question without"


async def test_no_boxes_at_all(pipeline, picture):
    grounding = await pipeline.ground(picture, TASKS, boxes=np.zeros((0, 4), dtype=np.float32))
    assert len(grounding.answers[0].detections) == 0


async def test_bad_input_is_typed_and_the_next_question_works(pipeline, picture):
    with pytest.raises(InvalidBoxes):
        await pipeline.ground(picture, TASKS, boxes=np.array([[9, 9, 1, 1]], dtype=np.float32))
    cut = read_frame(picture.encoded[: len(picture.encoded) // 2])
    with pytest.raises(InvalidFrame):
        await pipeline.ground(cut, TASKS)
    assert await pipeline.ground(picture, TASKS)


async def test_several_questions_share_a_prefix(pipeline, picture):
    tasks = [Task(t.kind, t.query, max_new_tokens=6) for t in map(Task.detect, ("dog", "cat"))]
    together = await pipeline.ground(picture, tasks)
    alone = [(await pipeline.ground(picture, [task])).answers[0].text for task in tasks]
    assert [answer.text for answer in together.answers] == alone


def short(task):
    return replace(task, max_new_tokens=3)


async def test_every_task_runs(pipeline, picture):
    earlier = Exchange("Where is the dog?", "<ground>dog</ground><objects><region1></objects>")
    tasks = [
        Task.detect("dog", "cat"), Task.refer("the left dog"), Task.count("dog"),
        Task.describe_region(0), Task.describe_region(1, detailed=True), Task.read_region(2),
        Task.describe_image(), Task.find_similar(0), Task.reason("Why?"),
        Task.chat("Is {} a dog?", regions=(1,), history=(earlier,)),
    ]  # fmt: skip
    assert {task.kind for task in tasks} == set(TaskKind)
    boxes = np.array([[0, 0, 30, 30], [10, 10, 60, 60], [5, 5, 80, 20]], dtype=np.float32)
    grounding = await pipeline.ground(picture, [short(t) for t in tasks], boxes=boxes)
    assert [answer.task.kind for answer in grounding.answers] == [task.kind for task in tasks]
    assert all(answer.num_proposals == 3 for answer in grounding.answers)


async def test_a_picture_without_boxes(pipeline, picture):
    nothing = np.zeros((0, 4), dtype=np.float32)
    grounding = await pipeline.ground(
        picture, [short(Task.chat("What is this?")), *TASKS], boxes=nothing
    )
    assert len(grounding.proposals) == 0
    assert grounding.answers[0].num_passes > 0
    assert not len(grounding.answers[1].detections)


async def test_a_conversation_without_a_picture(pipeline):
    earlier = Exchange("Hello", "Hello! What shall I look for?")
    answer = await pipeline.converse(short(Task.chat("A dog", history=(earlier,))))
    again = await pipeline.converse(short(Task.chat("A dog", history=(earlier,))))
    assert answer.text == again.text
    assert again.num_prefix_tokens_reused > 0


async def test_clutter_is_never_cut(pipeline, stages, picture):
    """250 boxes: every one is looked at, in pages that share the image's keys and values."""
    corners = np.random.default_rng(0).uniform(0, 50, (250, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + 15], axis=1)
    grounding = await pipeline.ground(picture, [short(t) for t in TASKS], boxes=boxes)
    assert grounding.answers[0].num_proposals == 250
    assert stages.calls["answer"] == 3
    with pytest.raises(InvalidQuery, match="has 250 boxes"):
        await pipeline.ground(picture, [Task.describe_region(250)], boxes=boxes)


async def test_where_an_answer_is_expected_changes_no_answer(pipeline, picture):
    boxes = np.array([[0, 0, 30, 30], [10, 10, 60, 60], [5, 5, 80, 20]], dtype=np.float32)
    plain = await pipeline.ground(picture, TASKS, boxes=boxes)
    for where in (boxes[1:2], boxes, np.zeros((0, 4), dtype=np.float32), None):
        guided = await pipeline.ground(picture, TASKS, boxes=boxes, expected=[where])
        assert guided.answers[0].text == plain.answers[0].text
        assert guided.answers[0].num_passes <= plain.answers[0].num_passes


async def test_a_search_sees_every_page_and_a_question_the_first(model, stages, monkeypatch):
    shown: list[int] = []
    answer = stages.answer

    async def noted(features, task):
        shown.append(len(features.proposals))
        return await answer(features, task)

    monkeypatch.setattr(stages, "answer", noted)
    cache = MemoryRegionCache(budget_bytes=1 << 24)
    paged = Pipeline(stages, cache, model_digest="paged", rules=AnswerRules(regions_per_page=4))
    frame = frame_from_rgb(np.zeros((60, 80, 3), np.uint8))
    boxes = np.array([[x, 0, x + 5, 8] for x in range(0, 70, 7)], np.float32)
    await paged.ground(frame, TASKS, boxes=boxes)
    assert shown == [4, 4, 2]
    shown.clear()
    await paged.ground(frame, [replace(Task.chat("what?"), max_new_tokens=2)], boxes=boxes)
    assert shown == [4]


async def test_a_call_of_many_questions_waits_for_its_own(model, stages, picture, monkeypatch):
    under_way, most = 0, 0
    answer = stages.answer

    async def noted(features, task):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await answer(features, task)
        finally:
            under_way -= 1

    monkeypatch.setattr(stages, "answer", noted)
    monkeypatch.setattr("agent.pipeline._MOST_PROMPTS", 6)
    cache = MemoryRegionCache(budget_bytes=1 << 24)
    paged = Pipeline(stages, cache, model_digest="many", rules=AnswerRules(regions_per_page=2))
    boxes = np.array([[x, 0, x + 5, 8] for x in range(0, 49, 7)], np.float32)
    asked = [replace(Task.detect(name), max_new_tokens=2) for name in ("dog", "cat", "ox", "owl")]
    grounding = await paged.ground(picture, asked, boxes=boxes)
    assert [answer.num_proposals for answer in grounding.answers] == [7] * 4
    assert most == 4, "four pages of one question; two questions would be eight"
