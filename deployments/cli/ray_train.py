"""One training on several workers, through Ray Train.

The training itself is `agent/training/`, which knows torch.distributed and no Ray; this module
starts the processes and joins them to a group.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from groundstream.errors import AgentError, SettingsError

_TIMEOUT_S = 6 * 3600
"""What one worker does alone while the others wait, such as a pool of features, takes long."""
_CLEANER_LOGGER = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
_ENVIRONMENT = {
    # This machine alone; Ray reads it when it is imported.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    # Ray gives its workers nice 15, so beside any other busy process they starve.
    "RAY_worker_niceness": "0",
    # Machines of this cluster are not taken away, and the metrics are not read.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


def launch(work: Callable[[], None], name: str, directory: Path, num_workers: int) -> None:
    """Do a training's work on several workers: of the Ray cluster that RAY_ADDRESS names, or of a
    cluster of this machine alone, which ends with the training.

    Args:
        work: can be pickled; joins its workers by torch.distributed.
        name: of the run.
        directory: where Ray keeps its notes.
        num_workers: how many do it together.

    Raises:
        SettingsError: Ray Train is not installed.
        AgentError: whatever a worker raised of it.
    """
    with _ray(num_workers):
        try:
            from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
            from ray.train.torch import TorchConfig, TorchTrainer
        except ImportError as error:
            raise SettingsError(
                "several workers need Ray Train: pip install 'groundstream[train]'"
            ) from error
        trainer = TorchTrainer(
            _work,
            # Pickled here, so that what only coordinates the workers need not import the training.
            train_loop_config={"work": pickle.dumps(work)},
            torch_config=TorchConfig(backend="gloo", timeout_s=_TIMEOUT_S),
            scaling_config=ScalingConfig(num_workers=num_workers),
            run_config=RunConfig(
                name=name,
                storage_path=str(directory / "ray"),
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as failed:
            failures = getattr(failed, "worker_failures", {})
            for failure in failures.values():
                if isinstance(failure, AgentError):
                    raise failure from failed
            raise


@contextmanager
def _ray(num_workers: int) -> Iterator[None]:
    """A cluster, unless this process has joined one."""
    if "RAY_ADDRESS" not in os.environ:
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        # Ray would keep one secret for all its clusters in the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        yield
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init()
    else:
        # One more for what coordinates the workers.
        ray.init(
            address="local",
            num_cpus=num_workers + 1,
            include_dashboard=False,
            runtime_env={"worker_process_setup_hook": "deployments.cli.ray_train.quieten"},
        )
    try:
        yield
    finally:
        ray.shutdown()


def quieten() -> None:
    """Runs first in every process of the cluster: one of them complains every second that there is
    no dashboard, which it would ask how the training is."""
    logging.getLogger(_CLEANER_LOGGER).setLevel(logging.ERROR)


def _work(config: dict[str, Any]) -> None:
    """What each worker does."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    pickle.loads(config["work"])()
