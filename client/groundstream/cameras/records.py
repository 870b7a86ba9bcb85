"""What sinks are told, as plain records; `docs/cameras.md` describes each."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from groundstream.cameras.outbox import Record
from groundstream.scene_events import SceneEvent, event_fields


def event_record(camera: str, event: SceneEvent, recorded: Mapping[str, str]) -> Record:
    """Something has happened in front of a camera.

    Args:
        camera: its name.
        event: what.
        recorded: names of the snapshot and the clip, where there are any.
    """
    return {
        "id": event.id, "type": "event", "camera": camera, "time_ns": time.time_ns(),
        "event": event_fields(event), **recorded,
    }  # fmt: skip


def camera_record(camera: str, what: str, **fields: Any) -> Record:
    """Something has happened to a camera, or to the stream of its pictures."""
    return _record("camera", what, fields, camera=camera)


def runner_record(what: str, **fields: Any) -> Record:
    """Something has happened to the runner."""
    return _record("runner", what, fields)


def _record(kind: str, what: str, fields: Mapping[str, Any], **named: str) -> Record:
    return {
        "id": uuid.uuid4().hex[:24], "type": kind, **named, "time_ns": time.time_ns(),
        "what": what, **{name: value for name, value in fields.items() if value is not None},
    }  # fmt: skip
