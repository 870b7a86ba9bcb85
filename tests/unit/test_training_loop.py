"""The training loop: schedule, accumulation, resume, what is written down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agent.model.language_model import LanguageModel
from agent.sequence import SequenceBuilder
from agent.training.curves import draw_curve, read_log
from agent.training.loop import (
    LoopSettings,
    Objective,
    Terms,
    build_optimizer,
    learning_rate,
    load_module_state,
    numpy_draws,
    train,
)
from agent.training.mixture import yes_no_turns
from agent.training.packing import IGNORED, PackedBatch, PackedScene, collate_packed
from agent.training.workers import Figures, means
from groundstream.errors import SettingsError, SourceError
from tests.unit.tiny_model import NAMES, tiny_config, tiny_tokenizer


class Interrupted(Exception):
    """Somebody pulled the plug."""


class Noisy:
    """A stage whose data, noise and difficulty all depend on what went before."""

    def __init__(self, *, stop_at: int | None = None) -> None:
        torch.manual_seed(5)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.level, self._stop_at, self._seen = 1.0, stop_at, 0

    def batches(self, first: int, stride: int) -> Iterator[Tensor]:
        number = first
        while True:
            easy = torch.from_numpy(np.random.default_rng(number).normal(size=(3, 4)))
            yield self.level * easy.float() + float(numpy_draws().normal())
            number += stride

    def losses(self, batch: Tensor) -> tuple[Terms, Figures]:
        self._seen += 1
        if self._seen == self._stop_at:
            raise Interrupted
        noise = torch.randn(len(batch), 1)
        return {"fit": (self.module(batch) - batch.sum(1, keepdim=True) + noise).pow(2).mean()}, {}

    def after_step(self, figures: Figures) -> None:
        self.level += 0.01 * figures["loss"]

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level = state["level"]

    def train(self, directory: Path, **settings: Any) -> dict[str, Tensor]:
        objective = Objective(self.batches, self.losses, curriculum=self)
        train(self.module, objective, LoopSettings(
            steps=30, learning_rate=0.05, warmup_steps=5, save_every=10, log_every=5, **settings
        ), directory)  # fmt: skip
        return load_module_state(directory)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_run_ends_with_the_very_same_weights(
    tmp_path: Path, accumulate: int
) -> None:
    straight = Noisy().train(tmp_path / "straight", accumulate=accumulate)
    with pytest.raises(Interrupted):
        Noisy(stop_at=27 * accumulate).train(tmp_path / "broken", accumulate=accumulate)
    torch.manual_seed(123456)
    resumed = Noisy().train(tmp_path / "broken", accumulate=accumulate)
    for name, weight in straight.items():
        assert torch.equal(weight, resumed[name]), name
    curves = [
        [(row["step"], row["loss"]) for row in read_log(tmp_path / run)]
        for run in ("straight", "broken")
    ]
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == [5, 10, 15, 20, 25, 30]


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    first, second = (Noisy().train(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert any(not torch.equal(weight, second[name]) for name, weight in first.items())


def packed(questions: list[int]) -> list[PackedScene]:
    """Scenes with so many questions each."""
    builder, rng = SequenceBuilder(tiny_tokenizer()), np.random.default_rng(3)
    scenes = []
    for count in questions:
        turns = yes_no_turns(["dog", "cat", "dog"], NAMES, count, rng)
        scenes.append(PackedScene.questions(builder, 3, turns, None))
    return scenes


def test_accumulated_batches_weigh_as_in_one_large_batch(tmp_path: Path) -> None:
    """Batches of very different numbers of answers: plain means would differ."""
    tokenizer = tiny_tokenizer()
    scenes = packed([1, 6, 1, 2])
    gradients, losses = [], []
    for accumulate, size in ((1, 4), (2, 2), (4, 1)):
        torch.manual_seed(0)
        shape = tiny_config(tokenizer.vocab_size).text
        model = LanguageModel("qwen2_5_vl_text", shape, tie_word_embeddings=True)
        objective = Objective(
            lambda first, stride, size=size: (
                collate_packed(scenes[size * n : size * (n + 1)])
                for n in range(first, 4 // size, stride)
            ),
            lambda batch, model=model: (_answers(model, batch), {}),
            counts=lambda batch: {"lm": float((batch.labels[:, 1:] != IGNORED).sum())},
        )
        settings = LoopSettings(
            steps=1, learning_rate=0.0, clip_norm=1e9, precision="float32",
            accumulate=accumulate, log_every=1,
        )  # fmt: skip
        train(model, objective, settings, tmp_path / str(accumulate))
        losses.append(read_log(tmp_path / str(accumulate))[0]["loss"])
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert losses == pytest.approx([losses[0]] * 3, abs=2e-4)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-5, rtol=1e-3)


def _answers(model: LanguageModel, batch: PackedBatch) -> Terms:
    hidden = model(model.embed(batch.ids), batch.positions, attention_mask=batch.mask)
    wanted, logits = batch.labels[:, 1:].flatten(), model.logits(hidden)[:, :-1].flatten(0, 1)
    return {"lm": nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED)}


def test_parts_have_their_own_rates() -> None:
    module = nn.ModuleDict({"eyes": nn.Linear(2, 2), "mouth": nn.Linear(2, 2)})
    module["mouth"].bias.requires_grad_(False)
    settings = LoopSettings(steps=1, learning_rate=1.0, rate_shares={"eyes.": 0.1})
    groups = build_optimizer(module, settings).param_groups
    found = {(g["share"], g["weight_decay"]): len(g["params"]) for g in groups}
    assert found == {(1.0, 0.05): 1, (0.1, 0.05): 1, (0.1, 0.0): 1}


def test_schedule() -> None:
    settings = LoopSettings(steps=100, learning_rate=1.0, warmup_steps=10)
    assert learning_rate(settings, 0) == pytest.approx(0.1)
    assert learning_rate(settings, 50) == 1.0
    assert learning_rate(settings, 87) == pytest.approx(13 / 25)
    assert learning_rate(settings, 100) == 0.0


@pytest.mark.parametrize("wrong", [{"precision": "float8"}, {"accumulate": 0}, {"save_every": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        LoopSettings(steps=1, learning_rate=1.0, **wrong)


def test_a_run_is_written_down(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Noisy().train(tmp_path / "stage")
    rows = [
        json.loads(line) for line in (tmp_path / "stage" / "log.jsonl").read_text().splitlines()
    ]
    assert {"step", "loss", "samples_per_s", "data_share", "learning_rate"} <= set(rows[-1])
    assert 0.0 <= rows[-1]["data_share"] <= 1.0
    events = EventAccumulator(str(tmp_path / "stage" / "events"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(row["step"], pytest.approx(row["loss"], rel=1e-5)) for row in rows]
    picture = (tmp_path / "stage" / "curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert draw_curve(tmp_path) is None, "nothing was logged there"


def test_a_log_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("not a log\n")
    with pytest.raises(SourceError, match=r"log\.jsonl"):
        read_log(tmp_path)


def test_means_are_over_those_who_have_a_figure() -> None:
    assert means([{"a": 1.0, "b": 4.0}, {"a": 3.0}]) == {"a": 2.0, "b": 4.0}
