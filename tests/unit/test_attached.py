"""Regions attached to other families: same numbers for Qwen2.5-VL, LLaVA-OneVision end to end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from agent.attached import with_control_tokens
from agent.detections import Proposals
from agent.encoders import AuxiliaryEncoderStage, PrimaryEncoderStage
from agent.errors import CheckpointMismatch, InvalidBoxes
from agent.families import llava_grounder, qwen_grounder
from agent.features import FrameFeatures
from agent.frame import Frame, frame_from_rgb
from agent.generation import LanguageStage
from agent.model.attachment_checkpoint import save_attachment
from agent.model.checkpoint import load_model
from agent.model.configuration import DaViTConfig, RegionConfig
from agent.model.language_model import SlotType
from agent.model.vlm_adapter import AttachmentConfig, Stage
from agent.parsing import AnswerStatus
from agent.prompts import Task
from agent.tokenizer import PromptTokenizer
from agent.training.attach import AttachmentTraining, Lesson
from tests.unit.tiny_model import tiny_tokenizer, write_tiny_model

SIDE = 48
BOXES = np.array([[4, 6, 60, 50], [30, 20, 95, 70], [0, 0, 100, 80]], dtype=np.float32)
ATTACHMENT = AttachmentConfig(
    DaViTConfig((1, 1, 1, 1), (8, 16, 16, 24), (1, 2, 2, 2), 4),
    RegionConfig(use_feature_pyramid=False),
)
DETECT = replace(Task.detect("dog"), max_new_tokens=12)


@pytest.fixture(scope="module")
def frame() -> Frame:
    rgb = np.random.default_rng(8).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    return frame_from_rgb(rgb)


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    """A published-layout LLaVA-OneVision folder with random weights."""
    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(3)
    tokenizer = tiny_tokenizer()
    tokenizer.save(folder)
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 8,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        image_token_index=5,
        video_token_index=6,
        image_grid_pinpoints=[[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, 2 * SIDE]],
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # at transformers' own scale a random model hardly reads its input
    model.save_pretrained(folder)
    LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=config.image_grid_pinpoints
    ).save_pretrained(folder)
    return folder


def test_qwen_through_the_adapter_says_what_the_service_says(frame, tmp_path):
    directory = write_tiny_model(tmp_path / "model")
    model, tokenizer = load_model(directory), PromptTokenizer.from_directory(directory)
    proposals = Proposals(BOXES, np.ones(len(BOXES), dtype=np.float32))
    primary_stage, auxiliary_stage = PrimaryEncoderStage(model), AuxiliaryEncoderStage(model)
    primary = primary_stage.pool(primary_stage.start([frame])[0], proposals)
    auxiliary = auxiliary_stage.pool(auxiliary_stage.start([frame])[0], proposals)
    features = FrameFeatures(
        frame.width,
        frame.height,
        proposals,
        primary.image_tokens,
        primary.grid,
        primary.regions,
        auxiliary.regions,
    )
    stage = LanguageStage(model, tokenizer)
    expected = stage.answer(features, DETECT)
    stage.close()
    grounder = qwen_grounder(model, tokenizer)
    answer = grounder.ground(frame, BOXES, DETECT)
    assert answer.text == expected.text
    assert len(expected.text) > 0
    attached = grounder.generate(grounder.features(frame, BOXES), DETECT)
    np.testing.assert_allclose(attached.probabilities, expected.probabilities, atol=1e-5)
    assert attached.num_prompt_tokens == expected.num_prompt_tokens


def test_llava_is_read_as_its_own_code_reads_it(llava, frame):
    """Without regions, the adapter's logits are the family's own."""
    grounder = llava_grounder(llava, ATTACHMENT)
    model = grounder.model.adapter.model
    features = grounder.features(frame, np.zeros((0, 4), dtype=np.float32))
    draft = grounder.prompt(len(features.vision.image_tokens), 0, "Where is the dog?")
    ids = torch.where(draft.slots == SlotType.IMAGE, model.config.image_token_id, draft.ids)
    text = grounder.tokenizer.decode(ids[draft.slots == SlotType.TEXT].tolist())
    assert text == ("<|im_start|>user \nWhere is the dog?<|im_end|><|im_start|>assistant\n")
    with torch.inference_mode():
        own = model(input_ids=ids[None], **grounder._prepare(frame.rgb())).logits[0]
        positions, _ = grounder.model.adapter.positions(draft.slots, None, start=0)
        hidden = grounder.model.adapter.language(grounder.embeddings(draft, features), positions)
        ours = grounder.model.adapter.logits(hidden)[0]
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)


def test_llava_levels_lie_as_the_picture_does(llava, frame):
    """A change in one corner of the picture changes the pooled levels most there."""
    grounder = llava_grounder(llava, ATTACHMENT)
    rgb = np.full((80, 100, 3), 128, dtype=np.uint8)
    changed = rgb.copy()
    changed[:20, 75:] = 255
    with torch.inference_mode():
        before, after = (
            grounder.model.adapter.encode(grounder._prepare(image)) for image in (rgb, changed)
        )
    difference = (after.levels[0] - before.levels[0]).abs().sum(1)[0]
    row, column = divmod(int(difference.argmax()), difference.shape[1])
    cells = SIDE // 8
    assert difference.shape == (cells, cells)
    assert row < cells // 2 <= column
    assert len(after.levels) == 4


def test_grounding_call_of_llava(llava, frame):
    grounder = llava_grounder(llava, ATTACHMENT)
    answer = grounder.ground(frame, BOXES, DETECT)
    assert answer.text
    assert answer.status in {AnswerStatus.TRUNCATED, AnswerStatus.UNSURE, AnswerStatus.OK}
    with pytest.raises(InvalidBoxes):
        grounder.ground(frame, BOXES[:, ::-1], DETECT)
    with pytest.raises(InvalidBoxes, match="can name 100"):
        grounder.ground(frame, np.repeat(BOXES, 34, axis=0), DETECT)
    assert grounder.ground(frame, BOXES[:0], DETECT).detections.xyxy.shape == (0, 4)


LESSON_ANSWER = "<ground>dog</ground><objects><region1></objects>"


def test_alignment_trains_the_connector_alone(llava, frame):
    torch.manual_seed(0)
    grounder = llava_grounder(llava, ATTACHMENT)
    before = {name: tensor.clone() for name, tensor in grounder.model.state_dict().items()}
    training = AttachmentTraining(grounder, rate=5e-3)
    lesson = Lesson(frame, BOXES, DETECT.text, LESSON_ANSWER)
    batch = [(lesson, training.see(lesson))]
    losses = [training.step(batch) for _ in range(10)]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    changed = {n for n, t in grounder.model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {
        f"region_projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    }


def test_after_instruction_answers_point_at_boxes(llava, frame, tmp_path):
    torch.manual_seed(0)
    grounder = llava_grounder(llava, ATTACHMENT)
    training = AttachmentTraining(grounder, stage=Stage.INSTRUCT, rate=1e-2)
    lesson = Lesson(frame, BOXES, DETECT.text, LESSON_ANSWER)
    batch = [(lesson, training.see(lesson))]
    losses = [training.step(batch) for _ in range(30)]
    assert losses[-1] < 0.1 * losses[0]
    answer = grounder.ground(frame, BOXES, replace(DETECT, max_new_tokens=40))
    assert answer.text == LESSON_ANSWER
    assert answer.status is AnswerStatus.OK
    assert answer.detections.label == ("dog",)
    np.testing.assert_array_equal(answer.detections.xyxy, BOXES[[1]])


def test_a_saved_attachment_answers_as_before(llava, frame, tmp_path):
    torch.manual_seed(0)
    grounder = llava_grounder(llava, ATTACHMENT)
    save_attachment(grounder.model, tmp_path / "attached")
    again = llava_grounder(llava, tmp_path / "attached")
    first, second = (g.features(frame, BOXES) for g in (grounder, again))
    torch.testing.assert_close(second.regions, first.regions)
    torch.testing.assert_close(
        again.model.region_tokens(second.regions), grounder.model.region_tokens(first.regions)
    )


def test_wrong_folders_are_named(llava, tmp_path):
    with pytest.raises(CheckpointMismatch, match="no LLaVA-OneVision"):
        llava_grounder(tmp_path, ATTACHMENT)
    with pytest.raises(CheckpointMismatch, match="no saved attachment"):
        llava_grounder(llava, tmp_path)
    grounder = llava_grounder(llava, replace(ATTACHMENT, connector="linear"))
    save_attachment(grounder.model, tmp_path)
    path = tmp_path / "attachment.json"
    path.write_text(path.read_text().replace('"linear"', '"mlp2x_gelu"'))
    with pytest.raises(CheckpointMismatch, match=r"region_projector\.0"):
        llava_grounder(llava, tmp_path)


def test_control_tokens_are_appended():
    plain = Tokenizer.from_str(
        '{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,'
        '"pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"BPE",'
        '"dropout":null,"unk_token":null,"continuing_subword_prefix":null,'
        '"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,'
        '"vocab":{"a":0,"b":1},"merges":[]}}'
    )
    extended = with_control_tokens(plain)
    assert extended.encode("ab<region7>a") == [0, 1, extended.region(7), 0]
    assert extended.region(0) >= 2
