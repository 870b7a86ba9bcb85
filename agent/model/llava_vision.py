"""What a published LLaVA-OneVision says of its eyes (arXiv 2408.03326).

transformers is imported once such a model is read: no other needs it for that. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import CheckpointMismatch
from agent.model.checkpoint_files import read_json

if TYPE_CHECKING:
    from transformers import LlavaOnevisionConfig

_NUM_LEVELS = 4
_MODEL_TYPE = "llava_onevision"


@dataclass(frozen=True)
class LlavaVisionConfig:
    """What a published folder says of its eyes."""

    model: LlavaOnevisionConfig
    preprocessor: Mapping[str, Any]
    """Of the family's own image processor: `preprocessor_config.json`."""

    @property
    def hidden_size(self) -> int:
        """Channels of a map."""
        return int(self.model.vision_config.hidden_size)

    @property
    def patch_size(self) -> int:
        """Pixels per cell of a map."""
        return int(self.model.vision_config.patch_size)

    @property
    def side(self) -> int:
        """Pixels of each side of the square that a picture is squashed to."""
        return int(self.model.vision_config.image_size)

    @property
    def tapped_layers(self) -> tuple[int, ...]:
        """Whose outputs are pooled: four, evenly spread to the last."""
        depth = int(self.model.vision_config.num_hidden_layers)
        return tuple(depth * (level + 1) // _NUM_LEVELS for level in range(_NUM_LEVELS))

    @property
    def token_width(self) -> int:
        """Channels of an image token: the language model's."""
        return int(self.model.text_config.hidden_size)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> LlavaVisionConfig:
        """From a model's `vision_config`."""
        return cls(_llava_config(raw["model"]), dict(raw["preprocessor"]))

    def to_dict(self) -> dict[str, Any]:
        """And back."""
        return {"model": self.model.to_diff_dict(), "preprocessor": dict(self.preprocessor)}


def llava_published(folder: Path) -> LlavaOnevisionConfig:
    """The configuration of a published LLaVA-OneVision.

    Raises:
        CheckpointMismatch: the folder is none.
    """
    raw = read_json(folder / "config.json")
    if raw.get("model_type") != _MODEL_TYPE:
        raise CheckpointMismatch(f"{folder} is no LLaVA-OneVision")
    return _llava_config({k: v for k, v in raw.items() if k != "model_type"})


def _llava_config(raw: Mapping[str, Any]) -> LlavaOnevisionConfig:
    from transformers import LlavaOnevisionConfig

    return LlavaOnevisionConfig(**raw)
