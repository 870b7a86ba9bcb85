"""The language stage: region tokens, prefill once per frame, greedy decoding per question.

The keys and values of a frame's prefix (system turn, image, regions) are kept under a byte
budget and shared by all questions about the frame. Knows neither pixels nor boxes' meaning.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from agent.errors import InvalidQuery
from agent.features import FrameFeatures, Generation
from agent.model.checkpoint import load_model, weight_type
from agent.model.language_model import LanguageModel, SlotType
from agent.model.vlm_fo1 import VLMFO1, Part
from agent.model_directory import find_model
from agent.processor import ImageGeometry
from agent.prompts import Task
from agent.sequence import Sequence, SequenceBuilder
from agent.tokenizer import PromptTokenizer

_TEXT_ONLY = "text only"
DEFAULT_PREFIX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a frame's prompt up to the question."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """(key, value) of each layer, (1, heads, length, head width)."""
    next_position: int

    @property
    def length(self) -> int:
        """Tokens in the prefix."""
        return int(self.layers[0][0].shape[2])

    @property
    def num_bytes(self) -> int:
        """Memory the prefix holds."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer)

    def cache(self) -> DynamicCache:
        """A cache that starts from this prefix; extending it leaves the prefix as it is."""
        cache = DynamicCache()
        for index, (key, value) in enumerate(self.layers):
            cache.update(key, value, index)
        return cache


