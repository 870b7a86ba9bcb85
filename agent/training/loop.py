"""The training loop shared by all stages: schedule, accumulation, logging, checkpoints, resume.

Knows no data and no loss: a stage hands in an `Objective`. All randomness of a step follows from
the numbers of its batches, so a run that was interrupted, or is shared among several workers, sees
exactly what one straight run of one process sees.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from agent.training.curves import Curves, draw_curve
from agent.training.workers import Figures, Workers, means, total
from groundstream.errors import SettingsError, SourceError

logger = logging.getLogger(__name__)
BatchT = TypeVar("BatchT")
CPU = torch.device("cpu")
CHECKPOINT = "checkpoint.pt"
"""In the folder of every stage."""
Terms = dict[str, Tensor]
"""The parts of a loss, weighted, each a mean over what it counts; the loss is their sum."""
_PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class LoopSettings:
    """One stage's hyperparameters."""

    steps: int
    learning_rate: float
    warmup_steps: int = 100
    decay_share: float = 0.25
    """Last part of the steps in which the rate falls linearly to zero (before it: constant)."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    rate_shares: dict[str, float] = field(default_factory=dict)
    """Learning rates of some parameters, by the beginning of their names, relative to
    `learning_rate`; the first that fits holds."""
    accumulate: int = 1
    """Batches whose gradients make one step, per worker."""
    precision: str = "bfloat16"
    """Of the products inside the model ("bfloat16" or "float32"); weights are float32."""
    seed: int = 0
    log_every: int = 10
    save_every: int = 100

    def __post_init__(self) -> None:
        check_precision(self.precision)
        for name in ("accumulate", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}")

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context a stage computes its losses in."""
        return autocast(device, self.precision)


def check_precision(name: str) -> None:
    """Raises SettingsError unless there is such a precision."""
    if name not in _PRECISIONS:
        raise SettingsError(f"precision {name!r} is unknown; use {' or '.join(_PRECISIONS)}")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a model's products have that precision."""
    dtype = _PRECISIONS[precision]
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)


class Curriculum(Protocol):
    """What of a stage's data depends on what was learned; kept in the checkpoint."""

    def after_step(self, figures: Figures) -> None:
        """Follow the figures of a step: means over all its batches, on every worker alike."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's."""


def _as_it_is(batch: Any) -> Any:
    return batch


def _nothing_counted(_batch: Any) -> Figures:
    return {}


@dataclass(frozen=True)
class Objective(Generic[BatchT]):
    """What a stage learns from. Batches are moved to the module's device before `prepare`."""

    batches: Callable[[int, int], Iterator[Any]]
    """Batches number `first`, `first + stride`, ...: each a function of its number (and of a
    curriculum)."""
    losses: Callable[[BatchT], tuple[Terms, Figures]]
    """The parts of a batch's loss, and figures to log."""
    prepare: Callable[[Any], BatchT] = _as_it_is
    """What is done to a batch without gradients, in the training process."""
    counts: Callable[[BatchT], Figures] = _nothing_counted
    """What each part of the loss is a mean over, by the part's name. With it, accumulated batches
    weigh as they would in one large batch; a part that is not named weighs the same in each."""
    curriculum: Curriculum | None = None
    held_out: Callable[[], Figures] | None = None
    """Figures on data that is not trained on, logged beside the others."""


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Warm-up, constant, linear decay."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    decay_from = settings.steps * (1.0 - settings.decay_share)
    left = (settings.steps - step) / max(1.0, settings.steps - decay_from)
    return settings.learning_rate * warm * min(1.0, max(0.0, left))


