"""LLaVA-OneVision with regions, through the stages that every model goes through."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from agent.detections import Proposals
from agent.encoders import PrimaryEncoderStage
from agent.errors import CheckpointMismatch
from agent.features import FrameFeatures
from agent.frame import Frame, frame_from_rgb
from agent.model.checkpoint import load_model, save_additions
from agent.model.configuration import DaViTConfig, RegionConfig, VLMFO1Config, llava_config
from agent.model.positions import SlotType
from agent.model.vlm_fo1 import VLMFO1, Part
from agent.model_directory import find_model
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from agent.stages import LocalStages
from agent.tokenizer import with_control_tokens
from tests.unit.tiny_model import tiny_tokenizer

SIDE = 48
BOXES = np.array([[4, 6, 60, 50], [30, 20, 95, 70], [0, 0, 100, 80]], dtype=np.float32)
DAVIT = DaViTConfig((1, 1, 1, 1), (8, 16, 16, 24), (1, 2, 2, 2), 4)
DETECT = replace(Task.detect("dog"), max_new_tokens=12)


@pytest.fixture(scope="module")
def frame() -> Frame:
    rgb = np.random.default_rng(8).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    return frame_from_rgb(rgb)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
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


@pytest.fixture(scope="module")
def folder(published, tmp_path_factory) -> Path:
    """The same with regions: what is added is random, too."""
    directory = tmp_path_factory.mktemp("with regions")
    torch.manual_seed(0)
    save_additions(VLMFO1(llava_config(published, davit=DAVIT)), directory)
    return directory


@pytest.fixture(scope="module")
def stages(folder):
    made = LocalStages.from_pretrained(str(folder), dtype="float32", max_batch_frames=4)
    yield made
    made.close()


def pipeline(stages) -> Pipeline:
    return Pipeline(stages, MemoryRegionCache(), model_digest="llava")


async def features_of(stages, frame, boxes) -> FrameFeatures:
    features, _ = await pipeline(stages).features(frame, boxes=boxes)
    return features


async def test_it_is_read_as_its_own_code_reads_it(stages, published, frame):
    """Without regions, the logits are the family's own."""
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(published)
    features = await features_of(stages, frame, np.zeros((0, 4), dtype=np.float32))
    stage = stages.language
    builder = stage._builder
    prefix = builder.prefix(features.grid, 0)
    question = builder.question("Where is the dog?", start=prefix.next_position)
    ids = torch.cat([prefix.ids, question.ids])
    is_text = torch.cat([prefix.slots, question.slots]) == SlotType.TEXT
    text = stage._tokenizer.decode(ids[is_text].tolist())
    assert text == "<|im_start|>user \nWhere is the dog?<|im_end|><|im_start|>assistant\n"
    ids = torch.where(is_text, ids, model.config.image_token_id)
    processor = LlavaOnevisionImageProcessorPil.from_pretrained(published)
    with torch.inference_mode():
        inputs = processor(images=[frame.rgb()], return_tensors="pt")
        own = model(input_ids=ids[None], **inputs).logits[0]
        language = stage._language
        embedded = [stage._input(prefix, features).embedded(language), language.embed(question.ids)]
        positions = torch.cat([prefix.positions, question.positions], dim=1)[:, None]
        ours = language.logits(language(torch.cat(embedded)[None], positions))[0]
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)


async def test_levels_lie_as_the_picture_does(folder):
    """A change in one corner of the picture changes the pooled levels most there."""
    rgb = np.full((80, 100, 3), 128, dtype=np.uint8)
    changed = rgb.copy()
    changed[:20, 75:] = 255
    stage = PrimaryEncoderStage.from_pretrained(str(folder))
    before, after = stage.start([frame_from_rgb(rgb), frame_from_rgb(changed)])
    difference = (after.maps.levels[0] - before.maps.levels[0]).abs().sum(1)[0]
    row, column = divmod(int(difference.argmax()), difference.shape[1])
    cells = SIDE // 8
    assert difference.shape == (cells, cells)
    assert row < cells // 2 <= column
    assert len(after.maps.levels) == 4
    np.testing.assert_allclose(after.geometry.primary_boxes(np.array([[0, 0, 100, 80]])),
                               [[0, 0, SIDE, SIDE]])  # fmt: skip


async def test_several_questions_about_given_boxes(stages, frame):
    asked = [DETECT, replace(Task.detect("cat"), max_new_tokens=12)]
    grounding = pipeline(stages)
    first = await grounding.ground(frame, asked, boxes=BOXES)
    again = await grounding.ground(frame, asked, boxes=BOXES)
    assert again.cache_hit
    assert [answer.text for answer in again.answers] == [answer.text for answer in first.answers]
    assert all(answer.text for answer in first.answers)
    assert all(answer.num_prefix_tokens_reused > len(BOXES) for answer in again.answers)


