"""Questions that name what to find, answered label by label: each on a branch of its own.

A family whose answers are opened by the prompt is given `<ground>dog</ground><objects>`, and the
regions are read from what it would write next (`agent.region_choice`). All labels of a question
continue the frame's prefix in the same pass of the engine, and are joined into one answer in the
order in which they were asked. Knows no pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from agent.features import Generation
from agent.generation_request import Completion
from agent.prompts import GROUND_CLOSE, GROUND_OPEN, OBJECTS_CLOSE, OBJECTS_OPEN


@dataclass(frozen=True)
class LabelBranch:
    """One label of a question and the regions to come."""

    label: str
    completion: Future[Completion]

    def pieces(self, regions: tuple[str, ...]) -> tuple[str, ...]:
        """The label's part of the answer, piece by piece."""
        opening = (GROUND_OPEN, self.label, GROUND_CLOSE, OBJECTS_OPEN)
        return (*opening, *regions, OBJECTS_CLOSE)


def join_labels(
    branches: list[LabelBranch],
    pieces_of: Callable[[tuple[int, ...]], tuple[str, ...]],
    on_text: Callable[[str], None] | None = None,
) -> Future[Generation]:
    """One answer of all labels; cancelling it stops every branch.

    Args:
        branches: the labels in order, already submitted.
        pieces_of: texts of ids.
        on_text: told each label's part once it and all before it are there, in the engine's
            thread.
    """
    joined: Future[Generation] = Future()
    # Cancelling a branch calls `arrived` from within `arrived`.
    lock = threading.RLock()
    state = _Progress()

    def cancelled(done: Future[Generation]) -> None:
        if done.cancelled():
            for branch in branches:
                branch.completion.cancel()

    def arrived(completion: Future[Completion]) -> None:
        with lock:
            if joined.done():
                return
            if completion.cancelled() or completion.exception() is not None:
                _fail(joined, None if completion.cancelled() else completion.exception())
                for branch in branches:
                    branch.completion.cancel()
                return
            while state.num_told < len(branches) and branches[state.num_told].completion.done():
                branch = branches[state.num_told]
                result = branch.completion.result()
                pieces = branch.pieces(pieces_of(result.ids))
                # What the prompt wrote is certain; so is the end of a list that ended.
                probabilities = (1.0,) * 4 + result.probabilities + (1.0,)
                state.add(pieces, probabilities, result)
                if on_text is not None:
                    on_text("".join(pieces))
            if state.num_told == len(branches) and joined.set_running_or_notify_cancel():
                joined.set_result(state.generation())

    joined.add_done_callback(cancelled)
    for branch in branches:
        branch.completion.add_done_callback(arrived)
    return joined


class _Progress:
    """The parts that are there, in order."""

    def __init__(self) -> None:
        self.num_told = 0
        self._pieces: list[str] = []
        self._probabilities: list[float] = []
        self._completions: list[Completion] = []

    def add(
        self, pieces: tuple[str, ...], probabilities: tuple[float, ...], completion: Completion
    ) -> None:
        self.num_told += 1
        self._pieces += pieces
        self._probabilities += probabilities
        self._completions.append(completion)

    def generation(self) -> Generation:
        found = self._completions
        return Generation(
            pieces=tuple(self._pieces),
            probabilities=tuple(self._probabilities),
            truncated=any(completion.truncated for completion in found),
            num_prompt_tokens=max(completion.num_prompt_tokens for completion in found),
            num_prefix_tokens_reused=min(completion.num_reused_tokens for completion in found),
            num_passes=max(completion.num_passes for completion in found),
            num_drafted_tokens=sum(completion.num_accepted for completion in found),
        )


def _fail(joined: Future[Generation], error: BaseException | None) -> None:
    """End with a branch's error; without one it was cancelled, and so is the whole."""
    if error is None:
        joined.cancel()
    elif joined.set_running_or_notify_cancel():
        joined.set_exception(error)
