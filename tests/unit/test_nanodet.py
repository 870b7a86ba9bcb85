"""NanoDet against numbers of a plain interpreter of the published graph, and its proposals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import agent
from agent.detections import box_iou
from agent.errors import CheckpointMismatch
from agent.model.nanodet import COCO_NAMES, Cells, NanoDet, decode, prepare
from agent.training.vision_parts import nanodet_weights, read_graph

WEIGHTS = Path(agent.__file__).parent / "weights" / "pocket" / "nanodet.safetensors"
WIDTH, HEIGHT = 160, 96
DISC = (35.2, 19.2, 92.8, 76.8)


@pytest.fixture(scope="module")
def network():
    return NanoDet.from_file(WEIGHTS)


@pytest.fixture(scope="module")
def cells(network):
    return network.look(picture(), long_side=WIDTH)


def picture():
    """(96, 160, 3) an orange disc on a striped slope."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    levels = [x * 255 // WIDTH, y * 255 // HEIGHT, (x + y) % 64 * 4]
    rgb = np.stack(levels, axis=-1).astype(np.uint8)
    disc = (x - WIDTH * 0.4) ** 2 + (y - HEIGHT * 0.5) ** 2 < (HEIGHT * 0.3) ** 2
    rgb[disc] = (230, 60, 20)
    return rgb


def test_eighty_names():
    assert len(COCO_NAMES) == len(set(COCO_NAMES)) == 80
    assert (COCO_NAMES[0], COCO_NAMES[49], COCO_NAMES[79]) == ("person", "orange", "toothbrush")


@pytest.mark.parametrize(
    ("cell", "name", "score", "box"),
    [
        (127, "orange", 0.35634, (35.495, 20.310, 93.964, 79.200)),
        (264, "scissors", 0.20546, (3.333, 2.120, 158.184, 98.689)),
        (301, "scissors", 0.03424, (-72.637, -112.024, 171.996, 123.900)),
    ],
)
def test_equals_the_published_graph(network, cell, name, score, box):
    # Numbers of the TensorFlow.js graph, interpreted in NumPy in float64.
    boxes, scores = network(prepare(picture(), long_side=WIDTH).pixels)
    assert COCO_NAMES[int(scores[0, cell].argmax())] == name
    assert float(scores[0, cell].max()) == pytest.approx(score, abs=2e-5)
    assert boxes[0, cell].tolist() == pytest.approx(box, abs=2e-3)


def test_every_score_counts(network):
    _, scores = network(prepare(picture(), long_side=WIDTH).pixels)
    sums = [float(level.sum()) for level in scores[0].split([240, 60, 15])]
    assert sums == pytest.approx([135.68879, 91.76451, 13.55053], rel=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (32, 32)])
def test_one_box_and_eighty_scores_a_cell(network, height, width):
    boxes, scores = network(torch.zeros(1, 3, height, width))
    count = sum(height // stride * (width // stride) for stride in (8, 16, 32))
    assert boxes.shape == (1, count, 4)
    assert scores.shape == (1, count, 80)


def test_a_picture_in_a_batch_is_seen_as_alone(network):
    torch.manual_seed(0)
    batch = torch.randn(3, 3, 64, 96)
    boxes, scores = network(batch)
    for row in range(3):
        own_boxes, own_scores = network(batch[row : row + 1])
        torch.testing.assert_close(boxes[row], own_boxes[0], atol=1e-3, rtol=0)
        torch.testing.assert_close(scores[row], own_scores[0], atol=1e-5, rtol=0)


def test_decode_takes_the_mean_of_each_side():
    regression = torch.zeros(1, 6, 4, 11)  # equal shares: 5 strides
    certain = 50.0
    regression[0, 4, 0, 2] = regression[0, 4, 1, 0] = certain
    regression[0, 4, 2, 10] = certain
    regression[0, 4, 3, [3, 4]] = certain
    boxes = decode(regression.flatten(2), 2, 3, 16)
    # Cell 0 is centred at (8, 8); cell 4, in the second row and column, at (24, 24).
    assert boxes[0, 0].tolist() == pytest.approx([8 - 80, 8 - 80, 8 + 80, 8 + 80])
    assert boxes[0, 4].tolist() == pytest.approx([24 - 32, 24, 24 + 160, 24 + 56])


def test_a_picture_is_scaled_and_padded_at_the_far_ends():
    rgb = np.full((480, 640, 3), (10, 20, 30), np.uint8)
    prepared = prepare(rgb)
    assert prepared.pixels.shape == (1, 3, 320, 416)
    assert prepared.scale == (0.65, 0.65)
    assert prepared.size == (640, 480)
    blue, green, red = prepared.pixels[0, :, 311, 415].tolist()
    assert blue == pytest.approx((30 - 103.53) / 57.375)
    assert green == pytest.approx((20 - 116.28) / 57.12)
    assert red == pytest.approx((10 - 123.675) / 58.395)
    assert prepared.pixels[0, 0, 312].tolist() == pytest.approx([-103.53 / 57.375] * 416)


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [(416, 416, (416, 416)), (1920, 1080, (256, 416)), (30, 300, (416, 64)), (5000, 2, (32, 416))],
)
def test_no_side_is_padded_by_more_than_needed(width, height, shape):
    assert prepare(np.zeros((height, width, 3), np.uint8)).pixels.shape[2:] == shape


