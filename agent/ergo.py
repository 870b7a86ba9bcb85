"""ERGO as published: a stock Qwen2.5-VL asked in two turns, through transformers.

For the released checkpoint (nota-ai/ERGO-7B) or any Qwen2.5-VL folder; VLM-FO1 zooms by regions
instead (`agent.zoom`). Answers are words; there are no boxes to ground but the crop itself.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLForConditionalGeneration

from agent.crops import Crop, Window, vision_tokens
from agent.detections import Proposals
from agent.ergo_protocol import (
    DEFAULT_TOKENS,
    MOST_TOKENS,
    SYSTEM_PROMPT,
    BoxStatus,
    Resized,
    first_question,
    parse_box,
    parse_reply,
    parse_thought,
    published_box,
    second_question,
)
from agent.errors import CheckpointMismatch
from agent.features import StageTimings
from agent.frame import Frame, RGBArray
from agent.hub import HubName, local_or_fetched
from agent.model.checkpoint import weight_type
from agent.model.int8 import quantise_layers
from agent.model.vlm_fo1 import Part
from agent.model_directory import EMBEDDED
from agent.parsing import Answer, AnswerStatus
from agent.pipeline import Grounding
from agent.processor import CLIP_MEAN, CLIP_STD, normalise, patchify
from agent.prompts import Task, TaskKind
from agent.revisions import Revision
from agent.zoom_policy import Zoom, ZoomPolicy
from groundstream.errors import InvalidQuery

_TURN = "<|im_start|>{role}\n{content}<|im_end|>\n"
_IMAGE = "<|vision_start|>{slots}<|vision_end|>"
_SLOT = "<|image_pad|>"
_END = "<|im_end|>"
_STOCK = "qwen2_5_vl"
_WORDS = frozenset({TaskKind.CHAT, TaskKind.REASON})


class ErgoZoom:
    """A `Zoomer` over a Qwen2.5-VL; one question at a time."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        tokenizer: Tokenizer,
        *,
        max_tokens: int = DEFAULT_TOKENS,
        exact: bool = True,
    ) -> None:
        """Join a model and its tokenizer.

        Args:
            model: the checkpoint.
            tokenizer: with Qwen's control tokens.
            max_tokens: of the reduced picture, and of the crop unless a call says less.
            exact: read boxes as the released code does, which shows the original unreduced where it
                finds none; else of several boxes the last holds, and so on (docs/zoom.md).

        Raises:
            CheckpointMismatch: the tokenizer lacks a control token.
        """
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._exact = exact
        self._patch = int(model.config.vision_config.patch_size)
        self._end, self._slot = (self._id(token) for token in (_END, _SLOT))

    @classmethod
    def from_pretrained(
        cls, directory: Path, *, dtype: torch.dtype | str = "auto", device: str = "cpu"
    ) -> ErgoZoom:
        """A folder with a Qwen2.5-VL checkpoint and its `tokenizer.json`.

        Args:
            directory: the folder.
            dtype: of all weights; in words as in the settings, where `auto` is the language
                model's: the eyes are a small part.
            device: where it computes.

        Raises:
            CheckpointMismatch: the folder is incomplete or holds something else.
        """
        if isinstance(dtype, str):
            dtype = weight_type(dtype, device, Part.LANGUAGE) or torch.bfloat16
        is_int8 = dtype is torch.int8
        if is_int8:
            dtype = weight_type("auto", device, Part.LANGUAGE) or torch.bfloat16
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise CheckpointMismatch(f"{path} does not exist; copy the model's tokenizer files")
        try:
            model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                directory, dtype=dtype, local_files_only=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointMismatch(f"{directory} is no Qwen2.5-VL: {error}") from error
        if is_int8:
            quantise_layers(model.model)
        return cls(model.to(device), Tokenizer.from_file(str(path)))

    async def look(
        self, frame: Frame, tasks: Sequence[Task], zoom: Zoom
    ) -> AsyncIterator[Revision]:
        """See `agent.zoom.Zoomer`: where to look, then the answer from both pictures.

        Revision 0 holds what led to the crop, not yet an answer; revision 1 is the answer, cut
        short where the time ran out while it was written. With `ZoomPolicy.OFF` the question is
        asked plainly, about the reduced picture alone.

        Raises:
            InvalidQuery: not one question in words.
        """
        if len(tasks) != 1 or tasks[0].kind not in _WORDS:
            raise InvalidQuery("this protocol answers one CHAT or REASON question at a time")
        (task,) = tasks
        started_s = time.monotonic()
        rgb = await asyncio.to_thread(frame.rgb)
        picture = Resized.within(frame.width, frame.height, self._max_tokens)
        shown = _resized(rgb, picture.whole, Image.Resampling.BICUBIC)
        if zoom.policy is ZoomPolicy.OFF:
            text = await asyncio.to_thread(self._write, [(shown, task.query, None)], task)
            yield _said(task, text, [picture.whole], time.monotonic() - started_s)
            return
        asked = first_question(task.query)
        where = await asyncio.to_thread(self._write, [(shown, asked, None)], task)
        thought = _said(task, where, [picture.whole], time.monotonic() - started_s, final=False)
        yield thought
        left_s = (
            None if zoom.budget_s is None else zoom.budget_s - thought.grounding.timings.total_s
        )
        if left_s is not None and left_s <= 0.0:
            yield replace(thought, number=1, final=True, cut_short=True)
            return
        crop = self._looked_at(where, picture, zoom)
        detail = _resized(rgb, crop, Image.Resampling.LANCZOS)
        turns = [(shown, asked, where), (detail, second_question(task.query), None)]
        text = await asyncio.to_thread(self._write, turns, task, left_s)
        took_s = time.monotonic() - started_s
        answer = _said(task, text, [picture.whole, crop], took_s)
        late = zoom.budget_s is not None and took_s >= zoom.budget_s
        yield replace(answer, number=1, cut_short=late)

    def _looked_at(self, where: str, picture: Resized, zoom: Zoom) -> Crop:
        """The part of the original that the first reply asks for, at the size it is shown at."""
        read = published_box if self._exact else parse_box
        window, status = read(where, picture)
        budget = self._max_tokens
        if self._exact and status is BoxStatus.MISSING:
            budget = MOST_TOKENS
        if zoom.vision_tokens is not None:
            return _shown_at(window, min(zoom.vision_tokens, budget), at_most=True)
        return _shown_at(window, budget)

    def _id(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise CheckpointMismatch(f"the tokenizer lacks {token}; is it Qwen2.5-VL's?")
        return int(number)

    @torch.inference_mode()
    def _write(
        self,
        turns: Sequence[tuple[RGBArray, str, str | None]],
        task: Task,
        limit_s: float | None = None,
    ) -> str:
        """The model's next words after turns of (picture, question, reply or None for the last)."""
        text = _TURN.format(role="system", content=SYSTEM_PROMPT)
        for picture, question, reply in turns:
            slots = _SLOT * vision_tokens(picture.shape[1], picture.shape[0])
            text += _TURN.format(role="user", content=_IMAGE.format(slots=slots) + question)
            if reply is not None:
                text += _TURN.format(role="assistant", content=reply)
        text += "<|im_start|>assistant\n"
        inputs = self._inputs(text, [picture for picture, _, _ in turns])
        written = self._model.generate(
            **inputs,
            max_new_tokens=task.max_new_tokens,
            max_time=limit_s,
            do_sample=False,
            eos_token_id=self._end,
            pad_token_id=self._end,
        )
        ids = written[0, inputs["input_ids"].shape[1] :].tolist()
        return str(self._tokenizer.decode([token for token in ids if token != self._end]))

    def _inputs(self, text: str, pictures: Sequence[RGBArray]) -> dict[str, Any]:
        """What Qwen2.5-VL reads: ids, patches of all pictures, their grids."""
        device = self._model.device
        ids = torch.tensor([self._tokenizer.encode(text, add_special_tokens=False).ids])
        patches, grids = [], []
        for rgb in pictures:
            pixels = normalise(rgb, CLIP_MEAN, CLIP_STD)
            patches.append(patchify(pixels[None], self._patch)[0])
            grids.append([1, rgb.shape[0] // self._patch, rgb.shape[1] // self._patch])
        slots = torch.eq(ids, self._slot)
        return {
            "input_ids": ids.to(device),
            "attention_mask": torch.ones_like(ids).to(device),
            # 1 marks pictures; positions along rows and columns follow from it.
            "mm_token_type_ids": slots.to(torch.int32).to(device),
            "pixel_values": torch.cat(patches).to(device, self._model.dtype),
            "image_grid_thw": torch.tensor(grids, device=device),
        }


def stock_folder(model: str | None) -> Path | None:
    """The folder of a stock Qwen2.5-VL such as ERGO, fetched if it is the hub's; else None.

    Raises:
        ModelNotFetched: the hub does not give the model.
    """
    if model is None or model in EMBEDDED:
        return None
    name = HubName.parse(model)
    folder = Path(model).expanduser() if name is None else local_or_fetched(name)
    try:
        stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # Whoever loads it says what is wrong.
    is_stock = isinstance(stated, dict) and stated.get("model_type") == _STOCK
    return folder if is_stock else None


def _shown_at(window: Window, max_tokens: int, *, at_most: bool = False) -> Crop:
    """A part of the original at the size it is shown at."""
    width, height = window[2] - window[0], window[3] - window[1]
    size = Resized.within(width, height, max_tokens, at_most=at_most)
    return Crop(window, (0, 0, *size.shown))


def _resized(rgb: RGBArray, crop: Crop, how: Image.Resampling) -> RGBArray:
    x1, y1, x2, y2 = crop.box
    part = Image.fromarray(rgb[y1:y2, x1:x2])
    return np.asarray(part.resize(crop.place[2:], how))


def _said(
    task: Task, text: str, seen: Sequence[Crop], total_s: float, *, final: bool = True
) -> Revision:
    """A revision of one answer in words; the first of the pictures seen is the whole frame."""
    answered = parse_reply(text)
    answer = Answer(
        task,
        text,
        reply=answered,
        thought=parse_thought(text),
        status=AnswerStatus.OK if answered else AnswerStatus.UNSURE,
        num_passes=1,
    )
    grounding = Grounding((answer,), Proposals(), False, StageTimings(total_s=total_s))
    tokens = sum(vision_tokens(*crop.place[2:]) for crop in seen)
    return Revision(0, grounding, ((),), tuple(seen[1:]), tokens, final)
