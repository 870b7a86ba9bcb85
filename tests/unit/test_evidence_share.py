"""Class evidence beside the language model: who decides which regions a label means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from agent.answer_rules import AnswerRules
from agent.beliefs import NameBeliefs
from agent.detections import Proposals
from agent.errors import CheckpointMismatch
from agent.features import FrameFeatures
from agent.generation import LanguageStage
from agent.grammar import AnswerTokens
from agent.model.configuration import NAME_MIXTURE, ProposalConfig, RegionConfig, VLMFO1Config
from agent.model.primary_kinds import ClassifierConfig
from agent.model.vlm_fo1 import VLMFO1, Part
from agent.parsing import parse_regions
from agent.plain_nouns import plain_noun
from agent.prompts import Task, TaskKind
from agent.region_choice import RegionChoice, combined
from agent.vocabulary import COLOURS, vocabulary
from tests.unit.tiny_families import family_config
from tests.unit.tiny_model import tiny_tokenizer

TOKENS = AnswerTokens(1, 2, 3, 4, 5, regions=(10, 11, 12))
DOG, CAT, CAR = 16, 15, 2
"""Classes of COCO."""


def mixture_config(
    vocab_size: int,
    evidence_share: float,
    *,
    reads_descriptions: bool = True,
    tells_regions: bool = False,
) -> VLMFO1Config:
    """A tiny language model behind a connector of names."""
    return replace(
        family_config("llama", vocab_size),
        vision=ClassifierConfig(),
        region=RegionConfig(use_feature_pyramid=False, apply_position=False),
        proposal=ProposalConfig(network="nanodet.safetensors", num_classes=80),
        image_projector=NAME_MIXTURE,
        region_projector=NAME_MIXTURE,
        primary="efficientnet_lite0",
        auxiliary="proposal",
        rules=AnswerRules(
            least_listed=0.5,
            evidence_share=evidence_share,
            reads_descriptions=reads_descriptions,
            tells_regions=tells_regions,
        ),
    )


def stage_of(
    evidence_share: float, *, reads_descriptions: bool = True, tells_regions: bool = False
) -> LanguageStage:
    torch.manual_seed(4)
    tokenizer = tiny_tokenizer()
    config = mixture_config(
        tokenizer.vocab_size,
        evidence_share,
        reads_descriptions=reads_descriptions,
        tells_regions=tells_regions,
    )
    model = VLMFO1(config, parts=frozenset({Part.LANGUAGE})).eval()
    torch.nn.init.normal_(model.language_model.model.embed_tokens.weight, std=0.5)
    return LanguageStage(model, tokenizer)


def features_of(*classes: int) -> FrameFeatures:
    """A frame with a box of each class that the detector is sure of."""
    count = len(classes)
    boxes = np.tile(np.array([5, 5, 30, 30], dtype=np.float32), (count, 1))
    scores = np.full((count, 80), 0.02, dtype=np.float32)
    scores[np.arange(count), list(classes)] = 0.8
    return FrameFeatures(
        width=90, height=70,
        proposals=Proposals(boxes, np.full(count, 0.8, dtype=np.float32)),
        image_tokens=np.full((4, 1000), 1e-3, dtype=np.float32), grid=(2, 2),
        primary_regions=np.full((count, 1016), 1e-3, dtype=np.float16),
        auxiliary_regions=scores,
        key=f"frame of {classes}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def evidence_alone() -> Iterator[LanguageStage]:
    made = stage_of(1.0)
    yield made
    made.close()


def logits(*regions: float) -> torch.Tensor:
    row = torch.full((20,), -9.0)
    row[TOKENS.objects_close] = 0.0
    row[torch.tensor(TOKENS.regions)] = torch.tensor(regions)
    return row


def test_the_log_odds_of_two_opinions_are_averaged():
    model, evidence = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.9])
    assert combined(model, evidence, 0.0).tolist() == [2.0, -1.0]
    assert combined(model, evidence, 1.0).tolist() == pytest.approx([0.0, 2.1972], abs=1e-3)
    assert combined(model, evidence, 0.5).tolist() == pytest.approx([1.0, 0.5986], abs=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_a_token_that_the_engine_knows_nothing_of_gives_a_number(share: float):
    odds = combined(torch.tensor([-torch.inf]), torch.tensor([0.9]), share)
    assert bool(odds.isfinite())
    assert (odds > 0) == (share == 1.0)


def test_a_picture_without_boxes_is_answered(evidence_alone: LanguageStage):
    answer = evidence_alone.answer(features_of(), Task.detect("dog", "flurb"))
    assert parse_regions(answer.text) == {"dog": [], "flurb": []}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_evidence_is_certain(dtype: torch.dtype):
    odds = combined(torch.zeros(2, dtype=dtype), torch.tensor([0.0, 1.0]), 1.0)
    assert odds.tolist() == pytest.approx([-6.9068, 6.9068], abs=1e-3)


def test_evidence_moves_regions_into_the_list_and_out_of_it():
    told = torch.tensor([0.01, 0.9, 0.5])
    choice = RegionChoice(TOKENS, least=0.5, evidence=told, evidence_share=0.7)
    found, chances = choice.listed(logits(2.0, -1.0, 1.0))
    assert found == [11, 12]
    assert chances == pytest.approx([0.7752, 0.5744], abs=1e-3)
    alone, _ = replace(choice, evidence=None).listed(logits(2.0, -1.0, 1.0))
    assert alone == [10, 12]


def test_words_for_a_class_are_answered_by_its_evidence(evidence_alone: LanguageStage):
    features = features_of(DOG, CAT, DOG, CAR)
    answer = evidence_alone.answer(features, Task.detect("dog", "The Dogs.", "animal", "car"))
    found = parse_regions(answer.text)
    assert found["dog"] == found["The Dogs."] == [0, 2]
    assert found["animal"] == [0, 1, 2]
    assert found["car"] == [3]


def test_descriptions_are_asked_for_as_their_noun_and_bounded_by_their_colours(
    evidence_alone: LanguageStage,
):
    features = features_of(DOG, DOG, CAT, DOG)
    looks = np.full((4, 1016), 1e-3, dtype=np.float16)
    for regions, colour in (([0, 2], "red"), ([1, 3], "gray")):
        looks[regions, 1000 + COLOURS.index(colour)] = 0.8
    features = replace(features, key="coloured", primary_regions=looks)
    labels = ("red dog", "Something red!", "gray animals", "blue dog", "leftmost red dog", "thing")
    task = Task.detect(*labels)
    found = parse_regions(evidence_alone.answer(features, task).text)
    assert list(found.values()) == [[0], [0, 2], [1, 3], [], [0], [0, 1, 2, 3]]
    # Which one is leftmost is told of all pages together (tests/unit/test_descriptions.py).
    every = parse_regions(evidence_alone.answer(features, Task.detect("leftmost dog")).text)
    assert every == {"leftmost dog": [0, 1, 3]}
    count = replace(task, kind=TaskKind.COUNT, query="red dogs")
    assert parse_regions(evidence_alone.answer(features, count).text) == {"red dogs": [0]}


def test_without_class_evidence_descriptions_are_asked_for_as_their_noun_too():
    alone = stage_of(0.0)
    features = features_of(DOG, CAT, CAR)
    noun, place = (
        alone.answer(features, replace(Task.detect(label), least_confidence=0.0))
        for label in ("dog", "dog on the left")
    )
    alone.close()
    assert place.probabilities == pytest.approx(noun.probabilities, abs=1e-5)


def test_words_for_no_class_are_left_to_the_language_model(evidence_alone: LanguageStage):
    alone = stage_of(0.0)
    features = features_of(DOG, CAT, CAR)
    task = replace(Task.detect("flurb", "wet car"), least_confidence=0.0)
    model, both = alone.answer(features, task), evidence_alone.answer(features, task)
    assert model.text == both.text
    assert model.probabilities == pytest.approx(both.probabilities, abs=1e-5)
    known = replace(Task.detect("dog"), least_confidence=0.0)
    assert alone.answer(features, known).probabilities != pytest.approx(
        evidence_alone.answer(features, known).probabilities, abs=0.1
    )
    alone.close()


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), None, "much", "0.7", True, [0.7], {}])
def test_a_share_is_a_number_between_0_and_1(share: object):
    raw = mixture_config(300, 0.5).to_dict()
    raw["groundstream"]["evidence_share"] = share
    with pytest.raises(CheckpointMismatch, match="evidence_share"):
        VLMFO1Config.from_dict(raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [("regions_per_page", 0), ("least_listed", "low"), ("one_per_object", 1),
     ("proposal", {"boxes": 3}), ("proposal", {"max_boxes": "all"}), ("tasks", 5),
     ("weights", ["a"]), ("davit", {"depths": 3, "widths": 1, "num_heads": 1})],
)  # fmt: skip
def test_values_of_the_wrong_kind_are_refused_with_a_reason(key: str, value: object):
    raw = mixture_config(300, 0.5).to_dict()
    raw["groundstream"][key] = value
    with pytest.raises(CheckpointMismatch, match=r"config\.json|proposal"):
        VLMFO1Config.from_dict(raw)


def test_other_connectors_have_no_class_evidence():
    with pytest.raises(CheckpointMismatch, match="needs regions that are class evidence"):
        replace(mixture_config(300, 0.5), region_projector="mlp2x_gelu")


def test_every_word_for_a_class_is_known_as_it_is_asked():
    words = vocabulary()
    beliefs = NameBeliefs(words)
    things = (*words.coco, *words.imagenet)
    assert [w for one in things for w in one.words if not beliefs.knows(plain_noun(w))] == []
    trunks = next(k for k, one in enumerate(words.imagenet) if "swimming trunks" in one.names)
    weights = np.zeros((1, 1080), dtype=np.float32)
    weights[0, 80 + trunks] = 1.0
    assert beliefs.chances("swimming trunk", weights)[0] > 0.9
