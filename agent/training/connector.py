"""The connector's first lessons: from fused region features to what the language model expects.

Distils the vision stage's classifier into the language model's own name vectors; of a connector
that has learned, says what those vectors are.
"""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn

from agent.training.grounding_model import GroundingTraining
from agent.training.language import NameSlots
from agent.training.loop import autocast, moved
from agent.training.region_features import RegionPool
from agent.training.vision import likeness

logger = logging.getLogger(__name__)
_RIDGE = 0.1


def warm_up_connector(
    module: GroundingTraining,
    pool: RegionPool,
    trained: Tensor,
    *,
    steps: int,
    precision: str = "bfloat16",
) -> None:
    """Train the connector on fused features that are computed once, from the towers' classifier.

    Everything before the connector is frozen, so a few hundred batches serve thousands of steps.
    The classifier's doubts are the targets: hard labels would be learned by heart. A token is
    pulled to the mixture of slot vectors that the classifier believes in (nothing for background)
    and to the place of its box. A tenth of the regions is held out and logged.

    Args:
        trained: (num_concepts,) ids in the order of the classifier's classes.
        precision: of the connector's products, as `LoopSettings.precision`.
    """
    connector = module.model.region_projector
    device = next(connector.parameters()).device
    pool, trained = moved(pool, device), trained.to(device)
    features, believed = pool.features, pool.believed
    names = module.name_vectors().detach()
    # Doubt shortens a mixture, and the language model would read a short vector as nothing.
    mixture = nn.functional.normalize(believed[:, :-1] @ names[trained], dim=-1)
    foreground = believed[:, :-1].sum(-1, keepdim=True)
    meant = mixture * foreground * names.norm(dim=-1).mean()
    places = module.place_vectors(pool.boxes)
    split = len(features) * 9 // 10
    held_out = torch.nonzero(pool.concepts[split:] >= 0).flatten() + split
    directions = nn.functional.normalize(names, dim=-1)
    optimizer = torch.optim.AdamW(connector.parameters(), lr=2e-3, weight_decay=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1.0 - step / steps)
        rows = torch.randint(split, (1024,), device=device)
        with autocast(device, precision):
            tokens = connector(features[rows]).float()
        similarity = likeness(tokens - places[rows], names[trained])
        doubts = believed[rows, :-1]
        contrast = -(doubts * similarity.log_softmax(-1)).sum() / doubts.sum()
        loss = contrast + nn.functional.mse_loss(tokens, (meant + places)[rows]) / names.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 0 or step + 1 == steps:
            with torch.no_grad():
                tokens = connector(features[held_out])
                found = (tokens - places[held_out]) @ directions.T
                off = (tokens - places[held_out] - meant[held_out]) @ module.slots.place.T
                right = (found.argmax(-1) == pool.concepts[held_out]).float().mean()
            length = names.norm(dim=-1).mean()
            logger.info(
                "connector step %d: contrast %.3f, held-out top-1 %.3f of %d names, places off by "
                "%.3f of a name's length",
                step, float(contrast.detach()), float(right), len(names), float(off.std() / length),
            )  # fmt: skip


@torch.no_grad()
def said_of_things(module: GroundingTraining, pool: RegionPool) -> Tensor:
    """(regions, hidden): the connector's tokens of a pool, less what they say of places."""
    tokens: Tensor = module.model.region_projector(pool.features)
    return tokens - module.place_vectors(pool.boxes)


@torch.no_grad()
def read_name_map(module: GroundingTraining, pool: RegionPool) -> None:
    """Set the map from names to slots to what the connector's region tokens say it is.

    The map is no part of a model directory. Least squares over the names in the pool, each its
    mean token, towards the identity where they say little.
    """
    language_model = module.model.language_model
    assert language_model is not None
    embeddings = language_model.model.embed_tokens
    named = pool.concepts >= 0
    tokens = said_of_things(module, pool)[named]
    known, name = pool.concepts[named].unique(return_inverse=True)
    sums = torch.zeros(len(known), tokens.shape[1]).index_add(0, name, tokens)
    counts = name.bincount()[:, None]
    words = _unmapped(module.slots, embeddings, known)
    square = words.T @ (counts * words)
    square += _RIDGE * square.diagonal().mean() * torch.eye(len(square))
    change = torch.linalg.solve(square, words.T @ (sums - counts * words))
    module.slots.map.weight.copy_(torch.eye(len(square)) + change.T)
    module.slots.map.bias.zero_()


def _unmapped(slots: NameSlots, embeddings: nn.Embedding, concepts: Tensor) -> Tensor:
    """What names are before the map."""
    plain = copy.deepcopy(slots)
    nn.init.eye_(plain.map.weight)
    nn.init.zeros_(plain.map.bias)
    vectors: Tensor = plain(embeddings, concepts)
    return vectors


@torch.no_grad()
def own_beliefs(module: GroundingTraining, pool: RegionPool, trained: Tensor) -> Tensor:
    """(regions, num_concepts + 1) what the connector's tokens say, by the names' vectors.

    Background, which is last, is believed in nowhere: tokens are told apart by names alone.
    """
    believed = likeness(said_of_things(module, pool), module.name_vectors()[trained]).softmax(-1)
    return nn.functional.pad(believed, (0, 1))
