"""Operational settings of the service: checked dataclasses, loaded strictly from YAML.

The file is a Ray Serve config (`serve deploy` accepts it too): what our code needs stands in the
application's `args`, what Serve schedules by in its `deployments`. Architecture is not here, it
travels with the weights. Knows no Ray: a deployment's numbers are handed on as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from agent.checked_settings import (
    AllPositive,
    Count,
    CountOrNone,
    NonNegative,
    NonNegativeCount,
    Positive,
    PositiveShare,
    Share,
    checked,
    from_mapping,
    unknown_key,
)
from agent.frame import FrameLimits
from agent.model_directory import DEFAULT_MODEL
from agent.server_settings import AccessSettings, ObserveSettings, ServerSettings
from agent.stage_settings import EngineSettings, StageFactories, StageThreads
from groundstream.errors import SettingsError

_SERVE_KEYS = frozenset({"proxy_location", "logging_config", "applications"})


@checked
@dataclass(frozen=True)
class TrackerSettings:
    """How long things are believed in."""

    least_support: Share = 0.4
    """Share of a box's points that must agree for the picture to say where it is."""
    least_snap: Share = 0.6
    """Overlap with a proposal at which a track takes its place (where proposals are quick)."""
    least_likeness: Annotated[float, Field(ge=-1, le=1)] = 0.3
    """Correlation of what is in a box with what its last answer saw there; below it the picture no
    longer shows the object."""
    show_coasting_s: NonNegative = 0.25
    """An object that the picture no longer shows is still reported for this long."""
    max_coasting_s: NonNegative = 1.0
    """Then it is out of sight, and only its looks or an answer bring it back."""
    memory_s: NonNegative = 60.0
    """An object out of sight is forgotten after this long."""
    max_remembered: NonNegativeCount = 200
    """Objects out of sight at most; the oldest goes first."""
    max_nameless_s: NonNegative = 5.0
    """An object is followed for this long when no standing query is about it any more."""
    least_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.6
    """Cosine of region features, around the scene's mean, for things to be the same."""
    max_misses: NonNegativeCount = 2
    """Answers in a row that must pass over an object before it is no longer believed."""


@checked
@dataclass(frozen=True)
class KeyframeSettings:
    """Which frames the language model sees."""

    refresh_s: NonNegative = 6.0
    """A scene in which nothing happens is looked at again after this long."""
    scene_change: NonNegative = 0.015
    """Share of the picture that must have changed in a way no track explains."""
    uncertainty: Positive = 0.35
    """Standard deviation of a track's centre, in box sizes, at which it is looked for again."""
    busy_share: PositiveShare = 0.8
    """Share of the time that key frames of one stream may take."""
    least_interval_s: NonNegative = 0.2
    """Least time between two key frames of one stream."""
    retry_after_s: NonNegative = 1.0
    """Pause after a key frame that failed."""


@checked
@dataclass(frozen=True)
class FollowSettings:
    """The fast path of a stream: what happens between key frames."""

    view_px: Count = 400
    """Longer side of the grey picture that is followed."""
    num_points: Count = 250
    """Corners of the picture that are followed from frame to frame."""
    proposal_budget_s: NonNegative = 0.015
    """Proposals of every frame correct the tracks while they take no longer than this."""
    block_change: NonNegative = 18.0
    """Grey levels by which a block of the picture must differ to have changed."""
    reuse_difference: NonNegative = 0.05
    """Largest change of any part of the picture for which features may be reused (opt-in)."""
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    keyframe: KeyframeSettings = field(default_factory=KeyframeSettings)


@checked
@dataclass(frozen=True)
class SharingSettings:
    """How the streams of one front-end replica share what there is."""

    keyframes_at_once: Count = 1
    """Key frames of all streams before the stages together; where there are several, one fewer
    while one-off questions are under way. More where the stages have devices of their own."""
    prompts_at_once: Count = 48
    """Questions of all tenants before the language model together, by turns and at most three
    quarters of them one tenant's; fewer than a language replica's `max_ongoing_requests`."""
    least_keyframe_share: Share = 0.4
    """Share of the time that key frames keep however busy the fast path is."""
    looks_at_once: Count = 2
    """Frames that are looked at together; as many as the front end has processors."""
    look_wait_s: NonNegative = 0.02
    """A frame that nobody could look at for so long is answered by prediction."""
    max_unseen_s: NonNegative = 0.5
    """A stream that was not looked at for so long waits longer for its look."""
    unseen_wait_s: NonNegative = 0.1
    """How long then; its newer frames are superseded meanwhile."""


