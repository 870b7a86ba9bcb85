"""ERGO's benchmarks as its authors ran them: their words, their categories, their way to count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from agent.ergo import ErgoZoom, stock_folder
from agent.ergo_protocol import first_question, second_question
from agent.evaluation.ergo_benchmarks import (
    MME_CATEGORIES,
    ErgoQuestion,
    evaluate_ergo,
    load_hr_bench,
    load_mme_realworld,
    load_vstar,
)
from deployments.cli import build_app
from groundstream.errors import SourceError
from tests.pictures import encoded_image
from tests.unit.test_ergo import model as model
from tests.unit.test_ergo import tokenizer as tokenizer
from tests.unit.test_high_resolution import ENCODED, HR_ROW, PICTURE, write_vstar

INSTRUCTION = "Answer with the option's letter from the given choices directly."


def test_vstar_is_asked_in_the_words_of_its_file(tmp_path: Path) -> None:
    question, _ = load_vstar([write_vstar(tmp_path)])
    rows = (tmp_path / "test_questions.jsonl").read_text().splitlines()
    assert question.text == json.loads(rows[0])["text"]
    assert (question.label, question.category) == ("A", "direct_attributes")
    assert first_question(question.text).startswith("What is the colour of the glove? First, con")
    assert second_question(question.text).startswith(question.text + "\nCarefully analyze")
    assert question.frame().width == 96


def test_hr_bench_counts_by_file_and_writes_its_options_its_own_way(tmp_path: Path) -> None:
    path = tmp_path / "hr_bench_8k.tsv"
    path.write_text("\t".join(HR_ROW) + "\n" + "\t".join(HR_ROW.values()) + "\n")
    (question,) = load_hr_bench([path])
    assert question.text == (
        f"What is written on the sign?\nA:Go\nB:Halt\nC:Stop\nD:Slow\n {INSTRUCTION}"
    )
    assert question.category == "8k"
    assert first_question(question.text).startswith("What is written on the sign? First, consider")
    with pytest.raises(SourceError, match="4k or 8k"):
        list(load_hr_bench([path.rename(tmp_path / "other.tsv")]))


def test_mme_realworld_leaves_out_what_the_table_of_the_authors_leaves_out(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {
            "bytes": ENCODED, "question": "What is it?", "answer": "B", "category": category,
            "multi-choice options": ["(A) a cat", "(B) a dog"],
        }
        for category in ("Perception/Monitoring", "Perception/Elsewhere")
    ]  # fmt: skip
    path = tmp_path / "train-00000-of-00004.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (question,) = load_mme_realworld([path])
    assert question.text == f"What is it?\n(A) a cat\n(B) a dog\n {INSTRUCTION}"
    assert question.category == "Perception/Monitoring"
    assert len(MME_CATEGORIES) == 10


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("<think>x<think><answer>B</answer>", True),
        ("<answer> (b) </answer>", True),
        ("<answer>B. a dog</answer>", False),  # letters beside the right one
        ("<answer>A</answer><answer>B</answer>", False),  # the first holds
        ("B", True),
        ("The answer is B", False),
        ("<answer></answer>B", False),  # nothing inside: everything counts, the tags' letters too
    ],
)
def test_an_answer_is_right_when_its_letters_are_the_label(written: str, right: bool) -> None:
    question = ErgoQuestion("?", ("(A) a", "(B) b"), INSTRUCTION, "B", "x", PICTURE)
    assert question.is_right(written) is right


async def test_all_questions_are_asked_and_counted(  # type: ignore[no-untyped-def]
    model,
    tokenizer,
) -> None:
    class Knowing(ErgoZoom):
        def _write(self, turns, task, limit_s=None):  # type: ignore[no-untyped-def]
            asked.append((len(turns), task.max_new_tokens))
            return "<answer>A</answer>" if len(turns) == 2 else "<zoom>[0, 0, 28, 28]</zoom>"

    asked: list[tuple[int, int]] = []
    questions = [
        ErgoQuestion("?", ("(A) a", "(B) b"), INSTRUCTION, label, label, PICTURE) for label in "AB"
    ]
    tally = await evaluate_ergo(Knowing(model, tokenizer), questions)
    found = {name: one.value for name, one in tally.estimates().items()}
    assert (found["accuracy"], found["accuracy: A"], found["accuracy: B"]) == (0.5, 1.0, 0.0)
    assert asked == [(1, 1024), (2, 1024)] * 2


def test_the_commands_run_a_stock_folder(  # type: ignore[no-untyped-def]
    model,
    tokenizer,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "ergo"
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert stock_folder(str(folder)) == folder
    assert stock_folder("pocket") is None
    picture = tmp_path / "picture.png"
    picture.write_bytes(encoded_image(1))
    options = ["--model", str(folder), "--dtype", "float32", "--max-new-tokens", "3", "--json"]
    said = CliRunner().invoke(build_app(), ["ask", str(picture), "What is there?", *options])
    assert said.exit_code == 0, said.output
    answer = json.loads(said.stdout.splitlines()[-1])
    assert answer["crops"] == [[0, 0, 96, 64]]
    table = write_vstar(tmp_path)
    measured = CliRunner().invoke(build_app(), ["eval", "vstar", str(table), *options])
    assert measured.exit_code == 0, measured.output
    figures = json.loads(measured.stdout.splitlines()[-1])
    assert "accuracy: relative_position" in figures
    assert torch.get_num_threads() >= 1
    assert np.isfinite(figures["vision_tokens"]["value"])
