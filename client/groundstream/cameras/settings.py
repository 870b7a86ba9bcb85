"""What a file of cameras says, as plain dataclasses; `groundstream/cameras/schema.py` reads it.

Equal settings mean that nothing has changed; a reload goes by that. Secrets are not shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from groundstream.channel import TlsOptions
from groundstream.enums import AnswerMode
from groundstream.event_detector import EventSettings
from groundstream.scene_events import EventKind
from groundstream.types import DEFAULT_TARGET, Query
from groundstream.zones import Line, Zone


@dataclass(frozen=True)
class ServiceSettings:
    """Whom to ask."""

    target: str = DEFAULT_TARGET
    token: str | None = field(default=None, repr=False)
    tls: TlsOptions | None = None


@dataclass(frozen=True)
class CameraSettings:
    """One camera: what it is, what to look for, what to tell."""

    name: str
    source: str = field(repr=False)
    queries: tuple[Query, ...]
    fps: float | None = None
    """Pictures a second at most; None: all."""
    repeat: bool = False
    """Begin again at the end (files)."""
    mode: AnswerMode = AnswerMode.FOLLOW
    max_age_ms: float = 0.0
    zones: tuple[Zone, ...] = ()
    lines: tuple[Line, ...] = ()
    events: EventSettings = field(default_factory=EventSettings)
    sinks: tuple[str, ...] | None = None
    """Who is told; None: all."""
    record: bool = True
    """Make snapshots and clips, where the file has `recordings`."""


@dataclass(frozen=True)
class SinkSettings:
    """What all sinks have."""

    name: str
    kinds: frozenset[EventKind] | None = None
    """Events that it is told; None: all."""
    status: bool = True
    """Whether it is told of cameras, recordings and the runner, beside events."""
    max_records: int = 100_000
    """That may wait for it, on disk."""
    max_bytes: int = 64_000_000


@dataclass(frozen=True)
class JsonLinesSettings(SinkSettings):
    """A file, one record a line."""

    path: Path = Path()


@dataclass(frozen=True)
class WebhookSettings(SinkSettings):
    """An address that takes one record a POST."""

    url: str = field(default="", repr=False)
    """May hold a secret, as many services' addresses do."""
    secret: str = field(default="", repr=False)
    """Signs what is sent; empty: nothing is signed."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca: Path | None = None
    timeout_s: float = 10.0


@dataclass(frozen=True)
class MqttSettings(SinkSettings):
    """A broker."""

    host: str = ""
    port: int = 1883
    topic: str = "groundstream"
    """What all topics begin with."""
    client_id: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    ca: Path | None = None
    timeout_s: float = 10.0


@dataclass(frozen=True)
class RecordingSettings:
    """Snapshots and clips around events, and for how long they are kept."""

    folder: Path
    kinds: frozenset[EventKind]
    """Events that are recorded."""
    snapshots: bool = True
    clips: bool = True
    before_s: float = 5.0
    after_s: float = 5.0
    max_s: float = 60.0
    """Longest clip; events that follow each other share one."""
    keep_days: float = 7.0
    keep_bytes: int = 10_000_000_000
    max_ring_bytes: int = 32_000_000
    """Pictures of one camera that are kept in memory for clips."""


@dataclass(frozen=True)
class RunnerSettings:
    """The whole file."""

    service: ServiceSettings
    state: Path
    """Folder of queues and of the list of recordings."""
    metrics: tuple[str, int] | None
    """Address and port of the metrics page; None: there is none."""
    recordings: RecordingSettings | None
    cameras: dict[str, CameraSettings]
    sinks: dict[str, SinkSettings]
