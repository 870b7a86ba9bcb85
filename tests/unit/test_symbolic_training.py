"""Scenes without pictures, their questions, and many questions in one sequence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import agent
from agent.beliefs import LEAST_SCORE, NameBeliefs
from agent.errors import CheckpointMismatch
from agent.model.low_rank import adapt, adapter_state, load_adapter, mean_of, merge
from agent.model.name_mixture import NameMixture, place_of
from agent.training.branches import Branch, pack
from agent.training.own_answers import read as read_answers
from agent.training.picture_evidence import ClassExchange, EvidenceBank, collect
from agent.training.pointing import classifier_head
from agent.training.scene_questions import Questioner, held_out
from agent.training.symbolic_scenes import SceneMaker
from agent.training.wordnet import build
from agent.vocabulary import vocabulary
from groundstream.errors import SettingsError

POCKET = Path(agent.__file__).parent / "weights" / "pocket"


@pytest.fixture(scope="module")
def words():
    return vocabulary()


@pytest.fixture(scope="module")
def head():
    return np.random.default_rng(0).standard_normal((1000, 32)).astype(np.float32)


def test_the_classifier_that_is_shipped_lends_its_last_layer(tmp_path):
    weights = classifier_head(POCKET / "efficientnet_lite0.safetensors")
    assert weights.shape == (1000, 1280)
    assert weights.std() > 0.01
    with pytest.raises(CheckpointMismatch):
        classifier_head(POCKET / "nanodet.safetensors")


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


def test_a_page_of_a_scene_is_believed_as_the_whole_is(words, head):
    scene = SceneMaker(words, head, seed=4).scene(10)
    first, rest = scene.page(0, 6), scene.page(6, 6)
    assert (len(first.regions), len(rest.regions)) == (6, 4)
    for name, _ in scene.usual:
        apart = np.concatenate([first.chances(name), rest.chances(name)])
        assert apart == pytest.approx(scene.chances(name))
    assert [rest.said(k) for k in range(4)] == [scene.said(k) for k in range(6, 10)]


def test_doubt_tells_wholes_from_the_rest_less_well(words, head):
    maker, objectness = SceneMaker(words, head, seed=5), []
    for maker.doubt in (0.0, 1.0):
        surest = [maker.scene(12).regions[0].coco.max() for _ in range(60)]
        objectness.append(np.mean(surest))
    assert objectness[0] > objectness[1] + 0.1


def evidence(coco: dict[int, float], imagenet: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    scores, probabilities = np.zeros((1, 80), np.float32), np.zeros((1, 1000), np.float32)
    scores[0, list(coco)] = list(coco.values())
    probabilities[0, list(imagenet)] = list(imagenet.values())
    return scores, probabilities


def test_a_word_is_said_by_all_classes_that_it_names(words):
    beliefs = NameBeliefs(words)
    beagle = next(k for k, thing in enumerate(words.imagenet) if thing.names[0] == "beagle")
    lion = next(k for k, thing in enumerate(words.imagenet) if thing.names[0] == "lion")
    surely = beliefs.weights(*evidence({16: 0.9}, {beagle: 1.0}))
    assert beliefs.chances("dog", surely)[0] > beliefs.chances("beagle", surely)[0] > 0.01
    assert beliefs.chances("animal", surely)[0] == pytest.approx(
        beliefs.chances("dog", surely)[0], rel=1e-2
    )
    assert beliefs.chances("cat", surely)[0] < 0.01
    assert beliefs.chances("no such word", surely)[0] == 0
    assert not any(beliefs.knows(word) for word in ("no such word", "tomato"))
    assert all(beliefs.knows(word) for word in ("dog", "beagle", "animal"))
    # What the detector has no class for counts in full, and less where nothing seems to be.
    whole = beliefs.chances("lion", beliefs.weights(*evidence({15: 0.5}, {lion: 1.0})))[0]
    background = beliefs.chances("lion", beliefs.weights(*evidence({15: 0.05}, {lion: 1.0})))[0]
    assert whole > 0.5 > 0.25 > background
    ((name, score),) = beliefs.usual(surely)
    assert name == "dog"
    assert score > LEAST_SCORE


def test_a_little_belief_in_many_names_is_no_belief_in_their_kind(words):
    """A box of nothing has a little of every class; a box of one animal has much of one."""
    beliefs = NameBeliefs(words)
    animals = [k for k, thing in enumerate(words.coco) if "animal" in thing.wider]
    assert len(animals) > 8
    (noise,) = beliefs.chances(
        "animal", beliefs.weights(*evidence(dict.fromkeys(animals, 0.1), {}))
    )
    (one,) = beliefs.chances("animal", beliefs.weights(*evidence({animals[0]: 0.4}, {})))
    assert noise < 0.5 < one
    # Breeds are one name: together they are a dog.
    dogs = [k for k, thing in enumerate(words.imagenet) if thing.everyday == "dog"]
    breeds = dict.fromkeys(dogs[:100], 0.01)
    (doubtful,) = beliefs.chances("dog", beliefs.weights(*evidence({16: 0.4}, {})))
    (surer,) = beliefs.chances("dog", beliefs.weights(*evidence({16: 0.4}, breeds)))
    assert surer > doubtful + 0.02


def test_a_word_that_is_no_class_has_a_share_of_its_kind(words):
    assert words.kinds["tomato"] == ("vegetable",)
    beliefs = NameBeliefs(words)
    carrot = next(k for k, thing in enumerate(words.coco) if thing.everyday == "carrot")
    weights = beliefs.weights(*evidence({carrot: 0.6}, {}))
    (vegetable,), (tomato,) = (beliefs.chances(word, weights) for word in ("vegetable", "tomato"))
    assert vegetable > 0.8
    assert 0.05 < tomato < 0.5
    assert beliefs.chances("tomato", beliefs.weights(*evidence({2: 0.6}, {})))[0] < 0.01


def test_words_that_are_no_class_are_asked_for_too(words, head):
    maker, questions = SceneMaker(words, head, seed=8), Questioner(words, 9)
    asked = [one for _ in range(12) for one in questions.labels(maker.scene(12), 24)]
    others = [one for one in asked if one.label in words.kinds]
    assert 0.04 * len(asked) < len(others) < 0.2 * len(asked)
    assert sum(bool(one.regions) for one in others) < 0.2 * len(others)
    assert max(one.chances.max() for one in others) > 0.1


def test_of_a_detector_and_a_classifier_that_disagree_the_detector_names_a_box(words):
    beliefs = NameBeliefs(words)
    lion = next(k for k, thing in enumerate(words.imagenet) if thing.names[0] == "lion")
    even = beliefs.weights(*evidence({63: 0.5}, {lion: 1.0}))
    assert even[0, 63] < even[0, 80 + lion], "the classifier believes more"
    assert beliefs.usual(even)[0][0] == words.coco[63].everyday


def test_a_region_that_may_be_several_of_a_kind_is_called_by_its_kind(words):
    beliefs = NameBeliefs(words)
    vehicles = [k for k, thing in enumerate(words.coco) if "vehicle" in thing.wider][:6]
    doubtful = beliefs.weights(*evidence(dict.fromkeys(vehicles, 0.3), {}))
    assert beliefs.usual(doubtful)[0][0] == words.coco[vehicles[0]].everyday
    assert beliefs.said(doubtful) == ["vehicle"]
    rather = beliefs.weights(*evidence({**dict.fromkeys(vehicles, 0.1), vehicles[0]: 0.6}, {}))
    assert beliefs.said(rather) == [words.coco[vehicles[0]].everyday]
    # A little of everything is no kind: it has the name that suits it best.
    unlike = beliefs.weights(*evidence(dict.fromkeys(range(80), 0.05), {}))
    assert beliefs.said(unlike)[0] == beliefs.usual(unlike)[0][0]


def test_no_label_is_asked_twice_of_a_scene(words, head):
    maker, questions = SceneMaker(words, head, seed=8), Questioner(words, 9)
    for size in (1, 1, 4, 24):
        asked = [one.label for one in questions.labels(maker.scene(size), 40)]
        assert len(set(asked)) == len(asked) > 5
    assert len(questions.labels(maker.scene(1), 1)) == 1


_DRAWN = """
import numpy as np
from agent.training.scene_questions import Questioner
from agent.training.symbolic_scenes import SceneMaker
from agent.vocabulary import vocabulary

