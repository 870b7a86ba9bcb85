"""The language stage: region tokens, prefill once per frame, greedy decoding per question.

The keys and values of a frame's prefix (system turn, image, regions) are kept under a byte
budget and shared by all questions about the frame. Knows neither pixels nor boxes' meaning.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from agent.features import FrameFeatures, Generation
from agent.model.checkpoint import load_model
from agent.model.language_model import LanguageModel, SlotType
from agent.model.vlm_fo1 import VLMFO1, Part
from agent.model_directory import find_model
from agent.processor import ImageGeometry
from agent.prompts import Task
from agent.sequence import Sequence, SequenceBuilder
from agent.tokenizer import PromptTokenizer

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
        prefix_bytes: int = DEFAULT_PREFIX_BYTES,
    ) -> LanguageStage:
        """The language part of a model directory.

        Raises:
            CheckpointMismatch: files are missing or do not fit.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        directory = find_model(model).path
        loaded = load_model(directory, parts=frozenset({Part.LANGUAGE}), device=device)
        tokenizer = PromptTokenizer.from_directory(directory)
        return cls(loaded, tokenizer, device=device, prefix_bytes=prefix_bytes)

    @torch.inference_mode()
    def answer(
        self, features: FrameFeatures, task: Task, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Greedy decoding of one question; safe to call from several threads.

        Args:
            features: the frame.
            task: the question.
            on_text: told what is written while it is written, in this thread.
        """
        with self._lock:
            prefix = self.prefixes.get(features.key)
            reused = prefix.length if prefix is not None else 0
            passes = 0
            if prefix is None:
                prefix = self._prefill(features)
                self.prefixes.put(features.key, prefix)
                passes += 1
            question = self._builder.question(task.text, start=prefix.next_position)
            ids, probabilities, truncated = self._decode(
                prefix, question, task.max_new_tokens, self._teller(on_text)
            )
        return Generation(
            pieces=self._pieces(ids),
            probabilities=tuple(probabilities),
            truncated=truncated,
            num_prompt_tokens=prefix.length + len(question),
            num_prefix_tokens_reused=reused,
            num_passes=passes + len(ids) + (0 if truncated else 1),
        )

    def _prefill(self, features: FrameFeatures) -> Prefix:
        model, device = self._model, self._device
        geometry = ImageGeometry.of(features.width, features.height, model.config)
        sequence = self._builder.prefix(geometry.merged_grid, len(features.proposals))
        boxes = geometry.normalised_boxes(features.proposals.xyxy, model.config.region.combination)
        embeddings = self._language.embed(sequence.ids.to(device))
        image = model.image_projector(_tensor(features.image_tokens, device))
        embeddings[sequence.slots == SlotType.IMAGE] = image.to(embeddings.dtype)
        if len(boxes):
            regions = model.region_tokens(
                _tensor(features.primary_regions, device),
                _tensor(features.auxiliary_regions, device),
                _tensor(boxes, device),
            )
            embeddings[sequence.slots == SlotType.REGION] = regions.to(embeddings.dtype)
        cache = DynamicCache()
        self._language(embeddings[None], sequence.positions[:, None].to(device), cache=cache)
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        return Prefix(layers, sequence.next_position)

    def _decode(
        self,
        prefix: Prefix,
        question: Sequence,
        max_new_tokens: int,
        tell: Callable[[list[int]], None],
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
            tell(ids)
            embeddings = self._language.embed(torch.tensor([[token]], device=self._device))
            positions = torch.full((3, 1, 1), position, device=self._device)
            position += 1

    def _teller(self, on_text: Callable[[str], None] | None) -> Callable[[list[int]], None]:
        """Turns the ids so far into the text that is new; half a character waits for the rest."""
        if on_text is None:
            return lambda ids: None
        written = ""

        def tell(ids: list[int]) -> None:
            nonlocal written
            text = self._tokenizer.decode(ids)
            if not text.endswith("\ufffd") and len(text) > len(written):
                on_text(text[len(written) :])
                written = text

        return tell

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
