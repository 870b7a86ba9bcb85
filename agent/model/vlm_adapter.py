"""What the region encoder asks of a vision-language model, and the two put together.

A family of models implements `VLMAdapter`; `AttachedVLM` adds the auxiliary encoder, the region
encoder and the connector, and is all that has to be trained. Tensors in, tensors out; knows no
tokenizer and no image file. How to add a family: docs/plug_and_play.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from agent.model.auxiliary_encoder import AuxiliaryVisionEncoder
from agent.model.configuration import DaViTConfig, RegionConfig
from agent.model.projector import build_projector
from agent.model.region_encoder import RegionEncoder


class Stage(Enum):
    """What is trained (VLM-FO1, section 3.4)."""

    ALIGN = "align"
    """The connector alone."""
    INSTRUCT = "instruct"
    """Also the language model, and with it the embeddings of tokens that are new to it."""


@dataclass(frozen=True)
class VisionOutput:
    """What a family's vision tower says about one image."""

    image_tokens: Tensor
    """(num_image_tokens, hidden), ready to take their places among the embeddings."""
    levels: tuple[Tensor, ...]
    """(1, level width, rows, columns) each, one cell a patch."""
    size: tuple[int, int]
    """(width, height) in pixels of the picture that the levels describe, squashed or not."""
    grid: tuple[int, int] | None = None
    """(rows, columns) of the image tokens, for families whose positions count them."""


@dataclass(frozen=True)
class PromptFormat:
    """The text around image, regions and question, control tokens included."""

    before_image: str
    after_image: str
    before_regions: str
    """Only where there are regions, which follow: `<region0>` and its region token, and so on."""
    question: str
    """With one `{}` for the user's words; ends where the answer begins."""
    end_of_turn: str


@dataclass(frozen=True)
class PatchShape:
    """The maps of a family's tower."""

    hidden_size: int
    """Channels of one level."""
    patch_size: int
    """Pixels per cell."""


class VLMAdapter(nn.Module, ABC):
    """One family of vision-language models."""

    vision: PatchShape
    num_levels: int
    hidden_size: int
    """Width of the language model's embeddings."""
    prompt: PromptFormat

    @abstractmethod
    def encode(self, inputs: dict[str, Tensor]) -> VisionOutput:
        """One image, as the family's own preparation gives it."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """(..., length) token ids to (..., length, hidden)."""

    @abstractmethod
    def positions(
        self, slots: Tensor, grid: tuple[int, int] | None, *, start: int
    ) -> tuple[Tensor, int]:
        """Positions of one sequence from `start` on, with a batch axis, and the next free one."""

    @abstractmethod
    def language(
        self, embeddings: Tensor, positions: Tensor, *, cache: DynamicCache | None = None
    ) -> Tensor:
        """Causal hidden states after the final norm, (1, length, hidden); extends `cache`."""

    @abstractmethod
    def language_modules(self) -> list[nn.Module]:
        """The language model with its embeddings and head: what instruction tuning trains."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden) to (..., vocabulary)."""


@dataclass(frozen=True)
class AttachmentConfig:
    """Shape of what is added to a family; saved beside the trained weights."""

    davit: DaViTConfig = field(default_factory=DaViTConfig)
    # Without the pyramid the connector is the only part that has to be trained.
    region: RegionConfig = field(default_factory=lambda: RegionConfig(use_feature_pyramid=False))
    connector: str = "mlp2x_gelu"


@dataclass(frozen=True)
class AttachedLayout:
    """The region encoder's surroundings in another family (see `RegionLayout`)."""

    config: AttachmentConfig
    vision: PatchShape
    num_levels: int

    @property
    def region(self) -> RegionConfig:
        return self.config.region

    @property
    def primary_region_width(self) -> int:
        if self.region.use_feature_pyramid:
            return 4 * self.region.pyramid_width
        return self.num_levels * self.vision.hidden_size

    @property
    def auxiliary_region_width(self) -> int:
        return sum(self.config.davit.widths)

    @property
    def region_width(self) -> int:
        """Channels of a fused region feature."""
        auxiliary = 0 if self.region.primary_only else self.auxiliary_region_width
        return self.primary_region_width + auxiliary


class AttachedVLM(nn.Module):
    """A vision-language model of any family that can see, and name, regions."""

    def __init__(self, adapter: VLMAdapter, config: AttachmentConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter = adapter
        layout = AttachedLayout(config, adapter.vision, adapter.num_levels)
        self.auxiliary_encoder = AuxiliaryVisionEncoder(config.davit)
        self.region_encoder = RegionEncoder(layout)
        self.region_projector = build_projector(
            config.connector, layout.region_width, adapter.hidden_size
        )

    def region_features(
        self, vision: VisionOutput, auxiliary_pixels: Tensor, boxes: Tensor
    ) -> Tensor:
        """Fused region features, (num_boxes, region width).

        Args:
            vision: the family's view of the image.
            auxiliary_pixels: (1, 3, height, width), the same image at any size.
            boxes: (num_boxes, 4) xyxy, relative to the image: 0..1.
        """
        levels = self.auxiliary_encoder(auxiliary_pixels)
        height, width = auxiliary_pixels.shape[-2:]
        primary = self.region_encoder.pool_primary(vision.levels, _scaled(boxes, *vision.size))
        auxiliary = self.region_encoder.pool_auxiliary(levels, _scaled(boxes, width, height))
        return self.region_encoder.fuse(primary, auxiliary, boxes[None])[0]

    def region_tokens(self, features: Tensor) -> Tensor:
        """(num_boxes, region width) to (num_boxes, hidden)."""
        dtype = next((p.dtype for p in self.region_projector.parameters()), features.dtype)
        tokens: Tensor = self.region_projector(features.to(dtype))
        return tokens

    def freeze_for(self, stage: Stage) -> None:
        """Only what `stage` trains requires gradients."""
        self.requires_grad_(False)
        self.region_projector.requires_grad_(True)
        if stage is Stage.INSTRUCT:
            for module in self.adapter.language_modules():
                module.requires_grad_(True)

    def attachment_state(self) -> dict[str, Any]:
        """Weights of everything but the family's own model."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("adapter.")}


def _scaled(boxes: Tensor, width: int, height: int) -> Tensor:
    """(num_boxes, 4) in 0..1 to (1, num_boxes, 4) pixels."""
    return (boxes * torch.tensor([width, height] * 2, device=boxes.device))[None]
