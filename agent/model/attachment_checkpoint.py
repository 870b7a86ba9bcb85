"""What is added to a family's model, as a folder of its own: `attachment.json` and weights.

The family's weights stay where they are; only auxiliary encoder, region encoder and connector are
written. Strict like every checkpoint here.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agent.errors import CheckpointMismatch
from agent.model.configuration import DaViTConfig, RegionConfig
from agent.model.vlm_adapter import AttachedVLM, AttachmentConfig, VLMAdapter

_CONFIG, _WEIGHTS = "attachment.json", "attachment.safetensors"


def save_attachment(model: AttachedVLM, directory: Path) -> None:
    """Write everything but the family's own weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _CONFIG).write_text(json.dumps(asdict(model.config), indent=2) + "\n")
    state = {name: tensor.contiguous() for name, tensor in model.attachment_state().items()}
    save_file(state, directory / _WEIGHTS, metadata={"format": "pt"})


def load_attachment(adapter: VLMAdapter, directory: Path) -> AttachedVLM:
    """The adapter's model with a saved attachment, in evaluation mode.

    Raises:
        CheckpointMismatch: files are missing or unreadable, or do not fit this family's widths.
    """
    try:
        raw = json.loads((directory / _CONFIG).read_text())
        davit: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in raw["davit"].items()
        }
        config = AttachmentConfig(
            DaViTConfig(**davit), RegionConfig(**raw["region"]), raw["connector"]
        )
        state = load_file(directory / _WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointMismatch(f"{directory} is no saved attachment: {error}") from error
    model = AttachedVLM(adapter, config)
    wanted = {name: tensor.shape for name, tensor in model.attachment_state().items()}
    differing = sorted(
        name
        for name in wanted.keys() | state.keys()
        if name not in wanted or name not in state or wanted[name] != state[name].shape
    )
    if differing:
        raise CheckpointMismatch(
            f"{directory} does not fit this model; missing, unexpected or of another shape: "
            f"{', '.join(differing[:5])}{', ...' if len(differing) > 5 else ''}"
        )
    model.load_state_dict(state, strict=False)
    return model.eval()
