"""The training loop shared by all stages: schedule, clipping, logging, checkpoints, resume.

Knows no data and no loss: a stage hands in an iterator and a step function.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)
BatchT = TypeVar("BatchT")
CHECKPOINT = "checkpoint.pt"
"""In the folder of every stage."""


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
    log_every: int = 10
    save_every: int = 100


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Warm-up, constant, linear decay."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    decay_from = settings.steps * (1.0 - settings.decay_share)
    if step < decay_from:
        return settings.learning_rate
    return settings.learning_rate * max(
        0.0, (settings.steps - step) / (settings.steps - decay_from)
    )


def build_optimizer(module: nn.Module, settings: LoopSettings) -> torch.optim.AdamW:
    """AdamW; vectors and scalars are not decayed."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
    )


def train(
    module: nn.Module,
    step_fn: Callable[[BatchT], tuple[Tensor, dict[str, float]]],
    batches: Callable[[int], Iterator[BatchT]],
    settings: LoopSettings,
    directory: Path,
) -> None:
    """Run (or resume) a stage; `directory` gets checkpoint.pt and log.jsonl.

    Args:
        module: everything that is trained and saved.
        step_fn: batch to (loss, figures to log).
        batches: start step to an iterator that begins there, so that resuming sees new data.
    """
    directory.mkdir(parents=True, exist_ok=True)
    optimizer = build_optimizer(module, settings)
    checkpoint = directory / CHECKPOINT
    start = resume(module, optimizer, checkpoint)
    if start >= settings.steps:
        save(module, optimizer, checkpoint, start)
    stream = batches(start)
    figures: dict[str, list[float]] = {}
    data_s, began = 0.0, time.perf_counter()
    for step in range(start, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        waited = time.perf_counter()
        batch = next(stream)
        data_s += time.perf_counter() - waited
        loss, logged = step_fn(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
        optimizer.step()
        logged["loss"] = float(loss.detach())
        for name, value in logged.items():
            figures.setdefault(name, []).append(value)
        if (step + 1) % settings.log_every == 0:
            elapsed = time.perf_counter() - began
            means = {name: sum(values) / len(values) for name, values in figures.items()}
            write_log(directory, step + 1, means, elapsed / settings.log_every, data_s / elapsed)
            figures, data_s, began = {}, 0.0, time.perf_counter()
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            save(module, optimizer, checkpoint, step + 1)


def resume(module: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> int:
    """Load the checkpoint if there is one; the step to go on from."""
    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def load_module_state(directory: Path) -> dict[str, Tensor]:
    """The module's weights in a stage's checkpoint."""
    state = torch.load(directory / CHECKPOINT, weights_only=True)["module"]
    assert isinstance(state, dict)
    return state


def save(module: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, step: int) -> None:
    """Write the checkpoint in one move, so that an interruption never leaves half a file."""
    partial = checkpoint.with_suffix(".partial")
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, partial)
    partial.replace(checkpoint)


def write_log(
    directory: Path, step: int, figures: dict[str, float], step_s: float, waiting: float
) -> None:
    """Append one line of figures to log.jsonl and say it."""
    row = {"step": step, "seconds_per_step": round(step_s, 3), "data_share": round(waiting, 3)}
    row |= {name: round(value, 4) for name, value in figures.items()}
    with (directory / "log.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    logger.info("%s", row)
