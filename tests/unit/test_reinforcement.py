"""Reinforcement: what answers earn, that better ones become likelier, and that a run resumes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.detections import Proposals
from agent.features import FrameFeatures
from agent.model.checkpoint import load_model
from agent.model.vlm_fo1 import VLMFO1
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from agent.sequence import SequenceBuilder
from agent.stages import LocalStages
from agent.tokenizer import PromptTokenizer
from agent.training.loop import LoopSettings
from agent.training.reinforcement import Learner, ReinforcementSettings, reinforce, token_logs
from agent.training.rewards import Rewards, RewardWeights
from agent.training.rollouts import (
    Actor,
    Drawing,
    Rollouts,
    SheetPrompts,
    SheetQuestion,
    SheetQuestions,
    rewards_of,
)
from agent.training.scenes import Scene
from agent.training.zoom_scenes import (
    Sheet,
    SheetMaker,
    concepts_of,
    load_sheets,
    save_sheets,
    verified,
)
from tests.unit.tiny_families import FAMILIES, family_model
from tests.unit.tiny_model import NAMES, tiny_tokenizer, write_tiny_model

DOG, CAT = 0, 1
LABELS = dict(enumerate(NAMES))
LOOP = LoopSettings(4, 1e-3, warmup_steps=1, precision="float32", save_every=1)
DRAWING = Drawing(questions=3, group=6, max_new_tokens=6)


def sheet(seed: int = 0) -> Sheet:
    """Three regions: a dog, a cat, and a dog that looks like a cat when shown alone."""
    rng = np.random.default_rng(seed)
    boxes = np.array([[0, 0, 28, 28], [28, 0, 56, 28], [0, 28, 28, 56]], dtype=np.float32)
    features = FrameFeatures(
        56, 56, Proposals(boxes, np.ones(3, dtype=np.float32)),
        rng.normal(size=(4, 32)).astype(np.float32), (4, 4),
        rng.normal(size=(3, 32)).astype(np.float32), rng.normal(size=(3, 64)).astype(np.float32),
        key=f"sheet {seed}",
    )  # fmt: skip
    crops = np.array([[0, 0, 60, 60], [500, 0, 560, 60], [0, 500, 60, 560]], dtype=np.float32)
    return Sheet(
        features, crops, np.array([DOG, CAT, DOG]),
        crops + np.array([15, 15, -15, -15], dtype=np.float32), np.array([DOG, CAT, DOG]),
        (1000, 800), ("dog", "cat", "cat"),
    )  # fmt: skip


def question(task: Task, label: str, right: set[int]) -> SheetQuestion:
    shown = sheet()
    targets = shown.objects[shown.object_concepts == NAMES.index(label)]
    return SheetQuestion(
        shown,
        0,
        (0, 1, 2),
        task,
        label,
        frozenset(right),
        tuple(tuple(box) for box in targets.tolist()),
    )


def answer(label: str, *regions: int) -> str:
    inside = "".join(f"<region{index}>" for index in regions)
    return f"<ground>{label}</ground><objects>{inside}</objects>"


@pytest.mark.parametrize(
    ("text", "region", "box", "accuracy"),
    [
        (answer("dog", 0, 2), 0.5, 1.0, 1.0),  # the second looks like a cat when alone
        (answer("dog", 0), 1.0, 1.0, 2 / 3),
        (answer("dog", 1), 0.0, 0.0, 0.0),
        (answer("dog"), 0.0, 0.0, 0.0),
        (answer("dog", 0, 9), 1.0, 1.0, 2 / 3),  # region 9 does not exist
    ],
)
def test_what_a_search_earns(text: str, region: float, box: float, accuracy: float) -> None:
    earned = rewards_of(question(Task.detect("dog"), "dog", {0, 2}), text)
    assert earned.region == pytest.approx(region)
    assert earned.box == pytest.approx(box)
    assert earned.accuracy == pytest.approx(accuracy)
    assert earned.format == float("9" not in text)


def test_silence_is_right_where_nothing_is() -> None:
    absent = replace(question(Task.detect("dog"), "dog", set()), label="red apple", targets=())
    assert rewards_of(absent, answer("red apple")) == Rewards(1.0, 1.0, 1.0, 1.0)
    assert rewards_of(absent, answer("red apple", 1)) == Rewards(0.0, 0.0, 0.0, 1.0)


def test_a_count_is_right_or_wrong() -> None:
    asked = question(Task.count("dog"), "dog", {0, 2})
    assert rewards_of(asked, f"{answer('dog', 0, 2)} 2").accuracy == 1.0
    assert rewards_of(asked, f"{answer('dog', 0, 2)} 3").accuracy == 0.0
    assert rewards_of(asked, answer("dog", 0, 2)).accuracy == 0.0


def test_advantages_are_of_the_group_with_repeats() -> None:
    good, bad = Rewards(1.0, 1.0, 1.0, 1.0), Rewards(0.0, 0.0, 0.0, 1.0)
    asked = question(Task.detect("dog"), "dog", {0, 2})
    drawn = Rollouts(asked, [(1,), (2,)], [3, 1], [good, bad])
    few, many = drawn.advantages(RewardWeights())
    assert few * 3 + many == pytest.approx(0.0, abs=1e-6)
    assert many == pytest.approx(-np.sqrt(3))
    assert Rollouts(asked, [(1,)], [4], [good]).advantages(RewardWeights()) == [0.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(folder: Path) -> VLMFO1:
    return load_model(folder)


def loaded_tokenizer(folder: Path) -> PromptTokenizer:
    return PromptTokenizer.from_directory(folder)


def test_an_update_makes_the_better_answer_likelier(folder: Path, model: VLMFO1) -> None:
    tokenizer, language = loaded_tokenizer(folder), model.language_model
    assert language is not None
    language.model.set_attn_implementation("eager")
    prompts = SheetPrompts(model, tokenizer, [sheet()])
    settings = ReinforcementSettings(LOOP, DRAWING)
    asked = question(Task.detect("dog"), "dog", {0, 2})
    end = SequenceBuilder(tokenizer).end_of_turn
    texts = [answer("dog", 0, 2), answer("dog", 1)]
    ids = [(*tokenizer.encode(text), end) for text in texts]
    drawn = Rollouts(asked, ids, [3, 3], [rewards_of(asked, text) for text in texts])
    learner = Learner(language, prompts, settings)

    def likelihoods() -> list[float]:
        batch, _ = learner._packed([drawn])
        with torch.no_grad():
            logs = token_logs(language, learner._embedded(batch, [drawn]), batch)
        assert len(logs) == sum(map(len, ids))
        return [float(part.sum()) for part in torch.split(logs, [len(one) for one in ids])]

    before = likelihoods()
    terms, figures = learner.losses([drawn])
    assert float(terms["kl"].detach()) == pytest.approx(0.0, abs=1e-6), (
        "nothing has been learned yet"
    )
    assert figures["taught"] == 1.0
    sum(terms.values()).backward()
    with torch.no_grad():
        for parameter in language.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    after = likelihoods()
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert float(learner.losses([drawn])[0]["kl"].detach()) > 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_packed_likelihood_is_the_engines(family: str) -> None:
    """What is made likelier is what was drawn: same prompt, same positions, same ids."""
    tokenizer = tiny_tokenizer()
    model = family_model(family, tokenizer)
    language = model.language_model
    assert language is not None
    language.model.set_attn_implementation("eager")
    sheets = [sheet(0), sheet(1)]
    prompts = SheetPrompts(model, tokenizer, sheets)
    actor = Actor(language, prompts, DRAWING)
    try:
        asked = [
            replace(question(Task.detect("dog"), "dog", {0, 2}), number=number) for number in (0, 1)
        ]
        completions = [actor._engine.submit(actor._request(one, None)).result(30) for one in asked]
    finally:
        actor.close()
    drawn = [
        Rollouts(one, [done.ids], [1], [Rewards(0, 0, 0, 0)])
        for one, done in zip(asked, completions, strict=True)
    ]
    learner = Learner(language, prompts, ReinforcementSettings(LOOP, DRAWING))
    batch, _ = learner._packed(drawn)
    with torch.no_grad():
        logs = token_logs(language, learner._embedded(batch, drawn), batch)
    expected = [p for done in completions for p in done.probabilities]
    torch.testing.assert_close(logs.exp(), torch.tensor(expected), rtol=1e-3, atol=1e-5)


def test_equal_seeds_draw_equal_answers(folder: Path, model: VLMFO1) -> None:
    language = model.language_model
    assert language is not None
    questions = SheetQuestions([sheet(0), sheet(1)], LABELS, DRAWING)
    actor = Actor(
        language, SheetPrompts(model, loaded_tokenizer(folder), questions.sheets), DRAWING
    )
    try:
        first, again, other = (actor.draw(questions.draw(4), seed) for seed in (1, 1, 2))
    finally:
        actor.close()
    written = [[(one.ids, one.times) for one in drawn] for drawn in (first, again, other)]
    assert written[0] == written[1] != written[2]
    assert all(sum(one.times) == DRAWING.group for one in first)


def test_an_interrupted_run_reaches_the_same_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = loaded_tokenizer(folder)
    settings = ReinforcementSettings(LOOP, DRAWING, num_measured=2)

    def run(directory: Path) -> dict[str, torch.Tensor]:
        started = load_model(folder)
        figures = reinforce(
            started, tokenizer, [sheet(0), sheet(1)], [sheet(2)], LABELS, settings, directory
        )
        assert set(figures) == {"before", "after"}
        assert set(figures["after"]) == {"region", "box", "accuracy", "format", "reward"}
        assert started.language_model is not None
        return started.language_model.state_dict()

    through = run(tmp_path / "through")
    untouched = load_model(folder).language_model
    assert untouched is not None
    assert any(not torch.equal(v, through[n]) for n, v in untouched.state_dict().items())
    draw = Actor.draw

    def interrupted(self: Actor, questions: list[SheetQuestion], seed: int) -> list[Rollouts]:
        if seed == 2:
            raise KeyboardInterrupt
        return draw(self, questions, seed)

    with monkeypatch.context() as patched:
        patched.setattr(Actor, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "resumed")
    resumed = run(tmp_path / "resumed")
    assert all(torch.equal(value, resumed[name]) for name, value in through.items())


def test_questions_show_some_regions_in_any_order_and_know_the_right_ones() -> None:
    questions = SheetQuestions([sheet(0)], LABELS, Drawing(questions=40, count=0.0))
    drawn = questions.draw(0)
    assert len({one.rows for one in drawn}) > 5
    for one in drawn:
        whole = sheet(0)
        named = [whole.concepts[row] for row in one.rows]
        right = {i for i, concept in enumerate(named) if NAMES[concept] == one.label}
        assert one.right == right
        assert len(one.sheet.crops) == len(one.rows) >= 2
        assert one.sheet.said_alone == tuple(whole.said_alone[row] for row in one.rows)


def test_sheets_are_kept_as_they_are(tmp_path: Path) -> None:
    made = sheet()
    save_sheets([made], tmp_path / "sheets.pt")
    (again,) = load_sheets(tmp_path / "sheets.pt")
    assert (again.said_alone, again.size) == (made.said_alone, made.size)
    np.testing.assert_array_equal(again.crops, made.crops)
    np.testing.assert_array_equal(again.features.primary_regions, made.features.primary_regions)
    assert (again.features.grid, again.features.key) == ((4, 4), "sheet 0")


def test_every_object_is_one_region_at_most() -> None:
    scene = Scene(
        np.zeros((100, 100, 3), dtype=np.uint8),
        np.array([[0, 0, 10, 10], [50, 50, 70, 70]], dtype=np.float32),
        np.array([4, 7]), np.zeros(2, dtype=np.int64), np.ones(2, dtype=np.float32),
    )  # fmt: skip
    boxes = np.array([[0, 0, 10, 8], [0, 0, 10, 10], [50, 50, 90, 90]], dtype=np.float32)
    assert concepts_of(boxes, scene).tolist() == [-1, 4, -1]
    assert concepts_of(np.zeros((0, 4), dtype=np.float32), scene).tolist() == []


def test_a_scene_becomes_sheets_of_its_crops(folder: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    scene = Scene(
        rgb, np.array([[20, 20, 60, 60]], dtype=np.float32), np.array([1]),
        np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.float32),
    )  # fmt: skip
    stages = LocalStages.from_pretrained(str(folder))
    pipeline = Pipeline(stages, MemoryRegionCache(budget_bytes=1 << 20), model_digest="tiny")
    try:
        sheets = asyncio.run(SheetMaker(pipeline).sheets(scene))
        sheets = asyncio.run(verified(stages, sheets))
    finally:
        stages.close()
    assert sheets
    for made in sheets:
        count = len(made.crops)
        assert len(made.features.proposals) == len(made.said_alone) == len(made.concepts) == count
        assert (made.crops[:, 2:] > made.crops[:, :2]).all()
        assert (made.crops <= np.array([400, 300, 400, 300])).all()
