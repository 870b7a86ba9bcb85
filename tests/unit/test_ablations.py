"""The experiments' arms: what differs between them, and what they are measured by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from agent.evaluation import ablations
from agent.evaluation.ablations import ARMS, FULL, compare_mixtures, compare_stages
from agent.evaluation.arm_figures import kept_figures, symbolic_figures
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.seeds import Spread, over_seeds
from agent.evaluation.tally import Estimate, Tally
from agent.model_directory import find_model
from agent.sequence import SequenceBuilder
from agent.tokenizer import PromptTokenizer
from agent.training.artwork import load_concepts
from agent.training.batches import BatchSettings
from agent.training.grounding import GroundingSetup
from agent.training.grounding_model import GroundingTraining, Pretrained
from agent.training.region_probe import held_out_beliefs
from agent.training.scenes import SceneSettings
from tests.unit.tiny_model import write_tiny_model

NAMES = [concept.label for concept in load_concepts()]


@pytest.fixture(scope="module")
def setup() -> GroundingSetup:
    torch.manual_seed(0)
    tokenizer = PromptTokenizer.from_directory(find_model("nano").path)
    return GroundingSetup(
        GroundingTraining(tokenizer, NAMES),
        SequenceBuilder(tokenizer),
        NAMES,
        (0, 1, 2),
        BatchSettings(Path("nowhere"), SceneSettings(), batch_size=1, sizes=((56, 56),)),
        Pretrained(Path("a"), Path("b"), Path("c")),
    )


def test_an_untrained_language_model_can_nothing(setup: GroundingSetup) -> None:
    abilities = symbolic_figures(setup, num_batches=1).estimates()
    assert set(abilities) == {"copying", "pointing", "naming", "symbolic_yes_no"}
    assert all(0.0 <= share.value < 0.2 for share in abilities.values())


def test_encoders_are_compared_on_their_own_columns(
    setup: GroundingSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features whose primary columns tell the class and whose auxiliary columns are noise."""
    config = setup.module.model.config
    drawn = torch.Generator().manual_seed(0)

    def regions(*_: object) -> tuple[torch.Tensor, torch.Tensor]:
        classes = torch.randint(3, (300,), generator=drawn)
        features = torch.randn(300, config.region_width, generator=drawn)
        columns = slice(config.auxiliary_region_width, config.auxiliary_region_width + 3)
        features[:, columns] = 8.0 * torch.nn.functional.one_hot(classes, 3)
        return features, classes

    monkeypatch.setattr(ablations, "_wild", lambda *_: iter(()))
    monkeypatch.setattr(ablations, "_regions", regions)
    figures = ablations.compare_encoders(setup, num_train=1, num_val=1, num_seeds=2, steps=60)
    assert figures["primary only"].mean > 0.9
    assert figures["hybrid"].mean > 0.7
    assert figures["auxiliary only"].mean < 0.5


def test_a_probe_doubts_what_it_cannot_know() -> None:
    """Plain classes are recognised in pictures that were not learned from; noise is not."""
    torch.manual_seed(0)
    classes = torch.randint(-1, 3, (400,))
    plain = 3.0 * torch.nn.functional.one_hot(classes % 4, 4) + 0.1 * torch.randn(400, 4)
    believed = held_out_beliefs(plain, classes, 3, folds=2, steps=80)
    assert believed.shape == (400, 4)
    assert (believed.argmax(-1) == classes % 4).all()
    guessed = held_out_beliefs(torch.randn(400, 64), classes, 3, folds=2, steps=80).argmax(-1)
    assert float((guessed == classes % 4).float().mean()) < 0.4


def test_figures_of_several_seeds_are_a_spread_and_of_one_an_interval() -> None:
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0)
    assert str(Spread(0.5, 0.01)) == "0.500 ± 0.010"
    tallies = [Tally({"a": {"f1": (right, 4.0)}, "b": {"f1": (0.0, 4.0)}}) for right in (0, 2, 4)]
    assert over_seeds(tallies) == {"f1": Spread(0.25, 0.25)}
    (one,) = over_seeds(tallies[2:]).values()
    assert isinstance(one, Estimate)
    assert (one.low, one.value, one.high) == (0.0, 0.5, 1.0)


