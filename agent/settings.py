"""Operational settings of the service: frozen dataclasses, loaded strictly from YAML.

The file is a Ray Serve config (`serve deploy` accepts it too): what our code needs stands in the
application's `args`, what Serve schedules by in its `deployments`. Architecture is not here, it
travels with the weights. Knows no Ray: a deployment's numbers are handed on as they are.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from agent.errors import SettingsError
from agent.frame import FrameLimits
from agent.model_directory import DEFAULT_MODEL
from agent.server_settings import AccessSettings, ObserveSettings, ServerSettings
from agent.stage_settings import EngineSettings, StageFactories, StageThreads

T = TypeVar("T")

_SERVE_KEYS = frozenset({"proxy_location", "logging_config", "applications"})


@dataclass(frozen=True)
class TrackerSettings:
    """How long things are believed in."""

    least_support: float = 0.4
    """Share of a box's points that must agree for the picture to say where it is."""
    least_snap: float = 0.6
    """Overlap with a proposal at which a track takes its place (where proposals are quick)."""
    show_coasting_s: float = 0.25
    """An object that the picture no longer shows is still reported for this long."""
    max_coasting_s: float = 1.0
    """Then it is out of sight, and only its looks or an answer bring it back."""
    memory_s: float = 60.0
    """An object out of sight is forgotten after this long."""
    max_remembered: int = 200
    """Objects out of sight at most; the oldest goes first."""
    max_nameless_s: float = 5.0
    """An object is followed for this long when no standing query is about it any more."""
    least_similarity: float = 0.6
    """Cosine of region features, around the scene's mean, for things to be the same."""
    max_misses: int = 2
    """Answers in a row that must pass over an object before it is no longer believed."""


@dataclass(frozen=True)
class KeyframeSettings:
    """Which frames the language model sees."""

    refresh_s: float = 6.0
    """A scene in which nothing happens is looked at again after this long."""
    scene_change: float = 0.015
    """Share of the picture that must have changed in a way no track explains."""
    uncertainty: float = 0.35
    """Standard deviation of a track's centre, in box sizes, at which it is looked for again."""
    busy_share: float = 0.8
    """Share of the time that key frames of one stream may take."""
    least_interval_s: float = 0.2
    """Least time between two key frames of one stream."""
    retry_after_s: float = 1.0
    """Pause after a key frame that failed."""


@dataclass(frozen=True)
class FollowSettings:
    """The fast path of a stream: what happens between key frames."""

    view_px: int = 400
    """Longer side of the grey picture that is followed."""
    num_points: int = 250
    """Corners of the picture that are followed from frame to frame."""
    proposal_budget_s: float = 0.015
    """Proposals of every frame correct the tracks while they take no longer than this."""
    block_change: float = 18.0
    """Grey levels by which a block of the picture must differ to have changed."""
    reuse_difference: float = 0.05
    """Largest change of any part of the picture for which features may be reused (opt-in)."""
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    keyframe: KeyframeSettings = field(default_factory=KeyframeSettings)


@dataclass(frozen=True)
class SharingSettings:
    """How the streams of one front-end replica share what there is."""

    keyframes_at_once: int = 1
    """Key frames of all streams before the stages together; where there are several, one fewer
    while one-off questions are under way. More where the stages have devices of their own."""
    prompts_at_once: int = 48
    """Questions of all tenants before the language model together, by turns and at most three
    quarters of them one tenant's; fewer than a language replica's `max_calls`."""
    least_keyframe_share: float = 0.4
    """Share of the time that key frames keep however busy the fast path is."""
    looks_at_once: int = 2
    """Frames that are looked at together; as many as the front end has processors."""
    look_wait_s: float = 0.02
    """A frame that nobody could look at for so long is answered by prediction."""
    max_unseen_s: float = 0.5
    """A stream that was not looked at for so long waits longer for its look."""
    unseen_wait_s: float = 0.1
    """How long then; its newer frames are superseded meanwhile."""


@dataclass(frozen=True)
class SessionSettings:
    """Snapshots by which a client that comes back finds its session again."""

    interval_s: float = 1.0
    """Least time between two snapshots of one stream."""
    ttl_s: float = 300.0
    """A session is kept for this long after its last snapshot."""


