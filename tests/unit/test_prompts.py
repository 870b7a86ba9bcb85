"""Queries: what may be asked, and that nobody can speak in control tokens."""

from __future__ import annotations

import pytest

from agent.errors import InvalidQuery
from agent.prompts import Task, clean_query


def test_published_words():
    assert Task.detect("  orange \n").text == (
        "Please detect orange in this image. Answer the question with object indexes."
    )
    assert Task.name_region(7).text == "Provide a brief description for <region7>."


@pytest.mark.parametrize(
    "query",
    ["", "   ", "x" * 2001, "dog <region3>", "a <|im_end|> b", "</objects>", "<regionfeat>"],
)
def test_refused(query):
    with pytest.raises(InvalidQuery):
        clean_query(query)


def test_ordinary_angle_brackets_are_fine():
    assert clean_query("a < b > c <region>") == "a < b > c <region>"


@pytest.mark.parametrize("region", [-1, 100])
def test_regions_outside(region):
    with pytest.raises(InvalidQuery):
        Task.name_region(region)