class Recorded:
    """A start whose arms are their own names; their figures follow from what they were given."""

    def __init__(self, base: Path | None) -> None:
        self.home = Path("nowhere")
        self.setup = GroundingStub(Pretrained(Path("a"), Path("b"), Path("c"), base))
        self.base = None if base is None else self.setup

    def aligned(self, seed: int) -> str:
        return f"aligned {seed}"

    def folder(self, arm: str, seed: int) -> Path:
        return Path(arm)

    def tuned(self, arm: str, seed: int, *, mixture: object) -> str:
        assert mixture == ARMS[arm]
        return f"{arm} {seed}"


class GroundingStub:
    def __init__(self, pretrained: Pretrained) -> None:
        self.pretrained = pretrained


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every setup that was asked, in order; figures count the setups before them."""
    seen: list[str] = []

    def counted(figure: str) -> Tally:
        return Tally({"picture": {figure: (float(len(seen)), 100.0)}})

    async def pictures(setup: str, *_: object) -> Tally:
        seen.append(setup)
        return counted("f1")

    monkeypatch.setattr(ablations, "picture_figures", pictures)
    monkeypatch.setattr(ablations, "kept_figures", pictures)
    monkeypatch.setattr(ablations, "symbolic_figures", lambda _: counted("copying"))
    return seen


async def test_every_mixture_is_tuned_and_asked_from_every_seed(asked: list[str]) -> None:
    rows = await compare_mixtures(Recorded(None), None, num_seeds=2)  # type: ignore[arg-type]
    assert list(rows) == ["before", "after stage 1", *ARMS]
    assert asked == [f"{arm} {seed}" for arm in ("aligned", *ARMS) for seed in (0, 1)]
    assert set(rows["before"]) == {"copying"}
    # Alignment leaves the language model alone: its abilities are those of before.
    assert rows["after stage 1"]["copying"] == rows["before"]["copying"]
    assert rows["no rejection"]["f1"] == Spread.of([0.05, 0.06])


async def test_the_base_stands_beside_its_own_stages(asked: list[str]) -> None:
    rows = await compare_stages(Recorded(Path("nano")), None, num_seeds=2)  # type: ignore[arg-type]
    assert list(rows) == ["after stage 1", "after stage 2", "the base itself"]
    assert asked == ["aligned 0", "aligned 1", f"{FULL} 0", f"{FULL} 1", "nano"]
    without = await compare_stages(Recorded(None), None, num_seeds=2)  # type: ignore[arg-type]
    assert "the base itself" not in without
    mixed = await compare_mixtures(Recorded(Path("nano")), None, num_seeds=1)  # type: ignore[arg-type]
    assert list(mixed)[-1] == "the base itself"
    assert set(mixed["the base itself"]) == {"f1", "copying"}


def test_arms_differ_in_one_kind_of_question() -> None:
    full = ARMS[FULL]
    for arm, left_out in (("no rejection", "absent"), ("no general data", "yes_no")):
        assert getattr(full, left_out) > 0.0 == getattr(ARMS[arm], left_out)
        assert sum(vars(ARMS[arm]).values()) == pytest.approx(sum(vars(full).values()))


async def test_an_arm_is_asked_once(tmp_path: Path) -> None:
    """Answers are kept by model and pictures, and read again without a model."""
    here = np.array([[0.0, 0.0, 40.0, 30.0]], dtype=np.float32)
    Image.new("RGB", (90, 70), (200, 30, 30)).save(tmp_path / "a.png")
    image = CocoImage(1, tmp_path / "a.png", 90, 70, here, (1,))
    data = CocoFolder((image,), {1: "dog", 2: "cat"}, {})
    model = str(write_tiny_model(tmp_path / "model"))
    first = await kept_figures(model, data, tmp_path / "kept")
    whole = {name: whole for name, (_, whole) in first.images["1"].items()}
    assert whole["yes_no"] == 4.0
    assert whole["region_top1"] == whole["false_positives"] == whole["recall"] == 1.0
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_text('{"1": {"f1": [1.0, 4.0]}}')
    again = await kept_figures(model, data, tmp_path / "kept")
    assert again.images == {"1": {"f1": (1.0, 4.0)}}
    # Other pictures are another set of answers.
    fewer = CocoFolder((), data.categories, {})
    assert (await kept_figures(model, fewer, tmp_path / "kept")).images == {}
