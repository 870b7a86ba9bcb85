"""Scenes without pictures, their questions, and many questions in one sequence."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from agent.model.low_rank import adapt, adapter_state, load_adapter, merge
from agent.model.name_mixture import NameMixture, place_of
from agent.training.branches import Branch, pack
from agent.training.scene_questions import Questioner, held_out
from agent.training.spellings import article, plural, spelled
from agent.training.symbolic_scenes import SceneMaker
from agent.training.vocabulary import vocabulary


@pytest.fixture(scope="module")
def words():
    return vocabulary()


@pytest.fixture(scope="module")
def head():
    return np.random.default_rng(0).standard_normal((1000, 32)).astype(np.float32)


def test_branches_see_the_trunk_their_stem_and_themselves():
    stem = Branch([5, 6], [False, False])
    answer = Branch([7, 8], [False, True], stem=0)
    other = Branch([9], [True])
    tree = pack([1, 2, 3], [stem, answer, other])
    assert tree.ids.tolist() == [1, 2, 3, 5, 6, 7, 8, 9]
    assert tree.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 3]
    assert tree.mask[6].tolist() == [True] * 7 + [False]
    assert tree.mask[7].tolist() == [True, True, True, False, False, False, False, True]
    assert tree.mask[2].tolist() == [True, True, True] + [False] * 5
    # Each wanted id is predicted from the token before it; the first of a branch, from the trunk.
    assert tree.rows.tolist() == [5, 2]
    assert tree.targets.tolist() == [8, 9]
    assert tree.branch.tolist() == [1, 2]


@pytest.mark.parametrize("count", [1, 2, 7, 24])
def test_scenes_have_the_boxes_and_beliefs_they_should(words, head, count):
    maker = SceneMaker(words, head, seed=count)
    for _ in range(12):
        scene = maker.scene(count)
        assert len(scene.regions) == count
        sure = [region.coco.max() for region in scene.regions]
        assert sure == sorted(sure, reverse=True)
        for region in scene.regions:
            assert region.imagenet.sum() == pytest.approx(1.0, abs=1e-3)
            assert region.coco.min() >= 0
            assert region.coco.max() <= 1
            assert (region.box[2:] > region.box[:2]).all()
        numbers = [r.thing for r in scene.regions if r.thing is not None]
        assert sorted(numbers) == list(range(len(scene.things)))


def test_without_doubt_the_surest_boxes_are_the_whole_things(words, head):
    maker = SceneMaker(words, head, seed=5)
    maker.doubt = 0.0
    for _ in range(20):
        scene = maker.scene(12)
        shown = [index for index, r in enumerate(scene.regions) if r.thing is not None]
        assert shown == list(range(len(scene.things)))


def test_answers_are_where_the_word_is_true(words, head):
    maker, questions = SceneMaker(words, head, seed=6), Questioner(words, 7)
    num_absent = 0
    for _ in range(20):
        scene = maker.scene(10)
        for asked in questions.labels(scene, 12):
            assert not held_out(asked.plain)
            true = [
                index
                for index, region in enumerate(scene.regions)
                if region.thing is not None and asked.plain in scene.things[region.thing].words
            ]
            assert list(asked.regions) == true
            num_absent += not true
    assert 40 < num_absent < 200


def test_words_are_held_out_by_themselves_and_not_by_chance(words):
    everyday = {thing.everyday for thing in (*words.coco, *words.imagenet)}
    share = sum(map(held_out, everyday)) / len(everyday)
    assert 0.05 < share < 0.16
    assert not held_out("person")


def test_the_vocabulary_knows_what_people_say(words):
    beagle = next(thing for thing in words.imagenet if thing.names[0] == "beagle")
    assert beagle.everyday == "dog"
    assert {"animal", "pet", "dog", "beagle"} <= beagle.words
    bicycle = words.coco[1]
    assert {"bike", "vehicle"} <= bicycle.words
    assert all(words.imagenet[k].coco == 1 for k in bicycle.imagenet)


@pytest.mark.parametrize(
    ("noun", "many"),
    [("dog", "dogs"), ("bus", "buses"), ("traffic light", "traffic lights"), ("puppy", "puppies"),
     ("person", "people"), ("wine glass", "wine glasses"), ("knife", "knives"), ("sheep", "sheep"),
     ("toy", "toys"), ("computer mouse", "computer mice")],
)  # fmt: skip
def test_plurals(noun, many):
    assert plural(noun) == many


def test_spellings_hold_the_word():
    dice = random.Random(0)
    assert article("apple") == "an"
    assert article("unicycle") == "a"
    forms = {spelled("dog", dice) for _ in range(300)}
    assert {"dog", "dogs", "a dog", "Dog", "dog."} <= forms
    assert all("dog" in form.lower() for form in forms)


def test_a_slot_is_what_is_believed_and_nothing_else():
    connector = NameMixture(8)
    with torch.no_grad():
        connector.everyday_names[16] = torch.ones(8)
        connector.nothing[1] = -torch.ones(8)
    sure, unsure = torch.zeros(1, 80), torch.full((1, 80), 0.02)
    sure[0, 16] = 0.95
    primary, box = torch.zeros(1, 1016), torch.tensor([[0.1, 0.1, 0.5, 0.5]])
    with torch.no_grad():
        seen, doubted = connector(sure, primary, box), connector(unsure, primary, box)
    assert seen.shape == (1, 2, 8)
    assert seen[0, 1].mean() > 0.7
    assert doubted[0, 1].mean() < -0.9


def test_places_are_relative_to_the_middle():
    left, whole = place_of(torch.tensor([[0.0, 0.4, 0.2, 0.6], [0.0, 0.0, 1.0, 1.0]]))
    assert left[0] == pytest.approx(-0.4)
    assert whole.tolist() == pytest.approx([0, 0, 1, 1, 1, 0, 0, 1])


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(6, 4, bias=False)
        self.other = nn.Linear(6, 4, bias=False)


def test_an_adapter_merged_is_an_adapter_applied():
    torch.manual_seed(0)
    model, inputs = nn.Sequential(_Attention()), torch.randn(3, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model[0].q_proj(inputs)
    (layer,) = adapt(model, rank=2)
    nn.init.normal_(layer.lora_b)
    adapted = model[0].q_proj(inputs)
    assert not torch.allclose(adapted, plain)
    layer.enabled = False
    torch.testing.assert_close(model[0].q_proj(inputs), plain)
    merge(before, adapter_state(model))
    torch.testing.assert_close(inputs @ before["0.q_proj.weight"].T, adapted)
    again = nn.Sequential(_Attention())
    adapt(again, rank=2)
    load_adapter(again, adapter_state(model))
    torch.testing.assert_close(again[0].q_proj.lora_b, layer.lora_b)
