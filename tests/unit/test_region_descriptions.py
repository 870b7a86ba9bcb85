"""What class evidence says of a region: names and colours of given boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from agent.beliefs import NameBeliefs
from agent.class_evidence import ClassEvidence
from agent.errors import CheckpointMismatch
from agent.features import FrameFeatures
from agent.generation import LanguageStage
from agent.prompts import Task
from agent.vocabulary import COLOURS, vocabulary
from tests.unit.test_evidence_share import CAR, CAT, DOG, features_of, mixture_config, stage_of

BELIEFS = NameBeliefs(vocabulary())
PERSON, ORANGE = 0, 49
"""Classes of COCO."""


def coloured(features: FrameFeatures, *colours: str) -> FrameFeatures:
    """The same regions, most of each in one colour."""
    regions = np.array(features.primary_regions)
    for region, colour in enumerate(colours):
        regions[region, 1000 + COLOURS.index(colour)] = 0.7
    return replace(features, primary_regions=regions)


def described(features: FrameFeatures) -> list[str]:
    evidence = ClassEvidence.of(features, BELIEFS)
    return [evidence.description(region) for region in range(len(features.proposals))]


def test_a_region_is_called_by_its_name_and_its_colour():
    features = coloured(features_of(DOG, CAR, CAT), "brown", "red", "orange")
    assert described(features) == ["a brown dog", "a red car", "an orange cat"]


def test_a_colour_is_said_where_it_stands_out_and_not_of_a_person():
    mixed = np.array(features_of(CAR, PERSON).primary_regions)
    mixed[0, 1000 + COLOURS.index("red")], mixed[0, 1000 + COLOURS.index("gray")] = 0.4, 0.3
    mixed[1, 1000 + COLOURS.index("black")] = 0.9
    features = replace(features_of(CAR, PERSON), primary_regions=mixed)
    assert described(features) == ["a car", "a person"]


def test_a_colour_is_not_said_of_a_thing_that_is_called_so():
    assert described(coloured(features_of(ORANGE), "orange")) == ["an orange"]


def test_a_name_that_is_hardly_believed_is_said_with_doubt():
    features = coloured(features_of(DOG), "gray")
    scores = np.full((1, 80), 0.001, dtype=np.float32)
    scores[0, DOG] = 0.05
    assert described(replace(features, auxiliary_regions=scores)) == ["perhaps a gray dog"]


@pytest.fixture(scope="module")
def telling() -> Iterator[LanguageStage]:
    made = stage_of(0.7, tells_regions=True)
    yield made
    made.close()


def test_a_given_box_is_described_without_the_language_model(telling: LanguageStage):
    features = coloured(features_of(DOG, CAR), "brown", "red")
    told: list[str] = []
    generation = telling.start(features, Task.describe_region(1), told.append).result()
    assert generation.text == "a red car" == "".join(told)
    assert generation.num_passes == 0
    assert not generation.truncated


def test_what_is_like_a_box_is_told_without_the_language_model(telling: LanguageStage):
    features = features_of(CAR, DOG, CAR, CAT)
    generation = telling.answer(features, Task.find_similar(0))
    assert generation.text == "<ground><region0></ground><objects><region0><region2></objects>"
    assert generation.num_passes == 0
    reference, other = generation.probabilities[4:6]
    assert reference == pytest.approx(other)
    assert reference > 0.75


def test_boxes_of_nothing_are_not_alike():
    features = features_of(CAR, CAR, CAR)
    scores = np.array(features.auxiliary_regions)
    scores[1:, :] *= 0.02  # As alike as before, and hardly believed.
    evidence = ClassEvidence.of(replace(features, auxiliary_regions=scores), BELIEFS)
    assert evidence.alike(0)[0] > 0.75
    assert evidence.alike(0)[1:].max() < 0.1
    assert evidence.alike(1)[2] < 0.1


def test_only_labels_that_need_it_are_asked_of_the_language_model(telling: LanguageStage):
    features = features_of(CAR, DOG)
    assert telling.answer(features, Task.detect("something", "thing")).num_passes == 0
    assert telling.answer(features, Task.detect("something", "car")).num_passes > 0


def test_other_questions_about_a_box_are_still_the_language_model_s(telling: LanguageStage):
    detailed = replace(Task.describe_region(1, detailed=True), max_new_tokens=3)
    assert telling.answer(features_of(DOG, CAR), detailed).num_passes > 0
    assert telling.answer(None, replace(Task.chat("Hello"), max_new_tokens=3)).num_passes > 0


def test_a_model_without_the_rule_writes_its_own_words():
    stage = stage_of(0.7)
    try:
        short = replace(Task.describe_region(0), max_new_tokens=3)
        assert stage.answer(features_of(DOG), short).num_passes > 0
    finally:
        stage.close()


def test_a_connector_that_reads_no_evidence_cannot_tell_names():
    config = mixture_config(100, 0.0, reads_descriptions=False, tells_regions=True)
    with pytest.raises(CheckpointMismatch, match="tells_regions needs regions"):
        replace(config, region_projector="linear")
