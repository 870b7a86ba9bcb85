"""The generation engine: many questions decoded together, prefixes computed once and shared.

One thread owns the model. Every step packs what is ready into a single forward pass: chunks of
prefixes that are being computed, questions whose prefix is there or ends in this very pass, and
one verified guess or token of each answer under way. Requests join and leave between steps. Knows
neither frames nor text: ids, embeddings and positions only.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from agent import progress
from agent.drafting import DraftTree
from agent.generation_request import (
    Completion,
    PrefixSource,
    Request,
)
from agent.grammar import Grammar
from agent.model.compilation import compile_layers, pass_size
from agent.model.language_model import LanguageModel
from agent.model.ragged_attention import (
    RAGGED,
    KeyValues,
    Prefix,
    RaggedBatch,
    Segment,
    UnfinishedPrefix,
)
from agent.prefix_cache import PrefixCache
from agent.stage_settings import EngineSettings
from groundstream.errors import Overloaded

_PRIVATE = "private "
_EXIT_S = 5.0
"""How long a process that ends waits for the step under way: PyTorch aborts within one."""


@dataclass
class _PrefixJob:
    """A prefix under construction."""

    embeddings: Tensor
    positions: Tensor
    next_position: int
    before: Prefix | None
    past: KeyValues
    starter: _Run
    riders: list[_Run] = field(default_factory=list)
    """Answers that began in the pass in which the prefix ends."""
    done: int = 0
    num_passes: int = 0

    def ends_with(self, count: int) -> bool:
        """Whether the next `count` tokens are its last."""
        return self.done + count == len(self.embeddings)


@dataclass
class _Run:
    """One answer under way."""

    request: Request
    future: Future[Completion]
    past: KeyValues
    prefix: Prefix | UnfinishedPrefix | None = None
    parent: Prefix | None = None
    """What the prefix continues, where it continues one."""
    grammar: Grammar | None = None
    tail: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Certain tokens the model has not seen yet."""
    tail_positions: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    next_position: int = 0
    tree: DraftTree = field(default_factory=DraftTree)
    ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_passes: int = 0
    num_accepted: int = 0
    dice: torch.Generator = field(default_factory=torch.Generator)

    def chosen(self, logits: Tensor) -> int:
        """The next token: the likeliest, or one drawn as the request asks.

        A drawn token that was guessed saves its pass like any other, and since it was drawn before
        anyone looked at the guess, guesses do not change what is written.
        """
        sampling = self.request.sampling
        if sampling is None:
            return int(logits.argmax())
        weights = (logits / sampling.temperature).softmax(-1)
        return int(torch.multinomial(weights, 1, generator=self.dice))

    @property
    def num_new_tokens(self) -> int:
        """Tokens it puts into the next pass."""
        return len(self.tail) + len(self.tree.nodes)