def build_optimizer(module: nn.Module, settings: LoopSettings) -> torch.optim.AdamW:
    """AdamW; vectors and scalars are not decayed. Groups carry their `share` of the rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((_rate_share(name, settings), decay), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda group: group[0], reverse=True)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "share": share}
            for (share, decay), parameters in ordered
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
    )


def _rate_share(name: str, settings: LoopSettings) -> float:
    for beginning, share in settings.rate_shares.items():
        if name.startswith(beginning):
            return float(share)
    return 1.0


def numpy_draws() -> np.random.Generator:
    """numpy's randomness for one batch, drawn from torch's, which the loop seeds."""
    return np.random.default_rng(int(torch.randint(2**62, (), device="cpu")))


class _Losses(nn.Module):
    """A stage's losses as a module's forward pass, which is all that DDP follows."""

    def __init__(self, module: nn.Module, losses: Callable[[Any], tuple[Terms, Figures]]) -> None:
        super().__init__()
        self.module = module
        self._losses = losses

    def forward(self, batch: Any) -> tuple[Terms, Figures]:
        """Losses of one batch."""
        return self._losses(batch)


class _Run(Generic[BatchT]):
    """One stage on one worker, from its checkpoint to its last step."""

    def __init__(
        self, module: nn.Module, objective: Objective[BatchT], settings: LoopSettings, home: Path
    ) -> None:
        self.module, self.objective, self.settings = module, objective, settings
        self.checkpoint = home / CHECKPOINT
        self.workers = Workers.current()
        self.device = next(module.parameters()).device
        self.optimizer = build_optimizer(module, settings)
        self.step = self.num_batches = 0
        self._resume()
        forward: nn.Module = _Losses(module, objective.losses)
        if self.workers.count > 1 and self.step < settings.steps:
            forward = DistributedDataParallel(forward, find_unused_parameters=True)
        self.forward = forward
        self.stream = objective.batches(self.num_batches + self.workers.rank, self.workers.count)
        self.waited_s = 0.0
        self.num_samples = 0

    def advance(self) -> Figures:
        """One step; figures of all workers' batches."""
        drawn = [self._draw(index) for index in range(self.settings.accumulate)]
        weights = self._weights([batch for _, batch in drawn])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step) * group.get("share", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        rows = []
        for index, ((number, batch), weight) in enumerate(zip(drawn, weights, strict=True)):
            with self._gradients_shared(index):
                rows.append(self._learn(number, batch, weight))
        nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.step += 1
        self.num_batches += self.settings.accumulate * self.workers.count
        figures = means(self.workers.gathered(means(rows)))
        if self.objective.curriculum is not None:
            self.objective.curriculum.after_step(figures)
        return figures

    def _draw(self, index: int) -> tuple[int, BatchT]:
        number = self.num_batches + self.workers.rank + index * self.workers.count
        self._seed(number, 0)
        began = time.perf_counter()
        raw = next(self.stream)
        self.waited_s += time.perf_counter() - began
        self.num_samples += _num_samples(raw) * self.workers.count
        return number, self.objective.prepare(moved(raw, self.device))

    def _weights(self, batches: list[BatchT]) -> list[Figures]:
        """By which each part of each batch's loss counts: 1 where all batches are alike."""
        counts = [self.objective.counts(batch) for batch in batches]
        sums = self.workers.summed(total(counts))
        share = self.settings.accumulate * self.workers.count
        return [
            {name: count * share / sums[name] if sums[name] else 1.0 for name, count in row.items()}
            for row in counts
        ]

    def _learn(self, number: int, batch: BatchT, weight: Figures) -> Figures:
        self._seed(number, 1)
        terms, figures = self.forward(batch)
        weighted = {name: weight.get(name, 1.0) * term for name, term in terms.items()}
        loss = torch.stack([term.float() for term in weighted.values()]).sum()
        (loss / self.settings.accumulate).backward()
        parts = {name: float(term.detach()) for name, term in weighted.items()}
        return {**(parts if len(parts) > 1 else {}), **figures, "loss": float(loss.detach())}

    def _gradients_shared(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Workers exchange gradients once a step, with the last batch."""
        last = index + 1 == self.settings.accumulate
        if isinstance(self.forward, DistributedDataParallel) and not last:
            return self.forward.no_sync()
        return contextlib.nullcontext()

    def _seed(self, number: int, use: int) -> None:
        mixed = np.random.SeedSequence((self.settings.seed, number, use))
        torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0]))

    def save(self) -> None:
        """Write the checkpoint in one move, so that an interruption never leaves half a file."""
        if self.workers.leads:
            curriculum = self.objective.curriculum
            state = {
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "batches": self.num_batches,
                "curriculum": {} if curriculum is None else curriculum.state_dict(),
            }
            partial = self.checkpoint.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(self.checkpoint)
        self.workers.wait()

    def _resume(self) -> None:
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, weights_only=True, map_location=self.device)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])
        self.num_batches = int(state.get("batches", self.step))
        if self.objective.curriculum is not None and state.get("curriculum"):
            self.objective.curriculum.load_state_dict(state["curriculum"])


def train(
    module: nn.Module, objective: Objective[BatchT], settings: LoopSettings, directory: Path
) -> None:
    """Run (or resume) a stage; `directory` gets checkpoint.pt, log.jsonl and a picture of it.

    Under torch.distributed all workers call this together, each with `module` on its own device;
    a step then takes `accumulate` batches of every worker.

    Args:
        module: everything that is trained and saved.
    """
    directory.mkdir(parents=True, exist_ok=True)
    run = _Run(module, objective, settings, directory)
    if run.step >= settings.steps:
        run.save()
        return
    with contextlib.ExitStack() as stack:
        curves = None
        if run.workers.leads:
            curves = Curves(directory, start=run.step, steps=settings.steps)
            stack.enter_context(curves)
        rows: list[Figures] = []
        began = time.perf_counter()
        while run.step < settings.steps:
            rows.append(run.advance())
            if curves is not None:
                curves.advance()
            if run.step % settings.log_every == 0:
                if curves is not None:
                    curves.write(run.step, _logged(run, rows, time.perf_counter() - began))
                rows, run.waited_s, run.num_samples, began = [], 0.0, 0, time.perf_counter()
            if run.step % settings.save_every == 0 or run.step == settings.steps:
                run.save()
    if run.workers.leads:
        _draw(directory)


def _logged(run: _Run[BatchT], rows: list[Figures], elapsed_s: float) -> Figures:
    """What one line of the log says."""
    pace = {
        "seconds_per_step": elapsed_s / len(rows),
        "samples_per_s": run.num_samples / elapsed_s,
        "data_share": run.waited_s / elapsed_s,
        "learning_rate": learning_rate(run.settings, run.step - 1),
    }
    held_out: Figures = {}
    if run.objective.held_out is not None:
        with torch.no_grad():
            held_out = {f"held_out_{k}": v for k, v in run.objective.held_out().items()}
    return {**pace, **means(rows), **held_out}


def _draw(directory: Path) -> None:
    try:
        draw_curve(directory)
    except SettingsError as error:
        logger.info("no picture of the curve: %s", error)


def moved(batch: Any, device: torch.device) -> Any:
    """A batch (tensors, and dataclasses and tuples of them) on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple):
        return tuple(moved(part, device) for part in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        parts = {f.name: moved(getattr(batch, f.name), device) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **parts)
    return batch


def _num_samples(batch: Any) -> int:
    """How many pictures or sequences a batch holds: the length of its first tensor, or its own."""
    if isinstance(batch, (Tensor, list)):
        return len(batch)
    parts: list[Any] = []
    if isinstance(batch, tuple):
        parts = list(batch)
    elif dataclasses.is_dataclass(batch):
        parts = [getattr(batch, f.name) for f in dataclasses.fields(batch)]
    return next((n for n in map(_num_samples, parts) if n), 0)


def load_module_state(directory: Path) -> dict[str, Tensor]:
    """The module's weights in a stage's checkpoint.

    Raises:
        SourceError: the stage has left none.
    """
    checkpoint = directory / CHECKPOINT
    if not checkpoint.is_file():
        raise SourceError(f"{checkpoint} does not exist: train stage {directory.name!r} first")
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["module"]
    assert isinstance(state, dict)
    return state
