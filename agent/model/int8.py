"""Weight-only int8: linear layers whose weights are whole numbers with one scale per output.

Halves the memory of bfloat16 and is read in half the time, which is what a word costs on a CPU.
Weights are rounded to the nearest of 255 steps of their row's largest; activations stay as they
are. Knows no model: which layers are worth it is said by what stands around them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_STEPS = 127
_LEAST_WEIGHTS = 1 << 15
"""A smaller layer saves nothing that anybody would notice."""
_ROWS_AT_ONCE = 64
_FEW_ROWS = 24
"""Up to so many rows PyTorch's own product of bfloat16 with int8 is faster than making the weights
bfloat16 first (`python -m benchmarks.int8`)."""


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) weights as int8 and the (out,) float32 scales that they are to be multiplied by."""
    steps = torch.empty_like(weight, dtype=torch.int8)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    # A few rows at a time: whole float32 copies, freed between what is kept, leave holes that a
    # process of a model's size holds on to.
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        wide = weight[rows].float()
        scale[rows] = (wide.abs().amax(dim=1) / _STEPS).clamp_min(torch.finfo(torch.float32).tiny)
        steps[rows] = (wide / scale[rows, None]).round().clamp(-_STEPS, _STEPS).to(torch.int8)
    return steps, scale


class Int8Linear(nn.Module):
    """A linear layer with int8 weights; computes in the type of what it is given."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        """The same layer; one on the meta device gets its weights later, by its state."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if linear.weight.is_meta:
            weight = torch.empty_like(linear.weight, dtype=torch.int8)
            scale = torch.empty(self.out_features, device="meta")
        else:
            weight, scale = quantised(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        rows = hidden.reshape(-1, self.in_features)
        scale = self.scale.to(hidden.dtype)
        if (
            len(rows) <= _FEW_ROWS
            and hidden.dtype == torch.bfloat16
            and hidden.device.type == "cpu"
        ):
            product = torch.ops.aten._weight_int8pack_mm(rows.contiguous(), self.weight, scale)
        else:
            product = nn.functional.linear(rows, self.weight.to(hidden.dtype)) * scale
        if self.bias is not None:
            product = product + self.bias
        return product.view(*hidden.shape[:-1], self.out_features)


def quantise_layers(module: nn.Module) -> None:
    """Put `Int8Linear` in the place of every large linear layer inside a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and is_worth_it(tuple(child.weight.shape)):
            setattr(module, name, Int8Linear(child))
        else:
            quantise_layers(child)


def int8_layers(module: nn.Module) -> list[str]:
    """Names of the int8 layers inside a module."""
    return [name for name, layer in module.named_modules() if isinstance(layer, Int8Linear)]


def is_worth_it(shape: tuple[int, ...]) -> bool:
    """Whether a linear layer's (out, in) weights are made int8."""
    return len(shape) == 2 and shape[0] * shape[1] >= _LEAST_WEIGHTS
