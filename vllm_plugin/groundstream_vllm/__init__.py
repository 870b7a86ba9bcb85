"""vLLM as the generation engine of a language replica: `engine.backend: vllm`.

The same contract as `agent.engine`, in the replica's own process: prompts go in as token ids and
slots, and vLLM schedules, pages and decodes. docs/cluster.md says when to use which.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from agent.model.configuration import VLMFO1Config
from agent.stage_settings import EngineSettings
from groundstream.errors import SettingsError

if TYPE_CHECKING:
    from groundstream_vllm.engine import VllmEngine

_ENVIRONMENT = {
    # The engine runs in a thread of ours: slots, grammars and guesses are handed over as objects.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # It tells nobody what it serves, and takes no other package's code in.
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # Cores are the replica's business (`num_threads`).
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # A group of one process talks to nobody; its ports stay on loopback.
    "GLOO_SOCKET_IFNAME": "lo",
}


def open_engine(
    settings: EngineSettings,
    directory: Path,
    config: VLMFO1Config,
    *,
    device: str,
    dtype: torch.dtype | None,
) -> VllmEngine:
    """The engine of a model directory, loaded; see `agent.engine_backends.open_backend`.

    Raises:
        SettingsError: what vLLM cannot do here, and what to set instead.
    """
    if config.bf16_rotary:
        raise SettingsError(
            "as_published rounds rotary tables, which vLLM does not: set engine.backend to builtin"
        )
    if dtype is torch.int8:
        raise SettingsError(
            "dtype int8 is the builtin engine's: set dtype to bfloat16, or engine.backend to "
            "builtin"
        )
    if device not in ("cpu", "cuda", "cuda:0"):
        raise SettingsError(
            f"vLLM takes the first GPU that its process sees, not {device!r}: set device to cuda "
            "and choose the GPU by CUDA_VISIBLE_DEVICES, as Ray does for its replicas"
        )
    os.environ.update(_ENVIRONMENT)
    # vLLM reads its environment when it is imported.
    from groundstream_vllm.engine import VllmEngine

    return VllmEngine(settings, directory, config, device=device, dtype=dtype or torch.bfloat16)
