"""Proposers: which network a model runs, and what becomes of a network's boxes."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTokenizer,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2Processor,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
)
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from agent.detections import box_iou, centred_to_corners, select_proposals
from agent.errors import CheckpointMismatch
from agent.frame import Frame, frame_from_rgb
from agent.model.configuration import ProposalConfig
from agent.model.object_detector import ObjectDetector
from agent.model.omdet_checkpoint import prompt_ids
from agent.model.proposal_network import ProposalNetwork
from agent.model_directory import find_model
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.proposer import Proposer, find_network
from agent.region_cache import MemoryRegionCache
from agent.stages import LocalStages
from groundstream.errors import InvalidBoxes
from tests.unit.tiny_model import tiny_proposal_config, write_tiny_model

OMDET = Path(__file__).parents[1] / "golden" / "omdet"
SIZES = ((180, 140), (120, 150))
VOCABULARY = ("!", "<|startoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "tde."))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    rng = np.random.default_rng(4)
    return [
        frame_from_rgb(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        for width, height in SIZES
    ]


def _tokenizer() -> CLIPTokenizer:
    vocab = {token: index for index, token in enumerate((*VOCABULARY, "<|endoftext|>"))}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token="!")


def _shake(module: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that boxes and scores differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return module.eval()


def rt_detr(folder: Path) -> Path:
    """A closed vocabulary of five classes."""
    config = RTDetrConfig(
        backbone_config=RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 16, 16],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=20,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_n_points=2,
        decoder_layers=1,
        decoder_attention_heads=2,
        num_denoising=0,
        num_labels=5,
    )
    _shake(RTDetrForObjectDetection(config)).save_pretrained(folder)
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def owlv2(folder: Path) -> Path:
    """Asked in words."""
    tokenizer = _tokenizer()
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = Owlv2Config(
        text_config={"vocab_size": len(tokenizer), "max_position_embeddings": 16, **small},
        vision_config={"image_size": 64, "patch_size": 16, **small},
        projection_dim=16,
    )
    _shake(Owlv2ForObjectDetection(config)).save_pretrained(folder)
    pixels = Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    Owlv2Processor(pixels, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[rt_detr, owlv2], ids=["rt_detr", "owlv2"])
def detector(request, tmp_path_factory) -> Path:
    return request.param(tmp_path_factory.mktemp("detector"))


def test_any_detector_proposes(detector, model, frames):
    proposer = Proposer.from_pretrained(str(model), network=str(detector))
    proposals = proposer.propose(frames)
    for found, (width, height) in zip(proposals, SIZES, strict=True):
        assert 0 < len(found) <= 8  # the model's own limit
        assert (found.xyxy >= 0).all()
        assert (found.xyxy <= [width, height, width, height]).all()
        assert (np.diff(found.objectness) <= 0).all()
        overlap = box_iou(found.xyxy, found.xyxy) - np.eye(len(found))
        assert overlap.max() <= 0.6
    assert len(proposer.propose(frames[1:])[0]) == len(proposals[1])


def test_a_closed_vocabulary_counts_its_best_class(tmp_path, frames):
    detector = ObjectDetector.from_pretrained(rt_detr(tmp_path))
    image = frames[0].rgb()
    with torch.inference_mode():
        inputs = detector._processor(images=[image], return_tensors="pt")
        output = detector.model(**inputs)
        boxes, scores = detector([image])[0]
    best = output.logits[0].sigmoid().amax(-1).max()
    assert scores.max() == pytest.approx(float(best), abs=1e-6)
    row = int(output.logits[0].amax(-1).argmax())
    expected = centred_to_corners(output.pred_boxes[0, [row]].numpy(), width=180, height=140)
    np.testing.assert_allclose(boxes[scores.argmax()], expected[0], atol=1e-3)


def test_the_prompt_reaches_a_zero_shot_detector(tmp_path, frames):
    folder = owlv2(tmp_path)
    images = [frame.rgb() for frame in frames]
    with torch.inference_mode():
        object_, dog = (
            ObjectDetector.from_pretrained(folder, prompt=word)(images)
            for word in ("object", "dog")
        )
    np.testing.assert_allclose(object_[0][0], dog[0][0], atol=1e-4)
    assert np.abs(object_[0][1] - dog[0][1]).max() > 1e-3


def test_missing_weights_of_a_detector_are_named(tmp_path, model):
    weights = rt_detr(tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    gone = next(key for key in tensors if "class_embed" in key)
    del tensors[gone]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointMismatch, match=r"missing keys: .*class_embed"):
        Proposer.from_pretrained(str(model), network=str(tmp_path))


def test_published_omdet_is_recognised_by_its_configuration(model, frames):
    proposer = Proposer.from_pretrained(str(model), network=str(OMDET))
    assert isinstance(proposer.network, ProposalNetwork)
    assert len(proposer.propose(frames)[0])


def test_the_published_prompt_comes_from_the_tokenizer(tmp_path):
    _tokenizer().save_pretrained(tmp_path)
    ids = prompt_ids(tmp_path)
    end = len(VOCABULARY)
    spelled = [VOCABULARY.index(token) for token in ("o", "b", "j", "e", "c", "t</w>")]
    assert ids["class"] == [1, *spelled, end]
    assert ids["task"][0] == 1
    assert ids["task"][-1] == end
    assert prompt_ids(tmp_path, "dot")["class"] == [1, 5, 16, spelled[-1], end]


def test_a_tokenizer_that_is_not_clips_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    _tokenizer().save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    vocab = {"<|startoftext|>": 9, "<|endoftext|>": 0, **{c: i for i, c in enumerate("bcejot", 1)}}
    CLIPTokenizer(vocab=vocab | {"t</w>": 8}, merges=[]).save_pretrained(tmp_path)
    with pytest.raises(CheckpointMismatch, match="not CLIP's"):
        prompt_ids(tmp_path)


def test_names_of_networks(model, tmp_path):
    assert find_network(model, "proposal") == model / "proposal"
    assert find_network(model, str(OMDET)) == OMDET
    assert find_network(model, "none") is None
    assert find_network(tmp_path, "proposal") is None
    with pytest.raises(CheckpointMismatch, match="neither a folder"):
        find_network(tmp_path, "no such thing")


def test_a_network_elsewhere_is_part_of_the_models_identity(model, tmp_path):
    folder, network = tmp_path / "model", tmp_path / "network"
    shutil.copytree(model, folder)
    plain = find_model(str(folder)).digest
    raw = json.loads((folder / "config.json").read_text())
    raw["groundstream"]["proposal"]["network"] = str(network)
    (folder / "config.json").write_text(json.dumps(raw))
    digests = {plain, find_model(str(folder)).digest}
    network.mkdir()
    for content in ("{}", '{"model_type": "upn"}'):
        (network / "config.json").write_text(content)
        digests.add(find_model(str(folder)).digest)
    assert len(digests) == 4


def test_a_hub_name_out_of_reach_is_a_mismatch(monkeypatch, model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointMismatch, match="the hub cannot be reached"):
        find_network(model, "nobody-here/no-such-network")


def test_a_folder_without_detector_is_a_mismatch(model, tmp_path):
    with pytest.raises(CheckpointMismatch, match=r"config\.json does not exist"):
        Proposer.from_pretrained(str(model), network=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointMismatch, match="no detector"):
        Proposer.from_pretrained(str(model), network=str(tmp_path))


async def test_client_boxes_need_no_network(model, frames, tmp_path, caplog):
    folder = tmp_path / "model"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("proposal"))
    with caplog.at_level(logging.WARNING):
        stages = LocalStages.from_pretrained(str(folder))
    assert "every request must bring boxes" in caplog.text
    pipeline = Pipeline(stages, MemoryRegionCache(budget_bytes=1 << 20), model_digest="d")
    task = Task(Task.detect("dog").kind, "dog", max_new_tokens=2)
    boxes = np.array([[1, 2, 30, 40], [5, 5, 60, 60]], dtype=np.float32)
    grounding = await pipeline.ground(frames[0], [task], boxes=boxes)
    np.testing.assert_array_equal(grounding.proposals.xyxy, boxes)
    with pytest.raises(InvalidBoxes, match="no proposal network"):
        await pipeline.ground(frames[0], [task])
    stages.close()


def test_defaults_are_those_of_the_published_checkpoints():
    config = ProposalConfig()
    assert (config.score_threshold, config.nms_iou, config.max_boxes) == (0.3, 0.8, 100)
    for bad in ({"score_threshold": 1.5}, {"nms_iou": -0.1}, {"max_boxes": 0}):
        with pytest.raises(CheckpointMismatch, match=next(iter(bad))):
            ProposalConfig(**bad)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [2, 0, 4]),  # 1 overlaps 0, 3 is doubtful, 5 is a sliver once clipped
        ({"nms_iou": 0.95}, [2, 0, 1, 4]),
        ({"score_threshold": 0.1}, [2, 0, 4, 3]),
        ({"max_boxes": 1}, [2]),
        ({"least_side_px": 0.0}, [2, 0, 4, 5]),
    ],
)
def test_selection(settings, kept):
    boxes = np.array(
        [[0, 0, 20, 20], [0, 0, 20, 18], [30, 0, 50, 20], [60, 0, 80, 20], [-5, 30, 20, 60],
         [99, 0, 130, 40]],
        dtype=np.float32,
    )  # fmt: skip
    scores = np.array([0.8, 0.7, 0.9, 0.2, 0.6, 0.5], dtype=np.float32)
    defaults = {"score_threshold": 0.3, "nms_iou": 0.8, "max_boxes": 100, "least_side_px": 2.0}
    found = select_proposals(boxes, scores, width=100, height=50, **{**defaults, **settings})
    np.testing.assert_allclose(found.objectness, scores[kept])
    np.testing.assert_allclose(found.xyxy, np.clip(boxes[kept], 0, [100, 50, 100, 50]))


def test_building_a_network_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ProposalNetwork(tiny_proposal_config())
