"""UPN against the published code on random weights.

How the golden set was made: tests/golden/upn/README.md. The weights are not stored but drawn again.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agent.errors import CheckpointMismatch
from agent.frame import frame_from_rgb
from agent.model.universal_proposals import UniversalProposalConfig, UniversalProposalNetwork
from agent.model.upn_checkpoint import load_universal_proposals, our_state
from agent.proposer import Proposer
from tests.unit.tiny_model import write_tiny_model

GOLDEN = Path(__file__).parents[1] / "golden" / "upn"
SMALL = {
    "swin": {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 5},
    "num_layers": 2,
    "feedforward": 48,
    "num_heads": 4,
    "num_queries": 30,
}
PICTURES = ((101, 134), (160, 128))
"""(height, width) of the golden pictures."""


def shapes(name: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads(gzip.decompress((GOLDEN / name).read_bytes()))
    return found


def draw(name: str, shape: list[int]) -> np.ndarray:
    """A published tensor of the golden set; the box head is one for all layers."""
    owner = re.sub(r"^(?:transformer\.decoder\.)?bbox_embed\.\d+\.", "bbox_embed.0.", name)
    value = np.random.default_rng(zlib.crc32(owner.encode())).standard_normal(shape)
    tables = ("embed.weight", "prompt", "level")
    if "bias_table" in name or (len(shape) == 2 and any(part in name for part in tables)):
        return value
    if len(shape) == 1:
        scales = re.search(r"norm\w*\.weight$|input_proj\.\d\.1\.weight$", name)
        return 1.0 + 0.3 * value if scales else 0.3 * value
    return value / np.prod(shape[1:]) ** 0.5


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(draw(name, shape).astype(np.float32))
        for name, shape in shapes("keys.json.gz").items()
    }


@pytest.fixture(scope="module")
def folder(published, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("upn")
    (made / "config.json").write_text(json.dumps({"model_type": "upn", **SMALL}))
    torch.save({"model": published}, made / "upn_large.pth")
    return made


@pytest.mark.parametrize("granularity", ["fine_grained", "coarse_grained"])
@pytest.mark.parametrize("picture", [0, 1])
def test_golden_boxes_and_scores(folder, granularity, picture):
    network = load_universal_proposals(folder)
    network.config = replace(network.config, granularity=granularity)
    golden = load_file(GOLDEN / "outputs.safetensors")
    height, width = PICTURES[picture]
    pixels = np.random.default_rng(picture).standard_normal((1, 3, height, width))
    batch = torch.from_numpy(pixels.astype(np.float32))
    with torch.inference_mode():
        coarsest = network.backbone(batch).feature_maps[3]
        boxes, objectness = network(batch)
    key = f"{granularity}_prompt/{picture}"
    torch.testing.assert_close(coarsest[0], golden[f"{picture}/map3"], atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes[0], golden[f"{key}/boxes"], atol=1e-5, rtol=0)
    expected = golden[f"{key}/logits"][:, 0].sigmoid()
    torch.testing.assert_close(objectness[0], expected, atol=1e-5, rtol=0)


def test_golden_full_size_keys_all_map():
    wanted = shapes("full_keys.json.gz")
    with torch.device("meta"):
        network = UniversalProposalNetwork(UniversalProposalConfig())
        published = {name: torch.empty(shape) for name, shape in wanted.items()}
    state = our_state(network, published, GOLDEN)
    assert len(wanted) == 701
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }


@pytest.mark.parametrize(
    ("key", "tensor", "told"),
    [
        ("input_proj.4.0.bias", None, r"missing input_proj\.4\.0\.bias"),
        ("transformer.level_embed", torch.zeros(4, 256), r"level_embed is \(4, 256\)"),
    ],
)
def test_golden_keys_are_taken_strictly(published, key, tensor, told):
    network = UniversalProposalNetwork(UniversalProposalConfig(**SMALL))
    changed = {name: value for name, value in published.items() if name != key}
    if tensor is not None:
        changed[key] = tensor
    with pytest.raises(CheckpointMismatch, match=told):
        our_state(network, changed, GOLDEN)


def test_golden_keys_that_nothing_uses_are_named(published, caplog):
    network = UniversalProposalNetwork(UniversalProposalConfig(**SMALL))
    our_state(network, published, GOLDEN)
    assert not caplog.text
    our_state(network, {**published, "transformer.stray": torch.zeros(1)}, GOLDEN)
    assert "transformer.stray" in caplog.text


def test_golden_box_heads_must_be_one(published, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "upn", **SMALL}))
    key = "bbox_embed.1.layers.2.bias"
    torch.save({"model": {**published, key: torch.zeros(4)}}, tmp_path / "upn.pth")
    with pytest.raises(CheckpointMismatch, match=r"bbox_embed\.1\.layers\.2\.bias differs"):
        load_universal_proposals(tmp_path)


def test_golden_folder_proposes(folder, tmp_path):
    model = write_tiny_model(tmp_path / "model")
    rng = np.random.default_rng(2)
    frames = [
        frame_from_rgb(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        for height, width in PICTURES
    ]
    raw = json.loads((folder / "config.json").read_text())
    small = tmp_path / "upn"
    small.mkdir()
    (small / "config.json").write_text(json.dumps({**raw, "short_side": 96, "long_side": 120}))
    (small / "upn_large.pth").write_bytes((folder / "upn_large.pth").read_bytes())
    proposals = Proposer.from_pretrained(str(model), network=str(small)).propose(frames)
    for found, (height, width) in zip(proposals, PICTURES, strict=True):
        assert len(found)
        assert (found.xyxy >= 0).all()
        assert (found.xyxy <= [width, height, width, height]).all()


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((640, 480), (1066, 800)),  # short side 800
        ((480, 640), (800, 1066)),
        ((2000, 500), (1332, 333)),  # long side limited; 333.25 is rounded first
        ((800, 800), (800, 800)),
    ],
)
def test_golden_image_sizes(size, seen):
    assert UniversalProposalConfig().image_size(*size) == seen


def test_golden_bad_folders(folder, tmp_path):
    with pytest.raises(CheckpointMismatch, match=r"config\.json does not exist"):
        load_universal_proposals(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "upn", "depth": 3}')
    with pytest.raises(CheckpointMismatch, match="unknown key 'depth'"):
        load_universal_proposals(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "upn"}')
    with pytest.raises(CheckpointMismatch, match=r"one \.pth file, not 0"):
        load_universal_proposals(tmp_path)
    (tmp_path / "upn_large.pth").write_bytes((folder / "upn_large.pth").read_bytes()[:5000])
    with pytest.raises(CheckpointMismatch, match="cannot be read"):
        load_universal_proposals(tmp_path)
