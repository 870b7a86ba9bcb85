"""The picture in docs/architecture.md shows the imports as they are, and its links exist."""

from __future__ import annotations

import re
from pathlib import Path

from docs import module_graph

ROOT = Path(__file__).parents[2]


def test_the_picture_is_the_code() -> None:
    assert module_graph.page_with(module_graph.drawing()) == module_graph.PAGE.read_text(), (
        "run `python docs/module_graph.py`"
    )


def test_every_file_named_on_the_page_exists() -> None:
    named = re.findall(
        r"`((?:agent|deployments|client/groundstream)/[\w/]+\.py)`", module_graph.PAGE.read_text()
    )
    assert len(named) > 12
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_arrows_that_follow_from_others_are_left_out() -> None:
    imports = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert module_graph.reduced(imports) == [("a", "b"), ("b", "c")]