async def test_more_boxes_than_a_prompt_holds_are_paged(stages, frame):
    many = np.repeat(BOXES, 50, axis=0)
    found = await pipeline(stages).ground(frame, [DETECT], boxes=many)
    assert found.answers[0].num_proposals == 150


async def test_regions_are_pooled_relative_to_the_squashed_picture(stages, frame, folder):
    features = await features_of(stages, frame, BOXES)
    config = VLMFO1Config.from_file(folder / "config.json")
    assert features.primary_regions.shape == (3, config.primary_region_width) == (3, 64)
    assert features.auxiliary_regions.shape == (3, 64)
    assert features.grid == (1, len(features.image_tokens))


def test_its_names_as_first_published_and_as_of_today_are_one(published, folder, tmp_path):
    state = load_file(published / "model.safetensors")
    assert any(key.startswith("language_model.model.") for key in state)
    today = {}
    for key, value in state.items():
        if key.startswith("language_model.model."):
            key = key.replace("language_model.model.", "model.language_model.")
        elif key.startswith("language_model.lm_head."):
            key = key.removeprefix("language_model.")
        else:
            key = f"model.{key}"
        today[key.replace("vision_tower.", "vision_tower.vision_model.")] = value
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        (renamed / name).write_text((published / name).read_text())
    save_file(today, renamed / "model.safetensors")
    text = (folder / "config.json").read_text().replace(str(published), "../renamed")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(text)
    (tmp_path / "mine" / "additions.safetensors").symlink_to(folder / "additions.safetensors")
    first, second = (load_model(d).state_dict() for d in (folder, tmp_path / "mine"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_parts_load_alone(folder):
    primary = load_model(folder, parts=frozenset({Part.PRIMARY}))
    assert primary.language_model is None
    assert primary.primary_encoder is not None
    language = load_model(folder, parts=frozenset({Part.LANGUAGE}), dtype=torch.bfloat16)
    assert language.primary_encoder is None
    assert language.language_model.model.norm.weight.dtype == torch.bfloat16


def test_wrong_folders_are_named(published, folder, tmp_path):
    with pytest.raises(CheckpointMismatch, match="does not exist"):
        llava_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointMismatch, match="no LLaVA-OneVision"):
        llava_config(tmp_path)
    text = (folder / "config.json").read_text().replace(str(published), "nowhere")
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "additions.safetensors").symlink_to(folder / "additions.safetensors")
    with pytest.raises(CheckpointMismatch, match="'nowhere' is no folder"):
        load_model(tmp_path)
    config = llava_config(published, davit=DAVIT, region=RegionConfig(use_feature_pyramid=False))
    wrong = replace(config, region_projector="linear")
    directory = tmp_path / "wrong"
    save_additions(VLMFO1(wrong), directory)
    path = directory / "config.json"
    path.write_text(path.read_text().replace('"linear"', '"mlp2x_gelu"'))
    with pytest.raises(CheckpointMismatch, match=r"region_projector\.0"):
        load_model(directory)


def test_tokens_without_rows_are_refused(published, folder, tmp_path):
    for name in ("config.json", "additions.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.add_tokens(["<one more>"])
    tokenizer.save(tmp_path)
    with pytest.raises(CheckpointMismatch, match="add rows for them"):
        LocalStages.from_pretrained(str(tmp_path))


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


async def test_frames_that_come_together_are_as_alone(folder, frame):
    stage = PrimaryEncoderStage.from_pretrained(str(folder))
    other = frame_from_rgb(np.ascontiguousarray(frame.rgb()[:, ::-1]))
    proposals = Proposals(BOXES, np.ones(3))
    together = stage.start([frame, other])
    for one, started in zip((frame, other), together, strict=True):
        (alone,) = stage.start([one])
        np.testing.assert_allclose(
            stage.pool(started, proposals).regions, stage.pool(alone, proposals).regions, atol=1e-5
        )


def test_the_base_is_part_of_the_digest(published, folder, tmp_path):
    before = find_model(str(folder)).digest
    moved = tmp_path / "base"
    shutil.copytree(published, moved)
    (tmp_path / "mine").mkdir()
    text = (folder / "config.json").read_text().replace(str(published), "../base")
    (tmp_path / "mine" / "config.json").write_text(text)
    first = find_model(str(tmp_path / "mine")).digest
    (moved / "preprocessor_config.json").write_text("{}")
    assert len({before, first, find_model(str(tmp_path / "mine")).digest}) == 3
