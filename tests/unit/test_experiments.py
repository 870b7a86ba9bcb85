"""Ablations of training and evidence, distractors, and answers that are printed."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import agent
from agent.evaluation import answer_study
from agent.evaluation.answer_study import Answerer, ScenesAsked, printed_boxes
from agent.evaluation.clutter_study import NUMBERS, measure_distractors
from agent.evaluation.coco_folder import load_coco
from agent.evaluation.evidence_study import PARTS, with_silent
from agent.evaluation.high_resolution_scenes import PhotographQuestions
from agent.evaluation.proposal_study import box_sources
from agent.model.name_mixture import NameMixture
from agent.model.smollm2 import smollm2_tokenizer
from agent.tokenizer import PromptTokenizer
from agent.training.pointing import PointingRecipe
from agent.training.pointing_model import NEW_TOKENS
from agent.training.scene_lessons import SceneWriter, draw_lesson, printed_box
from agent.training.scene_questions import Questioner
from agent.training.symbolic_scenes import SceneMaker
from agent.vocabulary import vocabulary
from groundstream.errors import SettingsError
from tests.unit.pocket_folder import write_pocket_folder
from tests.unit.test_composed_evaluation import FixedProposer, Truthful
from tests.unit.tiny_model import write_tiny_model

POCKET = Path(agent.__file__).parent / "weights" / "pocket"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return smollm2_tokenizer(NEW_TOKENS)


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1000, 32)).astype(np.float32)


@pytest.fixture
def photographs(tmp_path: Path):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "one.png"), rng.integers(0, 255, (200, 300, 3), np.uint8))
    written = {
        "images": [{"id": 1, "file_name": "one.png", "width": 300, "height": 200,
                    "absent": ["tree"]}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "car"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 90, 80],
                         "area": 7200, "iscrowd": 0}],
    }  # fmt: skip
    (tmp_path / "all.json").write_text(json.dumps(written))
    return load_coco(tmp_path, tmp_path / "all.json")


def test_a_recipe_says_what_an_ablation_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("absent: false\nmost_regions: [6, 6]\nsteps: 20\npointing_steps: 20")
    recipe = PointingRecipe.read(path)
    assert recipe == PointingRecipe(absent=False, most_regions=(6, 6), steps=20, pointing_steps=20)
    assert recipe.rate(19) > 0
    path.write_text("abzent: false")
    with pytest.raises(SettingsError, match="did you mean 'absent'"):
        PointingRecipe.read(path)


def test_without_rejection_every_label_is_there(tokenizer: Tokenizer, head: np.ndarray) -> None:
    words, writer = vocabulary(), SceneWriter(PromptTokenizer(tokenizer))
    maker, questions, dice = SceneMaker(words, head, 1), Questioner(words, 2), random.Random(3)
    maker.doubt, kinds = 0.2, []
    for _ in range(8):
        plan = draw_lesson(maker.scene(5), writer, questions, dice, 6, alone=True, absent=False)
        kinds += plan.kinds
    assert "label" in kinds
    assert "absent" not in kinds


def test_corners_are_printed_and_read(tokenizer: Tokenizer, head: np.ndarray) -> None:
    writer = SceneWriter(PromptTokenizer(tokenizer), printed=True)
    words = vocabulary()
    maker, questions = SceneMaker(words, head, 1), Questioner(words, 2)
    maker.doubt = 0.0
    scene = maker.scene(4)
    asked = questions.labels(scene, 12)
    tree = writer.plan(scene, [("label", one) for one in asked], cells=False).tree
    assert bool(tree.free.all())
    for number, one in enumerate(asked, start=1):
        written = tree.targets[tree.branch == number].tolist()
        assert written[-1] == writer.close
        read = printed_boxes(tokenizer.decode(written[:-1]))
        true = np.array([scene.regions[k].box for k in one.regions]).reshape(-1, 4)
        assert read == pytest.approx(true, abs=1e-3)
    assert printed_box(np.array([0, 0.25, 0.5, 1], np.float32)) == "[0, 250, 500, 1000]"
    assert printed_boxes("[1, 2, 3").shape == (0, 4)


@pytest.mark.parametrize("printed", [False, True])
def test_both_kinds_of_answers_are_counted(
    tmp_path: Path, head: np.ndarray, monkeypatch: pytest.MonkeyPatch, *, printed: bool
) -> None:
    monkeypatch.setattr(answer_study, "_TOKENS_A_BOX", 2)
    write_pocket_folder(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps({"rank": 4, "printed": printed}))
    asked = ScenesAsked(scenes=2, labels=2, most_regions=1)
    found = Answerer(tmp_path).measure(head, asked)
    assert found["milliseconds"].value > 0
    assert found["passes"].count == 4
    assert (found["passes"].value == 1) is not printed


def test_scenes_of_more_regions_than_were_trained_are_read_page_by_page(
    tmp_path: Path, head: np.ndarray
) -> None:
    write_pocket_folder(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps({"rank": 4, "most_regions": [3, 3]}))
    answerer = Answerer(tmp_path)
    asked = ScenesAsked(scenes=2, labels=2, held_out=1, least_regions=7, most_regions=8)
    assert [asked.regions(number) for number in range(4)] == [7, 8, 7, 8]
    found = answerer.measure(head, asked)
    assert (found["passes"].value, found["passes"].count) == (3, 4)


def test_words_that_training_never_asks_are_counted_apart(
    tmp_path: Path, head: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pocket_folder(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps({"rank": 4}))
    monkeypatch.setattr(answer_study, "shows_held_out", lambda scene: True)
    asked = ScenesAsked(scenes=2, labels=3, held_out=2, least_regions=6, most_regions=6)
    found = Answerer(tmp_path).measure(head, asked)
    assert found["passes"].count == 6
    assert 0 < found["held_out_passes"].count <= 4
    none = Answerer(tmp_path).measure(head, replace(asked, held_out=0))
    assert not any(key.startswith("held_out_") for key in none)
    assert none["passes"] == found["passes"]


def test_silent_classes_are_read_as_nothing(tmp_path: Path) -> None:
    shown = {}
    for name, silent in PARTS.items():
        folder = with_silent(POCKET, silent, tmp_path / name)
        written = json.loads((folder / "config.json").read_text())
        assert written["groundstream"]["evidence_share"] == 0
        state = load_file(folder / "language.safetensors")
        mixture = NameMixture(state["connector.nothing"].shape[1])
        mixture.load_state_dict(
            {k.removeprefix("connector."): v.float() for k, v in state.items()
             if k.startswith("connector.")}
        )  # fmt: skip
        coco, primary = torch.zeros(2, 80), torch.zeros(2, 1016)
        coco[0, 16], coco[1, 16], primary[:, 207] = 0.4, 0.02, 0.9
        primary[1, 207] = 0.0
        coco[1, 3] = 0.4
        shown[name] = mixture(coco, primary, torch.zeros(2, 4))[:, 1]
    assert not torch.allclose(shown["both"][0], shown["detector alone"][0])
    assert not torch.allclose(shown["both"][0], shown["classifier alone"][0])
    # Of the second region the classifier believes nothing: without the detector it is nothing.
    assert torch.allclose(
        shown["classifier alone"][1],
        load_file(POCKET / "language.safetensors")["connector.nothing"][1].float(), atol=1e-3,
    )  # fmt: skip
    assert (POCKET / "language.safetensors").is_file()
    with pytest.raises(SettingsError, match="mixes names"):
        with_silent(write_tiny_model(tmp_path / "tiny"), PARTS["both"], tmp_path / "none")


async def test_boxes_at_random_are_added_up_to_a_number(photographs) -> None:
    found = await measure_distractors(
        Truthful(photographs), FixedProposer(photographs), photographs
    )
    assert [one["boxes"].value for one in found.values()] == list(NUMBERS)
    assert all(one["recall"].value == 1.0 for one in found.values())


def test_photographs_are_asked_for_what_is_there_and_what_is_not(photographs) -> None:
    questions = PhotographQuestions(photographs)
    asked = [questions.question(number) for number in range(len(questions))]
    assert [(one.label, len(one.truth)) for one in asked] == [("dog", 1), ("tree", 0)]
    assert asked[0].frame.width == 300


def test_own_boxes_are_also_sent_as_a_clients(photographs) -> None:
    sources = box_sources(Truthful(photographs), own=lambda image: image.xyxy[:0])
    assert len(sources["own network, boxes alone"].boxes(photographs.images[0])) == 0
    (image,) = photographs.images
    assert len(sources["four boxes a thing, off by 20%"].boxes(image)) == 4
