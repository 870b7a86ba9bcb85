"""Low-rank adaptation (LoRA, arXiv 2106.09685) of a frozen language model's linear layers.

In training a `LowRankLinear` stands in each adapted layer's place; a trained adapter is a few
small matrices by name, which `merge` adds to the weights. Knows no tokens and no data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_DOWN, _UP = "lora_a", "lora_b"


class LowRankLinear(nn.Module):
    """A frozen linear layer and a trained low-rank change of it."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.enabled = True
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's output; with `enabled` false the untouched model's."""
        output: Tensor = self.base(inputs)
        if not self.enabled:
            return output
        down, up = self.lora_a.to(inputs.dtype), self.lora_b.to(inputs.dtype)
        return output + self.scale * nn.functional.linear(nn.functional.linear(inputs, down), up)


def adapt(model: nn.Module, *, rank: int = 16, scale: float = 2.0) -> list[LowRankLinear]:
    """Put a low-rank change into every projection of `model`, which is frozen."""
    model.requires_grad_(False)
    adapted = []
    for module in list(model.modules()):
        for name in TARGETS:
            base = getattr(module, name, None)
            if isinstance(base, nn.Linear):
                layer = LowRankLinear(base, rank, scale)
                setattr(module, name, layer)
                adapted.append(layer)
    return adapted


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained matrices by the name of their layer, the scale folded into the second."""
    return {
        f"{name}.{part}": value
        for name, layer in _adapted(model)
        for part, value in (
            (_DOWN, layer.lora_a.detach()),
            (_UP, layer.scale * layer.lora_b.detach()),
        )
    }


def load_adapter(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Go on training an adapter that `adapter_state` gave; layers it lacks start unchanged."""
    for name, layer in _adapted(model):
        if f"{name}.{_DOWN}" not in state:
            continue
        layer.lora_a.data.copy_(state[f"{name}.{_DOWN}"])
        layer.lora_b.data.copy_(state[f"{name}.{_UP}"] / layer.scale)


def merge(weights: dict[str, Tensor], adapter: Mapping[str, Tensor]) -> None:
    """Add an adapter to the weights it was trained for, in place.

    Raises:
        KeyError: the adapter changes a layer that `weights` lacks.
    """
    for key in adapter:
        if key.endswith(f".{_DOWN}"):
            name = key[: -len(_DOWN) - 1]
            weight = weights[f"{name}.weight"]
            change = adapter[f"{name}.{_UP}"].float() @ adapter[key].float()
            weights[f"{name}.weight"] = (weight.float() + change).to(weight.dtype)


def mean_of(state: Mapping[str, Tensor], former: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each tensor of a model and of the one that it was trained on from.

    Both factors of a low-rank change are averaged by themselves, which is near the mean of the
    changes as long as the two are near. A layer that `former` lacks was not changed by it.
    """
    found = {}
    for name, value in state.items():
        unchanged = torch.zeros_like(value) if name.endswith(f".{_UP}") else value
        found[name] = (value.float() + former.get(name, unchanged).float()) / 2
    return found


def _adapted(model: nn.Module) -> Iterator[tuple[str, LowRankLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            yield name, module
