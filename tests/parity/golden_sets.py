"""Folders with inputs and outputs of the published implementation, and how to run ours on them.

A folder holds `ckpt/`, `inputs.safetensors`, `outputs.safetensors`, `image.png`, `meta.json`. Its
weights are in `ckpt/model.safetensors`, or follow from `ckpt/key_shapes.json` and a seed. Ids are
those of a compact vocabulary; meta.json maps them to the real tokenizer's.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.detections import Proposals
from agent.encoders import AuxiliaryEncoderStage, PrimaryEncoderStage
from agent.features import FrameFeatures
from agent.frame import frame_from_rgb
from agent.generation import LanguageStage
from agent.model.checkpoint import load_model
from agent.model.configuration import VLMFO1Config
from agent.processor import ImageGeometry
from agent.prompts import REGION_TOKEN, Task
from agent.tokenizer import PromptTokenizer

FOLDER = Path(__file__).parents[1] / "golden"


def folders() -> list[Path]:
    """The shipped sets and those named by `GOLDEN_SETS` (colon separated)."""
    named = [Path(p) for p in os.environ.get("GOLDEN_SETS", "").split(":") if p]
    shipped = [FOLDER / name for name in ("A", "B", "C", "G")]
    return shipped + [p for p in named if p.resolve() not in {s.resolve() for s in shipped}]


def recipe_weight(key: str, shape: list[int], seed: int) -> np.ndarray:
    """The weight of a key; the numbers the published code was run with."""
    state = np.random.RandomState((zlib.crc32(key.encode()) ^ (seed * 2654435761)) & 0xFFFFFFFF)
    values = state.standard_normal(tuple(shape)).astype(np.float32)
    if len(shape) == 1:
        scaled = values * np.float32(0.1)
        return scaled if key.endswith("bias") else np.float32(1.0) + scaled
    if "embed_tokens" in key:
        return values * np.float32(0.15)
    fan_in, gain = int(np.prod(shape[1:])), 1.0
    transposed = key.rsplit(".", 2)[1] in ("0", "3") and tuple(shape[2:]) == (2, 2)
    if "simple_fpn" in key and transposed:
        fan_in = shape[0]
    if key.startswith("model.layers.") and (".o_proj." in key or ".down_proj." in key):
        gain = 4.0
    if "vision_tower_aux" in key and ".convs." not in key:
        gain = 0.5
    return values * np.float32(gain / np.sqrt(fan_in))


class CompactTokenizer:
    """The real tokenizer in the ids of a set's compact vocabulary."""

    def __init__(self, real: PromptTokenizer, compact_to_real: list[int]) -> None:
        self.real = real
        self._to_real = compact_to_real
        self._to_compact = {number: index for index, number in enumerate(compact_to_real)}

    def control(self, token: str) -> int:
        return self._to_compact[self.real.control(token)]

    def region(self, index: int) -> int:
        return self._to_compact[self.real.region(index)]

    def encode(self, text: str) -> list[int]:
        return [self._to_compact[number] for number in self.real.encode(text)]

    def check_words(self, words: str) -> None:
        self.real.check_words(words)

    def decode(self, ids: list[int]) -> str:
        known = [self._to_real[i] if i < len(self._to_real) else 0 for i in ids]
        return self.real.decode(known)


def task_of(text: str, *, max_new_tokens: int = 16) -> Task:
    """The CHAT question of this very text; regions in it as a caller has to say them."""
    regions = tuple(int(number) for number in REGION_TOKEN.findall(text))
    question = REGION_TOKEN.sub("{}", text)
    return replace(Task.chat(question, regions=regions), max_new_tokens=max_new_tokens)


