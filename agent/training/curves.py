"""What a stage writes down of itself: log.jsonl, TensorBoard's events, a picture, a progress bar.

Knows figures by step and nothing of what they measure. TensorBoard and matplotlib come with
`pip install 'groundstream[train]'`; without them there is log.jsonl alone.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from groundstream.errors import SettingsError, SourceError

logger = logging.getLogger(__name__)
LOG = "log.jsonl"
PICTURE = "curve.png"
_PANELS_PER_ROW = 3
_WIDTH_IN, _HEIGHT_IN = 4.0, 2.6
"""Of one panel of the picture."""


class Curves:
    """Figures of one run into `directory`; a context manager.

    Rows from `start` on are forgotten: an interrupted run logged them after its last checkpoint,
    and will log them again.
    """

    def __init__(self, directory: Path, *, start: int, steps: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._log = directory / LOG
        kept = [row for row in read_log(directory) if row["step"] <= start]
        self._log.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._events = _event_writer(directory, start)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[said]}"),
            console=get_console(), disable=not get_console().is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(directory.name, total=steps, completed=start, said="")

    def __enter__(self) -> Curves:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._events is not None:
            self._events.close()

    def advance(self) -> None:
        """One step is done."""
        self._bar.advance(self._task)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Means over the steps since the last call."""
        row: dict[str, float] = {"step": step}
        row |= {name: float(f"{value:.7g}") for name, value in figures.items()}
        with self._log.open("a") as log:
            log.write(json.dumps(row) + "\n")
        if self._events is not None:
            for name, value in figures.items():
                self._events.add_scalar(name, value, step)
        self._bar.update(
            self._task,
            said=f"loss {figures['loss']:.3f}, {figures['samples_per_s']:.1f} samples/s, "
            f"{figures['data_share']:.0%} waiting for data",
        )
        logger.info("%s", row)


def _event_writer(directory: Path, start: int) -> Any:
    """TensorBoard's writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("no TensorBoard curves: pip install 'groundstream[train]'")
        return None
    return SummaryWriter(str(directory / "events"), purge_step=start + 1)


def read_log(directory: Path) -> list[dict[str, float]]:
    """The rows a stage has logged, oldest first; none where it has not begun.

    Raises:
        SourceError: log.jsonl is not what `Curves` writes.
    """
    log = directory / LOG
    if not log.is_file():
        return []
    try:
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        return [dict(row) for row in rows if row["step"] >= 0]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{log} is no log of a training ({error!r}); move it away") from error


def draw_curve(directory: Path) -> Path | None:
    """Draw everything a stage has logged into `curve.png`; None if it has logged nothing.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    rows = read_log(directory)
    if not rows:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError(
            "drawing curves needs matplotlib: pip install 'groundstream[train]'"
        ) from error
    names = sorted({name for row in rows for name in row} - {"step"})
    names.sort(key=lambda name: name != "loss")
    num_rows = -(-len(names) // _PANELS_PER_ROW)
    figure = Figure(
        figsize=(_WIDTH_IN * _PANELS_PER_ROW, _HEIGHT_IN * num_rows), layout="constrained"
    )
    figure.suptitle(directory.name)
    for number, name in enumerate(names, start=1):
        panel = figure.add_subplot(num_rows, _PANELS_PER_ROW, number)
        there = [row for row in rows if name in row]
        panel.plot([row["step"] for row in there], [row[name] for row in there], linewidth=1.0)
        panel.set_title(name.replace("_", " "), fontsize="medium")
        panel.grid(alpha=0.3)
    figure.savefig(directory / PICTURE, dpi=110)
    return directory / PICTURE
