"""One training on several workers, through Ray Train.

The training itself is `agent/training/`, which knows torch.distributed and no Ray; this module
starts the processes and joins them to a group.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from agent.errors import SettingsError
from agent.training.nano import NanoTraining, check_stage

_TIMEOUT_S = 6 * 3600
"""What one worker does alone while the others wait, such as a pool of features, takes long."""


def launch(training: NanoTraining, stage: str, num_workers: int) -> None:
    """Train a stage on several workers of this machine, or of the Ray cluster it belongs to.

    Raises:
        SettingsError: Ray Train is not installed, or the stage is none.
    """
    check_stage(stage)
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise SettingsError(
            "several workers need Ray Train: pip install 'groundstream[train]'"
        ) from error
    on_gpu = training.device.startswith("cuda")
    absolute = replace(
        training,
        artwork=training.artwork.resolve(),
        directory=training.directory.resolve(),
        output=training.output.resolve(),
    )
    trainer = TorchTrainer(
        _work,
        train_loop_config={"training": absolute, "stage": stage},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=_TIMEOUT_S),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=on_gpu),
        run_config=RunConfig(
            name=stage,
            storage_path=str(absolute.directory / "ray"),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    trainer.fit()


def _work(config: dict[str, Any]) -> None:
    """What each worker does."""
    from ray.train.torch import get_device

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    training: NanoTraining = config["training"]
    replace(training, device=str(get_device())).run(config["stage"])
