"""The experiments' measures: a probe learns what is there, abilities are shares of right tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agent.evaluation import ablations
from agent.evaluation.ablations import Spread, printed, printed_boxes, symbolic_abilities
from agent.model_directory import find_model
from agent.sequence import SequenceBuilder
from agent.tokenizer import PromptTokenizer
from agent.training.artwork import load_concepts
from agent.training.batches import BatchSettings
from agent.training.grounding import GroundingSetup
from agent.training.grounding_model import GroundingTraining, Pretrained
from agent.training.mixture import Turn, grounded
from agent.training.scenes import SceneSettings

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
    abilities = symbolic_abilities(setup, num_batches=1)
    assert set(abilities) == {"copying", "pointing", "naming", "yes_no"}
    assert all(0.0 <= share < 0.2 for share in abilities.values())


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


def test_spread_is_over_seeds() -> None:
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0)


def test_printed_boxes_are_read_as_they_were_printed() -> None:
    boxes = np.array([[0.1, 0.2, 0.305, 0.4], [0.0, 0.0, 1.0, 1.0]], dtype=np.float32)
    turn = printed(Turn("detect", "where?", grounded("dog", [1, 0])), boxes)
    assert turn.answer == "<ground>dog</ground><objects>[0,0,99,99][10,20,30,40]</objects>"
    read = printed_boxes(turn.answer, width=200, height=100)
    np.testing.assert_allclose(read, boxes[[1, 0]] * [200, 100, 200, 100], atol=1.5)
    assert printed_boxes("nothing", width=9, height=9).shape == (0, 4)
