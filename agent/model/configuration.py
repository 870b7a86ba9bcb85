"""Architecture of a VLM-FO1 model, as it travels with the weights in `config.json`.

The file's layout is the published one (flat language-model keys, `vision_config`, `mm_*` keys);
what the published code keeps in source (DaViT shapes, pyramid width, image limits) stands in
an extra `groundstream` section, with the published values as defaults. Knows no settings.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import Qwen2_5_VLTextConfig
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from agent.errors import CheckpointMismatch
from agent.model.checkpoint_files import read_json

logger = logging.getLogger(__name__)

_COMBINATIONS = ("concat", "concat_aux_pos")
_STRATEGIES = ("bbox_based", "feature_map_based", "hybrid")
_PROJECTORS = ("identity", "linear", "mlp2x_gelu")
_ASPECTS = ("dynamic", "dynamic_square", "squash")


@dataclass(frozen=True)
class DaViTConfig:
    """Shape of the auxiliary encoder; the defaults are DaViT-large."""

    depths: tuple[int, ...] = (1, 1, 9, 1)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    num_heads: tuple[int, ...] = (8, 16, 32, 64)
    """Heads of window attention and groups of channel attention, per stage."""
    window_size: int = 12

    def to_transformers(self) -> Florence2VisionConfig:
        """The same shape in the words of transformers' Florence-2 backbone."""
        return Florence2VisionConfig(
            depths=list(self.depths),
            embed_dim=list(self.widths),
            num_heads=list(self.num_heads),
            num_groups=list(self.num_heads),
            window_size=self.window_size,
            patch_size=[7, 3, 3, 3],
            patch_stride=[4, 2, 2, 2],
            patch_padding=[3, 1, 1, 1],
            patch_prenorm=[False, True, True, True],
            drop_path_rate=0.0,
            attn_implementation="sdpa",
        )


@dataclass(frozen=True)
class RegionConfig:
    """How a box becomes one vector (the Hybrid Fine-grained Region Encoder)."""

    combination: str = "concat"
    """`concat`, or `concat_aux_pos` (positions relative to the auxiliary image)."""
    primary_only: bool = False
    """Leave the auxiliary encoder out of the region feature."""
    use_feature_pyramid: bool = True
    """Pool the primary encoder from a pyramid over its last map, else from all tapped maps."""
    pyramid_width: int = 512
    apply_position: bool = True
    position_strategy: str = "bbox_based"
    layer_norm: bool = False
    roi_size: int = 7
    """RoIAlign bins per side; the mean is taken over all of them."""

    def __post_init__(self) -> None:
        for value, allowed, name in (
            (self.combination, _COMBINATIONS, "mm_region_feature_combination"),
            (self.position_strategy, _STRATEGIES, "mm_pos_embedding_strategy"),
        ):
            if value not in allowed:
                raise CheckpointMismatch(f"{name} is {value!r}; supported: {', '.join(allowed)}")


@dataclass(frozen=True)
class ImageConfig:
    """How large an image the towers look at."""

    max_long_side: int = 2048
    """Longer images are scaled down to this before either tower sees them, in pixels."""
    min_side: int = 28
    min_pixels: int = 56 * 56
    max_pixels: int = 12_845_056
    """Area limits of the primary tower's image (`preprocessor_config.json`), in square pixels."""
    auxiliary_aspect: str = "dynamic"
    """`dynamic` keeps the size, `dynamic_square` picks a square, `squash` forces 768x768."""

    def __post_init__(self) -> None:
        if self.auxiliary_aspect not in _ASPECTS:
            raise CheckpointMismatch(
                f"aux_image_aspect_ratio is {self.auxiliary_aspect!r}; "
                f"supported: {', '.join(_ASPECTS)}"
            )


@dataclass(frozen=True)
class ProposalConfig:
    """The proposal network and its post-processing (section 3.1 of the paper; UPN's defaults)."""

    score_threshold: float = 0.3
    nms_iou: float = 0.8
    max_boxes: int = 100
    network: str = "proposal"
    """A folder inside the model's, any other folder, a hub name, or "none": clients send boxes."""
    prompt: str = "object"
    """The one word that zero-shot detectors are asked for."""

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_iou"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise CheckpointMismatch(f"proposal {name} must lie in 0..1")
        if self.max_boxes < 1:
            raise CheckpointMismatch("proposal max_boxes must be at least 1")


