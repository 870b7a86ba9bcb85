"""Bugs of the published code that are fixed knowingly; docs/models.md lists them by number.

Those of the prompt text (3, 5) are in test_golden.py, left padding (4) in test_checkpoint.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.frame import frame_from_rgb
from agent.model.configuration import RegionConfig
from agent.processor import ImageGeometry
from agent.prompts import Exchange, Task
from agent.stages import local_pipeline
from groundstream.errors import InvalidQuery
from tests.unit.tiny_model import tiny_config, write_tiny_model


def test_1_small_images_scale_their_boxes():
    geometry = ImageGeometry.of(20, 300, tiny_config(300))
    corner = geometry.auxiliary_boxes(np.array([[0, 0, 20, 300]], dtype=np.float32))[0, 2:]
    assert corner.tolist() == pytest.approx(list(geometry.auxiliary))


def test_2_a_callers_boxes_are_left_alone():
    config = tiny_config(300)
    region = replace(RegionConfig(), combination="concat_aux_pos")
    geometry = ImageGeometry.of(90, 70, config)
    boxes = np.array([[5, 5, 40, 40]], dtype=np.float32)
    before = boxes.copy()
    first = geometry.normalised_boxes(boxes, region)
    assert np.array_equal(first, geometry.normalised_boxes(boxes, region))
    assert np.array_equal(boxes, before)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return local_pipeline(str(write_tiny_model(tmp_path_factory.mktemp("m") / "model")))


@pytest.fixture(scope="module")
def frame():
    rgb = np.random.default_rng(1).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    return frame_from_rgb(rgb)


async def test_6_turns_the_published_helpers_cannot_prepare(pipeline, frame):
    """No boxes, text alone, an assistant's earlier turn, 103 boxes."""
    earlier = Exchange("Where?", "<ground>dog</ground><objects></objects>")
    chat = Task.chat("And now?", history=(earlier,))
    few = replace(chat, max_new_tokens=2)
    assert (await pipeline.converse(few)).num_passes > 0
    for count in (0, 103):
        corner = np.linspace(0, 50, count, dtype=np.float32)[:, None]
        boxes = np.concatenate([corner, corner, corner + 9, corner + 9], axis=1)
        asked = [few, replace(Task.detect("dog"), max_new_tokens=2)]
        grounding = await pipeline.ground(frame, asked, boxes=boxes)
        assert grounding.answers[1].num_proposals == count


async def test_8_a_prompt_that_is_too_long_is_refused_not_cut(pipeline, frame):
    # Few characters, many tokens: characters have a limit of their own.
    history = (Exchange("What is this?", "\N{NAZAR AMULET}" * 3500),) * 8
    with pytest.raises(InvalidQuery, match="the model reads 512"):
        await pipeline.ground(frame, [Task.chat("And now?", history=history)])
    assert (await pipeline.ground(frame, [Task.detect("dog")])).answers
