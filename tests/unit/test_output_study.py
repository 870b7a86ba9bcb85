"""Boxes printed as numbers: written, read, learned without regions, counted and timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from agent.detections import Detections
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.experiment_start import EXPERIMENTS_RECIPE
from agent.evaluation.output_study import (
    VisionCost,
    measure_output,
    printed,
    printed_boxes,
    stage_costs,
)
from agent.model_directory import find_model
from agent.sequence import SequenceBuilder
from agent.tokenizer import PromptTokenizer
from agent.training.artwork import load_concepts
from agent.training.batches import BACKGROUND, PADDING, SceneBatch
from agent.training.grounding import freeze_for
from agent.training.grounding_model import GroundingTraining
from agent.training.mixture import Turn, grounded
from agent.training.picture_rehearsal import rehearse_pictures, seen_pictures
from agent.training.recipe import load_recipe
from tests.unit.tiny_model import write_tiny_model

NAMES = [concept.label for concept in load_concepts()]
VOCABULARY = NAMES[:3]


def test_printed_boxes_are_read_as_they_were_printed() -> None:
    boxes = np.array([[0.1, 0.2, 0.305, 0.4], [0.0, 0.0, 1.0, 1.0]], dtype=np.float32)
    turn = printed(Turn("detect", "where?", grounded("dog", [1, 0])), boxes)
    assert turn.answer == "<ground>dog</ground><objects>[0,0,99,99][10,20,30,40]</objects>"
    read = printed_boxes(turn.answer, width=200, height=100)
    np.testing.assert_allclose(read, boxes[[1, 0]] * [200, 100, 200, 100], atol=1.5)
    assert printed_boxes("nothing", width=9, height=9).shape == (0, 4)


@pytest.fixture(scope="module")
def module() -> GroundingTraining:
    torch.manual_seed(0)
    return GroundingTraining(PromptTokenizer.from_directory(find_model("nano").path), NAMES)


def batches() -> Iterator[SceneBatch]:
    torch.manual_seed(0)
    boxes = torch.tensor([[[0.0, 0.0, 28.0, 28.0], [28.0, 0.0, 56.0, 84.0], [0.0, 0.0, 8.0, 8.0]]])
    classes = torch.tensor([[2, BACKGROUND, PADDING]])
    yield SceneBatch(torch.randint(255, (1, 84, 56, 3)).byte(), boxes, classes, boxes)


def test_a_picture_is_seen_without_its_background(module: GroundingTraining) -> None:
    (picture,) = seen_pictures(module, batches(), 1, VOCABULARY, "float32")
    assert picture.grid == (3, 2)
    assert len(picture.tokens) == 6
    assert picture.names == (VOCABULARY[2],)
    np.testing.assert_allclose(picture.boxes, [[0.0, 0.0, 0.5, 1 / 3]], atol=1e-6)


def test_printing_is_learned_from_pictures_by_the_language_model_alone(
    module: GroundingTraining, tmp_path: Path
) -> None:
    pictures = seen_pictures(module, batches(), 1, VOCABULARY, "float32")
    settings = load_recipe(EXPERIMENTS_RECIPE).instruct.rehearsal
    settings = replace(settings, loop=replace(settings.loop, steps=1), scenes=1, num_turns=3)
    written: list[str] = []

    def spell(turn: Turn, boxes: np.ndarray) -> Turn:
        assert turn.region is None
        spelt = printed(turn, boxes)
        written.append(spelt.answer)
        return spelt

    freeze_for(module, "instruct")
    before = {n: p.clone() for n, p in module.named_parameters()}
    builder = SequenceBuilder(PromptTokenizer.from_directory(find_model("nano").path))
    rehearse_pictures(module, builder, pictures, VOCABULARY, settings, tmp_path, spell=spell)
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert {name.split(".")[1] for name in changed} == {"language_model"}
    assert len(written) == 3
    assert not any("<region" in answer for answer in written)


class Printing:
    """Prints the same box, hundredths of the picture, whatever it is asked."""

    async def features(self, frame: object, *, boxes: object) -> tuple[str, bool]:
        return "features", False

    async def ground(self, frame: object, tasks: list[object], *, reuse: str) -> object:
        assert reuse == "features"
        answer = SimpleNamespace(
            text="<objects>[0,0,50,50]</objects>", num_passes=7, detections=Detections()
        )
        return SimpleNamespace(answers=tuple(answer for _ in tasks))


@pytest.fixture
def data(tmp_path: Path) -> CocoFolder:
    Image.new("RGB", (90, 70), (200, 30, 30)).save(tmp_path / "a.png")
    here = np.array([[0, 0, 45, 35], [60, 40, 80, 60]], dtype=np.float32)
    image = CocoImage(1, tmp_path / "a.png", 90, 70, here, (1, 1))
    return CocoFolder((image,), {1: "dog", 2: "cat"}, {})


async def test_printed_answers_are_counted_like_boxes(data: CocoFolder) -> None:
    figures = (await measure_output(Printing(), data)).estimates()  # type: ignore[arg-type]
    assert figures["precision"].value == 1.0
    assert figures["recall"].value == 0.5
    assert figures["f1"].value == pytest.approx(2 / 3)
    assert figures["false_positives"].value == 1.0
    assert figures["passes"].value == 7.0


def test_every_stage_of_vision_costs_time(data: CocoFolder, tmp_path: Path) -> None:
    (cost,) = stage_costs(write_tiny_model(tmp_path / "model"), data).values()
    assert all(part > 0.0 for part in vars(cost).values())
    parts = VisionCost(proposals=8.0, primary=1.0, auxiliary=4.0, regions=2.0).parts
    assert parts(regions=False) == {"primary_ms": 1.0}
    assert sum(parts(regions=True).values()) == 15.0
