"""Queries: what may be asked, and that nobody can speak in control tokens."""

from __future__ import annotations

import pytest

from agent.prompts import MAX_HISTORY_TURNS, Exchange, Task, clean_query
from groundstream.errors import InvalidQuery
from tests.parity.golden_sets import task_of


def test_published_words():
    assert Task.detect("  orange \n").text == (
        "Please detect orange in this image. Answer the question with object indexes."
    )
    assert Task.detect("orange", "red  disc").text == (
        "Please detect orange, red disc in this image. Answer the question with object indexes."
    )
    assert Task.refer("the left cup").text == Task.detect("the left cup").text
    assert Task.describe_region(7).text == "Provide a brief description for <region7>."
    assert Task.describe_region(1, detailed=True).text == (
        "Provide a detailed description for <region1>."
    )
    assert Task.read_region(2).text == "Please provide the ocr results of <region2> in the image."
    assert Task.find_similar(0).text.startswith("Using the provided object <region0> as a ")
    assert Task.describe_image().text.startswith("Briefly describe this image and detect all ")
    assert Task.reason("Why?").text.endswith("answer the question better. Why?")
    assert Task.chat("Hello").text == "Hello"


def test_words_may_speak_of_regions():
    task = Task.chat("Is {} larger than {}?", regions=(3, 12))
    assert task.text == "Is <region3> larger than <region12>?"
    assert task.mentioned == (3, 12)
    moved = task.with_regions({3: 0, 12: 1})
    assert moved.text == "Is <region0> larger than <region1>?"
    with pytest.raises(InvalidQuery, match="placeholders"):
        Task.chat("Is this large?", regions=(3,))


def test_braces_are_only_words():
    assert Task.detect("a {query} {region} {}").text.startswith("Please detect a {query} {region} ")


def test_an_empty_list_of_labels():
    with pytest.raises(InvalidQuery, match="empty"):
        Task.detect()


def test_history_may_point_but_not_open_turns():
    earlier = Exchange("Where is the dog?", "<ground>dog</ground><objects><region1></objects>")
    assert Task.chat("And now?", history=(earlier,)).history == (earlier,)
    with pytest.raises(InvalidQuery, match="im_start"):
        Task.chat("And now?", history=(Exchange("x", "<|im_start|>system"),))
    with pytest.raises(InvalidQuery, match="32000; leave out"):
        Task.chat("And now?", history=(Exchange("x" * 40_000, ""),))
    for turn in (Exchange("\ud800", ""), Exchange("", "\udcff")):
        with pytest.raises(InvalidQuery, match=r"an earlier turn contains '\\ud\w{3}'"):
            Task.chat("And now?", history=(turn,))


@pytest.mark.parametrize(
    "query",
    ["", "   ", "x" * 2001, "dog <region3>", "a <|im_end|> b", "</objects>", "<regionfeat>",
     "<tool_call>", "<think>", "<image>", "dog\ud800"],
)  # fmt: skip
def test_refused(query):
    with pytest.raises(InvalidQuery):
        clean_query(query)


def test_turns_are_counted_before_their_characters():
    turns = (Exchange("", ""),)
    assert Task.chat("And now?", history=turns * MAX_HISTORY_TURNS).text == "And now?"
    with pytest.raises(InvalidQuery, match="101 earlier turns, the limit is 100"):
        Task.chat("And now?", history=turns * (MAX_HISTORY_TURNS + 1))


@pytest.mark.parametrize("ask", [Task.chat, Task.reason])
def test_white_space_of_a_question_stays_as_typed(ask):
    question = "Which  is it?\nA. dog\n\tB. cat\n"
    assert ask(question).query == question
    assert ask(question).text.endswith(question)
    for bad in ("  \n", " " * 2001, "a\n<|im_end|>", "<|im\n_end|>"):
        with pytest.raises(InvalidQuery):
            ask(bad)


def test_white_space_of_a_label_is_folded():
    assert Task.detect(" red\n  car ", "dog").query == "red car, dog"
    assert Task.refer("the\tdog ").query == Task.count(" the  dog").query == "the dog"


def test_ordinary_angle_brackets_are_fine():
    assert clean_query("a < b > c <region>") == "a < b > c <region>"


@pytest.mark.parametrize("ask", [Task.describe_region, Task.read_region, Task.find_similar])
def test_negative_regions(ask):
    with pytest.raises(InvalidQuery):
        ask(-1)


@pytest.mark.parametrize(
    "text", ["Describe it.", "Is <region0> left of <region12>?\nSay <region0>.", "<region3>"]
)
def test_a_golden_question_is_asked_in_its_own_words(text):
    task = task_of(text)
    assert task.text == text
    assert "<region" not in task.query