@dataclass(frozen=True)
class GoldenSet:
    """One folder and our model of it."""

    folder: Path
    weights: Path
    """Folder with the checkpoint's weights; `folder / "ckpt"` unless they had to be made."""

    @cached_property
    def meta(self) -> dict:
        return json.loads((self.folder / "meta.json").read_text())

    @cached_property
    def raw_config(self) -> dict:
        """The published config.json, with what small sets shrink in the published source."""
        raw = json.loads((self.folder / "ckpt" / "config.json").read_text())
        davit = self.meta["davit"]
        heads = davit.get("num_heads") or [width // 32 for width in davit["dim_embed"]]
        extra = {
            "davit": {"depths": davit["depths"], "widths": davit["dim_embed"], "num_heads": heads}
        }
        if raw.get("mm_use_simpleFPN_for_vt") and "simple_fpn" in self.meta:
            extra["pyramid_width"] = self.meta["simple_fpn"]["out_channels"]
        return {**raw, "groundstream": extra}

    @cached_property
    def config(self) -> VLMFO1Config:
        return VLMFO1Config.from_dict(self.raw_config)

    @cached_property
    def model(self):
        return load_model(self.weights, config=self.config)

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return load_file(self.folder / "inputs.safetensors")

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        return load_file(self.folder / "outputs.safetensors")

    @cached_property
    def rgb(self) -> np.ndarray:
        return np.asarray(Image.open(self.folder / "image.png").convert("RGB"))

    @cached_property
    def geometry(self) -> ImageGeometry:
        return ImageGeometry.of(self.rgb.shape[1], self.rgb.shape[0], self.config)

    @cached_property
    def tokenizer(self) -> CompactTokenizer:
        real = PromptTokenizer.from_directory(FOLDER / "tokenizer")
        return CompactTokenizer(real, self.meta["compact_to_real"])

    @cached_property
    def language(self) -> LanguageStage:
        return LanguageStage(self.model, self.tokenizer)

    @property
    def boxes(self) -> np.ndarray:
        return self.inputs["boxes_in"].numpy()

    def task(self, max_new_tokens: int = 16) -> Task:
        """The question the set asked, in its own words."""
        return task_of(self.meta["text"], max_new_tokens=max_new_tokens)

    def features(self, boxes: np.ndarray, key: str = "") -> FrameFeatures:
        """What our stages make of the image, from pixels on."""
        frame = frame_from_rgb(self.rgb, jpeg_quality=None)
        proposals = Proposals(boxes, np.ones(len(boxes), dtype=np.float32))
        primary = PrimaryEncoderStage(self.model)
        auxiliary = AuxiliaryEncoderStage(self.model)
        first = primary.pool(primary.start([frame])[0], proposals)
        second = auxiliary.pool(auxiliary.start([frame])[0], proposals)
        return FrameFeatures(
            width=frame.width,
            height=frame.height,
            proposals=proposals,
            image_tokens=first.image_tokens,
            grid=first.grid,
            primary_regions=first.regions,
            auxiliary_regions=second.regions,
            key=key,
        )

    def stores(self, name: str) -> bool:
        """Whether the published run left this tensor (a tower it never ran leaves none)."""
        return name in self.outputs or f"sample/{name}" in self.outputs

    def close(self, name: str, actual: Tensor, *, atol: float = 1e-4) -> None:
        """Compare a stage with the published one.

        Large tensors of real-width sets are stored as samples; random weights of real width
        reach magnitudes of thousands, so those are compared relative to the tensor's size.
        """
        actual = actual.float()
        expected = self.outputs.get(name)
        if expected is None:
            stride = int(self.outputs[f"sample_stride/{name}"])
            expected = self.outputs[f"sample/{name}"]
            actual = actual.flatten()[::stride][: len(expected)]
        expected = expected.float()
        if self.meta["variant"] == "G":
            atol *= max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(actual.reshape(expected.shape), expected, atol=atol, rtol=1e-4)


def open_set(folder: Path, scratch: Path) -> GoldenSet:
    """The set of a folder; weights that are not stored are made in `scratch`."""
    if (folder / "ckpt" / "model.safetensors").is_file():
        return GoldenSet(folder, folder / "ckpt")
    seed = json.loads((folder / "meta.json").read_text())["seed"]
    shapes = json.loads((folder / "ckpt" / "key_shapes.json").read_text())
    state = {key: torch.from_numpy(recipe_weight(key, shape, seed))
             for key, shape in shapes.items()}  # fmt: skip
    save_file(state, scratch / "model.safetensors")
    return GoldenSet(folder, scratch)
