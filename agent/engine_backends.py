"""Generation engines that other packages bring, by the name that `engine.backend` gives them.

A package offers one as an entry point of the group `groundstream.engines`: a function that takes
what `open_backend` hands on.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import torch

from agent.generation_request import GenerationEngine
from agent.model.configuration import VLMFO1Config
from agent.stage_settings import EngineSettings
from groundstream.errors import SettingsError

BUILTIN = "builtin"
_GROUP = "groundstream.engines"


def open_backend(
    settings: EngineSettings,
    directory: Path,
    config: VLMFO1Config,
    *,
    device: str,
    dtype: torch.dtype | None,
) -> GenerationEngine:
    """An engine that decodes a model directory's language model, ready to be asked.

    Args:
        settings: its name and bounds.
        directory: the model's.
        config: of that directory, as the command changed it.
        device: where to compute.
        dtype: type of the weights; None: the stored one.

    Raises:
        SettingsError: no installed package brings it, or it cannot run this model.
    """
    found = {entry.name: entry for entry in entry_points(group=_GROUP)}
    entry = found.get(settings.backend)
    if entry is None:
        known = ", ".join([BUILTIN, *found])
        raise SettingsError(
            f"engine.backend {settings.backend!r} is not installed (there is: {known}); for vllm "
            "install groundstream-vllm in an environment of its own, see docs/cluster.md"
        )
    engine: GenerationEngine = entry.load()(settings, directory, config, device=device, dtype=dtype)
    return engine