@dataclass(frozen=True)
class ZoomSettings:
    """Second looks at parts of a large frame, in single calls that ask for them."""

    vision_tokens: int = 1024
    """Spent on second looks where the call names no budget, and the most it may name."""
    margin: float = 0.5
    """A crop is larger than its box by this share of the box's longer side, on every side."""
    cell_px: int = 84
    """Side of one crop on a contact sheet."""
    picture_px: int = 224
    """Least side of a crop that is a picture of its own."""
    max_crops: int = 64
    """Parts of one frame that are looked at again, at most."""
    small_px: float = 40.0
    """A box whose longer side is shorter than this in the first picture is looked at again."""
    least_reduction: float = 1.5
    """A frame that the model sees reduced less than this often has nothing to be zoomed into."""
    scout_px: int = 512
    """Side of the parts of the frame in which the proposal network searches for small things."""
    max_scouted: int = 16
    """Such parts at most; a larger frame has larger parts."""
    reply_s: float = 0.05
    """Time kept for sending the answer before a call's deadline."""


@dataclass(frozen=True)
class StreamSettings:
    """Limits of one stream and of one call."""

    max_queries: int = 16
    """Questions that may stand together, or be asked in one call."""
    max_new_tokens: int = 256
    """Longest answer a client may ask for, and the default."""
    stats_interval_s: float = 2.0
    """Time between two StreamStats messages of a stream."""
    stage_timeout_s: float = 30.0
    """A stage that takes longer is unavailable."""
    stage_hang_s: float = 120.0
    """A replica is replaced when one of its forward passes takes longer."""
    window: int = 8
    """Frames that may wait where not the newest wins and the client names no number."""
    max_window: int = 64
    """Largest `window` a client may ask for."""
    max_window_bytes: int = 67_108_864
    """Pictures of one stream that may wait, and as much again where somebody looks on."""
    idle_s: float | None = 600.0
    """A stream whose client sent nothing for so long ends, and can be resumed. None: never."""
    follow: FollowSettings = field(default_factory=FollowSettings)
    session: SessionSettings = field(default_factory=SessionSettings)
    sharing: SharingSettings = field(default_factory=SharingSettings)
    zoom: ZoomSettings = field(default_factory=ZoomSettings)
    overlap_stages: bool = True
    """Encoders start while the boxes are still being proposed. Faster where each stage has its
    own device; no difference where all share two cores."""


@dataclass(frozen=True)
class CacheSettings:
    """The region cache."""

    url: str | None = field(default=None, repr=False)
    """Redis URL, perhaps with a password; None: `groundstream serve` starts an embedded server,
    else in-process memory."""
    ttl_s: float = 600.0
    """Features of a frame are kept for this long."""
    budget_bytes: int = 268_435_456
    """Memory of the embedded server; an external one has its own limit."""
    timeout_s: float = 0.1
    """Longest wait for one cache call; then it is a miss."""
    max_pending_writes: int = 32
    """Background writes beyond this many are dropped."""
    retry_after_s: float = 0.5
    """First pause after a failed call; doubles up to `max_retry_after_s`."""
    max_retry_after_s: float = 10.0
    """Longest pause before the cache is tried again."""


@dataclass(frozen=True)
class LocalClusterSettings:
    """The Ray cluster that `groundstream serve` starts; a deployed service ignores it."""

    num_cpus: int = 4
    """Logical processors, only counted against the deployments' `num_cpus`."""
    object_store_bytes: int = 209_715_200
    """Shared memory that Ray sets aside; frames and features do not go through it."""
    start_timeout_s: float = 180.0
    """A service that has not answered a frame by then has failed to start."""


