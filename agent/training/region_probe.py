"""A small classifier of fused region features: what they tell by themselves.

Knows features and classes, no pictures and no language model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_HIDDEN = 256
_BATCH = 1024
_RATE = 2e-3
_SMOOTHING = 0.05


def fit_probe(x: Tensor, y: Tensor, num_classes: int, *, seed: int, steps: int) -> nn.Module:
    """A fresh two-layer classifier of (n, width) features, trained on (n,) classes."""
    torch.manual_seed(seed)
    probe = nn.Sequential(
        nn.Linear(x.shape[1], _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, num_classes)
    )
    optimizer = torch.optim.AdamW(probe.parameters(), lr=_RATE, weight_decay=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1.0 - step / steps)
        rows = torch.randint(len(x), (_BATCH,))
        loss = nn.functional.cross_entropy(probe(x[rows]), y[rows], label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return probe.eval()


def held_out_beliefs(
    features: Tensor, classes: Tensor, num_classes: int, *, folds: int = 3, steps: int = 800
) -> Tensor:
    """(n, num_classes + 1) probabilities of each region by a probe that has not seen its picture.

    For features whose towers come without the classifier they were trained with. A probe is sure
    of what it has learned by heart; its doubts about other pictures are what alignment needs.

    Args:
        features: (n, width), in the order of their pictures.
        classes: (n,) classes; negative ones are background, which is last in the answer.
    """
    target = classes.masked_fill(classes < 0, num_classes)
    fold = torch.arange(len(features)) * folds // len(features)
    believed = torch.empty(len(features), num_classes + 1)
    for number in range(folds):
        own = fold == number
        probe = fit_probe(features[~own], target[~own], num_classes + 1, seed=number, steps=steps)
        with torch.no_grad():
            believed[own] = probe(features[own]).softmax(-1)
    return believed