words, head = vocabulary(), np.random.default_rng(0).standard_normal((1000, 32)).astype("f")
maker, questions = SceneMaker(words, head, seed=3), Questioner(words, 4)
print([one.label for _ in range(6) for one in questions.labels(maker.scene(24), 20)])
"""


def test_a_seed_draws_the_same_questions_in_every_process():
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _DRAWN], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        )
        for seed in ("1", "3")
    ]  # fmt: skip
    first, second = (process.communicate(timeout=120)[0] for process in processes)
    assert len(first) > 500
    assert first == second


def test_what_is_worn_counts_less(words):
    names = {thing.names[0]: k for k, thing in enumerate(words.imagenet)}
    beliefs = NameBeliefs(words)
    gown, lion = (
        beliefs.weights(*evidence({0: 0.3}, {names[name]: 1.0}))[0, 80 + names[name]]
        for name in ("academic gown", "lion")
    )
    assert gown < 0.5 * lion


def test_classes_are_exchanged_for_classes_of_the_same_part(words, head):
    dice = np.random.default_rng(1)
    maker, exchange = SceneMaker(words, head, seed=2), ClassExchange(words, dice)
    scene = maker.scene(8)
    moved = exchange.exchange(scene.regions)
    assert len(moved) == 8
    for before, after in zip(scene.regions, moved, strict=True):
        assert after.coco.sum() == pytest.approx(before.coco.sum(), rel=1e-5)
        assert after.imagenet.sum() == pytest.approx(before.imagenet.sum(), rel=1e-5)
        assert sorted(after.coco) == sorted(before.coco)
        assert (after.box == before.box).all()
    assert any(
        a.coco.argmax() != b.coco.argmax() for a, b in zip(scene.regions, moved, strict=True)
    )


def test_pictures_without_labels_give_scenes(tmp_path, words, head):
    picture = np.full((240, 320, 3), 200, np.uint8)
    cv2.circle(picture, (100, 120), 60, (30, 90, 220), -1)
    cv2.rectangle(picture, (200, 60), (300, 200), (40, 160, 40), -1)
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "one.png"), picture)
    written = tmp_path / "evidence.npz"
    collect(tmp_path / "pictures", POCKET, written, views=2, seed=0)
    bank = EvidenceBank.read(written)
    dice = np.random.default_rng(0)
    assert bank.views
    regions = bank.draw(3, dice)
    assert 1 <= len(regions) <= 3
    scene = SceneMaker(words, head, seed=1).of(regions)
    assert len(scene.regions) == len(regions)
    with pytest.raises(SettingsError, match="holds no picture"):
        collect(tmp_path / "nothing", POCKET, written, views=2, seed=0)


def test_answers_are_where_the_word_is_believed(words, head):
    maker, questions = SceneMaker(words, head, seed=6), Questioner(words, 7)
    beliefs = NameBeliefs(words)
    num_absent = 0
    for _ in range(20):
        scene = maker.scene(10)
        for asked in questions.labels(scene, 12):
            assert not held_out(asked.plain)
            true = [
                index
                for index, weights in enumerate(scene.weights)
                if beliefs.chances(asked.plain, weights[None])[0] >= 0.5
            ]
            assert list(asked.regions) == true
            num_absent += not true
    assert 40 < num_absent < 200


def test_chances_are_half_at_the_threshold_and_colours_and_places_only_take_away(words, head):
    beliefs = NameBeliefs(words)
    weights = np.zeros((3, 1080), dtype=np.float32)
    weights[:, 0] = (0.0, LEAST_SCORE, 3 * LEAST_SCORE)
    assert beliefs.chances("person", weights) == pytest.approx([0.0, 0.5, 0.9])
    scene = SceneMaker(words, head, 3).scene(20)
    questions = Questioner(words, 4)
    drawn = [one for _ in range(60) if (one := questions.described(scene)) is not None]
    assert len({one.label.split()[0] for one in drawn}) > 3
    for one in drawn:
        plain = scene.chances(one.plain)
        assert set(one.chances.nonzero()[0]) <= set(plain.nonzero()[0])
        assert ((one.chances == plain) | (one.chances == 0)).all()


def test_answers_beside_scenes_are_whole_sentences_that_do_not_go_round(tmp_path):
    turns = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}"
    long = "It is a cat. " + "It purrs and sleeps. " + "x" * 200
    for number, (question, answer) in enumerate(
        [
            ("What is this?", "It is a cat. It is 3.5 kg and so on"),
            ("Where?", "Il capo di Roma e di Napoli, il capo di Roma e di Napoli."),
            ("Who?", long + "<|im_end|>"),
        ]
    ):
        (tmp_path / f"answer_{number:04}.txt").write_text(turns.format(question, answer))
    assert read_answers(tmp_path) == [
        ("What is this?", "It is a cat."),
        ("Who?", "It is a cat. It purrs and sleeps."),
    ]
    with pytest.raises(SettingsError, match="own-answers"):
        read_answers(tmp_path / "none")


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


def test_nouns_of_no_class_are_listed_with_what_includes_them(tmp_path):
    """A WordNet of six nouns, in its own format: a vegetable, a class, and four others."""
    (tmp_path / "data.noun").write_text(
        "  1 A licence.  \n"
        "00000001 13 n 01 vegetable 0 000 | eaten\n"
        "00000002 13 n 01 bell_pepper 0 001 @ 00000001 n 0000 | a class\n"
        "00000003 13 n 02 tomato 0 love_apple 0 001 @ 00000001 n 0000 | no class\n"
        "00000004 20 n 01 tomato 0 000 | the plant, of which nothing is known\n"
        "00000005 04 n 01 party 0 001 @ 00000001 n 0000 | nothing to be seen\n"
        "00000006 13 n 01 unheard 0 001 @ 00000001 n 0000 | in no corpus\n"
    )
    (tmp_path / "index.noun").write_text(
        "  1 A licence.  \n"
        "bell_pepper n 1 1 @ 1 1 00000002\n"
        "love_apple n 1 1 @ 1 1 00000003\n"
        "party n 1 1 @ 1 1 00000005\n"
        "tomato n 2 1 @ 2 2 00000003 00000004\n"
        "unheard n 1 1 @ 1 0 00000006\n"
        "vegetable n 1 1 @ 1 1 00000001\n"
    )
    (tmp_path / "synsets.txt").write_text("n00000002\n")
    built = build(tmp_path / "data.noun", tmp_path / "synsets.txt")
    assert built["imagenet"][0]["wider"] == ["vegetable"]
    assert built["others"] == [
        {"name": "love apple", "kinds": ["vegetable"]},
        {"name": "tomato", "kinds": ["vegetable"]},
    ]


def test_a_slot_is_what_is_believed_and_nothing_else():
    connector = NameMixture(8)
    with torch.no_grad():
        connector.everyday_names[16] = torch.ones(8)
        connector.nothing[1] = -torch.ones(8)
    sure, unsure = torch.zeros(1, 80), torch.full((1, 80), 0.002)
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
    torch.testing.assert_close(mean_of(adapter_state(model), {})["0.q_proj.lora_b"], layer.lora_b)
    halves = mean_of({"new": torch.ones(2)}, {"new": torch.zeros(2), "other": torch.ones(2)})
    assert halves["new"].tolist() == [0.5, 0.5]
    load_adapter(again, {})  # Of a model in which this layer was not adapted.
    torch.testing.assert_close(again[0].q_proj.lora_b, layer.lora_b)
