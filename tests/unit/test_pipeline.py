"""The whole path in one process, on the real architecture with random weights."""

from __future__ import annotations

import numpy as np
import pytest

from agent.errors import InvalidBoxes, InvalidFrame
from agent.frame import frame_from_rgb, read_frame
from agent.model_directory import find_model
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from agent.stages import LocalStages
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
