"""What the page is told, as plain JSON values. Pure functions; knows no HTTP and no gRPC."""

from __future__ import annotations

from enum import Enum
from typing import Any

from groundstream.cameras.place_file import Places, places_text
from groundstream.events import (
    KeyframeAnswer,
    StreamError,
    StreamEvent,
    StreamStats,
)
from groundstream.types import Capabilities, Detection, FrameResult, QueryResult, ServiceStats
from groundstream.zones import Line, Zone

_FATES = ("received", "answered", "tracked_only", "superseded", "rejected", "failed")
_TIMINGS = ("follow", "queue", "cache", "propose", "primary", "auxiliary", "language", "total")


def result_view(result: FrameResult) -> dict[str, Any]:
    """One frame's answers: boxes in pixels of a picture of `width` x `height`, times in ms."""
    return {
        "sequence": result.sequence,
        "width": result.width,
        "height": result.height,
        "cache_hit": result.cache_hit,
        "num_proposals": result.num_proposals,
        "timings_ms": {name: getattr(result.timings, f"{name}_ms") for name in _TIMINGS},
        "answers": [_answer(answer) for answer in result.results],
    }


def _answer(answer: QueryResult) -> dict[str, Any]:
    return {
        "query": answer.query_id,
        "status": _name(answer.status),
        "reply": answer.reply,
        "thought": answer.thought,
        "count": answer.count,
        "source": _name(answer.source),
        "age_ms": answer.evidence_age_ms,
        "detections": [_detection(detection) for detection in answer.detections],
    }


def _detection(detection: Detection) -> dict[str, Any]:
    return {
        "box": list(detection.box),
        "label": detection.label,
        "confidence": detection.confidence,
        "track_id": detection.track_id,
        "source": _name(detection.source),
        "age_ms": detection.evidence_age_ms,
    }


def event_view(event: StreamEvent) -> dict[str, Any] | None:
    """What happened on a stream; None: nothing the page shows."""
    match event:
        case FrameResult():
            return {"kind": "result", **result_view(event)}
        case KeyframeAnswer():
            return {"kind": "keyframe", "reason": event.reason, **result_view(event.result)}
        case StreamStats():
            return {"kind": "books", **books_view(event)}
        case StreamError():
            return {"kind": "error", "code": event.code, "message": event.message}
    return None


def books_view(stats: StreamStats) -> dict[str, Any]:
    """Where the frames of a stream went; `received` is the sum of the others."""
    return {
        **{name: getattr(stats, name) for name in (*_FATES, "expired", "in_flight")},
        "num_keyframes": stats.activity.num_keyframes,
        "num_tracks": stats.activity.num_tracks,
    }


def service_view(capabilities: Capabilities, stats: ServiceStats) -> dict[str, Any]:
    """The service in sums; stages in mean milliseconds of a call since the replica started."""
    cache = stats.cache
    return {
        "version": capabilities.service_version,
        "model": capabilities.model_name,
        "tasks": [_name(task) for task in capabilities.tasks],
        "uptime_s": stats.uptime_s,
        "open_streams": stats.open_streams,
        "frames": {name: getattr(stats, f"frames_{name}") for name in _FATES},
        "stages": [
            {
                "name": stage.name,
                "num_done": stage.num_done,
                "num_refused": stage.num_refused,
                "call_ms": _mean(stage.call_ms, stage.num_done),
                "queue_ms": _mean(stage.queue_ms, stage.num_done),
                "compute_ms": _mean(stage.compute_ms, stage.num_done),
            }
            for stage in stats.stages
        ],
        "cache": {
            "hits": cache.hits,
            "misses": cache.misses,
            "hit_share": _mean(cache.hits, cache.hits + cache.misses),
            "stored": cache.stored,
            "errors": cache.errors + cache.corrupt,
        },
    }


def places_view(name: str, places: Places) -> dict[str, Any]:
    """The zones and lines of a camera, and the YAML of a file of cameras that says the same."""
    return {
        "zones": [_place(zone) for zone in places.zones],
        "lines": [_place(line) for line in places.lines],
        "yaml": places_text({name: places}),
    }


def _place(place: Zone | Line) -> dict[str, Any]:
    return {
        "name": place.name,
        "points": [list(point) for point in place.points],
        "unit": place.unit.name,
        "dwell_s": place.dwell_s if isinstance(place, Zone) else None,
        "queries": list(place.queries),
    }


def _mean(total: float, count: int) -> float | None:
    """None where nothing was counted: that is not zero."""
    return total / count if count else None


def _name(value: Enum | str) -> str:
    return str(value.value if isinstance(value, Enum) else value)
