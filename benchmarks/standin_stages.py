"""Stages that take a fixed time and no processor: what is left of an answer's latency is the shell.

Same protocol as the real ones. Results have the shapes of pocket's, so that what travels between
deployments is what really travels.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml

from agent.detections import Proposals
from agent.features import FrameFeatures, Generation, PrimaryFeatures
from agent.frame import Frame
from agent.prompts import Task
from agent.stage_settings import StageFactories

STAGE_S = 0.020
"""What every stage takes."""
_NUM_BOXES = 20
_NUM_TOKENS, _TOKEN_WIDTH, _REGION_WIDTH, _NUM_CLASSES = 25, 1000, 1016, 80
_MAX_TOGETHER = 64
_CONFIG = Path(__file__).parents[1] / "deployments" / "serve_config.yaml"


class StandIn:
    """Needs no files."""

    @classmethod
    def from_pretrained(cls, model: str, **_options: object) -> StandIn:
        """The stage; nothing is read."""
        return cls()


class StandInProposer(StandIn):
    """The same boxes for every frame."""

    def propose(self, frames: list[Frame]) -> list[Proposals]:
        """After the fixed time."""
        time.sleep(STAGE_S)
        corners = np.linspace(0.0, 100.0, _NUM_BOXES, dtype=np.float32)
        boxes = np.stack([corners, corners, corners + 50, corners + 50], axis=1)
        evidence = np.full((_NUM_BOXES, _NUM_CLASSES), 0.5, dtype=np.float32)
        return [Proposals(boxes, evidence[:, 0], evidence) for _ in frames]


class StandInPrimaryEncoder(StandIn):
    """Zeros in place of features."""

    def start(self, frames: list[Frame]) -> list[None]:
        """The fixed time, for each."""
        time.sleep(STAGE_S * len(frames))
        return [None for _ in frames]

    def pool(self, _maps: None, proposals: Proposals) -> PrimaryFeatures:
        """At once."""
        tokens = np.zeros((_NUM_TOKENS, _TOKEN_WIDTH), dtype=np.float32)
        regions = np.zeros((len(proposals), _REGION_WIDTH), dtype=np.float32)
        return PrimaryFeatures(tokens, (5, 5), regions)


class StandInLanguage(StandIn):
    """Finds the first box, whatever is asked; any number of questions take the fixed time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MAX_TOGETHER)

    def start(
        self,
        features: FrameFeatures | None,
        task: Task,
        on_text: Callable[[str], None] | None = None,
    ) -> Future[Generation]:
        """The answer to come."""
        return self._threads.submit(self._answer, task)

    def _answer(self, task: Task) -> Generation:
        time.sleep(STAGE_S)
        pieces = ("<ground>", task.query, "</ground>", "<objects>", "<region0>", "</objects>")
        return Generation(pieces, (0.9,) * len(pieces), False, 10, 0, 1)


FACTORIES = StageFactories(
    proposal=f"{__name__}:{StandInProposer.__name__}",
    primary_encoder=f"{__name__}:{StandInPrimaryEncoder.__name__}",
    language=f"{__name__}:{StandInLanguage.__name__}",
)


@contextmanager
def changed_config(
    *, standin: bool, replicas: dict[str, int] | None = None, **args: object
) -> Iterator[Path]:
    """The shipped settings with some changes, as a file.

    Args:
        standin: stages of fixed time in place of the model's.
        replicas: number of replicas by deployment, where not one.
        args: further settings of the application.
    """
    loaded = yaml.safe_load(_CONFIG.read_text())
    (application,) = loaded["applications"]
    if standin:
        application["args"]["stages"] = dataclasses.asdict(FACTORIES)
    for name, value in args.items():
        known = application["args"].get(name)
        merged = {**known, **value} if isinstance(value, dict) and known else value
        application["args"][name] = merged
    for deployment in application["deployments"]:
        deployment["num_replicas"] = (replicas or {}).get(deployment["name"], 1)
    with TemporaryDirectory(prefix="groundstream-bench-") as folder:
        path = Path(folder) / "serve_config.yaml"
        path.write_text(yaml.safe_dump(loaded))
        yield path
