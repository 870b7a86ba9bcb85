"""Evidence that comes with the boxes, in place of an auxiliary encoder: from network to prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.detections import Proposals
from agent.encoders import PrimaryEncoderStage
from agent.errors import CheckpointMismatch
from agent.feature_codec import decode_features, encode_features
from agent.features import FrameFeatures
from agent.frame import frame_from_rgb
from agent.inspection import inspect_model
from agent.model.checkpoint import load_model
from agent.model.configuration import ProposalConfig
from agent.model.vlm_fo1 import Part
from agent.model_directory import has_auxiliary_encoder
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.proposer import ProposalEvidence, Proposer
from agent.region_cache import MemoryRegionCache
from agent.settings import load_serve_config
from agent.stages import LocalStages
from deployments.app import bind
from deployments.observability.metrics import ServiceMetrics
from deployments.observability.stage_meter import StageMeters
from groundstream.errors import InvalidBoxes
from tests.fakes import FakeProposer
from tests.handles import remote_pipeline
from tests.unit.pocket_folder import pocket_weights, write_pocket_folder

DETECT = replace(Task.detect("dog"), max_new_tokens=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pocket model with its real eyes and random additions to its language model."""
    directory = tmp_path_factory.mktemp("pocket")
    write_pocket_folder(directory)
    pocket_weights(directory)
    return directory


@pytest.fixture(scope="module")
def frame():
    rgb = np.full((180, 240, 3), 90, dtype=np.uint8)
    rgb[40:140, 60:150] = (220, 30, 30)
    return frame_from_rgb(rgb)


@pytest.fixture(scope="module")
def proposer(folder):
    return Proposer.from_pretrained(str(folder), score_threshold=0.01)


def test_evidence_goes_where_its_boxes_go():
    boxes = np.array([[0, 0, 5, 5], [1, 1, 6, 6], [2, 2, 7, 7]], dtype=np.float32)
    evidence = np.arange(12, dtype=np.float32).reshape(3, 4) / 12
    proposals = Proposals(boxes, np.array([0.9, 0.8, 0.7]), evidence)
    np.testing.assert_array_equal(proposals.top(2).evidence, evidence[:2])
    np.testing.assert_array_equal(proposals.select(np.array([2, 0])).evidence, evidence[[2, 0]])
    assert Proposals(boxes, np.ones(3)).evidence.shape == (3, 0)
    assert Proposals().evidence.shape == (0, 0)
    with pytest.raises(InvalidBoxes, match="evidence of shape"):
        Proposals(boxes, np.ones(3), evidence[:2])


@pytest.mark.parametrize("num_classes", [0, 4])
def test_evidence_survives_cache_and_pages(num_classes):
    rng = np.random.default_rng(0)

    def random(*shape):
        return rng.uniform(size=shape).astype(np.float32)

    proposals = Proposals(random(5, 4), random(5), random(5, num_classes))
    features = FrameFeatures(
        10, 10, proposals, random(4, 3), (2, 2), random(5, 6), random(5, 4), seen_px=7, key="k"
    )
    again = decode_features(encode_features(features, "k"), "k")
    assert again.seen_px == 7
    np.testing.assert_array_equal(again.proposals.evidence, proposals.evidence)
    page = again.select(np.array([4, 1]))
    np.testing.assert_array_equal(page.proposals.evidence, proposals.evidence[[4, 1]])


def test_one_look_gives_boxes_and_evidence(proposer, frame):
    (found,) = proposer.propose([frame])
    assert len(found) > 0
    assert found.evidence.shape == (len(found), 80)
    np.testing.assert_allclose(found.evidence.max(axis=1), found.objectness, rtol=1e-6)
    assert (np.diff(found.objectness) <= 0).all()


def test_boxes_of_others_are_described(proposer, frame):
    stage = ProposalEvidence(proposer)
    (found,) = proposer.propose([frame])
    own = stage.pool(stage.start([frame])[0], found).regions
    np.testing.assert_array_equal(own, found.evidence)
    sent = Proposals(found.xyxy, np.ones(len(found)))
    described = stage.pool(frame, sent).regions
    assert described.shape == own.shape
    assert (described >= own - 1e-4).all(), "its own cell has the weight one"
    assert stage.pool(frame, Proposals()).regions.shape == (0, 80)


def test_a_network_without_classes_describes_nothing(frame):
    proposer = Proposer(None, ProposalConfig())
    with pytest.raises(CheckpointMismatch, match="knows no classes"):
        proposer.describe(frame, np.zeros((1, 4), dtype=np.float32))


