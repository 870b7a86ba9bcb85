"""The two vision stages: frame in, one vector per box (and image tokens) out.

Each starts on its maps before the boxes are known and pools when they arrive, so a stage never
waits idle and its maps never leave it. What leaves it has the type that the tower computes in,
pooled vectors too, though they are pooled in float32. Frames that come together are encoded
together: the ViT packs images of any sizes, the DaViT takes equal sizes as one batch. What the
primary stage sees with is the model's choice: one eye for each of `agent.model.primary_kinds`.
Knows neither the other encoder nor the language model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from agent.batching import equal_rows
from agent.detections import Proposals
from agent.feature_tensors import to_array
from agent.features import AuxiliaryFeatures, PrimaryFeatures
from agent.frame import Frame
from agent.model.appearance import appearance_map, pool_appearance
from agent.model.checkpoint import load_model, weight_type
from agent.model.efficientnet import FINE_SIDE, PictureMaps
from agent.model.primary_kinds import (
    EFFICIENTNET_LITE0,
    LLAVA_ONEVISION,
    QWEN_VIT,
    ClassifierConfig,
)
from agent.model.primary_maps import PrimaryMaps
from agent.model.vlm_fo1 import VLMFO1, Part
from agent.model_directory import find_model
from agent.processor import (
    ImageGeometry,
    auxiliary_pixels,
    picture,
    primary_patches,
    working_image,
)


@dataclass(frozen=True)
class StartedPrimary:
    """The ViT's maps of one frame, waiting for boxes."""

    geometry: ImageGeometry
    maps: PrimaryMaps


@dataclass(frozen=True)
class StartedAuxiliary:
    """The DaViT's maps of one frame, waiting for boxes."""

    geometry: ImageGeometry
    levels: list[Tensor]


class PrimaryEye(Protocol):
    """How one kind of primary encoder sees frames."""

    def start(self, frames: list[Frame]) -> list[Any]:
        """Of each frame what can be had without boxes."""
        ...

    def pool(self, started: Any, proposals: Proposals) -> PrimaryFeatures:
        """One vector per box, and the image tokens."""
        ...


class PrimaryEncoderStage:
    """The primary encoder of a model, of whatever kind."""

    def __init__(self, model: VLMFO1, *, device: str = "cpu") -> None:
        self.model = model
        self._eye: PrimaryEye = _EYES[model.config.primary](model, device)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        device: str = "cpu",
        num_threads: int | None = None,
        dtype: str = "auto",
        compiled: bool = False,
        as_published: bool = False,
    ) -> PrimaryEncoderStage:
        """The primary part of a model directory; `compiled` has effect on a GPU alone.

        `as_published` as in `load_model`.

        Raises:
            CheckpointMismatch: files are missing or do not fit.
        """
        loaded = _load(
            model, Part.PRIMARY, device, num_threads, dtype, compiled, as_published=as_published
        )
        return cls(loaded, device=device)

    @torch.inference_mode()
    def start(self, frames: list[Frame]) -> list[Any]:
        """What can be computed before there are boxes, frames of any sizes together.

        Raises:
            InvalidFrame: an image body cannot be decoded.
        """
        return self._eye.start(frames)

    @torch.inference_mode()
    def pool(self, started: Any, proposals: Proposals) -> PrimaryFeatures:
        """One vector per box, and the image tokens."""
        return self._eye.pool(started, proposals)


