"""Labels that are asked apart: each its own list, joined in order, from one prefix."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from dataclasses import replace

import pytest
import torch

from agent.answer_rules import AnswerRules
from agent.generation_request import Completion
from agent.grammar import AnswerTokens
from agent.label_lists import LabelBranch, join_labels
from agent.parsing import parse_regions
from agent.prompts import MAX_LABELS, Task
from agent.region_choice import RegionChoice
from agent.stage_settings import EngineSettings
from groundstream.errors import InvalidQuery, Overloaded
from tests.unit.tiny_families import family_stage, random_features

TOKENS = AnswerTokens(1, 2, 3, 4, 5, regions=(10, 11, 12, 13))


@pytest.fixture(scope="module")
def stage():
    made = family_stage("llama")
    yield made
    made.close()


@pytest.fixture(scope="module")
def features(stage):
    return random_features(stage._model.config, "frame", num_boxes=6)


def completion(*ids, truncated=False):
    return Completion(ids, (0.5,) * len(ids), truncated, 20 + len(ids), 15, 2, 1)


def pieces_of(ids):
    return tuple(f"<region{i}>" for i in ids)


def branches(*labels):
    return [LabelBranch(label, Future()) for label in labels]


def test_labels_together_answer_as_labels_alone(stage, features):
    labels = ("dog", "cat", "red apple", "tree")
    together = stage.answer(features, Task.detect(*labels))
    alone = [stage.answer(features, Task.detect(label)).text for label in labels]
    assert together.text == "".join(alone)
    assert list(parse_regions(together.text)) == list(labels)
    swapped = stage.answer(features, Task.detect(*reversed(labels)))
    assert swapped.text == "".join(reversed(alone))


def test_a_label_is_asked_as_its_plain_noun_and_answered_as_it_was_written(stage, features):
    plain = stage.start(features, Task.detect("dog")).result(30)
    written = stage.start(features, Task.detect("The Dogs.")).result(30)
    assert written.probabilities == plain.probabilities
    assert written.text == plain.text.replace("dog", "The Dogs.")


def test_the_prefix_is_computed_once(stage):
    features = random_features(stage._model.config, "once", num_boxes=5)
    tokens = stage.engine.counts["tokens"]
    answer = stage.answer(features, Task.detect(*(f"thing {n}" for n in range(12))))
    prefix = answer.num_prompt_tokens
    assert stage.engine.counts["tokens"] - tokens < prefix + 12 * 60


def test_only_existing_regions_upwards_and_an_end(stage):
    for seed in range(4):
        features = random_features(stage._model.config, f"form {seed}", seed=seed)
        answer = stage.answer(features, Task.detect("dog"))
        (found,) = parse_regions(answer.text).values()
        assert found == sorted(set(found))
        assert all(region < len(features.proposals) for region in found)
        assert len(answer.pieces) == len(answer.probabilities) == len(found) + 5
        assert all(0.0 < probability <= 1.0 for probability in answer.probabilities)


def test_no_boxes_is_an_answer(stage):
    features = random_features(stage._model.config, "empty", num_boxes=0)
    answer = stage.answer(features, Task.detect("dog"))
    assert answer.text == "<ground>dog</ground><objects></objects>"


def test_a_box_is_a_label_too(stage, features):
    answer = stage.answer(features, Task.find_similar(2))
    assert answer.text.startswith("<ground><region2></ground><objects>")


def test_text_is_told_label_by_label(stage, features):
    told: list[str] = []
    task = Task.detect("dog", "cat")
    done = stage.start(features, task, told.append).result(60)
    assert "".join(told) == done.text
    assert len(told) == 2


def test_parts_are_joined_in_order_whatever_arrives_first():
    told: list[str] = []
    parts = branches("a", "b")
    joined = join_labels(parts, pieces_of, told.append)
    parts[1].completion.set_result(completion(1, 2))
    assert told == []
    assert not joined.done()
    parts[0].completion.set_result(completion(7, truncated=True))
    answer = joined.result(1)
    assert answer.text == (
        "<ground>a</ground><objects><region7></objects>"
        "<ground>b</ground><objects><region1><region2></objects>"
    )
    assert told == [answer.text[: len(told[0])], answer.text[len(told[0]) :]]
    assert answer.truncated
    assert answer.num_prompt_tokens == 22
    assert answer.probabilities == (1, 1, 1, 1, 0.5, 1, 1, 1, 1, 1, 0.5, 0.5, 1)


def test_an_error_of_one_label_is_the_answer():
    parts = branches("a", "b", "c")
    joined = join_labels(parts, pieces_of)
    parts[1].completion.set_exception(InvalidQuery("too long"))
    with pytest.raises(InvalidQuery):
        joined.result(1)
    assert parts[0].completion.cancelled()
    assert parts[2].completion.cancelled()


def test_cancelling_the_whole_cancels_every_label():
    parts = branches("a", "b")
    joined = join_labels(parts, pieces_of)
    parts[0].completion.set_result(completion(1))
    assert joined.cancel()
    assert parts[1].completion.cancelled()


def test_a_cancelled_label_cancels_the_whole():
    parts = branches("a", "b")
    joined = join_labels(parts, pieces_of)
    parts[0].completion.cancel()
    with pytest.raises(CancelledError):
        joined.result(1)
    assert parts[1].completion.cancelled()


def test_refused_in_the_middle_leaves_nothing_behind():
    stage = family_stage("llama", engine=EngineSettings(max_waiting=3))
    hold = threading.Event()
    stage.engine._step = lambda: hold.wait(30)
    features = random_features(stage._model.config, "full")
    with pytest.raises(Overloaded):
        stage.start(features, Task.detect("a", "b", "c", "d", "e", "f", "g"))
    hold.set()
    stage.close()


def test_each_region_is_chosen_against_the_end_of_the_list_alone():
    logits = torch.full((20,), -9.0)
    logits[TOKENS.objects_close] = 1.0
    logits[torch.tensor(TOKENS.regions)] = torch.tensor([2.0, 0.9, -3.0, 6.0])
    logits[7] = 50.0
    found, chances = RegionChoice(TOKENS, least=0.4).listed(logits)
    assert found == [10, 11, 13]
    assert chances == pytest.approx([0.7311, 0.4750, 0.9933], abs=1e-4)


def test_a_question_may_ask_for_boxes_that_are_hardly_believed(stage, features):
    task = Task.detect("dog")
    every = stage.answer(features, replace(task, least_confidence=0.0))
    assert len(parse_regions(every.text)["dog"]) == 6
    few = stage.answer(features, task)
    assert set(few.pieces) < set(every.pieces)
    rules = AnswerRules(least_confidence=0.5, least_listed=0.25)
    assert (rules.lists_from(task), rules.detects_from(task)) == (0.25, 0.5)
    assert rules.detects_from(replace(task, least_confidence=0.1)) == 0.1


def test_a_label_takes_one_pass_whatever_it_finds(stage):
    features = random_features(stage._model.config, "one pass", num_boxes=6)
    stage.answer(features, Task.detect("dog"))
    again = stage.answer(features, replace(Task.detect("cat"), least_confidence=0.0))
    assert again.num_passes == 1
    assert len(parse_regions(again.text)["cat"]) == 6


def test_labels_have_a_limit():
    Task.detect(*(f"thing {n}" for n in range(MAX_LABELS)))
    with pytest.raises(InvalidQuery, match="the limit is 80"):
        Task.detect(*(f"thing {n}" for n in range(MAX_LABELS + 1)))


def test_labels_of_each_kind_of_question():
    assert Task.detect("dog", "hot dog").labels == ("dog", "hot dog")
    assert Task.detect("dog, cat,").labels == ("dog", "cat")
    assert Task.refer("the dog, on the left").labels == ("the dog, on the left",)
    assert Task.count("dogs").labels == ("dogs",)
    assert Task.find_similar(3).labels == ("<region3>",)
    assert Task.chat("where?").labels == ()
