"""The client of Groundstream, a service that finds named things in video.

`groundstream.Client` waits for answers, `groundstream.aio.Client` is for asyncio. Importing this
package loads neither gRPC nor NumPy: a name is looked up in its module when it is used first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from groundstream.blocking import Client as Client
    from groundstream.channel import TlsOptions as TlsOptions
    from groundstream.enums import AnswerMode as AnswerMode
    from groundstream.enums import AnswerStatus as AnswerStatus
    from groundstream.enums import DropPolicy as DropPolicy
    from groundstream.enums import TaskKind as TaskKind
    from groundstream.enums import ZoomPolicy as ZoomPolicy
    from groundstream.errors import AgentError as AgentError
    from groundstream.rpc_errors import ServiceError as ServiceError
    from groundstream.types import Detection as Detection
    from groundstream.types import FrameResult as FrameResult
    from groundstream.types import OutgoingFrame as OutgoingFrame
    from groundstream.types import OutgoingPacket as OutgoingPacket
    from groundstream.types import Query as Query
    from groundstream.types import QueryResult as QueryResult
    from groundstream.types import StreamPolicy as StreamPolicy
    from groundstream.types import VideoCodec as VideoCodec
    from groundstream.types import VideoFormat as VideoFormat
    from groundstream.types import Zoom as Zoom
    from groundstream.watch_stream import Reconnect as Reconnect

_HOME = {
    "AgentError": "errors",
    "AnswerMode": "enums",
    "AnswerStatus": "enums",
    "Client": "blocking",
    "Detection": "types",
    "DropPolicy": "enums",
    "FrameResult": "types",
    "OutgoingFrame": "types",
    "OutgoingPacket": "types",
    "Query": "types",
    "QueryResult": "types",
    "Reconnect": "watch_stream",
    "ServiceError": "rpc_errors",
    "StreamPolicy": "types",
    "TaskKind": "enums",
    "TlsOptions": "channel",
    "VideoCodec": "types",
    "VideoFormat": "types",
    "Zoom": "types",
    "ZoomPolicy": "enums",
}
"""The module of each name that is offered here."""


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"groundstream.{_HOME[name]}"), name)
    if name == "aio":
        return import_module("groundstream.aio")
    raise AttributeError(f"module 'groundstream' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "aio"})
