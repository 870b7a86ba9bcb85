"""The connector's first lessons: from fused region features to what the language model expects.

Distils the vision stage's classifier into the language model's own name vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from agent.training.batches import SceneBatch
from agent.training.grounding_model import GroundingTraining
from agent.training.region_features import classify, fused_regions

logger = logging.getLogger(__name__)
_WARM_UP_BATCHES = 260


def warm_up_connector(
    module: GroundingTraining,
    batches: Iterator[SceneBatch],
    concepts: Tensor,
    vision: dict[str, Tensor],
    *,
    steps: int,
) -> None:
    """Train the connector on fused features that are computed once, from the towers' classifier.

    Everything before the connector is frozen, so a few hundred batches serve thousands of steps.
    The classifier's doubts are the targets: hard labels would be learned by heart. A token is
    pulled to the mixture of slot vectors that the classifier believes in, nothing for background.
    A tenth of the regions is held out and logged.
    """
    connector = module.model.region_projector
    features, labels = fused_regions(module, batches, _WARM_UP_BATCHES)
    believed = classify(features, vision)
    names = module.name_vectors().detach()
    mixture = believed[:, :-1] @ names[concepts]
    split = len(features) * 9 // 10
    held_out = torch.arange(split, len(features))[labels[split:] >= 0]
    directions = nn.functional.normalize(names, dim=-1)
    optimizer = torch.optim.AdamW(connector.parameters(), lr=2e-3, weight_decay=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1.0 - step / steps)
        rows = torch.randint(split, (1024,))
        with torch.autocast("cpu", torch.bfloat16):
            tokens = connector(features[rows]).float()
        similarity = 16.0 * nn.functional.normalize(tokens, dim=-1) @ directions[concepts].T
        foreground = believed[rows, :-1]
        contrast = -(foreground * similarity.log_softmax(-1)).sum() / foreground.sum()
        loss = contrast + nn.functional.mse_loss(tokens, mixture[rows]) / names.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 0 or step + 1 == steps:
            with torch.no_grad():
                found = (connector(features[held_out]) @ directions.T).argmax(-1)
                right = (found == concepts[labels[held_out]]).float().mean()
            logger.info("connector step %d: contrast %.3f, held-out top-1 %.3f of %d names",
                        step, float(contrast.detach()), float(right), len(names))  # fmt: skip
    # Doubt shortens a mixture, and the language model would read a short vector as nothing.
    with torch.no_grad():
        length = connector(features[held_out]).norm(dim=-1).mean()
        for parameter in module.model.get_submodule("region_projector.2").parameters():
            parameter.mul_(names.norm(dim=-1).mean() / length)