class ViTEye:
    """The VLM's own vision tower and the pooling of its pyramid."""

    def __init__(self, model: VLMFO1, device: str) -> None:
        assert model.primary_encoder is not None
        self._encoder = model.primary_encoder
        self._regions = model.region_encoder
        self._config = model.config
        self._device = device

    def start(self, frames: list[Frame]) -> list[StartedPrimary]:
        """The tower's maps, all frames packed into one sequence."""
        geometries = [ImageGeometry.of(f.width, f.height, self._config) for f in frames]
        patches = [
            primary_patches(working_image(picture(frame.rgb(), self._device), geometry), geometry)
            for frame, geometry in zip(frames, geometries, strict=True)
        ]
        grids = torch.tensor([[1, *geometry.grid] for geometry in geometries])
        maps = self._encoder(torch.cat(patches).to(self._device), grids)
        return [StartedPrimary(*pair) for pair in zip(geometries, maps, strict=True)]

    def pool(self, started: StartedPrimary, proposals: Proposals) -> PrimaryFeatures:
        """Pooled maps, and the tower's last tokens, merged two by two."""
        boxes = torch.from_numpy(started.geometry.primary_boxes(proposals.xyxy)).to(self._device)
        regions = self._regions.pool_primary(started.maps.levels, boxes[None])[0]
        return PrimaryFeatures(
            image_tokens=to_array(started.maps.image_tokens),
            grid=started.geometry.grid,
            regions=to_array(regions.to(started.maps.image_tokens.dtype)),
        )


@dataclass(frozen=True)
class StartedClassifier:
    """A classifier's maps of one frame, and those of its colours, waiting for boxes."""

    size: tuple[int, int]
    """(width, height) of the frame in pixels."""
    maps: PictureMaps
    looks: Tensor


class ClassifierEye:
    """A classifier that says of every region which of its classes it may be, and how it looks."""

    def __init__(self, model: VLMFO1, device: str) -> None:
        assert model.primary_encoder is not None
        # Channels last was measured to take a tenth to a fifth less time.
        self._network = model.primary_encoder.to(memory_format=torch.channels_last)
        self._config: ClassifierConfig = model.config.vision

    def start(self, frames: list[Frame]) -> list[StartedClassifier]:
        """Its maps, frame by frame."""
        return [self._started(frame) for frame in frames]

    def _started(self, frame: Frame) -> StartedClassifier:
        # A copy, because torch refuses to share read-only memory without a warning.
        rgb = np.array(frame.rgb())
        size = (frame.width, frame.height)
        return StartedClassifier(size, self._network.look(rgb), appearance_map(rgb))

    def pool(self, started: StartedClassifier, proposals: Proposals) -> PrimaryFeatures:
        """Class probabilities and appearance of each box; class probabilities of a coarse grid."""
        boxes = torch.from_numpy(proposals.xyxy)
        classes, _ = self._network.describe(started.maps, boxes)
        looks = pool_appearance(started.looks, boxes, started.size)
        cells = self._config.num_cells
        means = nn.functional.adaptive_avg_pool2d(started.maps.final, cells)[0].flatten(1).T
        tokens = self._network.classify(means).softmax(dim=-1)
        return PrimaryFeatures(
            image_tokens=self._decided(tokens).cpu().numpy(),
            grid=(cells, cells),
            regions=torch.cat([self._decided(classes).cpu(), looks], dim=1).numpy(),
            seen_px=FINE_SIDE,
        )

    def _decided(self, probabilities: Tensor) -> Tensor:
        """As a softmax of the scores over the temperature would have them."""
        powers = probabilities.float() ** (1.0 / self._config.temperature)
        return powers / powers.sum(dim=-1, keepdim=True)


class LlavaEye:
    """LLaVA-OneVision's tiles and tokens, and the pooling of its whole-picture tile."""

    def __init__(self, model: VLMFO1, device: str) -> None:
        # Its name at transformers' top level demands torchvision; the class itself does not.
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil,
        )

        assert model.primary_encoder is not None
        self._encoder = model.primary_encoder
        self._regions = model.region_encoder
        self._config = model.config
        self._processor = LlavaOnevisionImageProcessorPil(**self._config.vision.preprocessor)
        self._device = device

    def start(self, frames: list[Frame]) -> list[StartedPrimary]:
        """The tower's maps, frame by frame: each is a batch of tiles."""
        return [self._started(frame) for frame in frames]

    def _started(self, frame: Frame) -> StartedPrimary:
        inputs = self._processor(images=[frame.rgb()], return_tensors="pt")
        weight = next(self._encoder.parameters())
        maps = self._encoder(
            inputs["pixel_values"].to(weight.device, weight.dtype), inputs["image_sizes"]
        )
        return StartedPrimary(ImageGeometry.of(frame.width, frame.height, self._config), maps)

    def pool(self, started: StartedPrimary, proposals: Proposals) -> PrimaryFeatures:
        """Pooled maps, and the family's image tokens in one row."""
        boxes = torch.from_numpy(started.geometry.primary_boxes(proposals.xyxy)).to(self._device)
        regions = self._regions.pool_primary(started.maps.levels, boxes[None])[0]
        tokens = started.maps.image_tokens
        return PrimaryFeatures(
            image_tokens=to_array(tokens),
            grid=(1, len(tokens)),
            regions=to_array(regions.to(tokens.dtype)),
        )


