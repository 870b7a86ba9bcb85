"""Features between torch and NumPy, in the type they have; NumPy does not know bfloat16."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agent.features import BFLOAT16, Array


def to_array(tensor: Tensor) -> Array:
    """The tensor's numbers in its own type."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BFLOAT16)
    return np.asarray(tensor.numpy())


def to_tensor(array: Array, device: str) -> Tensor:
    """The array's numbers as float32, which every connector begins with."""
    if array.dtype == BFLOAT16:
        halves = torch.from_numpy(np.ascontiguousarray(array).view(np.int16))
        return halves.view(torch.bfloat16).to(device).float()
    return torch.as_tensor(array, dtype=torch.float32, device=device)