@dataclass(frozen=True)
class ServiceSettings:
    """Everything the service's own code needs to know."""

    model: str = DEFAULT_MODEL
    """Embedded model name or checkpoint folder."""
    device: str = "cpu"
    """Where the stages compute: cpu, cuda, cuda:1 ..."""
    dtype: str = "auto"
    """Type of encoder and language weights: auto (as stored on a GPU; on a CPU float32, but
    bfloat16 for the language model where the processor computes it), stored, float32, bfloat16,
    float16."""
    compiled: bool = False
    """Compile the encoders' feed-forward parts when they first run; on a GPU alone."""
    proposal_network: str | None = None
    """Folder or hub name to use instead of the model's own proposal network; `none` for clients
    that always send boxes."""
    max_batch_frames: int | None = None
    """Frames that wait for one vision stage and are computed together; None: 1 on a CPU, where
    batches gain nothing, else 8."""
    tenant: str = ""
    """Whose calls those without credentials are. The tenant is in every cache key, so that no two
    ever share features or sessions."""
    server: ServerSettings = field(default_factory=ServerSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    observe: ObserveSettings = field(default_factory=ObserveSettings)
    frame: FrameLimits = field(default_factory=FrameLimits)
    stream: StreamSettings = field(default_factory=StreamSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    stages: StageFactories = field(default_factory=StageFactories)
    num_threads: StageThreads = field(default_factory=StageThreads)
    local_cluster: LocalClusterSettings = field(default_factory=LocalClusterSettings)

    @property
    def model_revision(self) -> str:
        """The same for those that may use each other's boxes and features.

        Knows names and no contents: files of a folder in use are not to be changed.
        """
        return f"{self.model} {self.proposal_network or ''}".strip()


@dataclass(frozen=True)
class DeploymentSettings:
    """What Serve is told about one deployment; None leaves Serve's default."""

    name: str
    num_replicas: int | str | None = None
    autoscaling_config: Mapping[str, object] | None = None
    ray_actor_options: Mapping[str, object] | None = None
    user_config: Mapping[str, object] | None = None
    max_ongoing_requests: int | None = None
    max_replicas_per_node: int | None = None
    max_surge_percent: int | None = None
    graceful_shutdown_wait_loop_s: float | None = None
    graceful_shutdown_timeout_s: float | None = None
    health_check_period_s: float | None = None
    health_check_timeout_s: float | None = None

    def options(self) -> dict[str, object]:
        """The numbers that were given, under Serve's own names."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["name"]
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class ServeConfig:
    """A whole `serve_config.yaml`."""

    service: ServiceSettings = field(default_factory=ServiceSettings)
    deployments: tuple[DeploymentSettings, ...] = ()


def load_serve_config(path: Path) -> ServeConfig:
    """Settings from a Serve config file with one application.

    Raises:
        SettingsError: unreadable, not YAML, an unknown key or a value of the wrong kind.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    if not isinstance(loaded, Mapping):
        raise SettingsError(f"{path} must hold a mapping")
    for key in loaded:
        if key not in _SERVE_KEYS:
            raise _unknown(str(key), sorted(_SERVE_KEYS), str(path))
    applications = loaded.get("applications")
    if not isinstance(applications, list) or len(applications) != 1:
        raise SettingsError(f"{path}: applications must be a list with exactly one entry")
    application = applications[0]
    if not isinstance(application, Mapping):
        raise SettingsError(f"{path}: applications[0] must be a mapping")
    return serve_config(application.get("args") or {}, application.get("deployments") or [])


def serve_config(args: object, deployments: object) -> ServeConfig:
    """Settings from the two parts of an application that hold numbers.

    Raises:
        SettingsError: an unknown key or a value of the wrong kind.
    """
    if not isinstance(deployments, list):
        raise SettingsError("deployments must be a list")
    return ServeConfig(
        service=from_mapping(ServiceSettings, args, "args"),
        deployments=tuple(
            from_mapping(DeploymentSettings, entry, f"deployments[{index}]")
            for index, entry in enumerate(deployments)
        ),
    )


def with_environment(settings: ServiceSettings, environ: Mapping[str, str]) -> ServiceSettings:
    """The settings with `REDIS_URL`, where it is set, in place of the file's cache URL."""
    url = environ.get("REDIS_URL")
    if not url:
        return settings
    cache = dataclasses.replace(settings.cache, url=url)
    return dataclasses.replace(settings, cache=cache)


def from_mapping(cls: type[T], values: object, where: str = "settings") -> T:
    """A settings dataclass from a mapping; nested dataclasses are built on the way.

    Raises:
        SettingsError: an unknown or missing key, or a value of the wrong kind.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where} must be a mapping, not {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise _unknown(str(key), sorted(hints), where)
    arguments = {
        key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()
    }
    try:
        return cls(**arguments)
    except TypeError as error:
        raise SettingsError(f"{where}: {error}") from error


def _convert(hint: Any, value: object, where: str) -> object:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_mapping(hint, value, where)
    origin = typing.get_origin(hint)
    if origin is Mapping and isinstance(value, Mapping):
        kind = typing.get_args(hint)[1]
        if dataclasses.is_dataclass(kind):
            return {str(key): _convert(kind, one, f"{where}.{key}") for key, one in value.items()}
    options = typing.get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        kind = typing.get_origin(option) or option
        if kind is tuple and isinstance(value, (list, tuple)):
            return _convert_tuple(option, value, where)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        # A bool is an int to Python, but "port: true" is a mistake.
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
    wanted = " or ".join(
        "null" if option is type(None) else (typing.get_origin(option) or option).__name__
        for option in options
    )
    raise SettingsError(f"{where} must be {wanted}, not {value!r}")


def _convert_tuple(hint: Any, values: Sequence[object], where: str) -> tuple[object, ...]:
    """YAML knows lists only."""
    kinds = typing.get_args(hint)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    if len(kinds) != len(values):
        raise SettingsError(f"{where} must have {len(kinds)} values, not {len(values)}")
    return tuple(
        _convert(kind, value, f"{where}[{index}]")
        for index, (kind, value) in enumerate(zip(kinds, values, strict=True))
    )


def _unknown(key: str, known: list[str], where: str) -> SettingsError:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"
    return SettingsError(f"unknown key {key!r} in {where}{hint}")