_EYES: dict[str, Callable[[VLMFO1, str], PrimaryEye]] = {
    QWEN_VIT.name: ViTEye,
    EFFICIENTNET_LITE0.name: ClassifierEye,
    LLAVA_ONEVISION.name: LlavaEye,
}


class AuxiliaryEncoderStage:
    """DaViT at high resolution and the pooling of its four levels."""

    def __init__(self, model: VLMFO1, *, device: str = "cpu") -> None:
        assert model.auxiliary_encoder is not None
        self.model = model
        self._encoder = model.auxiliary_encoder
        self._regions = model.region_encoder
        self._config = model.config
        self._device = device

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        device: str = "cpu",
        num_threads: int | None = None,
        dtype: str = "auto",
        compiled: bool = False,
    ) -> AuxiliaryEncoderStage:
        """The auxiliary part of a model directory; `compiled` has effect on a GPU alone.

        Raises:
            CheckpointMismatch: files are missing or do not fit.
        """
        return cls(
            _load(model, Part.AUXILIARY, device, num_threads, dtype, compiled), device=device
        )

    @torch.inference_mode()
    def start(self, frames: list[Frame]) -> list[StartedAuxiliary]:
        """Run the tower on some frames, those of one size as one batch.

        Raises:
            InvalidFrame: an image body cannot be decoded.
        """
        geometries = [ImageGeometry.of(f.width, f.height, self._config) for f in frames]
        started: dict[int, StartedAuxiliary] = {}
        for rows in equal_rows([geometry.auxiliary for geometry in geometries]):
            levels = self._encoder(self._batch([(frames[row], geometries[row]) for row in rows]))
            for place, row in enumerate(rows):
                own = [level[place : place + 1] for level in levels]
                started[row] = StartedAuxiliary(geometries[row], own)
        return [started[row] for row in range(len(frames))]

    def _batch(self, frames: list[tuple[Frame, ImageGeometry]]) -> Tensor:
        """(frames, 3, height, width) normalised pixels."""
        pixels = [
            auxiliary_pixels(working_image(picture(frame.rgb(), self._device), geometry), geometry)
            for frame, geometry in frames
        ]
        weight = next(self._encoder.parameters())
        # Channels last makes DaViT's many map-to-token turns free of copies.
        return (
            torch.stack(pixels)
            .to(weight.device, weight.dtype)
            .contiguous(memory_format=torch.channels_last)
        )

    @torch.inference_mode()
    def pool(self, started: StartedAuxiliary, proposals: Proposals) -> AuxiliaryFeatures:
        """One vector per box."""
        boxes = torch.from_numpy(started.geometry.auxiliary_boxes(proposals.xyxy))
        regions = self._regions.pool_auxiliary(started.levels, boxes[None].to(self._device))[0]
        return AuxiliaryFeatures(regions=to_array(regions.to(started.levels[0].dtype)))


def _load(
    model: str,
    part: Part,
    device: str,
    num_threads: int | None,
    dtype: str,
    compiled: bool,
    *,
    as_published: bool = False,
) -> VLMFO1:
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    loaded = load_model(
        find_model(model).path,
        parts=frozenset({part}),
        device=device,
        dtype=weight_type(dtype, device, part),
        as_published=as_published,
    )
    if compiled and device != "cpu":
        from agent.model.compilation import compile_blocks

        compile_blocks(loaded)
    return loaded
