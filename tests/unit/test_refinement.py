"""A trained model whose eyes go on learning: what changes, towards what, and what comes after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from agent.errors import SettingsError
from agent.model_directory import find_model
from agent.sequence import SequenceBuilder
from agent.tokenizer import PromptTokenizer
from agent.training import grounding, refinement
from agent.training.artwork import load_concepts
from agent.training.batches import BACKGROUND, PADDING, BatchSettings, SceneBatch, nano_concepts
from agent.training.curves import read_log
from agent.training.grounding import GroundingSetup
from agent.training.grounding_model import GroundingTraining, Pretrained
from agent.training.loop import CHECKPOINT, load_module_state
from agent.training.nano import NanoTraining
from agent.training.recipe import load_recipe
from agent.training.refinement import RefineRecipe, Vocabulary, refine
from agent.training.region_features import RegionPool
from agent.training.scenes import SceneSettings

CONCEPTS = nano_concepts()
NAMES = [concept.label for concept in load_concepts()]
NANO = find_model("nano").path
NOWHERE = Path("nowhere")
EYES = {"primary_encoder", "auxiliary_encoder", "region_encoder", "region_projector"}


@pytest.fixture
def setup() -> GroundingSetup:
    tokenizer = PromptTokenizer.from_directory(NANO)
    pretrained = Pretrained(NOWHERE, NOWHERE, NOWHERE, NANO)
    module = GroundingTraining(tokenizer, NAMES)
    module.load_pretrained(pretrained)
    settings = BatchSettings(NOWHERE, SceneSettings(), batch_size=1, sizes=((56, 56),))
    return GroundingSetup(module, SequenceBuilder(tokenizer), NAMES, CONCEPTS, settings, pretrained)


@pytest.fixture
def pool(setup: GroundingSetup) -> RegionPool:
    """Tokens are what the language model expects, and background is one vector of its own."""
    torch.manual_seed(0)
    module, count = setup.module, 4 * len(CONCEPTS)
    concepts = torch.tensor(CONCEPTS)[torch.arange(count) % len(CONCEPTS)]
    concepts[::7] = -1
    corner = torch.rand(count, 2) * 0.7
    boxes = torch.cat([corner, corner + 0.2], dim=1)
    module.model.region_projector = nn.Identity()
    with torch.no_grad():
        meant = module.name_vectors()[concepts.clamp(min=0)]
        meant[concepts < 0] = torch.linspace(-1.0, 1.0, meant.shape[1])
        tokens = meant + module.place_vectors(boxes)
    return RegionPool(
        tokens,
        concepts,
        boxes,
        torch.rand(count, len(CONCEPTS) + 1).softmax(-1),
        torch.arange(count) // 10,
    )


def recipe_of(steps: int) -> RefineRecipe:
    recipe = load_recipe().refine
    return replace(recipe, loop=replace(recipe.loop, steps=steps, log_every=1))


def pictures(_settings: BatchSettings, first: int, _stride: int = 1) -> Iterator[SceneBatch]:
    """Small ones, each a function of its number."""
    while True:
        draws = torch.Generator().manual_seed(first)
        boxes = torch.tensor([[[2.0, 2.0, 30.0, 30.0], [20.0, 24.0, 50.0, 52.0], [0, 0, 8, 8]]])
        yield SceneBatch(
            torch.randint(256, (1, 56, 56, 3), dtype=torch.uint8, generator=draws),
            boxes,
            torch.tensor([[first % len(CONCEPTS), BACKGROUND, PADDING]]),
            boxes,
        )
        first += 1


def test_what_the_language_model_reads_is_read_off_the_tokens(
    setup: GroundingSetup, pool: RegionPool
) -> None:
    vocabulary = Vocabulary.read(setup, pool)
    tokens = pool.features - setup.module.place_vectors(pool.boxes)
    named = pool.concepts >= 0
    rank = torch.searchsorted(torch.tensor(CONCEPTS), pool.concepts[named])
    near = nn.functional.cosine_similarity(vocabulary.vectors[rank], tokens[named])
    assert float(near.mean()) > 0.99
    torch.testing.assert_close(vocabulary.vectors[-1], tokens[~named][0])
    lengths = [float(tokens[some].norm(dim=-1).mean()) for some in (named, ~named)]
    assert vocabulary.lengths.tolist() == pytest.approx(lengths)


def test_only_the_eyes_learn_and_go_on_where_they_were(
    setup: GroundingSetup,
    pool: RegionPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refinement, "batches_from", pictures)
    module = setup.module
    pool = replace(pool, features=torch.randn(len(pool.features), module.model.config.region_width))
    fresh = GroundingTraining(PromptTokenizer.from_directory(NANO), NAMES)
    fresh.load_pretrained(setup.pretrained)
    module.model.region_projector = fresh.model.region_projector
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    refine(setup, pool, recipe_of(2), tmp_path / "straight")
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    changed -= {"slots.map.weight"}  # Read off, not learned.
    assert {name.split(".")[1] for name in changed} == EYES
    (line, *_) = read_log(tmp_path / "straight")
    assert {"name", "length", "place", "top1"} <= set(line)

    module.load_state_dict(before, strict=False)
    refine(setup, pool, recipe_of(1), tmp_path / "halting")
    module.load_state_dict(before, strict=False)
    refine(setup, pool, recipe_of(2), tmp_path / "halting")
    straight, halting = (load_module_state(tmp_path / n) for n in ("straight", "halting"))
    rates_differ = "the first step's rate does not depend on how many there are"
    assert all(torch.equal(straight[n], halting[n]) for n in straight), rates_differ


def training(directory: Path, base: str | None) -> NanoTraining:
    return NanoTraining(NOWHERE, directory, load_recipe(), base=base)


def test_a_refinement_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--base nano"):
        training(tmp_path, None).run("refine")


def test_instruction_goes_on_from_refined_eyes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, Path | None] = {}

    def run(_artwork: Path, directory: Path, *_: object, start_from: Path | None, **__: object):
        begun[directory.name] = start_from

    monkeypatch.setattr(grounding, "run", run)
    own = training(tmp_path, "nano")
    own.run("instruct")
    assert begun == {"instruct": None}
    for stage in ("refine", "align"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / CHECKPOINT).touch()
        own.run("instruct")
        assert begun["instruct"] == tmp_path / stage
    own.run("align")
    assert begun["align"] == tmp_path / "refine"
    training(tmp_path, None).run("align")
    assert begun["align"] is None
    training(tmp_path, None).run("instruct")
    assert begun["instruct"] == tmp_path / "align"


def test_a_base_is_believed_rather_than_a_probe(setup: GroundingSetup, pool: RegionPool) -> None:
    believed = setup.as_it_is_read(pool).believed
    named = pool.concepts >= 0
    rank = torch.searchsorted(torch.tensor(CONCEPTS), pool.concepts[named])
    assert believed.shape == (len(pool.concepts), len(CONCEPTS) + 1)
    torch.testing.assert_close(believed.sum(-1), torch.ones(len(believed)))
    assert not believed[:, -1].any()
    assert float((believed[named].argmax(-1) == rank).float().mean()) > 0.95


def test_rehearsal_from_a_base_needs_no_classifier(
    setup: GroundingSetup, pool: RegionPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed: list[RegionPool] = []

    def region_pool(*_: object, with_beliefs: bool) -> RegionPool:
        assert not with_beliefs
        return replace(pool, believed=torch.zeros(len(pool.features), 0))

    monkeypatch.setattr(GroundingSetup, "load", lambda *_, **__: setup)
    monkeypatch.setattr(GroundingSetup, "region_pool", region_pool)
    monkeypatch.setattr(
        grounding, "rehearse", lambda *arguments, **_: rehearsed.append(arguments[2])
    )
    recipe = load_recipe()
    assert recipe.instruct.loop.steps == 0
    grounding.run(NOWHERE, tmp_path / "instruct", setup.pretrained, recipe.instruct, recipe.regions)
    assert [pool.believed.shape[1] for pool in rehearsed] == [len(CONCEPTS) + 1]
