"""The published two-turn protocol: arithmetic, parsing, and the whole path on a tiny model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers import decoders as token_decoders
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from agent.crops import TOKEN_PX
from agent.ergo import ErgoZoom
from agent.ergo_protocol import (
    BoxStatus,
    Resized,
    first_question,
    parse_box,
    parse_reply,
    parse_thought,
    published_box,
    second_question,
    smart_size,
)
from agent.errors import CheckpointMismatch
from agent.frame import frame_from_rgb
from agent.prompts import Task
from agent.zoom_policy import Zoom, ZoomPolicy
from groundstream.errors import InvalidQuery

ALWAYS = Zoom(ZoomPolicy.ALWAYS)
BIG = Resized.within(3840, 2160)
SMALLER = Resized.within(3840, 2160, at_most=True)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((3840, 2160), (1344, 756)),  # 48 x 27 tokens: 16 more than 1,280
        ((2160, 3840), (756, 1344)),
        ((1920, 1080), (1344, 756)),
        ((640, 480), (644, 476)),  # within the budget: rounded only
        ((20, 20), (56, 56)),  # grown to four tokens
        ((30, 300), (28, 308)),
    ],
)
def test_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert smart_size(*size) == expected


@given(width=st.integers(1, 10_000), height=st.integers(1, 10_000), budget=st.integers(4, 2000))
@example(width=1, height=2, budget=4)  # grown to 2 x 3 tokens, were it not cut
@example(width=1, height=10_000, budget=4)
def test_sizes_are_whole_tokens_within_the_budget(width: int, height: int, budget: int) -> None:
    w, h = smart_size(width, height, max_tokens=budget, at_most=True)
    assert (w % TOKEN_PX, h % TOKEN_PX) == (0, 0)
    assert w * h <= budget * TOKEN_PX**2
    assert min(w, h) >= TOKEN_PX


@pytest.mark.parametrize(
    ("reply", "window", "status"),
    [
        ("<think>a</think><zoom>[0, 0, 658, 378]</zoom>", (0, 0, 1920, 1080), BoxStatus.OK),
        ("<zoom> [658,378,1316,756] </zoom>", (1920, 1080, 3840, 2160), BoxStatus.OK),
        ("<zoom>[100.5, 100, 200, 200.5]</zoom>", (293, 285, 583, 572), BoxStatus.OK),
        ("<zoom>[658, 378, 0, 0]</zoom>", (0, 0, 1920, 1080), BoxStatus.MENDED),  # reversed
        ("<zoom>[-50, 0, 658, 9999]</zoom>", (0, 0, 1920, 2160), BoxStatus.MENDED),  # beyond
        ("<zoom>[658, 378, 658, 378]</zoom>", (1906, 1066, 1934, 1094), BoxStatus.MENDED),  # empty
        ("<zoom>[1316, 0, 1400, 50]</zoom>", (0, 0, 3840, 2160), BoxStatus.OUTSIDE),
        ("<zoom>[-9, -9, -1, -1]</zoom>", (0, 0, 3840, 2160), BoxStatus.OUTSIDE),
        ("I see everything.", (0, 0, 3840, 2160), BoxStatus.MISSING),
        ("<zoom>[1, 2, 3]</zoom>", (0, 0, 3840, 2160), BoxStatus.MISSING),
        ("<zoom>somewhere</zoom>", (0, 0, 3840, 2160), BoxStatus.MISSING),
        ("[1, 2, 300, 400]", (0, 0, 3840, 2160), BoxStatus.MISSING),  # not where it belongs
        ("<zoom>[0, 0, 9, 9], [0, 0, 658, 378]</zoom>", (0, 0, 1920, 1080), BoxStatus.OK),
        ("<zoom>[0,0,9,9]</zoom> no, <zoom>[0,0,658,378]</zoom>", (0, 0, 1920, 1080), BoxStatus.OK),
        ("<zoom>[0, 0, 658, 378]", (0, 0, 1920, 1080), BoxStatus.OK),  # cut off
    ],
)
def test_boxes(reply: str, window: tuple[int, ...], status: BoxStatus) -> None:
    assert parse_box(reply, SMALLER) == (window, status)


@given(
    numbers=st.lists(st.integers(-5000, 5000), min_size=4, max_size=4),
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
)
def test_any_box_is_a_window_of_the_original(numbers: list[int], width: int, height: int) -> None:
    (x1, y1, x2, y2), _ = parse_box(f"<zoom>{numbers}</zoom>", Resized.within(width, height))
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height


def test_a_promised_budget_is_kept() -> None:
    assert smart_size(3840, 2160, at_most=True) == (1316, 756)


WHOLE = (0, 0, 3840, 2160)


@pytest.mark.parametrize(
    ("reply", "window", "status"),
    [
        ("<think>a</think><zoom>[0, 0, 672, 378]</zoom>", (0, 0, 1920, 1080), BoxStatus.OK),
        ("<zoom> \n[672,378,1344,756] </zoom>", (1920, 1080, 3840, 2160), BoxStatus.OK),
        ("<zoom>here: [0, 0, 672, 378]</zoom>", (0, 0, 1920, 1080), BoxStatus.OK),
        ("<zoom>[0, 0, 672, 9999]</zoom>", (0, 0, 1920, 2160), BoxStatus.OK),
        ("<zoom>[0, 0, 2, 378]</zoom>", (0, 0, 5, 1080), BoxStatus.OK),  # thin, not widened
        ("<zoom>[0, 0, 9, 9], [0, 0, 672, 378]</zoom>", WHOLE, BoxStatus.MISSING),
        ("<zoom>[0,0,9,9]</zoom><zoom>[0,0,672,378]</zoom>", (0, 0, 25, 25), BoxStatus.OK),
        ("<zoom>[0, 0, 672, 378]", WHOLE, BoxStatus.MISSING),
        ("<zoom>[0.5, 0, 672, 378]</zoom>", WHOLE, BoxStatus.MISSING),
        ("<zoom>[-5, 0, 672, 378]</zoom>", WHOLE, BoxStatus.MISSING),
        ("<zoom>[672, 378, 0, 0]</zoom>", (0, 0, 1920, 1080), BoxStatus.MENDED),  # fails there
    ],
)
def test_boxes_by_the_released_rules(
    reply: str, window: tuple[int, ...], status: BoxStatus
) -> None:
    assert published_box(reply, BIG) == (window, status)


@given(st.text(max_size=200))
def test_any_reply_is_read(reply: str) -> None:
    parse_box(reply, BIG)
    parse_thought(reply)
    parse_reply(reply)


@pytest.mark.parametrize(
    ("reply", "thought", "answer"),
    [
        ("<think>red</think><answer>B</answer>", "red", "B"),
        ("<think>red<think><answer> B </answer>", "red", "B"),  # as the prompt writes it
        ("<answer>A</answer> no: <answer>B</answer>", "", "B"),
        ("<answer>B", "", "B"),
        ("The answer is B", "", "The answer is B"),
        ("<think>only thoughts", "only thoughts", ""),
    ],
)
def test_replies(reply: str, thought: str, answer: str) -> None:
    assert (parse_thought(reply), parse_reply(reply)) == (thought, answer)


def test_questions_keep_the_users_braces() -> None:
    assert first_question("{x} {question}?").startswith("{x} {question}? First, consider")
    assert first_question("Which? (A) red (B) blue").startswith("Which? First, consider")
    assert first_question("Which? \n(A) red\n(B) blue").startswith("Which?  First, consider")
    assert first_question("Which?\nA:red\nB:blue").startswith("Which? First, consider")
    assert first_question("Line\nbreaks\n stay\n").startswith("Line\nbreaks\n stay\n First, co")
    assert second_question("Why?\n(A) x\n(B) y\n").startswith("Why?\n(A) x\n(B) y\n\nCarefully")
    assert second_question("Why?").startswith("Why?\nCarefully analyze both")


# ---- the whole path ----


def tiny_tokenizer() -> Tokenizer:
    """Bytes as tokens, and the control tokens of Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = token_decoders.ByteLevel()
    control = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in control])
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """A random Qwen2.5-VL of a few thousand weights."""
    torch.manual_seed(0)
    ids = {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
            "out_hidden_size": 32, "window_size": 56, "fullatt_block_indexes": [1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).eval()


class Scripted(ErgoZoom):
    """The model runs as it would; the first turn's reply is replaced by a given one."""

    reply = "<think>there</think><zoom>[0, 0, 56, 56]</zoom>"

    def _write(self, turns, task, limit_s=None):  # type: ignore[no-untyped-def]
        self.seen = [picture for picture, _, _ in turns]
        self.turns = turns
        written = super()._write(turns, task, limit_s)
        return self.reply if len(turns) == 1 else written


def picture():  # type: ignore[no-untyped-def]
    """A grey frame of 448 x 224 whose upper left is red."""
    rgb = np.full((224, 448, 3), 90, dtype=np.uint8)
    rgb[:112, :112] = (250, 10, 10)
    return frame_from_rgb(rgb, jpeg_quality=None)


QUESTION = Task.chat("What is there?")


def short(task: Task) -> Task:
    return replace(task, max_new_tokens=4)


async def test_two_turns_through_a_tiny_model(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer
) -> None:
    zoomer = Scripted(model, tokenizer, max_tokens=32)  # shown at 224 x 112
    first, last = [r async for r in zoomer.look(picture(), [short(QUESTION)], ALWAYS)]
    assert (first.number, first.final, first.grounding.answers[0].thought) == (0, False, "there")
    assert (last.number, last.final, last.cut_short) == (1, True, False)
    (crop,) = last.crops
    assert crop.box == (0, 0, 112, 112)  # of the original, at twice the size
    shown, detail = zoomer.seen
    assert shown.shape == (112, 224, 3)
    assert detail.shape[0] * detail.shape[1] <= 32 * TOKEN_PX**2
    assert detail.mean(axis=(0, 1)) == pytest.approx((250, 10, 10), abs=2)
    assert first.vision_tokens == 32
    assert last.vision_tokens == 32 + 16
    assert zoomer.turns[0][2] == Scripted.reply  # the second turn remembers the first


async def test_a_random_model_says_no_box_and_sees_the_whole_picture_again(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer
) -> None:
    zoomer = ErgoZoom(model, tokenizer, max_tokens=32)
    *_, last = [r async for r in zoomer.look(picture(), [short(QUESTION)], ALWAYS)]
    assert last.crops[0].box == (0, 0, 448, 224)
    # As the released code has it: the original, unreduced.
    assert last.crops[0].place == (0, 0, 448, 224)
    lenient = ErgoZoom(model, tokenizer, max_tokens=32, exact=False)
    *_, last = [r async for r in lenient.look(picture(), [short(QUESTION)], ALWAYS)]
    assert last.crops[0].place == (0, 0, 224, 112)


async def test_what_the_model_sees_decides_its_words(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer
) -> None:
    zoomer = ErgoZoom(model, tokenizer, max_tokens=32)
    text = "<|vision_start|>" + "<|image_pad|>" * 32 + "<|vision_end|>x"
    pictures = [np.full((112, 224, 3), level, dtype=np.uint8) for level in (10, 240)]
    dark, bright = (model(**zoomer._inputs(text, [p])).logits[0, -1] for p in pictures)
    assert not torch.allclose(dark, bright)


async def test_budget_and_policy(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer
) -> None:
    zoomer = Scripted(model, tokenizer, max_tokens=32)
    hurried = Zoom(ZoomPolicy.ALWAYS, budget_s=0.0)
    first, last = [r async for r in zoomer.look(picture(), [short(QUESTION)], hurried)]
    assert (last.cut_short, last.final) == (True, True)
    assert last.grounding.answers == first.grounding.answers
    off = [r async for r in zoomer.look(picture(), [short(QUESTION)], Zoom(ZoomPolicy.OFF))]
    assert [(r.final, r.crops) for r in off] == [(True, ())]
    few = Zoom(ZoomPolicy.ALWAYS, vision_tokens=4)
    *_, last = [r async for r in zoomer.look(picture(), [short(QUESTION)], few)]
    assert last.vision_tokens == 32 + 4


async def test_other_questions_are_refused(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer
) -> None:
    with pytest.raises(InvalidQuery, match="one CHAT or REASON question"):
        [r async for r in ErgoZoom(model, tokenizer).look(picture(), [Task.detect("dog")], ALWAYS)]


async def test_a_saved_folder_is_loaded(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CheckpointMismatch, match=r"tokenizer\.json"):
        ErgoZoom.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = ErgoZoom.from_pretrained(tmp_path, dtype=torch.float32)
    texts = [
        [r async for r in zoomer.look(picture(), [short(QUESTION)], ALWAYS)][-1]
        .grounding.answers[0]
        .text
        for zoomer in (ErgoZoom(model, tokenizer), again)
    ]
    assert texts[0] == texts[1]
