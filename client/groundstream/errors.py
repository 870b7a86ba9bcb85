"""Every error a caller can cause, as one tree; knows no gRPC, no HTTP and no model.

The service raises them, the wire carries their codes, and the client raises them again.

AgentError
├── InvalidFrame          the bytes are not an image this service can read
│   ├── FrameTooLarge     the header announces more pixels or bytes than the limits allow
│   ├── FrameTooCostly    reading or decoding it takes out of proportion long
│   └── KeyFrameNeeded    a packet of a video builds on one that the service does not have
├── InvalidRequest        a message that asks for nothing this service knows
├── InvalidQuery          the question is empty, too long or malformed
├── InvalidBoxes          boxes that are not finite, not ordered or outside the frame
├── SettingsError         a settings file names an unknown key or an impossible value
├── SourceError           a video, camera or folder cannot be opened or read
├── EventsError           a zone, line or setting of events, or what events are made of, is unusable
├── NotAuthenticated      no credentials, or such as this service does not accept
├── Overloaded            a bounded queue is full, or time is too short; try again later
│   └── QuotaExceeded     the tenant's share of the service is used up for the moment
├── StreamIdle            nothing came on a stream for too long
└── StageUnavailable      a stage of the service did not answer in time

Each class that a client of the service may meet has a `code`, which the wire, the console and the
client go by; `deployments/wire/status.py` says which gRPC status it is. The errors about models,
which stay inside the service, are in `agent/errors.py`. Anything else is a bug of ours.
"""

from __future__ import annotations

from typing import ClassVar


class AgentError(Exception):
    """Base of all errors whose message is meant for the caller: it says what to do."""

    code: ClassVar[str] = ""
    """What the error is called wherever it travels; empty: it never leaves its process."""


class InvalidFrame(AgentError):
    """The image bytes cannot be decoded into a frame."""

    code = "INVALID_FRAME"


class FrameTooLarge(InvalidFrame):
    """The image is larger, in bytes or in pixels, than the limits allow."""

    code = "FRAME_TOO_LARGE"


class FrameTooCostly(InvalidFrame):
    """The image is small and would take long: too many scans, segments or chunks, or too slow."""

    code = "FRAME_TOO_COSTLY"


class KeyFrameNeeded(InvalidFrame):
    """The packet builds on one that was lost, refused or never sent, or cannot be decoded."""

    code = "KEY_FRAME_NEEDED"


class InvalidRequest(AgentError):
    """A message with nothing set, or with a field value that has no meaning."""

    code = "INVALID_ARGUMENT"


class InvalidQuery(AgentError):
    """The query text is empty, too long or otherwise unusable."""

    code = "INVALID_QUERY"


class InvalidBoxes(AgentError):
    """Boxes are not finite, not ordered (x1 < x2, y1 < y2) or outside the frame."""

    code = "INVALID_BOXES"


class SettingsError(AgentError):
    """A settings file or environment variable cannot be used."""


class SourceError(AgentError):
    """A video file, camera, folder or stream cannot be opened or read."""


class EventsError(AgentError):
    """A zone, a line or a setting of events is impossible, results carry no capture times, or a
    line of text is no event."""


class NotAuthenticated(AgentError):
    """The caller did not say who it is, or not in a way this service accepts."""

    code = "UNAUTHENTICATED"


class Overloaded(AgentError):
    """A bounded queue is full, or the answer would come too late to be of use."""

    code = "OVERLOADED"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When it is worth trying again, if anybody can say."""

    def __reduce__(self) -> tuple[type[Overloaded], tuple[str, float | None]]:
        # The default would forget the hint on the way between processes.
        return type(self), (str(self), self.retry_after_s)


class QuotaExceeded(Overloaded):
    """The caller's tenant uses all that it may use; others are not affected."""

    code = "QUOTA_EXCEEDED"


class StreamIdle(AgentError):
    """The client has sent or read nothing for too long; the session is kept."""

    code = "STREAM_IDLE"


class StageUnavailable(AgentError):
    """A stage did not answer in time, or no replica of it is up."""

    code = "STAGE_UNAVAILABLE"


def errors_by_code() -> dict[str, type[AgentError]]:
    """The classes that travel, by their codes."""
    found: dict[str, type[AgentError]] = {}
    waiting: list[type[AgentError]] = [AgentError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if "code" in vars(kind) and kind.code:
            found[kind.code] = kind
    return found


def reason_of(error: BaseException) -> str:
    """What went wrong in the system's or the library's own words; never empty."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