@checked
@dataclass(frozen=True)
class SessionSettings:
    """Snapshots by which a client that comes back finds its session again."""

    interval_s: NonNegative = 1.0
    """Least time between two snapshots of one stream."""
    ttl_s: Positive = 300.0
    """A session is kept for this long after its last snapshot."""


@checked
@dataclass(frozen=True)
class ZoomSettings:
    """Second looks at parts of a large frame, in single calls that ask for them."""

    vision_tokens: Count = 1024
    """Spent on second looks where the call names no budget, and the most it may name."""
    margin: NonNegative = 0.5
    """A crop is larger than its box by this share of the box's longer side, on every side."""
    cell_px: Count = 84
    """Side of one crop on a contact sheet."""
    picture_px: Count = 224
    """Least side of a crop that is a picture of its own."""
    max_crops: Count = 64
    """Parts of one frame that are looked at again, at most."""
    small_px: NonNegative = 40.0
    """A box whose longer side is shorter than this in the first picture is looked at again."""
    least_reduction: NonNegative = 1.5
    """A frame that the model sees reduced less than this often has nothing to be zoomed into."""
    scout_px: Count = 512
    """Side of the parts of the frame in which the proposal network searches for small things."""
    max_scouted: Count = 16
    """Such parts at most; a larger frame has larger parts."""
    reply_s: NonNegative = 0.05
    """Time kept for sending the answer before a call's deadline."""


@checked
@dataclass(frozen=True)
class VideoSettings:
    """Streams that send H.264 or H.265: what the front end is willing to decode."""

    enabled: bool = True
    """False: streams send pictures only."""
    max_packet_bytes: Count = 4_194_304
    """Largest packet."""
    max_pixels: Count = 8_912_896
    """Largest width x height as coded (default: 4096x2176, cinema 4K in whole blocks)."""
    decoders_at_once: Count = 2
    """Packets of all streams that are decoded together; as many as the front end has processors."""
    memory_bytes: Count = 2_147_483_648
    """What the decoders of all streams may come to hold: one of a 1080p stream up to 106 MB, most
    much less. One tenant gets at most three quarters of it. A stream that does not fit any more
    is refused as OVERLOADED."""


@checked
@dataclass(frozen=True)
class StreamSettings:
    """Limits of one stream and of one call."""

    max_queries: Count = 16
    """Questions that may stand together, or be asked in one call."""
    max_new_tokens: Count = 256
    """Longest answer a client may ask for, and the default."""
    stats_interval_s: Positive = 2.0
    """Time between two StreamStats messages of a stream."""
    stage_timeout_s: Positive = 30.0
    """A stage that keeps a stream's frame for longer, and eight times as long as frames took
    before, is unavailable. Single calls wait as long as their clients do."""
    stage_hang_s: Positive = 120.0
    """A replica is replaced when it computes and no layer of its model ends for so long."""
    window: Count = 8
    """Frames that may wait where not the newest wins and the client names no number."""
    max_window: Count = 64
    """Largest `window` a client may ask for."""
    max_window_bytes: Count = 67_108_864
    """Pictures of one stream that may wait, and as much again where somebody looks on."""
    idle_s: Positive | None = 600.0
    """A stream whose client sent or read nothing for so long ends, and can be resumed. None:
    never."""
    follow: FollowSettings = field(default_factory=FollowSettings)
    session: SessionSettings = field(default_factory=SessionSettings)
    sharing: SharingSettings = field(default_factory=SharingSettings)
    zoom: ZoomSettings = field(default_factory=ZoomSettings)
    video: VideoSettings = field(default_factory=VideoSettings)
    overlap_stages: bool = True
    """Encoders start while the boxes are still being proposed. Faster where each stage has its
    own device; no difference where all share two cores."""


