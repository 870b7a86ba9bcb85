"""Architecture of a VLM-FO1 model, as it travels with the weights in `config.json`.

The file's layout is the published one (flat language-model keys, `vision_config`, `mm_*` keys);
what the published code keeps in source (DaViT shapes, pyramid width, image limits) and what it
has no choice of (language family, encoders, order of a region's slots) stands in an extra
`groundstream` section, with the published values as defaults. Knows no settings.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.answer_rules import AnswerRules
from agent.errors import CheckpointMismatch
from agent.model.bases import base_text
from agent.model.checkpoint_files import read_json
from agent.model.decoder_shape import DecoderShape
from agent.model.family import LanguageFamily, RegionOrder, find_family
from agent.model.llava_vision import LlavaVisionConfig, llava_published
from agent.model.primary_kinds import ClassifierConfig, PrimaryKind, find_primary

logger = logging.getLogger(__name__)

_COMBINATIONS = ("concat", "concat_aux_pos")
_STRATEGIES = ("bbox_based", "feature_map_based", "hybrid")
_PROJECTORS = ("identity", "linear", "mlp2x_gelu")
NAME_MIXTURE = "name_mixture"
"""The connector of class evidence; see `agent.model.name_mixture`."""
NO_IMAGE_TOKENS = "none"
_IMAGE_PROJECTORS = (*_PROJECTORS, NAME_MIXTURE, NO_IMAGE_TOKENS)
_REGION_PROJECTORS = (*_PROJECTORS, NAME_MIXTURE)
ADDITIONS = "additions.safetensors"
"""What a model with a folder as its base holds itself, under our parameter names."""
DAVIT, EVIDENCE = "davit", "proposal"
_AUXILIARIES = (DAVIT, EVIDENCE)
DAVIT_STRIDE = 4
"""Pixels per cell of its finest level."""
_ASPECTS = ("dynamic", "dynamic_square", "squash")


@dataclass(frozen=True)
class DaViTConfig:
    """Shape of the auxiliary encoder; the defaults are DaViT-large."""

    depths: tuple[int, ...] = (1, 1, 9, 1)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    num_heads: tuple[int, ...] = (8, 16, 32, 64)
    """Heads of window attention and groups of channel attention, per stage."""
    window_size: int = 12


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
    num_classes: int = 0
    """Classes whose scores the network gives with each box: its evidence."""

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_iou"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise CheckpointMismatch(f"proposal {name} must lie in 0..1")
        if self.max_boxes < 1:
            raise CheckpointMismatch("proposal max_boxes must be at least 1")


@dataclass(frozen=True)
class VLMFO1Config:
    """Everything `VLMFO1` needs to build itself."""

    vision: Any
    """The primary encoder's, of its kind's own type."""
    text: DecoderShape
    """The decoder's."""
    davit: DaViTConfig = field(default_factory=DaViTConfig)
    region: RegionConfig = field(default_factory=RegionConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    proposal: ProposalConfig = field(default_factory=ProposalConfig)
    image_projector: str = "identity"
    region_projector: str = "mlp2x_gelu"
    tie_word_embeddings: bool = True
    rules: AnswerRules = field(default_factory=AnswerRules)
    """How it is asked, and how its answers are read (ours)."""
    tasks: tuple[str, ...] = ()
    """Kinds of questions it was trained for (names of `TaskKind`), as the service tells its
    clients; empty: all (ours)."""
    bf16_rotary: bool = False
    """Round the rotary frequencies of both transformers to bfloat16, as the published loader
    does by casting the whole model; published scores were presumably measured so."""
    family: str = "qwen2_5_vl"
    """The language model's; see `agent.model.family`."""
    region_order: str = ""
    """How a region's token and its slots stand, such as `RSSR`; empty: as the family has it."""
    primary: str = "qwen_vit"
    """The kind of the primary encoder; see `agent.model.primary_kinds`."""
    auxiliary: str = DAVIT
    """`davit`, or `proposal`: the class evidence that comes with the proposals, and no encoder."""
    base: str = ""
    """A language model that others publish and this one stands on; see `agent.model.bases`."""
    adapter: str = ""
    """A file of the folder with what this model adds to its base."""
    weights: tuple[tuple[str, str], ...] = ()
    """(beginning of our parameter names, file of the folder) of parts with files of their own."""

    def __post_init__(self) -> None:
        for what, name, known in (
            ("projector type", self.image_projector, _IMAGE_PROJECTORS),
            ("projector type", self.region_projector, _REGION_PROJECTORS),
            ("auxiliary encoder", self.auxiliary, _AUXILIARIES),
        ):
            if name not in known:
                raise CheckpointMismatch(
                    f"{what} {name!r} is unknown; supported: {', '.join(known)}"
                )
        for rule in ("evidence_share", "reads_descriptions", "tells_regions"):
            if getattr(self.rules, rule) and self.region_projector != NAME_MIXTURE:
                raise CheckpointMismatch(
                    f"{rule} needs regions that are class evidence, which the projector "
                    f"{self.region_projector!r} does not read: use {NAME_MIXTURE!r}, or leave the "
                    "rule out"
                )

    @property
    def language_family(self) -> LanguageFamily:
        """The family, with this model's own order of a region's slots."""
        family = find_family(self.family)
        order = RegionOrder(self.region_order) if self.region_order else family.order
        return replace(family, order=order)

    @property
    def primary_kind(self) -> PrimaryKind:
        """What the primary encoder says of itself."""
        return find_primary(self.primary)

    @property
    def primary_region_width(self) -> int:
        """Channels the primary encoder contributes to a region feature."""
        if self.region.use_feature_pyramid:
            return 4 * self.region.pyramid_width
        return self.primary_kind.region_width(self.vision)

    @property
    def auxiliary_region_width(self) -> int:
        """Channels the auxiliary encoder contributes: all four levels; or each class's score."""
        return sum(self.davit.widths) if self.auxiliary == DAVIT else self.proposal.num_classes

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        """(rows, columns) of image tokens for `PrimaryFeatures.grid`; None: there are none."""
        if self.image_projector == NO_IMAGE_TOKENS:
            return None
        merged = self.primary_kind.merged(self.vision)
        return grid[0] // merged, grid[1] // merged

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
            family = find_family(extra.get("family", cls.family))
            base = extra.get("base", "")
            text = DecoderShape.read({**base_text(base), **raw}, num_axes=family.num_axes)
            kind = find_primary(extra.get("primary", cls.primary))
            vision = kind.read(raw["vision_config"])
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
                rules=AnswerRules.read(extra),
                tasks=tuple(extra.get("tasks", ())),
                bf16_rotary=extra.get("bf16_rotary", False),
                family=family.name,
                region_order=extra.get("region_order", ""),
                primary=kind.name,
                auxiliary=extra.get("auxiliary", DAVIT),
                base=base,
                adapter=extra.get("adapter", ""),
                weights=tuple(extra.get("weights", {}).items()),
            )
        except KeyError as error:
            raise CheckpointMismatch(f"config.json lacks the key {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointMismatch(
                f"config.json has a value of the wrong kind, or a key that is not known: {error}"
            ) from error
        declared = raw.get("mm_region_hidden_size")
        if declared is not None and declared != config.region_width:
            raise CheckpointMismatch(
                f"mm_region_hidden_size is {declared}, but the encoders give {config.region_width}"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The published layout, with the `groundstream` section."""
        text, vision = self.text, self.vision
        published = self.family == VLMFO1Config.family
        return {
            "architectures": ["OmChatQwen25VLForCausalLM" if published else "GroundstreamModel"],
            "model_type": "omchat_qwen2_5_vl" if published else "groundstream",
            **text.write(),
            "tie_word_embeddings": self.tie_word_embeddings,
            "tokenizer_padding_side": "right",
            "vision_config": self.primary_kind.write(vision),
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
                **asdict(self.rules),
                "tasks": list(self.tasks),
                "bf16_rotary": self.bf16_rotary,
                "family": self.family,
                "region_order": self.language_family.order.word,
                "primary": self.primary,
                "auxiliary": self.auxiliary,
                "base": self.base,
                "adapter": self.adapter,
                "weights": dict(self.weights),
            },
        }

    @classmethod
    def from_file(cls, path: Path) -> VLMFO1Config:
        """Read `config.json`."""
        return cls.from_dict(read_json(path))


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


def pocket_config(text: DecoderShape) -> VLMFO1Config:
    """The embedded pocket model: pretrained parts that see photographs and have read English."""
    return VLMFO1Config(
        vision=ClassifierConfig(),
        text=text,
        region=RegionConfig(use_feature_pyramid=False, apply_position=False),
        proposal=ProposalConfig(
            score_threshold=0.15, nms_iou=0.6, network="nanodet.safetensors", num_classes=80
        ),
        rules=AnswerRules(
            regions_per_page=24,
            least_confidence=0.3,
            least_listed=0.25,
            evidence_share=0.7,
            reads_descriptions=True,
            tells_regions=True,
            one_per_object=True,
            objectness_power=0.5,
        ),
        tasks=("DETECT", "REFER", "COUNT", "REGION_CAPTION", "VISUAL_PROMPT", "CHAT"),
        image_projector=NAME_MIXTURE,
        region_projector=NAME_MIXTURE,
        family="llama",
        primary="efficientnet_lite0",
        auxiliary=EVIDENCE,
        base="smollm2-135m-instruct",
        adapter="language.safetensors",
        weights=(("primary_encoder.", "efficientnet_lite0.safetensors"),),
    )


def llava_config(
    published: Path,
    *,
    davit: DaViTConfig | None = None,
    region: RegionConfig | None = None,
    region_projector: str = "mlp2x_gelu",
) -> VLMFO1Config:
    """A published LLaVA-OneVision with regions: its folder is the base, the rest is added.

    Args:
        published: the folder.
        davit, region, region_projector: what is added. Without a feature pyramid, the default, the
            connector is the only part that has to be trained.

    Raises:
        CheckpointMismatch: the folder is no LLaVA-OneVision.
    """
    model = llava_published(published)
    preprocessor = read_json(published / "preprocessor_config.json")
    return VLMFO1Config(
        vision=LlavaVisionConfig(model, preprocessor),
        text=DecoderShape.of(model.text_config),
        davit=davit or DaViTConfig(),
        region=region or RegionConfig(use_feature_pyramid=False),
        region_projector=region_projector,
        tie_word_embeddings=bool(model.text_config.tie_word_embeddings),
        family="llava_onevision",
        primary="llava_onevision",
        base=str(published.resolve()),
        weights=(("", ADDITIONS),),
    )
