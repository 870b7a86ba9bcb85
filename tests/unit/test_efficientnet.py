"""EfficientNet-Lite0 against the published arithmetic written out, and its regions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import agent
from agent.errors import CheckpointMismatch
from agent.model.efficientnet import (
    EfficientNetLite0,
    PictureMaps,
    _SameConv,
    crop_map,
    prepare,
    same_padding,
)
from agent.training.vision_parts import efficientnet_weights

WEIGHTS = Path(agent.__file__).parent / "weights" / "pocket" / "efficientnet_lite0.safetensors"
WIDTH, HEIGHT = 160, 96
STRIDE_TWO = (1, 3, 5, 11)


@pytest.fixture(scope="module")
def network():
    return EfficientNetLite0.from_file(WEIGHTS)


@pytest.fixture(scope="module")
def maps(network):
    pixels, _ = prepare(picture(), long_side=WIDTH)
    return PictureMaps(*network.maps(pixels))


def picture():
    """(96, 160, 3) an orange disc on a striped slope."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    levels = [x * 255 // WIDTH, y * 255 // HEIGHT, (x + y) % 64 * 4]
    rgb = np.stack(levels, axis=-1).astype(np.uint8)
    disc = (x - WIDTH * 0.4) ** 2 + (y - HEIGHT * 0.5) ** 2 < (HEIGHT * 0.3) ** 2
    rgb[disc] = (230, 60, 20)
    return rgb


