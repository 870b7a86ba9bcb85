"""The paper's experiments that need training, at nano scale; each returns a table of figures.

Knows which arms there are and how the recipe differs between them; the recipe itself is
`agent/training/`, what an arm is asked `agent/evaluation/arm_figures.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from agent.evaluation.arm_figures import kept_figures, picture_figures, symbolic_figures
from agent.evaluation.coco_folder import CocoFolder
from agent.evaluation.experiment_start import ExperimentStart
from agent.evaluation.seeds import Spread, over_seeds
from agent.evaluation.tally import Estimate, Tally
from agent.training.batches import PADDING, SceneBatch
from agent.training.grounding import GroundingSetup, batches_from
from agent.training.mixture import MixtureSettings
from agent.training.region_features import fused_regions
from agent.training.region_probe import fit_probe

FULL = "full mixture"
ARMS = {
    FULL: MixtureSettings(),
    "no rejection": MixtureSettings(absent=0.0, detect=0.4),
    "no general data": MixtureSettings(yes_no=0.0, detect=0.25),
}
_BASE = "the base itself"
Rows = dict[str, Mapping[str, Spread | Estimate]]


def compare_encoders(
    setup: GroundingSetup,
    *,
    num_train: int,
    num_val: int,
    num_seeds: int = 3,
    steps: int = 1500,
    precision: str = "bfloat16",
) -> dict[str, Spread]:
    """Region classification from hybrid, primary-only and auxiliary-only features (paper, table 6).

    The towers are frozen; a connector of the model's own shape with a classifier is trained on
    each of the three, from each seed.

    Args:
        num_train, num_val: batches of pictures whose regions are used.
    """
    train_x, train_y = _regions(setup, _wild(setup, "train"), num_train, precision)
    val_x, val_y = _regions(setup, _wild(setup, "val"), num_val, precision)
    config = setup.module.model.config
    auxiliary = config.auxiliary_region_width
    columns = {
        "hybrid": slice(0, config.region_width),
        "primary only": slice(auxiliary, config.region_width),
        "auxiliary only": slice(0, auxiliary),
    }
    figures = {}
    for name, part in columns.items():
        right = []
        for seed in range(num_seeds):
            probe = fit_probe(
                train_x[:, part], train_y, len(setup.concepts), seed=seed, steps=steps
            )
            with torch.inference_mode():
                right.append(float((probe(val_x[:, part]).argmax(-1) == val_y).float().mean()))
        figures[name] = Spread.of(right)
    return figures


def _wild(setup: GroundingSetup, split: str) -> Iterator[SceneBatch]:
    """Pictures with every camera fault."""
    sizes = ((280, 252), (336, 280), (308, 364))
    settings = replace(setup.settings, sizes=sizes, split=split, num_background=0)
    return batches_from(settings, 3_000_000)


def _regions(
    setup: GroundingSetup, batches: Iterator[SceneBatch], count: int, precision: str
) -> tuple[Tensor, Tensor]:
    features, classes, _, _ = fused_regions(setup.module, batches, count, precision)
    known = classes > PADDING
    return features[known], classes[known]


async def compare_stages(start: ExperimentStart, data: CocoFolder, *, num_seeds: int) -> Rows:
    """What a region token says after alignment alone, and after both stages.

    Beside them, where the start is a model directory, that model as it is.
    """
    seeds = range(num_seeds)
    rows: Rows = {
        "after stage 1": over_seeds([await _aligned_figures(start, data, s) for s in seeds]),
        "after stage 2": over_seeds([await _tuned_figures(start, data, FULL, s) for s in seeds]),
    }
    if start.base is not None:
        rows[_BASE] = over_seeds([await _base_figures(start.base, data, start)])
    return rows


async def compare_mixtures(start: ExperimentStart, data: CocoFolder, *, num_seeds: int) -> Rows:
    """What rejection samples and general data do, and what stage 2 makes the language model forget.

    Before alignment there are no figures about pictures; alignment leaves the language model as
    it was. Each arm is tuned from the same aligned models. Beside them, where the start is a model
    directory, that model as it is.
    """
    seeds = range(num_seeds)
    before = over_seeds([symbolic_figures(start.setup)])
    aligned = [await _aligned_figures(start, data, seed) for seed in seeds]
    rows: Rows = {"before": before, "after stage 1": {**over_seeds(aligned), **before}}
    for arm in ARMS:
        tallies = [await _tuned_figures(start, data, arm, seed) for seed in seeds]
        abilities = [symbolic_figures(_tuned(start, arm, seed)) for seed in seeds]
        rows[arm] = {**over_seeds(tallies), **over_seeds(abilities)}
    if start.base is not None:
        shipped = await _base_figures(start.base, data, start)
        rows[_BASE] = {**over_seeds([shipped]), **over_seeds([symbolic_figures(start.base)])}
    return rows


async def _base_figures(base: GroundingSetup, data: CocoFolder, start: ExperimentStart) -> Tally:
    # Asked from its own directory: what is written for an arm would be rounded once more.
    return await kept_figures(str(base.pretrained.model), data, start.home / "base")


async def _aligned_figures(start: ExperimentStart, data: CocoFolder, seed: int) -> Tally:
    return await picture_figures(start.aligned(seed), data, start.home / f"aligned-{seed}")


async def _tuned_figures(start: ExperimentStart, data: CocoFolder, arm: str, seed: int) -> Tally:
    return await picture_figures(_tuned(start, arm, seed), data, start.folder(arm, seed))


def _tuned(start: ExperimentStart, arm: str, seed: int) -> GroundingSetup:
    return start.tuned(arm, seed, mixture=ARMS[arm])
