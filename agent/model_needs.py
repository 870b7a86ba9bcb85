"""What a model in the published layout takes of a machine, told from headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from agent.model.checkpoint import weight_type
from agent.model.checkpoint_files import StoredTensor, stored_tensors
from agent.model.int8 import is_worth_it
from agent.model.vlm_fo1 import Part

MARGIN = 1.15
"""Memory at the peak of loading, as a multiple of the weights."""
_LANGUAGE = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
_INT8 = ("model.layers.", "model.vision_tower.", "model.vision_tower_aux.")
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class ModelNeeds:
    """Sizes of a model's weights, its proposal network's aside."""

    num_language: int
    """Numbers of the language model."""
    num_vision: int
    """Numbers of encoders and connectors."""
    stored_bytes: int
    """On the disk."""
    weight_bytes: int
    """In memory, in the types that were chosen."""

    @property
    def num_weights(self) -> int:
        """All numbers."""
        return self.num_language + self.num_vision

    @property
    def peak_bytes(self) -> int:
        """Memory while it is loaded, all stages on one machine."""
        return int(MARGIN * self.weight_bytes)


def model_needs(folder: Path, *, device: str = "cpu", dtype: str = "auto") -> ModelNeeds:
    """Read the headers of a folder's weights.

    Args:
        folder: in the published layout.
        device: where it is to compute.
        dtype: type of the weights, as in the settings.

    Raises:
        CheckpointMismatch: files are missing or damaged.
    """
    stored = stored_tensors(folder)
    parts: dict[Part, dict[str, StoredTensor]] = {Part.LANGUAGE: {}, Part.PRIMARY: {}}
    for key, tensor in stored.items():
        parts[Part.LANGUAGE if key.startswith(_LANGUAGE) else Part.PRIMARY][key] = tensor
    language, vision = (
        sum(one.num_elements for one in tensors.values()) for tensors in parts.values()
    )
    weight_bytes = 0
    for part, tensors in parts.items():
        wanted = weight_type(dtype, device, part)
        if wanted is torch.int8:
            wanted = weight_type("auto", device, part)
            whole = [key for key, one in parts[part].items() if _is_int8(key, one)]
            weight_bytes += sum(_int8_bytes(parts[part].pop(key)) for key in whole)
        weight_bytes += sum(one.num_elements * _size(one, wanted) for one in tensors.values())
    stored_bytes = sum(one.num_elements * _size(one, None) for one in stored.values())
    return ModelNeeds(language, vision, stored_bytes, weight_bytes)


def _is_int8(key: str, tensor: StoredTensor) -> bool:
    """Whether `dtype: int8` makes a tensor int8 (`agent.model.checkpoint`)."""
    return key.startswith(_INT8) and key.endswith(".weight") and is_worth_it(tensor.shape)


def _int8_bytes(tensor: StoredTensor) -> int:
    return tensor.num_elements + 4 * tensor.shape[0]


def _size(tensor: StoredTensor, wanted: torch.dtype | None) -> int:
    return _BYTES.get(tensor.dtype, 1) if wanted is None else wanted.itemsize