@checked
@dataclass(frozen=True)
class CacheSettings:
    """The region cache."""

    url: str | None = field(default=None, repr=False)
    """Redis URL, perhaps with a password; None: `groundstream serve` starts an embedded server,
    else in-process memory."""
    ttl_s: Positive = 600.0
    """Features of a frame are kept for this long."""
    budget_bytes: Count = 268_435_456
    """Memory of the embedded server; an external one has its own limit."""
    memory_bytes: NonNegativeCount = 134_217_728
    """Features of recent frames that each language replica keeps in its own memory, too."""
    keep_keyframes: bool = False
    """Give the server the key frames of streams at once, for recordings that come again. Else it
    gets pictures of single calls, and frames that a second question or another replica came for."""
    timeout_s: Positive = 0.1
    """Longest wait for one cache call; then it is a miss."""
    max_pending_writes: Count = 32
    """Background writes beyond this many are dropped."""
    retry_after_s: NonNegative = 0.5
    """First pause after a failed call; doubles up to `max_retry_after_s`."""
    max_retry_after_s: NonNegative = 10.0
    """Longest pause before the cache is tried again."""


@checked
@dataclass(frozen=True)
class LocalClusterSettings:
    """The Ray cluster that `groundstream serve` starts; a deployed service ignores it."""

    num_cpus: Count = 4
    """Logical processors, only counted against the deployments' `num_cpus`."""
    object_store_bytes: Count = 209_715_200
    """Shared memory that Ray sets aside; the features of key frames under way go through it."""
    start_timeout_s: Positive = 180.0
    """A start has failed when for so long no process of the service loaded or computed
    anything, or no frame got through although the stages tried."""


@checked
@dataclass(frozen=True)
class ServiceSettings:
    """Everything the service's own code needs to know."""

    model: str = DEFAULT_MODEL
    """Embedded model name, checkpoint folder, or hub name (`OWNER/MODEL@REVISION`); one of the hub
    is fetched where it is not in the cache."""
    device: str = "cpu"
    """Where the stages compute: cpu, cuda, cuda:1 ..."""
    dtype: Literal["auto", "stored", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Type of encoder and language weights: auto (as stored on a GPU; on a CPU float32, but
    bfloat16 for the language model where the processor computes it), stored, float32, bfloat16,
    float16; int8: large linear layers of encoders and language model, with a scale for each row,
    and the rest as in auto."""
    compiled: bool = False
    """Compile the encoders' feed-forward parts when they first run; on a GPU alone."""
    proposal_network: str | None = None
    """Folder, file (UPN's `.pth`) or hub name to use instead of the model's own proposal network;
    `none` for clients that always send boxes."""
    as_published: bool = False
    """Run VLM-FO1 as its published code does: rotary tables in bfloat16, boxes selected by UPN's
    own wrapper (docs/models.md)."""
    max_batch_frames: CountOrNone = None
    """Frames that wait for one vision stage and are computed together; None: 1 on a CPU, where
    batches gain nothing, else 8."""
    tenant: str = ""
    """Whose calls those without credentials are. The tenant is in every cache key, so that no two
    ever share features or sessions."""
    server: ServerSettings = field(default_factory=ServerSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    observe: ObserveSettings = field(default_factory=ObserveSettings)
    frame: Annotated[FrameLimits, AllPositive] = field(default_factory=FrameLimits)
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
        published = "as published" if self.as_published else ""
        return " ".join(filter(None, (self.model, self.proposal_network, published)))


@checked
@dataclass(frozen=True)
class DeploymentSettings:
    """What Serve is told about one deployment; None leaves Serve's default."""

    name: str
    num_replicas: int | Literal["auto"] | None = None
    autoscaling_config: Mapping[str, object] | None = None
    ray_actor_options: Mapping[str, object] | None = None
    max_ongoing_requests: CountOrNone = None
    max_queued_requests: CountOrNone = None
    max_replicas_per_node: CountOrNone = None
    max_surge_percent: CountOrNone = None
    graceful_shutdown_wait_loop_s: NonNegative | None = None
    graceful_shutdown_timeout_s: NonNegative | None = None
    health_check_period_s: Positive | None = None
    health_check_timeout_s: Positive | None = None

    def options(self) -> dict[str, object]:
        """The numbers that were given, under Serve's own names."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["name"]
        return {key: value for key, value in values.items() if value is not None}


@checked
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
            raise unknown_key(str(key), sorted(_SERVE_KEYS), str(path))
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