def test_the_classifier_as_primary_stage(folder, frame):
    stage = PrimaryEncoderStage.from_pretrained(str(folder))
    boxes = np.array([[60, 40, 150, 140], [0, 0, 40, 30]], dtype=np.float32)
    features = stage.pool(stage.start([frame])[0], Proposals(boxes, np.ones(2)))
    assert features.grid == (5, 5)
    assert features.seen_px == 512
    assert features.image_tokens.shape == (25, 1000)
    assert features.regions.shape == (2, 1016)
    np.testing.assert_allclose(features.image_tokens.sum(1), 1, atol=1e-4)
    np.testing.assert_allclose(features.regions[:, :1000].sum(1), 1, atol=1e-4)
    red, gray = 3, 2
    assert features.regions[0, 1000:1011].argmax() == red
    assert features.regions[1, 1000:1011].argmax() == gray
    none = stage.pool(stage.start([frame])[0], Proposals())
    assert none.regions.shape == (0, 1016)


def test_the_classifier_stays_precise(folder):
    for dtype in (torch.bfloat16, None):
        model = load_model(folder, parts=frozenset({Part.PRIMARY}), dtype=dtype)
        assert {p.dtype for p in model.primary_encoder.parameters()} == {torch.float32}


def test_a_temperature_decides_more(folder, frame, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    raw = json.loads((folder / "config.json").read_text())
    raw["vision_config"]["temperature"] = 0.5
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(raw))
    boxes = Proposals(np.array([[60, 40, 150, 140]], dtype=np.float32), np.ones(1))
    plain, sharp = (
        stage.pool(stage.start([frame])[0], boxes).regions[0, :1000]
        for stage in (PrimaryEncoderStage.from_pretrained(str(d)) for d in (folder, tmp_path))
    )
    np.testing.assert_allclose(sharp, plain**2 / (plain**2).sum(), rtol=1e-3, atol=1e-7)


async def test_a_model_of_three_stages_in_one_process(folder, frame):
    assert not has_auxiliary_encoder(str(folder))
    assert has_auxiliary_encoder("unreadable")
    stages = LocalStages.from_pretrained(str(folder), dtype="bfloat16")
    try:
        pipeline = Pipeline(stages, MemoryRegionCache(), model_digest="pocket")
        found = await pipeline.ground(frame, [DETECT])
        features, _ = await pipeline.features(frame)
        np.testing.assert_array_equal(features.auxiliary_regions, found.proposals.evidence)
        again = await pipeline.ground(frame, [DETECT])
        assert again.cache_hit
        assert again.answers[0].text == found.answers[0].text
        boxes = np.array([[60, 40, 150, 140]], dtype=np.float32)
        given = await pipeline.ground(frame, [Task.describe_region(0)], boxes=boxes)
        assert given.seen is not None
        assert len(given.seen.appearance) == 1
    finally:
        stages.close()


def test_it_can_be_looked_through(folder, tmp_path):
    report = inspect_model(folder)
    assert not report.problems
    assert report.switches["order of a region"] == "RSSR"
    assert "language.safetensors" in report.found
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    problems = "\n".join(inspect_model(tmp_path).problems)
    assert "language.safetensors cannot be read" in problems


NUM_CLASSES = 3


class ClassedProposer(FakeProposer):
    """Quarters with evidence; describes what it is given."""

    def propose(self, frames):
        return [
            Proposals(found.xyxy, found.objectness, np.full((len(found), NUM_CLASSES), 0.25))
            for found in super().propose(frames)
        ]

    def describe(self, frame, boxes):
        return np.full((len(boxes), NUM_CLASSES), 0.75, dtype=np.float32)


async def test_a_model_of_three_stages_in_the_service():
    metrics = ServiceMetrics(meters=StageMeters(auxiliary_encoder=None))
    service = remote_pipeline(
        metrics, proposer=f"{__name__}:{ClassedProposer.__name__}", has_auxiliary_encoder=False
    )
    (language,) = service.languages.replicas
    frame = frame_from_rgb(np.zeros((40, 40, 3), dtype=np.uint8))
    found, _ = await language._pipeline.features(frame)
    assert (found.auxiliary_regions == 0.25).all()
    boxes = np.array([[1, 1, 9, 9]], dtype=np.float32)
    given, _ = await language._pipeline.features(frame, boxes=boxes)
    assert (given.auxiliary_regions == 0.75).all()
    grounding = await service.ground(frame, [DETECT])
    assert grounding.proposals.evidence.shape[1] == 0, "the front end has no use for it"
    assert metrics.stage_calls.encode_auxiliary == 0


def test_a_stage_that_a_model_lacks_is_nowhere(folder):
    """No deployment, no meter, and no numbers are missed or in the way."""
    config = load_serve_config(Path(__file__).parents[2] / "deployments" / "serve_config.yaml")
    assert "AuxiliaryEncoder" in {entry.name for entry in config.deployments}
    for model, found in ((str(folder), False), ("unreadable", True)):
        built = bind(replace(config.service, model=model), config.deployments)
        language = built._bound_deployment.init_kwargs["language"]
        stages = language._bound_deployment.init_kwargs
        assert (stages["auxiliary_encoder"] is not None) == found
    meters = StageMeters(auxiliary_encoder=None)
    assert [meter.name for meter in meters] == ["proposal", "primary_encoder", "language"]
    assert meters.encoding_s() == meters.primary_encoder.expected_s()