class Engine:
    """Owns the language model; `submit` is safe from any thread."""

    def __init__(
        self,
        language: LanguageModel,
        prefixes: PrefixCache,
        settings: EngineSettings | None = None,
        *,
        device: str = "cpu",
    ) -> None:
        self.settings = settings or EngineSettings()
        self.prefixes = prefixes
        self.counts: Counter[str] = Counter()
        """steps, tokens, accepted, cancelled: since the start."""
        self._language = language
        language.model.set_attn_implementation(RAGGED)
        share = 64 if device == "cpu" else 1024
        self._pass_drafts = self.settings.max_pass_draft_tokens or share
        self._num_answers = 0
        self._num_layers = int(language.config.num_hidden_layers)
        self._num_axes = language.num_axes
        self._device = device
        self._compiled = False
        self._work = threading.Condition()
        self._inbox: list[_Run] = []
        self._waiting: list[_Run] = []
        self._running: list[_Run] = []
        self._jobs: dict[str, _PrefixJob] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._step_since_s: float | None = None

    def compile(self, *, backend: str = "inductor") -> None:
        """Run short passes compiled, in fixed sizes; to be called while there are no requests."""
        compile_layers(self._language, backend=backend)
        self._compiled = True

    def stalled_s(self) -> float:
        """Seconds for which no layer of the step under way has ended; zero between steps."""
        since_s = self._step_since_s
        return 0.0 if since_s is None else progress.still_since_s(since_s)

    def submit(self, request: Request) -> Future[Completion]:
        """The answer to come; cancelling it frees its place at the next step.

        Raises:
            Overloaded: too many requests wait already.
        """
        run = _Run(request, Future(), KeyValues(self._num_layers), grammar=request.grammar)
        if request.sampling is not None:
            run.dice.manual_seed(request.sampling.seed)
        with self._work:
            if self._closed:
                raise Overloaded("the language stage is shutting down; try again elsewhere")
            if len(self._inbox) + len(self._waiting) >= self.settings.max_waiting:
                raise Overloaded(
                    f"{self.settings.max_waiting} questions wait already; try again later"
                )
            self._inbox.append(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
                self._thread.start()
                atexit.register(self.close, timeout_s=_EXIT_S)
            self._work.notify()
        return run.future

    def close(self, timeout_s: float | None = None) -> None:
        """Answer nothing more; what is under way is cancelled.

        Args:
            timeout_s: how long to wait for the end of the step under way; None: until it has ended.
        """
        atexit.unregister(self.close)
        with self._work:
            self._closed = True
            self._work.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
        for run in [*self._inbox, *self._waiting, *self._running]:
            run.future.cancel()

    def _loop(self) -> None:
        while True:
            with self._work:
                while not (self._inbox or self._waiting or self._running or self._closed):
                    self._work.wait()
                if self._closed:
                    return
                self._waiting += self._inbox
                self._inbox = []
            self._step_since_s = time.monotonic()
            progress.layer_done()
            try:
                self._step()
            except Exception as error:
                # One bad pass must not end the engine: its requests fail, later ones go on.
                for run in [*self._waiting, *self._running]:
                    _fail(run, error)
                self._waiting, self._running, self._jobs = [], [], {}
            finally:
                self._step_since_s = None

    @torch.inference_mode()
    def _step(self) -> None:
        self._forget_cancelled()
        self._num_answers = len(self._waiting) + len(self._running)
        self._start_waiting()
        jobs = self._chosen_jobs()
        runs = sorted(self._running, key=lambda run: run.request.deadline_s)
        if not jobs and not runs:
            return
        pieces, positions, segments = [], [], []
        start = 0
        for embedded, where, segment in [
            *(self._prefix_chunk(job, count) for _, job, count in jobs),
            *(self._continuation(run) for run in runs),
        ]:
            pieces.append(embedded)
            positions.append(where)
            segment.start, segment.stop = start, start + len(embedded)
            segments.append(segment)
            start = segment.stop
        hidden = self._forward(torch.cat(pieces), torch.cat(positions, dim=1), segments)
        self.counts["steps"] += 1
        self.counts["tokens"] += start
        for key, job, count in jobs:
            job.done += count
            job.num_passes += 1
            if job.ends_with(0):
                self._finish_prefix(key, job)
        self._verify_all(runs, segments[len(jobs) :], hidden)

    def _forget_cancelled(self) -> None:
        for queue in (self._waiting, self._running):
            gone = [run for run in queue if run.future.cancelled()]
            self.counts["cancelled"] += len(gone)
            for run in gone:
                queue.remove(run)

    def _start_waiting(self) -> None:
        """Give every waiting request its prefix, or start computing it."""
        self._waiting.sort(key=lambda run: run.request.deadline_s)
        waiting, self._waiting = self._waiting, []
        for run in waiting:
            if len(self._running) >= self.settings.max_running:
                self._waiting.append(run)
                continue
            try:
                prefix = self._prefix_for(run)
                if prefix is None:
                    self._waiting.append(run)
                else:
                    self._begin(run, prefix)
            except Exception as error:
                _fail(run, error)

    def _prefix_for(self, run: _Run) -> Prefix | UnfinishedPrefix | None:
        """The request's prefix; None while it is being computed."""
        source = run.request.prefix
        if run.prefix is not None or _job_key(source, run) in self._jobs:
            return run.prefix
        found = self.prefixes.get(source.key)
        if found is not None:
            run.num_reused_tokens = found.length
            return found
        parent = source.parent
        if parent is None or run.parent is not None:
            self._start_prefix(source, run)
        elif _job_key(parent, run) not in self._jobs:
            run.parent = self.prefixes.get(parent.key)
            self._start_prefix(parent if run.parent is None else source, run)
        return None

    def _start_prefix(self, source: PrefixSource, run: _Run) -> None:
        before = run.parent if source is run.request.prefix else None
        given = source.make()
        self._jobs[_job_key(source, run)] = _PrefixJob(
            given.embedded(self._language),
            given.positions,
            given.next_position,
            before,
            KeyValues(self._num_layers),
            starter=run,
        )

    def _finish_prefix(self, key: str, job: _PrefixJob) -> None:
        layers = job.past.layers()
        if job.before is not None:
            layers = tuple(
                (torch.cat([old[0], own[0]], 1), torch.cat([old[1], own[1]], 1))
                for old, own in zip(job.before.layers, layers, strict=True)
            )
        prefix = Prefix(layers, job.next_position)
        del self._jobs[key]
        if not key.startswith(_PRIVATE):
            self.prefixes.put(key, prefix)
        for run in job.riders:
            run.prefix = prefix
        if job.starter not in job.riders:
            job.starter.num_passes += job.num_passes
        # Handed over directly: the cache may be too small to hold it.
        for run in self._waiting:
            source = run.request.prefix
            if _job_key(source, run) == key:
                run.prefix = prefix
                run.num_reused_tokens = 0 if run is job.starter else prefix.length
            elif source.parent is not None and _job_key(source.parent, run) == key:
                run.parent = prefix

    def _begin(self, run: _Run, prefix: Prefix | UnfinishedPrefix) -> None:
        run.prefix = prefix
        question = run.request.question(prefix.next_position)
        run.tail, run.tail_positions = question.ids, question.positions
        run.next_position = question.next_position
        run.num_prompt_tokens = prefix.length + len(question.ids)
        self._running.append(run)
        self._guess(run)

    def _chosen_jobs(self) -> list[tuple[str, _PrefixJob, int]]:
        """Prefixes that go into the next pass, with the room that the running answers leave."""
        used = sum(run.num_new_tokens for run in self._running)
        room = max(self.settings.max_step_tokens - used, self.settings.max_step_tokens // 4)
        jobs = []
        for key, job in list(self._jobs.items()):
            count = min(room, len(job.embeddings) - job.done)
            if count > 0:
                jobs.append((key, job, count))
                room -= count
                if job.ends_with(count):
                    room -= self._ride_along(key, job, count, room)
        return jobs

    def _ride_along(self, key: str, job: _PrefixJob, count: int, room: int) -> int:
        """Begin the answers that wait for a prefix in the pass in which it ends.

        Returns:
            Tokens they add to the pass.
        """
        unfinished = UnfinishedPrefix(job.past, job.before, count, job.next_position)
        waiting, self._waiting = self._waiting, []
        used = 0
        for run in waiting:
            full = used >= room or len(self._running) >= self.settings.max_running
            if full or _job_key(run.request.prefix, run) != key:
                self._waiting.append(run)
                continue
            try:
                self._begin(run, unfinished)
            except Exception as error:
                _fail(run, error)
                continue
            if run is job.starter:
                run.num_passes += job.num_passes
            else:
                run.num_reused_tokens = unfinished.length
            job.riders.append(run)
            used += run.num_new_tokens
        return used

    def _prefix_chunk(self, job: _PrefixJob, count: int) -> tuple[Tensor, Tensor, Segment]:
        part = slice(job.done, job.done + count)
        segment = Segment(0, 0, job.past, job.before)
        return job.embeddings[part], job.positions[:, part], segment

    def _continuation(self, run: _Run) -> tuple[Tensor, Tensor, Segment]:
        """The certain tokens and the guesses behind them, each seeing only its own line."""
        tail, nodes = len(run.tail), run.tree.nodes
        ids = torch.cat([run.tail, torch.tensor([node.token for node in nodes], dtype=torch.long)])
        guessed = torch.tensor([run.next_position + node.depth for node in nodes], dtype=torch.long)
        positions = torch.cat([run.tail_positions, guessed.expand(self._num_axes, -1)], dim=1)
        mask = None
        if any(node.parent != index - 1 for index, node in enumerate(nodes)):
            mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
            mask[tail:, tail:] = False
            for index in range(len(nodes)):
                mask[tail + index, [tail + line for line in run.tree.ancestors(index)]] = True
        embedded = self._language.embed(ids.to(self._device))
        return embedded, positions, Segment(0, 0, run.past, run.prefix, mask)

    def _forward(self, embeddings: Tensor, positions: Tensor, segments: list[Segment]) -> Tensor:
        """(tokens, hidden) of one packed pass."""
        batch = RaggedBatch(segments)
        if self._compiled and (size := pass_size(len(embeddings))) is not None:
            filling = size - len(embeddings)
            embeddings = nn.functional.pad(embeddings, (0, 0, 0, filling))
            positions = nn.functional.pad(positions, (0, filling))
            # What an earlier pass left in its graphs' memory is no longer needed.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        hidden = self._language.packed(embeddings, positions.to(self._device), batch)
        batch.advance()
        return hidden

    def _verify_all(self, runs: list[_Run], segments: list[Segment], hidden: Tensor) -> None:
        """One product with the head for every token whose successor is wanted."""
        if not runs:
            return
        wanted = [
            torch.arange(segment.start + len(run.tail) - 1, segment.stop)
            for run, segment in zip(runs, segments, strict=True)
        ]
        logits = self._language.logits(hidden[torch.cat(wanted).to(hidden.device)]).float().cpu()
        parts = torch.split(logits, [len(rows) for rows in wanted])
        for run, part in zip(runs, parts, strict=True):
            self._verify(run, part)

    def _verify(self, run: _Run, logits: Tensor) -> None:
        """Follow the guesses as far as the model agrees; its first other choice is a gift.

        Args:
            logits: (1 + guessed tokens, vocabulary) after the last certain token and each guess.
        """
        run.num_passes += 1
        if run.request.choice is not None:
            run.ids, run.probabilities = run.request.choice.listed(logits[0])
            self._finish(run, truncated=False)
            return
        tail, tree = len(run.tail), run.tree
        node, path = -1, []
        finished = False
        while True:
            row, grammar = logits[node + 1], run.grammar
            allowed = row if grammar is None else grammar.constrain(row)
            distribution = row.softmax(-1)
            token = run.chosen(allowed)
            if token == run.request.end_of_turn or len(run.ids) == run.request.max_new_tokens:
                finished = True
                break
            run.ids.append(token)
            run.probabilities.append(float(distribution[token]))
            if run.grammar is not None:
                run.grammar = run.grammar.advanced(token)
            following = tree.child(node, token)
            if following is None:
                break
            run.num_accepted += 1
            self.counts["accepted"] += 1
            path.append(following)
            node = following
        if run.request.on_ids is not None:
            run.request.on_ids(run.ids)
        if finished:
            self._finish(run, truncated=token != run.request.end_of_turn)
            return
        run.past.keep([*range(tail), *(tail + index for index in path)], tail + len(tree.nodes))
        run.next_position += len(path)
        run.tail = torch.tensor([token])
        run.tail_positions = torch.full((self._num_axes, 1), run.next_position)
        run.next_position += 1
        self._guess(run)

    def _guess(self, run: _Run) -> None:
        limit = self.settings.max_draft_tokens
        left = run.request.max_new_tokens - len(run.ids)
        if run.request.drafter is None or not limit or left <= 0:
            run.tree = DraftTree()
            return
        guesses = [guess[:left] for guess in run.request.drafter.guesses(run.ids)]
        share = self._pass_drafts // self._num_answers
        likeliest = len(guesses[0]) if guesses else 0
        run.tree = DraftTree.of(guesses, limit=min(limit, max(share, likeliest)))

    def _finish(self, run: _Run, *, truncated: bool) -> None:
        completion = Completion(
            tuple(run.ids),
            tuple(run.probabilities),
            truncated,
            run.num_prompt_tokens,
            run.num_reused_tokens,
            run.num_passes,
            run.num_accepted,
        )
        if run.future.set_running_or_notify_cancel():
            run.future.set_result(completion)
        self._running.remove(run)


def _job_key(source: PrefixSource, run: _Run) -> str:
    """What a prefix is computed under; one that nobody shares is known by its request."""
    return source.key or f"{_PRIVATE}{id(run)}"


def _fail(run: _Run, error: Exception) -> None:
    if run.future.set_running_or_notify_cancel():
        run.future.set_exception(error)
