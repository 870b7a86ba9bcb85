"""The published OmDet-Turbo layout against the published computation around timm's Swin.

The golden set and how it was made: tests/golden/omdet/README.md.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.errors import CheckpointMismatch
from agent.model.omdet_checkpoint import load_published_omdet, native_config, native_state
from agent.model.proposal_network import (
    ProposalNetwork,
    load_proposal_network,
    save_proposal_network,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "omdet"
QKV = "vision_backbone.vision_backbone._backbone.layers_2.blocks.1.attn.qkv.weight"


@pytest.fixture(scope="module")
def network() -> ProposalNetwork:
    return load_published_omdet(GOLDEN)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "outputs.safetensors")


def check(network: ProposalNetwork, golden: dict[str, torch.Tensor]) -> None:
    pixels = golden["pixels"].float()
    with torch.inference_mode():
        maps = network.detector.vision_backbone(pixels)
        boxes, objectness = network(pixels)
    for level, found in enumerate(maps):
        torch.testing.assert_close(found, golden[f"map{level}"], atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes, golden["boxes"], atol=1e-5, rtol=0)
    expected = golden["logits"].squeeze(-1).sigmoid()
    torch.testing.assert_close(objectness, expected, atol=1e-5, rtol=0)


def test_golden_maps_boxes_and_scores(network, golden):
    check(network, golden)


def test_golden_after_saving_the_native_form(network, golden, tmp_path):
    save_proposal_network(network, tmp_path)
    check(load_proposal_network(tmp_path), golden)


def test_golden_tells_the_order_of_shift_and_padding(network, golden):
    config = type(network.config)(**{**network.config.to_dict(), "shift_before_padding": False})
    padded_first = ProposalNetwork(config).eval()
    padded_first.load_state_dict(network.state_dict())
    with torch.inference_mode():
        coarsest = padded_first.detector.vision_backbone(golden["pixels"].float())[-1]
    assert (coarsest - golden["map2"]).abs().max() > 0.1


def test_golden_batch_equals_single(network, golden):
    pixels = golden["pixels"].float()
    with torch.inference_mode():
        together = network(pixels)
        alone = [network(one[None]) for one in pixels]
    for index, found in enumerate(together):
        torch.testing.assert_close(found, torch.cat([one[index] for one in alone]))


def test_golden_full_size_keys_all_map():
    """Every key of the published size has its place, and every parameter its key."""
    published = json.loads(gzip.decompress((GOLDEN / "full_keys.json.gz").read_bytes()))
    config = native_config(published["config"], {"class": [1, 2], "task": [1, 2]})
    with torch.device("meta"):
        network = ProposalNetwork(config)
        tensors = {key: torch.empty(shape) for key, shape in published["shapes"].items()}
    assert len(tensors) == 868
    assert config.backbone_config.depths == [2, 2, 6, 2]
    state = native_state(network, tensors, GOLDEN)
    wanted = network.detector.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in wanted.items()}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(QKV), f"1 missing: {QKV}"),
        (lambda t: t.update(stray=torch.zeros(1)), "1 unexpected: stray"),
        (lambda t: t.update({QKV: t[QKV][:-1]}), r"1 of another shape: .*qkv.weight is \(47, 16\)"),
    ],
)
def test_golden_keys_are_taken_strictly(change, told, tmp_path):
    tensors = load_file(GOLDEN / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((GOLDEN / "config.json").read_text())
    with pytest.raises(CheckpointMismatch, match=told):
        load_published_omdet(tmp_path)


def test_golden_tables_that_older_versions_stored_are_ignored(golden, tmp_path):
    tensors = load_file(GOLDEN / "model.safetensors")
    block = "vision_backbone.vision_backbone._backbone.layers_0.blocks.1."
    tensors[block + "attn.relative_position_index"] = torch.zeros(25, 25, dtype=torch.long)
    tensors[block + "attn_mask"] = torch.zeros(25, 25, 25)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((GOLDEN / "config.json").read_text())
    check(load_published_omdet(tmp_path), golden)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("backbone", "resnet50", "'resnet50' is unknown"),
        ("backbone_kwargs", {"head_dim": 8}, "unknown key 'head_dim'"),
        ("backbone_kwargs", {"always_partition": False}, "always_partition"),
        ("apply_layernorm_after_vision_backbone", False, "apply_layernorm"),
        ("prompt_ids", None, "CLIP tokenizer"),
    ],
)
def test_golden_configuration_is_checked(key, value, told, tmp_path):
    raw = json.loads((GOLDEN / "config.json").read_text()) | {"backbone_kwargs": {}}
    (tmp_path / "config.json").write_text(json.dumps(raw | {key: value}))
    with pytest.raises(CheckpointMismatch, match=told):
        load_published_omdet(tmp_path)


def test_golden_configuration_as_transformers_5_writes_it(golden, tmp_path):
    raw = json.loads((GOLDEN / "config.json").read_text())
    options = raw.pop("backbone_kwargs")
    raw["backbone_config"] = {"model_type": "timm_backbone", "backbone": raw["backbone"], **options}
    raw["backbone"] = None
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "model.safetensors").write_bytes((GOLDEN / "model.safetensors").read_bytes())
    check(load_published_omdet(tmp_path), golden)
