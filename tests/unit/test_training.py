"""Training parts: isolated questions, the mixture and the losses."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from agent.model.language_model import LanguageModel, SlotType
from agent.parsing import parse_regions
from agent.sequence import SequenceBuilder
from agent.training.batches import SceneBatch, background_boxes, jitter_boxes, nano_concepts
from agent.training.initialisation import initialise
from agent.training.language import NameSlots
from agent.training.mixture import draw_turns, grounded
from agent.training.packing import PackedScene, collate_packed
from agent.training.proposals import assign_locations, assign_queries, paired_iou
from agent.training.referring import refer_to
from agent.training.region_features import proposed_boxes
from tests.unit.tiny_model import NAMES, tiny_config, tiny_tokenizer

NAMES_IN_SCENE = ["dog", None, "cat", "dog"]
BOXES = np.array(
    [[0.0, 0.4, 0.2, 0.6], [0.5, 0.0, 0.6, 0.1], [0.4, 0.7, 0.6, 0.9], [0.7, 0.35, 1.0, 0.65]],
    dtype=np.float32,
)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_packed_questions_equal_questions_asked_alone(tokenizer):
    torch.manual_seed(0)
    config = tiny_config(tokenizer.vocab_size)
    language = LanguageModel(config.text, tie_word_embeddings=True).eval()
    builder = SequenceBuilder(tokenizer)
    turns = draw_turns(NAMES_IN_SCENE, NAMES, 4, np.random.default_rng(1), BOXES)
    concepts = np.zeros(4, dtype=int)

    def logits(of_turns):
        batch = collate_packed([PackedScene.questions(builder, concepts, of_turns, (2, 3), BOXES)])
        torch.manual_seed(7)
        slots = torch.randn(1, 64, config.text.hidden_size)
        embeddings = language.embed(batch.ids)
        filled = (batch.slots != SlotType.TEXT)[..., None]
        # The same vectors in the same slots, whatever follows the prefix.
        embeddings = embeddings.masked_scatter(filled, slots)
        hidden = language(embeddings, batch.positions, attention_mask=batch.mask)
        return language.logits(hidden)[0], batch

    with torch.inference_mode():
        together, packed = logits(turns)
        for number, turn in enumerate(turns):
            alone, single = logits([turn])
            wanted = single.labels[0] != -100
            count = int(wanted.sum())
            answered = torch.nonzero(packed.labels[0] != -100).flatten()
            start = sum(int((logits([t])[1].labels != -100).sum()) for t in turns[:number])
            rows = answered[start : start + count] - 1
            expected = alone[torch.nonzero(wanted).flatten() - 1]
            torch.testing.assert_close(together[rows], expected, atol=1e-4, rtol=1e-4)


def test_pointers_name_the_slot_of_the_next_region(tokenizer):
    builder = SequenceBuilder(tokenizer)
    turns = draw_turns(["dog", "dog"], NAMES, 3, np.random.default_rng(0), BOXES[:2])
    scene = PackedScene.questions(builder, np.zeros(2, int), turns, None, BOXES[:2])
    batch = collate_packed([scene])
    for position in torch.nonzero(batch.pointers[0] >= 0).flatten().tolist():
        slot = int(batch.pointers[0, position])
        assert batch.slots[0, slot] == SlotType.REGION
        assert batch.ids[0, slot - 1] == batch.labels[0, position + 1]


def test_turns_are_true():
    rng = np.random.default_rng(0)
    kinds = set()
    for turn in draw_turns(NAMES_IN_SCENE, NAMES, 600, rng, BOXES):
        kinds.add(turn.kind)
        if turn.kind == "absent":
            assert "dog" not in turn.answer
            assert "cat" not in turn.answer
            assert turn.answer.endswith("<objects></objects>")
        if turn.kind == "detect":
            assert turn.answer in {grounded("dog", [0, 3]), grounded("cat", [2])}
        if turn.kind == "count":
            assert turn.answer in {grounded("dog", [0, 3]) + " 2", grounded("cat", [2]) + " 1"}
        if turn.kind == "similar":
            others = {0: grounded("dog", [3]), 3: grounded("dog", [0]), 2: grounded("cat", [])}
            assert turn.answer == others[turn.region]
        if turn.kind in ("yes", "no"):
            assert turn.answer == turn.kind
            assert ("dog" in turn.question or "cat" in turn.question) == (turn.kind == "yes")
        if turn.kind == "caption":
            assert turn.answer == f"{grounded('dog', [0, 3])}, {grounded('cat', [2])}"
        if turn.kind == "reason":
            assert_true_reasoning(turn)
    assert kinds == {
        "absent", "detect", "count", "name", "refer", "similar", "yes", "no", "caption", "reason"
    }  # fmt: skip


def assert_true_reasoning(turn):
    """Of the two forms, each names what it compares and then says what follows."""
    thought, answer = re.fullmatch("<think>(.*)</think><answer>(.*)</answer>", turn.answer).groups()
    said = parse_regions(thought)
    if "more" in turn.question:
        assert said == {"dog": [0, 3], "cat": [2]}
        assert answer == "dog"
        return
    asked = [int(index) for index in re.findall(r"<region(\d+)>", turn.question)]
    assert sorted(index for found in said.values() for index in found) == sorted(asked)
    assert all({NAMES_IN_SCENE[index] for index in found} == {name} for name, found in said.items())
    assert answer == ("yes" if len(said) == 1 else "no")


def test_what_is_everywhere_is_never_asked_for_as_absent():
    rng = np.random.default_rng(0)
    turns = draw_turns(NAMES_IN_SCENE, ["dog", "cat"], 50, rng, BOXES)
    assert len(turns) == 50
    assert not {"absent", "no"} & {turn.kind for turn in turns}
    assert draw_turns([None, None], [], 5, rng, BOXES[:2]) == []


def test_expressions_single_out_the_right_one():
    rng = np.random.default_rng(0)
    meant = dict(refer_to("dog", [0, 3], BOXES, rng) or ("", -1) for _ in range(100))
    assert meant.pop("") == -1, "heights that hardly differ are not asked about"
    assert meant == {
        "dog on the left": 0,
        "dog on the right": 3,
        "largest dog": 3,
        "smallest dog": 0,
    }


def test_places_are_directions_of_a_slot(tokenizer):
    slots = NameSlots(tokenizer, NAMES, 64)
    embeddings = nn.Embedding(tokenizer.vocab_size, 64)
    boxes = torch.tensor([[0.0, 0.4, 0.2, 0.6], [0.4, 0.4, 0.6, 0.6], [0.8, 0.4, 1.0, 0.6]])
    said = slots.places(embeddings, boxes) @ slots.place.T
    steps = said[1:, 0] - said[:-1, 0]
    torch.testing.assert_close(steps[0], steps[1])
    assert float(steps[0]) > 0.0
    torch.testing.assert_close(said[0, 1:], said[1, 1:])


def test_a_query_learns_the_object_its_own_box_overlaps():
    truth = torch.tensor([[[0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.64, 0.64], [0.0, 0.0, 0.0, 0.0]]])
    present = torch.tensor([[True, True, False]])
    references = torch.tensor(
        [
            [
                [0.2, 0.2, 0.2, 0.2],
                [0.22, 0.2, 0.2, 0.2],
                [0.62, 0.62, 0.2, 0.2],
                [0.9, 0.1, 0.1, 0.1],
            ]
        ]
    )
    assigned = assign_queries(references, truth, present, least=0.3)
    # The third overlaps the small object badly, but no other query does better.
    assert assigned.tolist() == [[0, 0, 1, -1]]


def test_the_nano_concepts_are_known_and_many():
    assert len(nano_concepts()) >= 300


def test_boxes_for_training_stay_sound():
    rng = np.random.default_rng(0)
    boxes = np.array([[10, 10, 60, 50], [70, 70, 99, 99]], dtype=np.float32)
    moved = jitter_boxes(boxes, 0.2, 100, 100, rng)
    assert (moved[:, 2:] - moved[:, :2] >= 4).all()
    empty = torch.from_numpy(background_boxes(boxes, 6, 100, 100, rng))
    assert len(empty) <= 6
    if len(empty):
        overlap = paired_iou(empty[:, None], torch.from_numpy(boxes)[None])[0]
        assert float(overlap.max()) < 0.25


def test_every_object_has_a_location_that_learns_it():
    truth = torch.tensor([[[0.1, 0.1, 0.16, 0.15], [0.4, 0.4, 0.9, 0.95], [0.0, 0.0, 0.0, 0.0]]])
    present = torch.tensor([[True, True, False]])
    assigned = assign_locations(truth, present, 224)
    assert set(assigned.unique().tolist()) == {-1, 0, 1}


def test_circuits_look_one_token_back(tokenizer):
    torch.manual_seed(0)
    config = tiny_config(tokenizer.vocab_size)
    config.text.num_hidden_layers = 4
    config.text.layer_types = ["full_attention"] * 4
    config.text.hidden_size, config.text.num_attention_heads = 256, 8
    config.text.num_key_value_heads = 8
    config.text.rope_parameters["mrope_section"] = [4, 6, 6]
    language = LanguageModel(config.text, tie_word_embeddings=True)
    initialise(language)
    language.model.set_attn_implementation("eager")
    ids = torch.randint(0, tokenizer.vocab_size, (1, 40))
    output = language.model(
        inputs_embeds=language.embed(ids),
        position_ids=torch.arange(40).expand(3, 1, -1),
        output_attentions=True,
        use_cache=False,
    )
    back = output.attentions[0][0, :4].diagonal(offset=-1, dim1=1, dim2=2)
    assert float(back.detach().min()) > 0.9


class FourProposals(nn.Module):
    """A network that always says the same: an object, it again, nothing, and a doubt."""

    image_size = 8

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes = [[0.25, 0.5, 0.5, 1.0], [0.26, 0.5, 0.5, 1.0], [0.8, 0.8, 0.2, 0.2], [0.5] * 4]
        return torch.tensor([boxes]), torch.tensor([[0.9, 0.8, 0.7, 0.1]])


def test_proposals_take_the_class_of_what_they_cover():
    batch = SceneBatch(
        rgb=torch.zeros((1, 40, 80, 3), dtype=torch.uint8),
        boxes=torch.zeros((1, 1, 4)),
        classes=torch.tensor([[3]]),
        truth=torch.tensor([[[0.0, 0.0, 38.0, 40.0]]]),
    )
    boxes, classes = proposed_boxes(FourProposals(), batch, limit=4)
    assert classes.tolist() == [[3, -1, -2, -2]]
    expected = torch.tensor([[0.0, 0.0, 40.0, 40.0], [56.0, 28.0, 72.0, 36.0]])
    torch.testing.assert_close(boxes[0, :2], expected)
