"""How a model is asked, as its configuration says it."""

from __future__ import annotations

from dataclasses import asdict

from agent.answer_rules import AnswerRules


def test_rules_are_read_as_they_are_written():
    rules = AnswerRules(regions_per_page=24, least_confidence=0.4, one_per_object=True)
    assert AnswerRules.read(asdict(rules)) == rules
    assert AnswerRules.read({}) == AnswerRules()