class PrefixCache:
    """Prefixes of recent frames, least recently used out first, within a byte budget."""

    def __init__(self, budget_bytes: int = DEFAULT_PREFIX_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[str, Prefix] = OrderedDict()

    def get(self, key: str) -> Prefix | None:
        """The prefix of a frame, if it is still there."""
        prefix = self._entries.get(key) if key else None
        if prefix is None:
            self.misses += 1
            return None
        self._entries.move_to_end(key)
        self.hits += 1
        return prefix

    def put(self, key: str, prefix: Prefix) -> None:
        """Keep a prefix; older ones make room. One larger than the budget is not kept."""
        if not key or prefix.num_bytes > self.budget_bytes or key in self._entries:
            return
        self._entries[key] = prefix
        self.num_bytes += prefix.num_bytes
        while self.num_bytes > self.budget_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.num_bytes


class LanguageStage:
    """Answers questions about frames whose features are known."""

    def __init__(
        self,
        model: VLMFO1,
        tokenizer: PromptTokenizer,
        *,
        device: str = "cpu",
        prefix_bytes: int = DEFAULT_PREFIX_BYTES,
    ) -> None:
        assert model.language_model is not None
        self._model = model
        self._language: LanguageModel = model.language_model
        self._tokenizer = tokenizer
        self._builder = SequenceBuilder(tokenizer)
        self._device = device
        self._lock = threading.Lock()
        self.prefixes = PrefixCache(prefix_bytes)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        device: str = "cpu",
        num_threads: int | None = None,
        dtype: str = "auto",
        prefix_bytes: int = DEFAULT_PREFIX_BYTES,
    ) -> LanguageStage:
        """The language part of a model directory.

        Raises:
            CheckpointMismatch: files are missing or do not fit.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        directory = find_model(model).path
        loaded = load_model(
            directory,
            parts=frozenset({Part.LANGUAGE}),
            device=device,
            dtype=weight_type(dtype, device),
        )
        tokenizer = PromptTokenizer.from_directory(directory)
        return cls(loaded, tokenizer, device=device, prefix_bytes=prefix_bytes)

    @torch.inference_mode()
    def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """Greedy decoding of one question; safe to call from several threads.

        Without features there is no image: a conversation in words.

        Raises:
            InvalidQuery: prompt and answer together exceed what the model can read.
        """
        key = _TEXT_ONLY if features is None else features.key
        with self._lock:
            prefix = self.prefixes.get(key)
            reused = prefix.length if prefix is not None else 0
            passes = 0
            if prefix is None:
                prefix = self._prefill(features)
                self.prefixes.put(key, prefix)
                passes += 1
            question = self._builder.question(
                task.text,
                start=prefix.next_position,
                history=task.history,
                after_image=features is not None,
            )
            self._check_length(prefix.length + len(question), task)
            ids, probabilities, truncated = self._decode(prefix, question, task.max_new_tokens)
        return Generation(
            pieces=self._pieces(ids),
            probabilities=tuple(probabilities),
            truncated=truncated,
            num_prompt_tokens=prefix.length + len(question),
            num_prefix_tokens_reused=reused,
            num_passes=passes + len(ids) + (0 if truncated else 1),
        )

    def _check_length(self, num_prompt_tokens: int, task: Task) -> None:
        """The published code cuts a long prompt and goes on with positions of the whole one."""
        limit = int(self._language.config.max_position_embeddings)
        if num_prompt_tokens + task.max_new_tokens > limit:
            raise InvalidQuery(
                f"the prompt has {num_prompt_tokens} tokens and the answer may have "
                f"{task.max_new_tokens}; the model reads {limit}: shorten the question or its "
                "history, or ask about fewer boxes"
            )

    def _prefill(self, features: FrameFeatures | None) -> Prefix:
        """The frame's prefix; a page of many boxes continues from the image all pages share."""
        if features is None or not features.image_key:
            return self._run_prefix(self._whole(features), features, None)
        key = f"{features.image_key}/image"
        image = self.prefixes.get(key)
        if image is None:
            grid = self._geometry(features).merged_grid
            image = self._run_prefix(self._builder.prefix(grid, 0), features, None)
            self.prefixes.put(key, image)
        page = self._builder.regions(len(features.proposals), start=image.next_position)
        return self._run_prefix(page, features, image)

    def _whole(self, features: FrameFeatures | None) -> Sequence:
        if features is None:
            return self._builder.prefix(None, 0)
        grid = self._geometry(features).merged_grid
        return self._builder.prefix(grid, len(features.proposals))

    def _geometry(self, features: FrameFeatures) -> ImageGeometry:
        return ImageGeometry.of(features.width, features.height, self._model.config)

    def _run_prefix(
        self, sequence: Sequence, features: FrameFeatures | None, before: Prefix | None
    ) -> Prefix:
        """Keys and values of `sequence` (after those of `before`, if given)."""
        cache = DynamicCache() if before is None else before.cache()
        embeddings = self._embedded(sequence, features)
        positions = sequence.positions[:, None].to(self._device)
        self._language(embeddings[None], positions, cache=cache)
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        return Prefix(layers, sequence.next_position)

    def _embedded(self, sequence: Sequence, features: FrameFeatures | None) -> Tensor:
        """(length, hidden) with image and region slots filled."""
        model, device = self._model, self._device
        embeddings = self._language.embed(sequence.ids.to(device))
        if features is None:
            return embeddings
        image, region = (sequence.slots == kind for kind in (SlotType.IMAGE, SlotType.REGION))
        if image.any():
            tokens = _tensor(features.image_tokens, device).to(embeddings.dtype)
            embeddings[image] = model.image_projector(tokens).to(embeddings.dtype)
        if region.any():
            boxes = self._geometry(features).normalised_boxes(
                features.proposals.xyxy, model.config.region
            )
            tokens = model.region_tokens(
                _tensor(features.primary_regions, device),
                _tensor(features.auxiliary_regions, device),
                _tensor(boxes, device),
            )
            embeddings[region] = tokens.to(embeddings.dtype)
        return embeddings

    def _decode(
        self, prefix: Prefix, question: Sequence, max_new_tokens: int
    ) -> tuple[list[int], list[float], bool]:
        """(ids without the end token, their probabilities, whether the budget ran out)."""
        cache = prefix.cache()
        embeddings = self._language.embed(question.ids.to(self._device))[None]
        positions = question.positions[:, None].to(self._device)
        position = question.next_position
        ids: list[int] = []
        probabilities: list[float] = []
        while True:
            hidden = self._language(embeddings, positions, cache=cache)
            distribution = self._language.logits(hidden[0, -1]).float().softmax(-1)
            token = int(distribution.argmax())
            if token == self._builder.end_of_turn:
                return ids, probabilities, False
            if len(ids) == max_new_tokens:
                return ids, probabilities, True
            ids.append(token)
            probabilities.append(float(distribution[token]))
            embeddings = self._language.embed(torch.tensor([[token]], device=self._device))
            positions = torch.full((3, 1, 1), position, device=self._device)
            position += 1

    def _pieces(self, ids: list[int]) -> tuple[str, ...]:
        """Text of each token; a character whose bytes span tokens belongs to the last of them."""
        pieces, written = [], ""
        for count in range(1, len(ids) + 1):
            text = self._tokenizer.decode(ids[:count])
            complete = "" if text.endswith("�") else text[len(written) :]
            pieces.append(complete)
            written += complete
        return tuple(pieces)


def _tensor(array: object, device: str) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32, device=device)
