"""The embedded pocket model's folder as training leaves it, with random additions to its base."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import agent
from agent.model.configuration import VLMFO1Config, pocket_config
from agent.model.name_mixture import NameMixture
from agent.model.smollm2 import smollm2_shape
from agent.tokenizer import CONTROL_TOKENS

NUM_NEW = len(CONTROL_TOKENS) - 3
"""SmolLM2 has `<|endoftext|>`, `<|im_start|>` and `<|im_end|>` of its own."""
_RANK = 4


def write_pocket_folder(
    directory: Path, *, strength: float = 0.0, seed: int = 0
) -> dict[str, torch.Tensor]:
    """`config.json` and `language.safetensors`; `strength` scales the low-rank changes.

    Returns:
        What the file holds.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.1) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator)

    text = smollm2_shape(num_new_tokens=NUM_NEW)
    hidden = text.hidden_size
    state = {f"connector.{name}": value for name, value in NameMixture(hidden).state_dict().items()}
    state["connector.own_names"] = random(1080, hidden)
    state["connector.everyday_names"] = random(1080, hidden)
    state["new_tokens.weight"] = random(NUM_NEW, hidden)
    for layer in range(text.num_hidden_layers):
        for part, rows in (("q", hidden), ("k", hidden // 3), ("v", hidden // 3), ("o", hidden)):
            name = f"model.layers.{layer}.self_attn.{part}_proj"
            state[f"{name}.lora_a"] = random(_RANK, hidden)
            state[f"{name}.lora_b"] = random(rows, _RANK, scale=strength)
    save_file({name: value.contiguous() for name, value in state.items()},
              directory / "language.safetensors")  # fmt: skip
    write_config(directory, pocket_config(text))
    return state


def write_config(directory: Path, config: VLMFO1Config) -> None:
    """`config.json`."""
    (directory / "config.json").write_text(json.dumps(config.to_dict(), indent=2))


def pocket_weights(directory: Path) -> None:
    """The vision parts' weights, as the package ships them."""
    shipped = Path(agent.__file__).parent / "weights" / "pocket"
    for name in ("nanodet.safetensors", "efficientnet_lite0.safetensors"):
        (directory / name).symlink_to(shipped / name)
