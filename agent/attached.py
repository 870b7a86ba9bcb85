"""Grounding with any family of vision-language models: frame, boxes and task in, answer out.

The whole path in one process, for families that have an adapter (docs/plug_and_play.md). The
service runs Qwen2.5-VL through its own stages instead. Knows no family by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers.cache_utils import DynamicCache

from agent.detections import FloatArray, Proposals, validate_boxes
from agent.errors import InvalidBoxes
from agent.features import Generation
from agent.frame import Frame, RGBArray
from agent.model.language_model import SlotType
from agent.model.vlm_adapter import AttachedVLM, VisionOutput
from agent.parsing import Answer, parse_answer
from agent.processor import IMAGENET_MEAN, IMAGENET_STD, normalise
from agent.prompts import MAX_REGIONS, Task
from agent.sequence import SequenceDraft
from agent.tokenizer import CONTROL_TOKENS, PromptTokenizer

Prepare = Callable[[RGBArray], dict[str, Tensor]]
"""A family's own image preparation, for one image."""
_MAX_LONG_SIDE = 2048


@dataclass(frozen=True)
class AttachedFeatures:
    """What one frame costs once."""

    vision: VisionOutput
    regions: Tensor
    """(num_boxes, region width), before the connector."""


@dataclass(frozen=True)
class Draft:
    """A sequence: ids (0 where no token stands) and what fills each position."""

    ids: Tensor
    slots: Tensor

    @classmethod
    def of(cls, written: SequenceDraft) -> Draft:
        """As tensors."""
        return cls(torch.tensor(written.ids), torch.tensor(written.kinds))

    def followed_by(self, ids: Tensor) -> Draft:
        """The same with text after it."""
        kinds = torch.full((len(ids),), SlotType.TEXT)
        return Draft(torch.cat([self.ids, ids]), torch.cat([self.slots, kinds]))


class AttachedGrounder:
    """Prepares, asks and reads an `AttachedVLM`."""

    def __init__(
        self,
        model: AttachedVLM,
        tokenizer: PromptTokenizer,
        prepare: Prepare,
        *,
        max_long_side: int = _MAX_LONG_SIDE,
    ) -> None:
        """`max_long_side`: larger frames are scaled down before the auxiliary encoder, pixels."""
        self.model = model
        self.tokenizer = tokenizer
        self._prepare = prepare
        self._max_long_side = max_long_side

    @torch.inference_mode()
    def ground(self, frame: Frame, boxes: FloatArray, task: Task) -> Answer:
        """Greedy answer to one question about a frame and its boxes.

        Args:
            boxes: (n, 4) xyxy pixels of the frame.

        Raises:
            InvalidFrame: the image body cannot be decoded.
            InvalidBoxes: `boxes` are malformed, or more than a prompt can name.
        """
        xyxy = validate_boxes(boxes, width=frame.width, height=frame.height)
        if len(xyxy) > MAX_REGIONS:
            raise InvalidBoxes(f"{len(xyxy)} boxes; a prompt can name {MAX_REGIONS}: send fewer")
        features = self.features(frame, xyxy)
        generation = self.generate(features, task)
        proposals = Proposals(xyxy, np.ones(len(xyxy), dtype=np.float32))
        return parse_answer(task, generation, proposals)

    def features(self, frame: Frame, boxes: FloatArray) -> AttachedFeatures:
        """Both vision towers and the region encoder; `boxes` in pixels of the frame."""
        rgb, device = frame.rgb(), next(self.model.parameters()).device
        inputs = {name: value.to(device) for name, value in self._prepare(rgb).items()}
        vision = self.model.adapter.encode(inputs)
        size = np.array([frame.width, frame.height] * 2, dtype=np.float32)
        relative = torch.from_numpy(np.asarray(boxes / size, dtype=np.float32)).to(device)
        pixels = self._auxiliary_pixels(rgb)[None].to(device)
        return AttachedFeatures(vision, self.model.region_features(vision, pixels, relative))

    def prompt(self, num_image_tokens: int, num_regions: int, question: str) -> Draft:
        """System turn, image, regions and question, up to where the answer begins."""
        words, encode = self.model.adapter.prompt, self.tokenizer.encode
        draft = SequenceDraft().text(encode(words.before_image))
        draft.slots(SlotType.IMAGE, num_image_tokens)
        asked = words.question.replace("{}", question)
        if not num_regions:
            # Nothing stands between image and question, so they share a piece of text.
            return Draft.of(draft.text(encode(words.after_image + asked)))
        draft.text(encode(words.after_image + words.before_regions))
        for index in range(num_regions):
            draft.text([self.tokenizer.region(index)]).slots(SlotType.REGION, 1)
        return Draft.of(draft.text(encode(asked)))

    def embeddings(self, draft: Draft, features: AttachedFeatures) -> Tensor:
        """(1, length, hidden) with image and region slots filled; differentiable."""
        adapter = self.model.adapter
        embedded = adapter.embed(draft.ids.to(features.regions.device))
        fillings = (
            (SlotType.IMAGE, features.vision.image_tokens),
            (SlotType.REGION, self.model.region_tokens(features.regions)),
        )
        for kind, values in fillings:
            here = (draft.slots == kind).to(embedded.device)[:, None]
            embedded = embedded.masked_scatter(here, values.to(embedded.dtype))
        return embedded[None]

    @torch.inference_mode()
    def generate(self, features: AttachedFeatures, task: Task) -> Generation:
        """Greedy decoding of one question about a frame whose features are known."""
        adapter, cache = self.model.adapter, DynamicCache()
        self.tokenizer.check_words(task.query)
        draft = self.prompt(len(features.vision.image_tokens), len(features.regions), task.text)
        positions, following = adapter.positions(draft.slots, features.vision.grid, start=0)
        embedded = self.embeddings(draft, features)
        device, end = embedded.device, self.tokenizer.control(adapter.prompt.end_of_turn)
        ids: list[int] = []
        probabilities: list[float] = []
        truncated = False
        while True:
            hidden = adapter.language(embedded, positions.to(device), cache=cache)
            distribution = adapter.logits(hidden[0, -1]).float().softmax(-1)
            token = int(distribution.argmax())
            if token == end:
                break
            if len(ids) == task.max_new_tokens:
                truncated = True
                break
            ids.append(token)
            probabilities.append(float(distribution[token]))
            embedded = adapter.embed(torch.tensor([[token]], device=device))
            text = torch.tensor([SlotType.TEXT])
            positions, following = adapter.positions(text, None, start=following)
        return Generation(
            pieces=self.tokenizer.pieces(ids),
            probabilities=tuple(probabilities),
            truncated=truncated,
            num_prompt_tokens=len(draft.ids),
            num_prefix_tokens_reused=0,
            num_passes=len(ids) + 1,
        )

    def _auxiliary_pixels(self, rgb: RGBArray) -> Tensor:
        height, width = rgb.shape[:2]
        scale = self._max_long_side / max(height, width)
        if scale < 1.0:
            size = max(1, int(width * scale)), max(1, int(height * scale))
            rgb = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
        return normalise(rgb, IMAGENET_MEAN, IMAGENET_STD)


def with_control_tokens(tokenizer: Tokenizer) -> PromptTokenizer:
    """A family's tokenizer that also knows regions and the answer grammar.

    Tokens it lacks are appended, so that ids it had stay; the model must have rows for them.
    """
    known = tokenizer.get_vocab(with_added_tokens=True)
    lacking = [token for token in CONTROL_TOKENS if token not in known]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in lacking])
    return PromptTokenizer(tokenizer)