def test_finds_the_disc_in_pixels_of_the_picture(network):
    large = picture().repeat(4, axis=0).repeat(4, axis=1)
    small = network.propose(picture(), score_threshold=0.2)
    found = network.propose(large, score_threshold=0.2)
    for proposals, times in ((small, 1), (found, 4)):
        off = (proposals.xyxy / times - torch.tensor(DISC)).abs().amax(dim=1)
        assert float(off.min()) < 6.0


def test_proposals_are_sound(cells):
    proposals = cells.propose(score_threshold=0.05, nms_iou=0.6, max_boxes=5)
    assert len(proposals) == 5
    assert proposals.xyxy.shape == (5, 4)
    assert proposals.evidence.shape == (5, 80)
    overlap = box_iou(proposals.xyxy.numpy(), proposals.xyxy.numpy())
    assert overlap[~np.eye(5, dtype=bool)].max() <= 0.6
    assert torch.equal(proposals.objectness, proposals.evidence.amax(dim=1))
    assert proposals.objectness.tolist() == sorted(proposals.objectness.tolist(), reverse=True)
    assert float(proposals.objectness.min()) >= 0.05
    assert float(proposals.xyxy.min()) >= 0.0
    assert bool((proposals.xyxy <= torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])).all())
    assert len(cells.propose(score_threshold=0.99)) == 0


def test_a_proposals_own_box_has_its_own_evidence(cells):
    proposals = cells.propose(score_threshold=0.1)
    evidence = cells.describe(proposals.xyxy)
    assert bool((evidence >= proposals.evidence - 1e-6).all())
    assert torch.equal(evidence.argmax(dim=1), proposals.evidence.argmax(dim=1))
    assert float((evidence - proposals.evidence).abs().mean()) < 0.01
    assert float((evidence.amax(dim=1) - proposals.objectness).abs().max()) < 0.05


def test_evidence_weighs_scores_by_overlap():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [90.0, 90.0, 99.0, 99.0]])
    scores = torch.zeros(3, 80)
    scores[0, 3], scores[1, 5], scores[2, 7] = 0.4, 0.8, 0.9
    given = torch.tensor([[0.0, 0.0, 10.0, 8.0], [50.0, 50.0, 60.0, 60.0]])
    evidence = Cells(boxes, scores).describe(given, sharpness=2.0)
    # IoU 0.8 with the first, which is nearest, and 0.625 with the second.
    assert float(evidence[0, 3]) == pytest.approx(0.8 * 0.4)
    assert float(evidence[0, 5]) == pytest.approx(0.8 * (0.625 / 0.8) ** 2 * 0.8)
    assert int((evidence[0] > 0).sum()) == 2
    assert not evidence[1].any()


def test_no_boxes_have_no_evidence(cells):
    assert cells.describe(torch.zeros(0, 4)).shape == (0, 80)


def test_reads_half_and_whole_numbers_of_a_graph(tmp_path):
    half = np.array([[0.5, -2.0]], np.float16)
    whole = np.array([7, 8, 9], np.int32)
    weights = [
        {"name": "a", "shape": [1, 2], "dtype": "float32", "quantization": {"dtype": "float16"}},
        {"name": "empty", "shape": [0, 1], "dtype": "int32"},
        {"name": "b", "shape": [3], "dtype": "int32"},
    ]
    graph = {
        "modelTopology": {"node": []},
        "weightsManifest": [{"paths": ["x.bin"], "weights": weights}],
    }
    (tmp_path / "nanodet.json").write_text(json.dumps(graph))
    (tmp_path / "x.bin").write_bytes(half.tobytes() + whole.tobytes())
    nodes, read = read_graph(tmp_path)
    assert nodes == []
    assert read["a"].tolist() == [[0.5, -2.0]]
    assert read["a"].dtype == np.float32
    assert read["b"].tolist() == [7, 8, 9]
    with pytest.raises(CheckpointMismatch, match="convolutions"):
        nanodet_weights(tmp_path)


def test_refuses_a_folder_without_a_graph(tmp_path):
    with pytest.raises(CheckpointMismatch, match="no graph model"):
        read_graph(tmp_path)
