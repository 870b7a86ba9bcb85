"""Settings of the stages' replicas: the engine's bounds, classes and threads.

Part of `agent.settings`, which says how they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """Bounds of the generation engine of one language replica."""

    max_step_tokens: int = 768
    """About how many tokens one forward pass takes; a longer prefix is computed in chunks beside
    the decoding."""
    max_running: int = 64
    """Answers decoded together; more wait, earliest deadline first."""
    max_waiting: int = 512
    """Requests that may wait; beyond, they are refused."""
    max_draft_tokens: int = 32
    """Guessed tokens of one answer verified in one pass; 0 decodes plainly."""
    max_pass_draft_tokens: int | None = None
    """Guessed tokens of one pass, shared out among its answers; each verifies its likeliest guess
    at least. None: 64 on a CPU, where every token costs time, else 1024."""
    num_leading_regions: int = 8
    """So many of the best proposals are guessed as the whole or the next of a search's answer."""
    prefix_bytes: int = 268_435_456
    """Keys and values kept of frames that were asked about, for further questions; least recently
    used out first."""
    compiled: bool = False
    """Compile the decoder layers for passes of 8, 32, 128 and 512 tokens, started as CUDA graphs;
    on a GPU alone. Not measured on one yet (docs/benchmarks.md)."""


@dataclass(frozen=True)
class StageFactories:
    """Which class each stage runs, as `module:Class`; tests put fakes here."""

    proposal: str = "agent.proposer:Proposer"
    primary_encoder: str = "agent.encoders:PrimaryEncoderStage"
    auxiliary_encoder: str = "agent.encoders:AuxiliaryEncoderStage"
    language: str = "agent.generation:LanguageStage"


@dataclass(frozen=True)
class StageThreads:
    """Torch threads of each stage's replicas."""

    proposal: int = 1
    primary_encoder: int = 1
    auxiliary_encoder: int = 1
    language: int = 1
