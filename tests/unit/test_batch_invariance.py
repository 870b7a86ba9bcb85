"""The same frame and question give the same answer alone, in any batch, on a hit or a miss."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.encoders import AuxiliaryEncoderStage, PrimaryEncoderStage
from agent.frame import Frame, frame_from_rgb
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.proposer import Proposer
from agent.region_cache import MemoryRegionCache
from agent.stages import LocalStages
from groundstream.errors import InvalidFrame
from groundstream.video.sources import open_source
from tests.unit.tiny_model import write_tiny_model

VIDEO = Path(__file__).parents[2] / "demo" / "scene.mp4"
TASKS = [replace(Task.detect(label), max_new_tokens=12) for label in ("dog", "pizza", "car")]


@pytest.fixture(scope="module")
def frames():
    """Pictures of a video at three sizes."""
    pictures = [picture.rgb for picture in islice(open_source(str(VIDEO)), 0, 40, 8)]
    cut = [pictures[0], pictures[1][:360, :480], pictures[2][:, :400], *pictures[3:]]
    return [frame_from_rgb(np.ascontiguousarray(rgb)) for rgb in cut]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model")))


def pipeline(stages):
    return Pipeline(stages, MemoryRegionCache(), model_digest="tiny")


async def test_ids_are_equal_alone_and_in_company(frames, model):
    alone, together = (
        LocalStages.from_pretrained(model, dtype="float32", max_batch_frames=limit)
        for limit in (1, 8)
    )
    one_by_one = pipeline(alone)
    plain = [
        [(await one_by_one.ground(frame, [task])).answers[0].text for task in TASKS]
        for frame in frames
    ]
    hits = [await one_by_one.ground(frame, TASKS) for frame in frames]
    at_once = await asyncio.gather(*(pipeline(together).ground(f, TASKS) for f in frames))
    assert any(text for texts in plain for text in texts), "something is said"
    for texts, hit, batched in zip(plain, hits, at_once, strict=True):
        assert hit.cache_hit
        assert [answer.text for answer in hit.answers] == texts
        assert [answer.text for answer in batched.answers] == texts
    assert together._proposals.num_batches < len(frames), "frames did share batches"
    for stages in (alone, together):
        stages.close()


@pytest.mark.parametrize("stage", [PrimaryEncoderStage, AuxiliaryEncoderStage])
def test_maps_of_a_batch_are_those_of_its_frames(frames, model, stage):
    encoder = stage.from_pretrained(model)
    proposals = Proposer.from_pretrained(model).propose(frames)
    for frame, boxes, started in zip(frames, proposals, encoder.start(frames), strict=True):
        batched, single = (encoder.pool(s, boxes) for s in (started, encoder.start([frame])[0]))
        assert started.geometry.frame == (frame.width, frame.height)
        np.testing.assert_allclose(batched.regions, single.regions, atol=1e-4, rtol=1e-4)
    swapped = encoder.pool(encoder.start(frames)[0], proposals[0]).regions
    assert not np.allclose(swapped, encoder.pool(encoder.start(frames)[3], proposals[0]).regions)


def test_proposals_of_a_batch_are_those_of_its_frames(frames, model):
    proposer = Proposer.from_pretrained(model)
    for frame, batched in zip(frames, proposer.propose(frames), strict=True):
        (single,) = proposer.propose([frame])
        assert len(single) == len(batched) > 0
        np.testing.assert_allclose(batched.xyxy, single.xyxy, atol=0.05)


async def test_a_damaged_frame_fails_alone(frames, model):
    stages = LocalStages.from_pretrained(model, dtype="float32", max_batch_frames=8)
    whole = frames[0].encoded
    damaged = Frame(whole[: len(whole) // 3], frames[0].width, frames[0].height, "damaged")
    grounding = pipeline(stages)
    results = await asyncio.gather(
        *(grounding.ground(frame, TASKS[:1]) for frame in (damaged, *frames[1:3])),
        return_exceptions=True,
    )
    assert isinstance(results[0], InvalidFrame)
    assert not any(isinstance(result, Exception) for result in results[1:])
    stages.close()


def test_pictures_resized_on_the_device_give_the_same_features(frames, model, monkeypatch):
    """What a GPU does with a picture, done by the same code on this machine."""
    from agent.device_picture import DevicePicture

    stage = PrimaryEncoderStage.from_pretrained(model)
    pillow = stage.start(frames[:2])
    monkeypatch.setattr("agent.encoders.picture", DevicePicture.of)
    device = stage.start(frames[:2])
    for ours, theirs in zip(device, pillow, strict=True):
        assert torch.equal(ours.maps.image_tokens, theirs.maps.image_tokens)
