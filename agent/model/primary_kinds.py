"""The primary encoders a model may have: what each says of itself to the other parts.

A kind knows the shape of its tower, how wide what it gives is, and how to build it. Towers are
imported once they are built: transformers takes a process seconds. How frames become their input
stands in `agent.encoders`. Knows no language model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from agent.errors import CheckpointMismatch
from agent.model.efficientnet import NUM_CLASSES, EfficientNetLite0
from agent.model.llava_vision import LlavaVisionConfig

_QWEN_KEYS = (
    "depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels",
    "patch_size", "spatial_merge_size", "temporal_patch_size", "tokens_per_second",
    "window_size", "out_hidden_size", "fullatt_block_indexes",
)  # fmt: skip


@dataclass(frozen=True)
class ClassifierConfig:
    """A primary encoder that says of every region which class it is likely to be."""

    num_appearance: int = 16
    """Channels behind the class probabilities: what the region looks like."""
    temperature: float = 1.0
    """Class scores are divided by it; less than one makes probabilities more decided."""
    num_cells: int = 5
    """Rows, and columns, of image tokens."""

    @property
    def region_width(self) -> int:
        """Channels of a region."""
        return NUM_CLASSES + self.num_appearance


@dataclass(frozen=True)
class PrimaryKind:
    """One kind of primary encoder."""

    name: str
    """As `groundstream.primary` of a model's `config.json` says it."""
    read: Callable[[Mapping[str, Any]], Any]
    """The tower's configuration from its section of `config.json`."""
    write: Callable[[Any], dict[str, Any]]
    """And back."""
    build: Callable[[Any], Any]
    """The tower of a configuration."""
    region_width: Callable[[Any], int]
    """Channels of a region without a feature pyramid: of all maps it is pooled from together."""
    token_width: Callable[[Any], int]
    """Channels of an image token, before the image projector."""
    merged: Callable[[Any], int] = lambda vision: 1
    """Rows, and columns, of `PrimaryFeatures.grid` that share an image token."""
    is_precise: bool = False
    """Whether it stays in float32 whatever the type of the model's other weights."""
    squashed_to: Callable[[Any], int | None] = lambda vision: None
    """Pixels of the square that every picture is squashed to; None keeps its proportions."""


def _read_qwen(raw: Mapping[str, Any]) -> Any:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

    return Qwen2_5_VLVisionConfig(**{k: v for k, v in raw.items() if k != "model_type"})


def _build_qwen(vision: Any) -> Any:
    from agent.model.primary_encoder import PrimaryVisionEncoder

    return PrimaryVisionEncoder(vision)


def _build_llava(vision: LlavaVisionConfig) -> Any:
    from agent.model.llava_encoder import LlavaVisionEncoder

    return LlavaVisionEncoder(vision)


def _write_qwen(vision: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl",
        **{name: _plain(getattr(vision, name)) for name in _QWEN_KEYS},
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


QWEN_VIT = PrimaryKind(
    "qwen_vit",
    read=_read_qwen,
    write=_write_qwen,
    build=_build_qwen,
    region_width=lambda vision: vision.hidden_size * len(vision.fullatt_block_indexes),
    token_width=lambda vision: vision.out_hidden_size,
    merged=lambda vision: vision.spatial_merge_size,
)
"""Qwen2.5-VL's ViT, tapped after its full-attention blocks."""
EFFICIENTNET_LITE0 = PrimaryKind(
    "efficientnet_lite0",
    read=lambda raw: ClassifierConfig(**raw),
    write=asdict,
    build=lambda vision: EfficientNetLite0(),
    region_width=lambda vision: vision.region_width,
    token_width=lambda vision: NUM_CLASSES,
    # It is small, and what it says are shares that lie close together.
    is_precise=True,
)
"""ImageNet's classes, region by region, with what the region looks like."""
LLAVA_ONEVISION = PrimaryKind(
    "llava_onevision",
    read=LlavaVisionConfig.from_dict,
    write=LlavaVisionConfig.to_dict,
    build=_build_llava,
    region_width=lambda vision: vision.hidden_size * len(vision.tapped_layers),
    token_width=lambda vision: vision.token_width,
    squashed_to=lambda vision: vision.side,
)
"""SigLIP with LLaVA-OneVision's tiles and image tokens."""

_KINDS = {kind.name: kind for kind in (QWEN_VIT, EFFICIENTNET_LITE0, LLAVA_ONEVISION)}


def find_primary(name: str) -> PrimaryKind:
    """The kind of a name.

    Raises:
        CheckpointMismatch: nobody has that name.
    """
    if name not in _KINDS:
        known = ", ".join(sorted(_KINDS))
        raise CheckpointMismatch(f"the primary encoder {name!r} is unknown; known: {known}")
    return _KINDS[name]
