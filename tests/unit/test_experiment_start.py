"""What experiments start from: a trained model taken back to before alignment."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from agent.evaluation.experiment_start import (
    EXPERIMENTS_RECIPE,
    ExperimentStart,
    back_to_symbols,
)
from agent.model_directory import find_model
from agent.sequence import SequenceBuilder
from agent.tokenizer import PromptTokenizer
from agent.training.artwork import load_concepts
from agent.training.batches import BatchSettings, nano_concepts
from agent.training.connector import read_name_map
from agent.training.grounding import GroundingSetup
from agent.training.grounding_model import GroundingTraining, Pretrained
from agent.training.language import SymbolicCurriculum, build_tokenizer
from agent.training.mixture import grounded
from agent.training.nano import NanoTraining
from agent.training.recipe import load_recipe
from agent.training.region_features import RegionPool, RegionsRecipe
from agent.training.scenes import SceneSettings

CONCEPTS = nano_concepts()
NAMES = [concept.label for concept in load_concepts()]
NANO = find_model("nano").path
NOWHERE = Path("nowhere")


def tokenizer() -> PromptTokenizer:
    return PromptTokenizer.from_directory(NANO)


@pytest.fixture
def module() -> GroundingTraining:
    torch.manual_seed(0)
    return GroundingTraining(tokenizer(), NAMES)


def pool_of(features: torch.Tensor) -> RegionPool:
    count = len(features)
    corner = torch.rand(count, 2) * 0.7
    return RegionPool(
        features,
        torch.tensor(CONCEPTS)[torch.arange(count) % len(CONCEPTS)],
        torch.cat([corner, corner + 0.2], dim=1),
        torch.rand(count, len(CONCEPTS) + 1).softmax(-1),
        torch.arange(count) // 10,
    )


@pytest.fixture
def start(module: GroundingTraining, tmp_path: Path) -> ExperimentStart:
    recipe = load_recipe(EXPERIMENTS_RECIPE)
    rehearsal = replace(
        recipe.instruct.rehearsal,
        loop=replace(recipe.instruct.rehearsal.loop, steps=1),
        scenes=1,
        num_turns=2,
    )
    recipe = replace(
        recipe,
        align=replace(recipe.align, warm_up_steps=2),
        instruct=replace(recipe.instruct, rehearsal=rehearsal),
    )
    setup = GroundingSetup(
        module, SequenceBuilder(tokenizer()), NAMES, CONCEPTS,
        BatchSettings(NOWHERE, SceneSettings(), batch_size=1, sizes=((56, 56),)),
        Pretrained(NOWHERE, NOWHERE, NOWHERE, NANO),
    )  # fmt: skip
    width = module.model.config.region_width
    return ExperimentStart(setup, pool_of(torch.randn(400, width)), recipe, tmp_path)


def test_alignment_is_a_new_connector_and_nothing_else(start: ExperimentStart) -> None:
    before = {n: p.clone() for n, p in start.setup.module.named_parameters()}
    first, again, other = (start.aligned(seed).module for seed in (0, 0, 1))
    changed = {n for n, p in first.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(name.startswith("model.region_projector.") for name in changed)
    mine, same, different = (dict(m.named_parameters()) for m in (first, again, other))
    assert all(torch.equal(mine[n], same[n]) for n in changed)
    assert not all(torch.equal(mine[n], different[n]) for n in changed)
    # The second of seed 0 was read: what is kept is what counts.
    assert len(list(start.home.glob("connector-*.pt"))) == 2
    assert all(torch.equal(p, before[n]) for n, p in start.setup.module.named_parameters())


def test_tuning_goes_on_from_alignment_and_is_kept(start: ExperimentStart) -> None:
    aligned = dict(start.aligned(0).module.named_parameters())
    tuned = start.tuned("an arm", 0).module
    changed = {n for n, p in tuned.named_parameters() if not torch.equal(p, aligned[n])}
    assert {name.split(".")[1] for name in changed} == {"language_model", "region_projector"}
    kept = (start.folder("an arm", 0) / "checkpoint.pt").stat().st_mtime_ns
    again = start.tuned("an arm", 0).module
    assert all(
        torch.equal(p, q) for p, q in zip(tuned.parameters(), again.parameters(), strict=True)
    )
    assert (start.folder("an arm", 0) / "log.jsonl").is_file()
    assert kept > 0


def test_the_base_stands_beside_the_start_as_it_was(
    start: ExperimentStart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Path] = []

    def pool(_: GroundingSetup, cache: Path, recipe: RegionsRecipe) -> RegionPool:
        asked.append(cache)
        return start.pool

    monkeypatch.setattr(GroundingSetup, "load", lambda *_: start.setup)
    monkeypatch.setattr(GroundingSetup, "region_pool", pool)
    language = start.recipe.language
    language = replace(language, loop=replace(language.loop, steps=1), copy_batch=1)
    recipe = replace(start.recipe, language=language)
    before = {n: p.clone() for n, p in start.setup.module.model.named_parameters()}
    loaded = ExperimentStart.load(NanoTraining(NOWHERE, tmp_path, recipe, base="nano"))
    assert asked == [tmp_path / "experiments" / f"regions-{recipe.regions.batches}.pt"]
    assert loaded.base is not None
    base, changed = loaded.base.module.model, loaded.setup.module.model
    assert all(torch.equal(p, before[n]) for n, p in base.named_parameters())
    parts = {
        n.split(".")[0] for n, p in changed.named_parameters() if not torch.equal(p, before[n])
    }
    assert parts == {"language_model"}
    own = ExperimentStart.load(NanoTraining(NOWHERE, tmp_path, recipe))
    assert own.base is None


def test_the_name_map_is_read_off_the_region_tokens(module: GroundingTraining) -> None:
    """Tokens that are a known map of their names, with their places and some noise."""
    torch.manual_seed(0)
    width = module.slots.map.weight.shape[0]
    truth = torch.eye(width) + 0.1 * torch.randn(width, width)
    pool = pool_of(torch.zeros(4 * len(CONCEPTS), width))
    with torch.no_grad():
        words = module.name_vectors()[pool.concepts]
        meant = words @ truth.T
        places = module.place_vectors(pool.boxes)
        pool.features[:] = meant + places + 0.01 * torch.randn_like(meant)
    module.model.region_projector = nn.Identity()
    read_name_map(module, pool)
    with torch.no_grad():
        read = module.name_vectors()[pool.concepts]
    near = nn.functional.cosine_similarity(read, meant).mean()
    assert float(near) > 0.95 > float(nn.functional.cosine_similarity(words, meant).mean())


def test_the_language_model_goes_back_to_symbols_from_its_own_weights(
    module: GroundingTraining, tmp_path: Path
) -> None:
    recipe = load_recipe(EXPERIMENTS_RECIPE).language
    none = replace(recipe, loop=replace(recipe.loop, steps=0))
    with torch.no_grad():
        module.slots.map.weight += 0.5
    before = {n: p.clone() for n, p in module.named_parameters()}
    back_to_symbols(module, tmp_path / "none", none)
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())
    one = replace(recipe, loop=replace(recipe.loop, steps=1), copy_batch=1)
    back_to_symbols(module, tmp_path / "one", one)
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(name.startswith(("model.language_model.", "slots.")) for name in changed)


def test_the_language_stage_reads_what_the_shipped_model_reads() -> None:
    text = f"{NAMES[3]} and{grounded(NAMES[0], [4])}"
    assert build_tokenizer().encode(text) == tokenizer().encode(text)


def test_without_rejection_nothing_absent_is_searched_for() -> None:
    names = [NAMES[0], None, NAMES[1]]
    boxes = np.array([[0.1, 0.1, 0.2, 0.2]] * 3, dtype=np.float32)

    def searches(*, rejection: bool) -> list[str]:
        curriculum = SymbolicCurriculum(tokenizer(), rejection=rejection)
        rng = np.random.default_rng(0)
        turns = [t for _ in range(60) for t in curriculum.mixture(names, boxes, rng)]
        assert {"yes", "no"} <= {turn.kind for turn in turns}
        return [turn.kind for turn in turns if turn.kind == "absent"]

    assert searches(rejection=True)
    assert not searches(rejection=False)
    nothing = tokenizer().encode(grounded("", []))[-2:]
    for rejection in (True, False):
        curriculum = SymbolicCurriculum(tokenizer(), seed=1, rejection=rejection)
        batch = curriculum.dense(8)
        pairs = {pair for row in batch.ids.tolist() for pair in itertools.pairwise(row)}
        assert (tuple(nothing) in pairs) == rejection
