"""Settings of the stages' replicas: the engine's bounds, classes and threads.

Part of `agent.settings`, which says how they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.checked_settings import Count, CountOrNone, NonNegativeCount, checked


@checked
@dataclass(frozen=True)
class EngineSettings:
    """Which generation engine a language replica runs, and its bounds."""

    backend: str = "builtin"
    """`builtin`, or `vllm` where groundstream-vllm is installed (docs/cluster.md says when to use
    which)."""
    max_step_tokens: Count = 768
    """About how many tokens one forward pass takes; a longer prefix is computed in chunks beside
    the decoding."""
    max_running: Count = 64
    """Answers decoded together; more wait, earliest deadline first."""
    max_waiting: NonNegativeCount = 512
    """Requests that may wait; beyond, they are refused."""
    max_draft_tokens: NonNegativeCount = 32
    """Guessed tokens of one answer verified in one pass; 0 decodes plainly."""
    max_pass_draft_tokens: CountOrNone = None
    """Guessed tokens of one pass, shared out among its answers; each verifies its likeliest guess
    at least. None: 64 on a CPU, where every token costs time, else 1024. Builtin engine alone."""
    num_leading_regions: NonNegativeCount = 8
    """So many of the best proposals are guessed as the whole or the next of a search's answer."""
    prefix_bytes: NonNegativeCount = 268_435_456
    """Keys and values kept of frames that were asked about, for further questions; least recently
    used out first. With vllm all there are, those of answers under way included."""
    compiled: bool = False
    """Compile the decoder layers for passes of 8, 32, 128 and 512 tokens, started as CUDA graphs;
    on a GPU alone. Not measured on one yet (docs/benchmarks.md). With vllm its own compilation."""


@checked
@dataclass(frozen=True)
class StageFactories:
    """Which class each stage runs, as `module:Class`; tests put fakes here."""

    proposal: str = "agent.proposer:Proposer"
    primary_encoder: str = "agent.encoders:PrimaryEncoderStage"
    auxiliary_encoder: str = "agent.encoders:AuxiliaryEncoderStage"
    language: str = "agent.generation:LanguageStage"


@checked
@dataclass(frozen=True)
class StageThreads:
    """Torch threads of each stage's replicas."""

    proposal: Count = 1
    primary_encoder: Count = 1
    auxiliary_encoder: Count = 1
    language: Count = 1
