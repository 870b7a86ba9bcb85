"""Engines that other packages bring: found by name, asked as the builtin one is."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from agent import engine_backends
from agent.generation import LanguageStage
from agent.generation_request import Completion, Request
from agent.model.positions import SlotType
from agent.prompts import Task
from agent.stage_settings import EngineSettings
from groundstream.errors import SettingsError
from tests.unit.tiny_families import random_features
from tests.unit.tiny_model import write_tiny_model


class Listener:
    """Answers nothing, and keeps what it was asked."""

    def __init__(self, settings, directory, config, *, device, dtype) -> None:
        self.settings, self.config = settings, config
        self.counts: Counter[str] = Counter()
        self.opened = directory, device, dtype
        self.asked: list[Request] = []

    def submit(self, request: Request) -> Future[Completion]:
        self.asked.append(request)
        done: Future[Completion] = Future()
        done.set_result(Completion((), (), False, 0, 0, 0, 0))
        return done

    def stalled_s(self) -> float:
        return 0.0

    def close(self) -> None:
        self.counts["closed"] += 1


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def test_an_engine_nobody_brings_is_refused(directory: Path) -> None:
    with pytest.raises(SettingsError, match=r"'vlm' is not installed \(there is: builtin.*\)"):
        LanguageStage.from_pretrained(str(directory), engine=EngineSettings(backend="vlm"))


def test_it_is_handed_tokens_and_slots_without_a_decoder_being_loaded(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryPoint("listener", f"{__name__}:Listener", engine_backends._GROUP)
    monkeypatch.setattr(engine_backends, "entry_points", lambda *, group: [entry])
    stage = LanguageStage.from_pretrained(
        str(directory), dtype="float32", engine=EngineSettings(backend="listener")
    )
    engine = stage.engine
    assert stage._model.language_model is None
    assert engine.opened == (directory, "cpu", torch.float32)
    features = random_features(engine.config, "frame", num_boxes=3)
    assert stage.answer(features, Task.detect("dog")).pieces == ()
    source = engine.asked[0].prefix
    given = source.make()
    assert source.key == "frame"
    rows, columns = given.grid
    width = engine.config.text.hidden_size
    assert given.filled(SlotType.IMAGE).shape == (rows * columns, width)
    assert given.filled(SlotType.REGION).shape == (3, width)
    assert len(given.slots) == len(given.ids) == given.positions.shape[1]
    stage.close()
    assert engine.counts["closed"] == 1