@dataclass(frozen=True)
class VLMFO1Config:
    """Everything `VLMFO1` needs to build itself."""

    vision: Qwen2_5_VLVisionConfig
    text: Qwen2_5_VLTextConfig
    davit: DaViTConfig = field(default_factory=DaViTConfig)
    region: RegionConfig = field(default_factory=RegionConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    proposal: ProposalConfig = field(default_factory=ProposalConfig)
    image_projector: str = "identity"
    region_projector: str = "mlp2x_gelu"
    tie_word_embeddings: bool = True
    least_confidence: float = 0.0
    """Boxes that the language model names with less are no detections (ours)."""
    bf16_rotary: bool = False
    """Round the rotary frequencies of both transformers to bfloat16, as the published loader
    does by casting the whole model; published scores were presumably measured so."""

    def __post_init__(self) -> None:
        for name in (self.image_projector, self.region_projector):
            if name not in _PROJECTORS:
                raise CheckpointMismatch(
                    f"projector type {name!r} is unknown; supported: {', '.join(_PROJECTORS)}"
                )

    @property
    def primary_region_width(self) -> int:
        """Channels the primary encoder contributes to a region feature."""
        if self.region.use_feature_pyramid:
            return 4 * self.region.pyramid_width
        return self.vision.hidden_size * len(self.vision.fullatt_block_indexes)

    @property
    def auxiliary_region_width(self) -> int:
        """Channels the auxiliary encoder contributes: all four levels."""
        return sum(self.davit.widths)

    @property
    def region_width(self) -> int:
        """Channels of a fused region feature."""
        if self.region.primary_only:
            return self.primary_region_width
        return self.auxiliary_region_width + self.primary_region_width

    @classmethod
    def from_dict(
        cls, raw: dict[str, Any], preprocessor: dict[str, Any] | None = None
    ) -> VLMFO1Config:
        """Parse a published-layout `config.json` and, if given, its `preprocessor_config.json`.

        A configuration that asks for left padding is read with a warning: nothing here is padded
        on the left, and the published code loses its M-RoPE positions when told to.

        Raises:
            CheckpointMismatch: a required key is missing or a value is not supported.
        """
        extra = raw.get("groundstream", {})
        if raw.get("tokenizer_padding_side", "right") != "right":
            logger.warning(
                "config.json asks for tokenizer_padding_side %r; it is ignored, answers are those "
                "of right padding",
                raw["tokenizer_padding_side"],
            )
        if not raw.get("mm_use_vision_tower_region_feature", True):
            raise CheckpointMismatch(
                "mm_use_vision_tower_region_feature is false: region features of the auxiliary "
                "encoder alone were never supported by the published code either"
            )
        try:
            text = Qwen2_5_VLTextConfig(
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                intermediate_size=raw["intermediate_size"],
                num_hidden_layers=raw["num_hidden_layers"],
                num_attention_heads=raw["num_attention_heads"],
                num_key_value_heads=raw["num_key_value_heads"],
                rms_norm_eps=raw["rms_norm_eps"],
                max_position_embeddings=raw["max_position_embeddings"],
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": raw["rope_theta"],
                    "mrope_section": raw["rope_scaling"]["mrope_section"],
                },
                bos_token_id=raw.get("bos_token_id"),
                eos_token_id=raw.get("eos_token_id"),
                pad_token_id=None,
            )
            vision = Qwen2_5_VLVisionConfig(
                **{k: v for k, v in raw["vision_config"].items() if k != "model_type"}
            )
            region = RegionConfig(
                combination=raw["mm_region_feature_combination"],
                primary_only=raw.get("mm_use_vt_region_feature_only", False),
                use_feature_pyramid=raw["mm_use_simpleFPN_for_vt"],
                pyramid_width=extra.get("pyramid_width", RegionConfig.pyramid_width),
                apply_position=raw.get("mm_apply_position_embedding", True),
                position_strategy=raw.get("mm_pos_embedding_strategy", "bbox_based"),
                layer_norm=raw.get("mm_apply_region_layer_norm", False),
                roi_size=raw.get("mm_roi_output_size", 7),
            )
            config = cls(
                vision=vision,
                text=text,
                davit=_davit(extra.get("davit")),
                region=region,
                image=ImageConfig(
                    max_long_side=extra.get("max_long_side", ImageConfig.max_long_side),
                    auxiliary_aspect=raw.get("aux_image_aspect_ratio", "dynamic"),
                    **_pixel_limits(preprocessor or {}),
                ),
                proposal=ProposalConfig(**extra.get("proposal", {})),
                image_projector=raw.get("mm_projector_type", "identity"),
                region_projector=raw["mm_projector_aux_type"],
                tie_word_embeddings=raw.get("tie_word_embeddings", False),
                least_confidence=extra.get("least_confidence", 0.0),
                bf16_rotary=extra.get("bf16_rotary", False),
            )
        except KeyError as error:
            raise CheckpointMismatch(f"config.json lacks the key {error}") from error
        declared = raw.get("mm_region_hidden_size")
        if declared is not None and declared != config.region_width:
            raise CheckpointMismatch(
                f"mm_region_hidden_size is {declared}, but the encoders give {config.region_width}"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The published layout, with the `groundstream` section."""
        text, vision = self.text, self.vision
        return {
            "architectures": ["OmChatQwen25VLForCausalLM"],
            "model_type": "omchat_qwen2_5_vl",
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "max_position_embeddings": text.max_position_embeddings,
            "rope_theta": text.rope_parameters["rope_theta"],
            "rope_scaling": {
                "rope_type": "default",
                "type": "default",
                "mrope_section": list(text.rope_parameters["mrope_section"]),
            },
            "bos_token_id": text.bos_token_id,
            "eos_token_id": text.eos_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
            "tokenizer_padding_side": "right",
            "vision_config": {
                "model_type": "qwen2_5_vl",
                **{name: _plain(getattr(vision, name)) for name in _VISION_KEYS},
            },
            "aux_image_aspect_ratio": self.image.auxiliary_aspect,
            "mm_use_region_index_token": True,
            "mm_num_region_tokens": self.proposal.max_boxes,
            "mm_use_simpleFPN_for_vt": self.region.use_feature_pyramid,
            "mm_use_vision_tower_region_feature": True,
            "mm_use_vt_region_feature_only": self.region.primary_only,
            "mm_region_feature_combination": self.region.combination,
            "mm_region_hidden_size": self.region_width,
            "mm_apply_position_embedding": self.region.apply_position,
            "mm_pos_embedding_strategy": self.region.position_strategy,
            "mm_apply_region_layer_norm": self.region.layer_norm,
            "mm_roi_output_size": self.region.roi_size,
            "mm_projector_type": self.image_projector,
            "mm_projector_aux_type": self.region_projector,
            "groundstream": {
                "davit": asdict(self.davit),
                "pyramid_width": self.region.pyramid_width,
                "max_long_side": self.image.max_long_side,
                "proposal": asdict(self.proposal),
                "least_confidence": self.least_confidence,
                "bf16_rotary": self.bf16_rotary,
            },
        }

    @classmethod
    def from_file(cls, path: Path) -> VLMFO1Config:
        """Read `config.json`."""
        return cls.from_dict(read_json(path))


_VISION_KEYS = (
    "depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels",
    "patch_size", "spatial_merge_size", "temporal_patch_size", "tokens_per_second",
    "window_size", "out_hidden_size", "fullatt_block_indexes",
)  # fmt: skip


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _pixel_limits(preprocessor: dict[str, Any]) -> dict[str, int]:
    """Area limits in either of the two spellings that Qwen's processors have had."""
    size = preprocessor.get("size") or {}
    found = {
        "min_pixels": preprocessor.get("min_pixels", size.get("shortest_edge")),
        "max_pixels": preprocessor.get("max_pixels", size.get("longest_edge")),
    }
    return {name: int(value) for name, value in found.items() if value is not None}


def _davit(raw: dict[str, Any] | None) -> DaViTConfig:
    if raw is None:
        return DaViTConfig()
    return DaViTConfig(
        tuple(raw["depths"]),
        tuple(raw["widths"]),
        tuple(raw["num_heads"]),
        raw.get("window_size", DaViTConfig.window_size),
    )


def nano_config(vocab_size: int) -> VLMFO1Config:
    """The embedded nano model: every part of the published one, each a few hundred wide."""
    return VLMFO1Config(
        vision=Qwen2_5_VLVisionConfig(
            depth=3,
            hidden_size=128,
            intermediate_size=384,
            num_heads=4,
            out_hidden_size=256,
            # Full attention everywhere: at a thousand patches windows cost more than they save.
            fullatt_block_indexes=[0, 1, 2],
            tokens_per_second=2,
        ),
        text=Qwen2_5_VLTextConfig(
            vocab_size=vocab_size,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            rms_norm_eps=1e-6,
            max_position_embeddings=4096,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [4, 6, 6],
            },
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=None,
        ),
        davit=DaViTConfig((1, 1, 2, 1), (24, 64, 128, 256), (1, 2, 4, 8), 7),
        region=RegionConfig(pyramid_width=32),
        image=ImageConfig(max_long_side=448),
        proposal=ProposalConfig(score_threshold=0.25, nms_iou=0.6),
        least_confidence=0.5,
    )