def published_state():
    """Weights under the published names, and of the published shapes, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def convolution(name, norm, width, out_width, kernel):
        scale = math.sqrt(2.0 / (width * kernel**2))
        shape = (out_width, width, kernel, kernel)
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * scale
        for part, low, high in (
            ("weight", 0.5, 1.5),
            ("bias", -0.5, 0.5),
            ("running_mean", -0.5, 0.5),
            ("running_var", 0.5, 1.5),
        ):
            drawn = torch.rand(out_width, generator=generator)
            state[f"{norm}.{part}"] = low + (high - low) * drawn
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    convolution("_conv_stem", "_bn0", 3, 32, 3)
    # Width, input width and kernel of each block.
    widths = [16, *[24] * 2, *[40] * 2, *[80] * 3, *[112] * 3, *[192] * 4, 320]
    kernels = [3, *[3] * 2, *[5] * 2, *[3] * 3, *[5] * 3, *[5] * 4, 3]
    for index, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
        before = widths[index - 1] if index else 32
        inner = before * 6 if index else before
        name = f"_blocks.{index}."
        if index:
            convolution(f"{name}_expand_conv", f"{name}_bn0", before, inner, 1)
        convolution(f"{name}_depthwise_conv", f"{name}_bn1", 1, inner, kernel)
        convolution(f"{name}_project_conv", f"{name}_bn2", inner, width, 1)
    convolution("_conv_head", "_bn1", 320, 1280, 1)
    state["_fc.weight"] = torch.randn(1000, 1280, generator=generator) * 0.02
    state["_fc.bias"] = torch.randn(1000, generator=generator)
    return state


class Published:
    """The published network, operation by operation, batch norm and all."""

    def __init__(self, state):
        self.state = state

    def layer(self, hidden, name, norm, *, stride=1, groups=1):
        """A convolution padded as "SAME" and its batch norm."""
        weight = self.state[f"{name}.weight"]
        pads = []
        for length in (hidden.shape[3], hidden.shape[2]):
            total = (math.ceil(length / stride) - 1) * stride + weight.shape[2] - length
            pads += [max(total, 0) // 2, max(total, 0) - max(total, 0) // 2]
        hidden = functional.conv2d(
            functional.pad(hidden, pads), weight, stride=stride, groups=groups
        )
        parts = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(hidden, *(self.state[f"{norm}.{p}"] for p in parts), eps=1e-3)

    def block(self, hidden, index):
        name, stride, inner = f"_blocks.{index}.", 2 if index in STRIDE_TWO else 1, hidden
        if index:
            inner = functional.relu6(self.layer(inner, f"{name}_expand_conv", f"{name}_bn0"))
        inner = self.layer(
            inner, f"{name}_depthwise_conv", f"{name}_bn1", stride=stride, groups=inner.shape[1]
        )
        narrow = self.layer(functional.relu6(inner), f"{name}_project_conv", f"{name}_bn2")
        return hidden + narrow if narrow.shape == hidden.shape else narrow

    def maps(self, pixels):
        hidden = functional.relu6(self.layer(pixels, "_conv_stem", "_bn0", stride=2))
        for index in range(11):
            hidden = self.block(hidden, index)
        middle = hidden
        for index in range(11, 16):
            hidden = self.block(hidden, index)
        return middle, functional.relu6(self.layer(hidden, "_conv_head", "_bn1"))


def test_converted_weights_do_what_the_published_ones_did(tmp_path):
    state = published_state()
    torch.save(state, tmp_path / "published.pth")
    network = EfficientNetLite0().eval()
    network.load_state_dict(efficientnet_weights(tmp_path / "published.pth"))
    pixels = torch.randn(1, 3, 96, 64)
    middle, final = network.maps(pixels)
    expected_middle, expected_final = Published(state).maps(pixels)
    torch.testing.assert_close(middle, expected_middle, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(final, expected_final, atol=1e-3, rtol=1e-4)


def test_refuses_a_state_of_another_network(tmp_path):
    torch.save({"_fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointMismatch, match="lacks"):
        efficientnet_weights(tmp_path / "other.pth")


def test_the_stored_weights_are_the_published_ones(network):
    # Logits of the published weights in float64, with batch norm; stored ones are float16.
    pixels, _ = prepare(picture(), long_side=WIDTH)
    best = network(pixels)[0].topk(4)
    assert best.indices.tolist() == [722, 736, 818, 723]  # a ping-pong ball comes first
    assert best.values.tolist() == pytest.approx([11.944, 10.046, 8.758, 8.242], abs=0.05)


def test_maps_have_strides_16_and_32(network):
    stride16, final = network.maps(torch.zeros(2, 3, 64, 96))
    assert stride16.shape == (2, 112, 4, 6)
    assert final.shape == (2, 1280, 2, 3)
    assert network.late(torch.zeros(3, 112, 8, 8)).shape == (3, 1280)
    assert network.classify(torch.zeros(3, 1280)).shape == (3, 1000)


def test_a_picture_in_a_batch_is_seen_as_alone(network):
    torch.manual_seed(0)
    batch = torch.randn(3, 3, 64, 96)
    together = network(batch)
    for row in range(3):
        torch.testing.assert_close(together[row], network(batch[row : row + 1])[0])


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "expected"),
    [
        (224, 3, 2, (0, 1)),
        (224, 5, 2, (1, 2)),
        (7, 3, 2, (1, 1)),
        (7, 5, 2, (2, 2)),
        (5, 3, 1, (1, 1)),
        (1, 5, 1, (2, 2)),
        (8, 1, 1, (0, 0)),
    ],
)
def test_padding_as_same(length, kernel, stride, expected):
    assert same_padding(length, kernel, stride) == expected


def test_odd_padding_goes_to_the_far_ends():
    convolution = _SameConv(1, 1, 3, stride=2)
    torch.nn.init.ones_(convolution.weight)
    torch.nn.init.zeros_(convolution.bias)
    out = convolution(torch.arange(16.0).view(1, 1, 4, 4))
    # 0+1+2+4+5+6+8+9+10, 2+3+6+7+10+11, 8+9+10+12+13+14, 10+11+14+15
    assert out.flatten().tolist() == [45.0, 39.0, 66.0, 50.0]


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [(640, 480, (384, 512)), (500, 333, (352, 512)), (300, 300, (512, 512)), (9, 900, (512, 32))],
)
def test_sides_become_multiples_of_32(width, height, shape):
    rgb = np.full((height, width, 3), (255, 127, 63), np.uint8)
    pixels, scale = prepare(rgb, long_side=512)
    assert pixels.shape == (1, 3, *shape)
    assert scale == (shape[1] / width, shape[0] / height)
    assert pixels[0, :, 0, 0].tolist() == [1.0, 0.0, -0.5]


def test_a_crop_samples_the_map_evenly():
    # Cells whose value is where their middle lies, in pixels of the picture.
    ramp = 16.0 * (torch.arange(12.0) + 0.64)
    along_x = ramp.expand(12, 12)
    feature_map = torch.stack([along_x, along_x.T])[None]
    crops = crop_map(feature_map, torch.tensor([[32.0, 48.0, 96.0, 176.0]]))
    assert crops.shape == (1, 2, 8, 8)
    assert crops[0, 0, 0].tolist() == pytest.approx([32 + 8 * (i + 0.5) for i in range(8)])
    assert crops[0, 1, :, 0].tolist() == pytest.approx([48 + 16 * (i + 0.5) for i in range(8)])


BOXES = torch.tensor([[35.0, 19.0, 93.0, 77.0], [0.0, 0.0, 160.0, 96.0], [100.0, 5.0, 130.0, 90.0]])


def test_small_regions_take_the_late_head(network, maps):
    probabilities, features = network.describe(maps, BOXES, small_side_px=70.0)
    assert probabilities.shape == (3, 1000)
    assert features.shape == (3, 1280)
    assert probabilities.sum(dim=1).tolist() == pytest.approx([1.0] * 3)
    late = network.late(crop_map(maps.stride16, BOXES[[0, 2]]))
    torch.testing.assert_close(features[[0, 2]], late)
    torch.testing.assert_close(network.classify(features).softmax(dim=1), probabilities)
    _, all_large = network.describe(maps, BOXES, small_side_px=0.0)
    torch.testing.assert_close(features[1], all_large[1])
    assert not torch.allclose(features[0], all_large[0], atol=0.1)


def test_a_region_is_described_alike_among_others(network, maps):
    probabilities, _ = network.describe(maps, BOXES, small_side_px=70.0)
    for row, box in enumerate(BOXES):
        alone, _ = network.describe(maps, box[None], small_side_px=70.0)
        torch.testing.assert_close(alone[0], probabilities[row], atol=1e-5, rtol=1e-3)


def test_no_regions_need_no_description(network, maps):
    probabilities, features = network.describe(maps, torch.zeros(0, 4))
    assert probabilities.shape == (0, 1000)
    assert features.shape == (0, 1280)


def test_boxes_are_in_pixels_of_the_given_picture(network):
    stride16, final = torch.rand(1, 112, 6, 10), torch.rand(1, 1280, 3, 5)
    own = network.describe(PictureMaps(stride16, final), BOXES)[1]
    scaled = PictureMaps(stride16, final, (0.5, 0.25), (0.5, 0.25))
    same = network.describe(scaled, BOXES * torch.tensor([2.0, 4.0, 2.0, 4.0]))[1]
    torch.testing.assert_close(own, same)


def test_a_picture_is_looked_at_twice(network):
    maps = network.look(picture())
    assert maps.stride16.shape == (1, 112, 20, 32)
    assert maps.final.shape == (1, 1280, 5, 9)
    assert maps.fine_scale == (512 / WIDTH, 320 / HEIGHT)
    assert maps.coarse_scale == (288 / WIDTH, 160 / HEIGHT)
