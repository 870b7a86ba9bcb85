"""The language stage: from a frame's features and a question to what the model writes.

Turns features into embeddings, tasks into prompts and guesses, ids into text; the engine decodes.
Knows neither pixels nor what boxes mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from agent.beliefs import NameBeliefs
from agent.class_evidence import ClassEvidence
from agent.descriptions import ANYTHING
from agent.drafting import Drafter
from agent.engine import Engine
from agent.engine_backends import BUILTIN, open_backend
from agent.errors import CheckpointMismatch
from agent.feature_tensors import to_tensor
from agent.features import FrameFeatures, Generation
from agent.generation_request import (
    Completion,
    GenerationEngine,
    PrefixInput,
    PrefixSource,
    QuestionInput,
    Request,
)
from agent.grammar import (
    AnswerGrammar,
    AnswerTokens,
    BoundedAnswerGrammar,
    Grammar,
    meaningless_in_answers,
)
from agent.label_lists import LabelBranch, join_labels
from agent.model.checkpoint import load_model, weight_type
from agent.model.language_model import LanguageModel
from agent.model.positions import SlotType
from agent.model.vlm_fo1 import VLMFO1, Part
from agent.model_directory import find_model
from agent.model_tokenizer import model_tokenizer
from agent.prefix_cache import PrefixCache
from agent.processor import normalised_boxes
from agent.prompts import GROUND_OPEN, MAX_REGIONS, REGION_TOKEN, Task, TaskKind
from agent.region_choice import RegionChoice
from agent.sequence import SequenceBuilder, TokenSequence
from agent.stage_settings import EngineSettings
from agent.tokenizer import PromptTokenizer
from agent.vocabulary import vocabulary
from groundstream.errors import InvalidQuery, Overloaded

T = TypeVar("T")
_TEXT_ONLY = "text only"
_ANSWERS_BY_LABEL = frozenset({TaskKind.DETECT, TaskKind.REFER, TaskKind.COUNT})
"""Tasks whose answers open with the asked label."""


class LanguageStage:
    """Answers questions about frames whose features are known."""

    def __init__(
        self,
        model: VLMFO1,
        tokenizer: PromptTokenizer,
        *,
        device: str = "cpu",
        engine: EngineSettings | None = None,
        backend: GenerationEngine | None = None,
    ) -> None:
        """
        Args:
            model: with its language part; of one that `backend` decodes, the connectors suffice.
            tokenizer: the model's.
            device: where the model is.
            engine: bounds of the builtin engine.
            backend: decodes in place of the builtin engine.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._builder = SequenceBuilder(tokenizer, model.config.language_family)
        self._device = device
        self._tokens = AnswerTokens.of(
            tokenizer, num_regions=MAX_REGIONS, end_of_turn=self._builder.end_of_turn
        )
        self._never = (
            meaningless_in_answers(tokenizer, self._tokens)
            if self._builder.family.prompt.bounds_answers
            else ()
        )
        rules = model.config.rules
        speaks = rules.evidence_share or rules.reads_descriptions or rules.tells_regions
        self._beliefs = NameBeliefs(vocabulary()) if speaks else None
        self.engine = backend or self._builtin(engine or EngineSettings())

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        device: str = "cpu",
        num_threads: int | None = None,
        dtype: str = "auto",
        engine: EngineSettings | None = None,
        as_published: bool = False,
    ) -> LanguageStage:
        """The language part of a model directory; `as_published` as in `load_model`.

        Raises:
            CheckpointMismatch: files are missing or do not fit.
            SettingsError: the engine wanted is not installed, or cannot run this model so.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        directory = find_model(model).path
        settings = engine or EngineSettings()
        is_builtin = settings.backend == BUILTIN
        weights = weight_type(dtype, device, Part.LANGUAGE)
        loaded = load_model(
            directory,
            parts=frozenset({Part.LANGUAGE if is_builtin else Part.CONNECTORS}),
            device=device,
            dtype=weights,
            as_published=as_published,
        )
        tokenizer = model_tokenizer(directory, loaded.config)
        if tokenizer.vocab_size > loaded.config.text.vocab_size:
            raise CheckpointMismatch(
                f"{directory} has embeddings of {loaded.config.text.vocab_size} tokens, but "
                f"control tokens make it {tokenizer.vocab_size}: add rows for them"
            )
        backend = (
            None
            if is_builtin
            else open_backend(settings, directory, loaded.config, device=device, dtype=weights)
        )
        return cls(loaded, tokenizer, device=device, engine=settings, backend=backend)

    def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """Greedy decoding of one question; safe to call from several threads.

        Without features there is no image: a conversation in words.

        Raises:
            InvalidQuery: prompt and answer together exceed what the model can read.
            Overloaded: too many questions wait.
        """
        return self.start(features, task).result()

    def start(
        self,
        features: FrameFeatures | None,
        task: Task,
        on_text: Callable[[str], None] | None = None,
    ) -> Future[Generation]:
        """As `answer`, at once: the answer to come. Cancelling it stops its decoding.

        Args:
            features: the frame.
            task: the question.
            on_text: told what is written while it is written, in the engine's thread.

        Raises:
            Overloaded: too many questions wait.
        """
        if features is not None and self._is_told(task):
            return self._tell(features, task, on_text)
        if self._builder.family.prompt.opens_lists and features is not None and task.labels:
            return self._start_lists(features, task, on_text)
        request = self._request(features, task)
        if on_text is not None:
            request = replace(request, on_ids=self._teller(on_text))
        completion = self.engine.submit(request)
        generation: Future[Generation] = Future()
        generation.add_done_callback(lambda done: done.cancelled() and completion.cancel())
        completion.add_done_callback(lambda done: self._hand_over(done, generation))
        return generation

    def _start_lists(
        self, features: FrameFeatures, task: Task, on_text: Callable[[str], None] | None
    ) -> Future[Generation]:
        """Each label of the question on a branch of its own."""
        self._tokenizer.check_words(task.query)
        tokens, prefix = self._tokens.first(len(features.proposals)), self._source(features)
        choice_of = self._choices(features, task, tokens)
        branches: list[LabelBranch] = []
        try:
            for label in task.labels:
                asked, choice = choice_of(label)
                if told := choice.told():
                    completion = _done(Completion.told(*told))
                else:
                    request = self._list_request(prefix, task, asked, choice)
                    completion = self.engine.submit(request)
                branches.append(LabelBranch(label, completion))
        except Overloaded:
            for branch in branches:
                branch.completion.cancel()
            raise
        return join_labels(branches, self._tokenizer.pieces, on_text)

    def _is_told(self, task: Task) -> bool:
        return self._model.config.rules.tells_regions and task.kind is TaskKind.REGION_CAPTION

    def _tell(
        self, features: FrameFeatures, task: Task, on_text: Callable[[str], None] | None
    ) -> Future[Generation]:
        """What class evidence says of a region; the language model is not asked."""
        assert self._beliefs is not None
        assert task.region is not None
        said = ClassEvidence.of(features, self._beliefs).description(task.region)
        if on_text is not None:
            on_text(said)
        return _done(Generation.told(said))

    def _list_request(
        self, prefix: PrefixSource, task: Task, asked: str, choice: RegionChoice
    ) -> Request:
        def question(start: int) -> QuestionInput:
            opened = self._builder.opened_list(asked, start=start)
            self._check_length(opened.next_position, task)
            return QuestionInput(opened.ids, opened.positions, opened.next_position)

        return Request(
            prefix=prefix,
            question=question,
            end_of_turn=choice.tokens.objects_close,
            max_new_tokens=task.max_new_tokens,
            choice=choice,
            deadline_s=time.monotonic() + task.patience_s,
        )

    def _choices(
        self, features: FrameFeatures, task: Task, tokens: AnswerTokens
    ) -> Callable[[str], tuple[str, RegionChoice]]:
        """From a label to what the language model is asked, and how its regions are chosen."""
        rules, beliefs = self._model.config.rules, self._beliefs
        plain = RegionChoice(tokens, rules.lists_from(task))
        if beliefs is None:
            return lambda label: (self._builder.asked(label), plain)
        evidence = ClassEvidence.of(features, beliefs)

        def choice_of(label: str) -> tuple[str, RegionChoice]:
            meant, choice = rules.understood(task, label), plain
            noun = self._builder.asked(meant.noun)
            if meant.colours:
                choice = replace(choice, most=evidence.coloured(meant.colours))
            if rules.tells_regions and (reference := REGION_TOKEN.fullmatch(label)):
                told = evidence.alike(int(reference[1]))
                choice = replace(choice, evidence=told, evidence_share=1.0)
            elif rules.reads_descriptions and noun in ANYTHING:
                # The language model was never asked for "something".
                choice = replace(choice, evidence=evidence.anything(), evidence_share=1.0)
            elif beliefs.knows(noun):
                told = evidence.chances(noun)
                choice = replace(choice, evidence=told, evidence_share=rules.evidence_share)
            return noun, choice

        return choice_of

    def _teller(self, on_text: Callable[[str], None]) -> Callable[[Sequence[int]], None]:
        """Turns the ids so far into the text that is new; half a character waits for the rest."""
        step, num_told = self._tokenizer.stepwise(), 0

        def tell(ids: Sequence[int]) -> None:
            nonlocal num_told
            text = "".join(step(token_id) for token_id in ids[num_told:])
            num_told = len(ids)
            if text:
                on_text(text)

        return tell

    @property
    def _language(self) -> LanguageModel:
        """The decoder, which the builtin engine runs; others keep their own."""
        assert self._model.language_model is not None
        return self._model.language_model

    def stalled_s(self) -> float:
        """Seconds for which the engine's step under way has stood still; zero when it is idle."""
        return self.engine.stalled_s()

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()

    def _builtin(self, settings: EngineSettings) -> GenerationEngine:
        prefixes = PrefixCache(settings.prefix_bytes)
        engine = Engine(self._language, prefixes, settings, device=self._device)
        if settings.compiled and self._device != "cpu":
            engine.compile()
        return engine

    def _hand_over(self, done: Future[Completion], to: Future[Generation]) -> None:
        if done.cancelled() or not to.set_running_or_notify_cancel():
            to.cancel()
            return
        error = done.exception()
        if error is not None:
            to.set_exception(error)
            return
        completion = done.result()
        to.set_result(
            Generation(
                pieces=self._tokenizer.pieces(completion.ids),
                probabilities=completion.probabilities,
                truncated=completion.truncated,
                num_prompt_tokens=completion.num_prompt_tokens,
                num_prefix_tokens_reused=completion.num_reused_tokens,
                num_passes=completion.num_passes,
                num_drafted_tokens=completion.num_accepted,
            )
        )

    def _request(self, features: FrameFeatures | None, task: Task) -> Request:
        self._tokenizer.check_words(task.query)
        num_regions = 0 if features is None else len(features.proposals)
        tokens = self._tokens.first(num_regions)
        return Request(
            prefix=self._source(features),
            question=lambda start: self._question(features, task, start),
            end_of_turn=self._builder.end_of_turn,
            max_new_tokens=task.max_new_tokens,
            drafter=self._drafter(task, tokens),
            grammar=self._grammar(task, tokens),
            deadline_s=time.monotonic() + task.patience_s,
        )

    def _grammar(self, task: Task, tokens: AnswerTokens) -> Grammar | None:
        """None where the model may write what it likes."""
        form = AnswerGrammar(tokens, all_regions=self._tokens.regions)
        if self._builder.family.prompt.bounds_answers:
            return BoundedAnswerGrammar(form, never=self._never)
        return form if task.constrained else None

    def _drafter(self, task: Task, tokens: AnswerTokens) -> Drafter:
        before, encode = self._builder.family.prompt.before_label, self._tokenizer.encode
        label = encode(before + task.query) if task.kind in _ANSWERS_BY_LABEL else ()
        drafts = [draft.replace(GROUND_OPEN, GROUND_OPEN + before) for draft in task.drafts]
        return Drafter(
            tokens,
            label=label,
            answers=[encode(draft) for draft in drafts],
            num_leading=self.engine.settings.num_leading_regions,
        )

    def _source(self, features: FrameFeatures | None) -> PrefixSource:
        """The frame's prefix; a page of many boxes continues from the image all pages share."""
        if features is None:
            return PrefixSource(
                _TEXT_ONLY, lambda: self._input(self._builder.prefix(None, 0), None)
            )
        grid, count = self._model.config.token_grid(features.grid), len(features.proposals)
        if not features.image_key:
            return PrefixSource(
                features.key, lambda: self._input(self._builder.prefix(grid, count), features)
            )
        bare = self._builder.prefix(grid, 0)
        image = PrefixSource(f"{features.image_key}/image", lambda: self._input(bare, features))
        return PrefixSource(
            features.key,
            lambda: self._input(self._builder.regions(count, start=bare.next_position), features),
            parent=image,
        )

    def _question(self, features: FrameFeatures | None, task: Task, start: int) -> QuestionInput:
        question = self._builder.question(
            task.text, start=start, history=task.history, after_image=features is not None
        )
        self._check_length(question.next_position, task)
        return QuestionInput(question.ids, question.positions, question.next_position)

    def _check_length(self, num_positions: int, task: Task) -> None:
        """The published code cuts a long prompt and goes on with positions of the whole one."""
        limit = int(self._model.config.text.max_position_embeddings)
        if num_positions + task.max_new_tokens > limit:
            raise InvalidQuery(
                f"the prompt takes {num_positions} positions and the answer may take "
                f"{task.max_new_tokens}; the model reads {limit}: shorten the question or its "
                "history, or ask about fewer boxes"
            )

    def _input(self, sequence: TokenSequence, features: FrameFeatures | None) -> PrefixInput:
        if features is None:
            return PrefixInput(sequence.ids, sequence.positions, sequence.next_position)

        @torch.inference_mode()
        def fill(kind: SlotType) -> Tensor:
            slots = image_slots if kind is SlotType.IMAGE else region_slots
            return slots(self._model, features, device=self._device)

        return PrefixInput(
            sequence.ids,
            sequence.positions,
            sequence.next_position,
            sequence.slots,
            self._model.config.token_grid(features.grid),
            fill,
        )


def _done(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


def image_slots(model: VLMFO1, features: FrameFeatures, *, device: str = "cpu") -> Tensor:
    """(num_image_tokens, hidden): what stands in a frame's image slots."""
    dtype = next(model.image_projector.parameters(), torch.empty(0)).dtype
    return model.image_tokens(to_tensor(features.image_tokens, device).to(dtype))


def region_slots(model: VLMFO1, features: FrameFeatures, *, device: str = "cpu") -> Tensor:
    """(num_boxes * slots of a region, hidden): what stands in the slots of a frame's regions."""
    boxes = normalised_boxes(features.proposals.xyxy, features.width, features.height, model.config)
    tokens = model.region_tokens(
        to_tensor(features.primary_regions, device),
        to_tensor(features.auxiliary_regions, device),
        to_tensor(boxes, device),
    )
    return tokens.flatten(0, -2)
