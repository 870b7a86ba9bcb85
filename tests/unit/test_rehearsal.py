"""Stage 2 on cached regions: what it changes, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.model_directory import find_model
from agent.sequence import SequenceBuilder
from agent.tokenizer import PromptTokenizer
from agent.training.artwork import load_concepts
from agent.training.batches import nano_concepts
from agent.training.connector import warm_up_connector
from agent.training.curves import read_log
from agent.training.grounding import freeze_for
from agent.training.grounding_model import GroundingTraining
from agent.training.loop import LoopSettings
from agent.training.mixture import MixtureSettings
from agent.training.region_features import RegionPool
from agent.training.rehearsal import RehearsalSettings, rehearsal_batch, rehearse
from agent.training.vision import likeness

CONCEPTS = nano_concepts()
NAMES = [concept.label for concept in load_concepts()]
SETTINGS = RehearsalSettings(
    LoopSettings(steps=1, learning_rate=1e-3, log_every=1, precision="float32"),
    scenes=2,
    num_turns=3,
)


@pytest.fixture(scope="module")
def module() -> GroundingTraining:
    torch.manual_seed(0)
    return GroundingTraining(tokenizer(), NAMES)


@pytest.fixture(scope="module")
def pool(module: GroundingTraining) -> RegionPool:
    torch.manual_seed(1)
    count = 400
    corner = torch.rand(count, 2) * 0.7
    concepts = torch.tensor(CONCEPTS)[torch.randint(len(CONCEPTS), (count,))]
    concepts[::9] = -1
    return RegionPool(
        features=torch.randn(count, module.model.config.region_width),
        concepts=concepts,
        boxes=torch.cat([corner, corner + 0.05 + torch.rand(count, 2) * 0.25], dim=1),
        believed=torch.rand(count, len(CONCEPTS) + 1).softmax(-1),
        pictures=torch.arange(count) // 10,
    )


def tokenizer() -> PromptTokenizer:
    return PromptTokenizer.from_directory(find_model("nano").path)


def test_a_batch_holds_the_regions_it_was_made_of(pool: RegionPool) -> None:
    packed, rows = rehearsal_batch(
        SequenceBuilder(tokenizer()), pool, NAMES, [NAMES[c] for c in CONCEPTS],
        np.random.default_rng(0), 0, 300, MixtureSettings(), SETTINGS,
    )  # fmt: skip
    assert int(rows.max()) < 300
    torch.testing.assert_close(packed.boxes, pool.boxes[rows])
    assert packed.concepts[packed.concepts > -2].tolist() == pool.concepts[rows].tolist()


def test_whole_pictures_stay_together(pool: RegionPool) -> None:
    whole = replace(SETTINGS, whole_share=1.0, scenes=6)
    packed, rows = rehearsal_batch(
        SequenceBuilder(tokenizer()), pool, NAMES, [NAMES[c] for c in CONCEPTS],
        np.random.default_rng(0), 100, 300, MixtureSettings(), whole,
    )  # fmt: skip
    scenes = rows.view(6, 10)
    assert all(len(pool.pictures[scene].unique()) == 1 for scene in scenes)
    assert all(len(scene.unique()) == 10 for scene in scenes)
    assert int(rows.min()) >= 100
    assert int(rows.max()) < 300
    torch.testing.assert_close(packed.boxes, pool.boxes[rows])


def test_rehearsing_trains_language_model_and_connector_and_nothing_else(
    module: GroundingTraining, pool: RegionPool, tmp_path: Path
) -> None:
    freeze_for(module, "instruct")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    rehearse(
        module, SequenceBuilder(tokenizer()), pool, NAMES, [NAMES[c] for c in CONCEPTS],
        torch.tensor(CONCEPTS), SETTINGS, tmp_path,
    )  # fmt: skip
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    parts = {name.split(".")[1] for name in changed}
    assert parts == {"language_model", "region_projector"}
    (row,) = read_log(tmp_path)
    assert {"lm", "held_out_lm", "held_out_token"} <= set(row)
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_warming_up_brings_regions_to_their_names_and_places(
    module: GroundingTraining, pool: RegionPool
) -> None:
    """Features that tell a class plainly, and a classifier that is sure of it."""
    classes = torch.arange(len(pool.concepts)) % 5
    features = 0.1 * pool.features
    features[:, :5] += 5.0 * torch.nn.functional.one_hot(classes, 5)
    features[:, 5:9] += 5.0 * pool.boxes
    believed = torch.zeros_like(pool.believed)
    believed[torch.arange(len(classes)), classes] = 1.0
    trained = torch.tensor(CONCEPTS)
    sure = RegionPool(features, trained[classes], pool.boxes, believed, pool.pictures)
    warm_up_connector(module, sure, trained, steps=120, precision="float32")
    with torch.inference_mode():
        tokens = module.model.region_projector(features)
        likest = likeness(tokens - module.place_vectors(pool.boxes), module.name_vectors())
        said = tokens @ module.slots.place.T
    assert float((likest.argmax(-1) == sure.concepts).float().mean()) > 0.9
    left, middle = pool.boxes[:, [0, 2]].mean(1), said[:, 0]
    assert float(torch.corrcoef(torch.stack([left, middle]))[0, 1]) > 0.8


def test_a_pool_is_kept_between_stages(pool: RegionPool, tmp_path: Path) -> None:
    pool.save(tmp_path / "regions.pt")
    again = RegionPool.load(tmp_path / "regions.pt")
    torch.testing.assert_close(vars(again), vars(pool))
