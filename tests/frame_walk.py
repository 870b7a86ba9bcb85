"""Which of our functions one frame of a stream goes through, counted while it does.

    python -m tests.frame_walk

The front end over gRPC, the language replica and the vision stages' replicas in one process, as the
service has them but for Serve's handles; the networks are fakes, so what is counted is the way and
not the model. Counting begins when the frame is handed to the client and ends when the client has
the model's answer. A coroutine counts when it begins, and not where it goes on; comprehensions and
what dataclasses generate do not count.
"""

from __future__ import annotations

import asyncio
import dataclasses
import dis
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from agent.settings import ServiceSettings
from groundstream.aio import Client
from groundstream.events import KeyframeAnswer
from groundstream.types import FramePriority, FrameResult, StreamPolicy
from tests.handles import remote_pipeline
from tests.in_process import FOLLOW, GROUND, SETTINGS, answer_of, conversation, running_service

SERVICE = ("agent", "deployments")
_OURS = (*SERVICE, Client.__module__.split(".")[0])
_GENERATED = re.compile(r"__create_fn__|comp>$|<genexpr>$")
_RESUME = dis.opmap["RESUME"]
_NEVER_S = 600.0
_WARM_UP = 3


@dataclass
class Walk:
    """What was entered, in order."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    """(module, function)."""

    def of(self, *packages: str) -> Walk:
        """Its part in these packages."""
        return Walk([call for call in self.calls if call[0].split(".")[0] in packages])

    @property
    def functions(self) -> Counter[tuple[str, str]]:
        """How often each was called."""
        return Counter(self.calls)

    @property
    def modules(self) -> list[str]:
        """In the order in which they were entered."""
        return list(dict.fromkeys(module for module, _ in self.calls))


class Walker:
    """Counts calls of our functions in every thread that starts after it, where it is told to."""

    def __init__(self) -> None:
        self._walk: Walk | None = None

    def __enter__(self) -> Walker:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    @contextmanager
    def walking(self) -> Iterator[Walk]:
        """Count inside."""
        self._walk = walk = Walk()
        try:
            yield walk
        finally:
            self._walk = None

    def _note(self, frame: FrameType, event: str, _argument: Any) -> None:
        walk = self._walk
        if walk is None or event != "call" or not _begins(frame):
            return
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
        if module.split(".")[0] in _OURS and not _GENERATED.search(name):
            walk.calls.append((module, name))


def _begins(frame: FrameType) -> bool:
    """Whether it is entered, and not a coroutine that goes on."""
    code, at = frame.f_code.co_code, frame.f_lasti
    return at >= 0 and code[at] == _RESUME and code[at + 1] == 0


def quiet_settings() -> ServiceSettings:
    """Nothing is reported or saved meanwhile."""
    session = dataclasses.replace(SETTINGS.stream.session, interval_s=_NEVER_S)
    stream = dataclasses.replace(SETTINGS.stream, stats_interval_s=_NEVER_S, session=session)
    return dataclasses.replace(SETTINGS, stream=stream)


async def walk_of(policy: StreamPolicy) -> Walk:
    """One key frame's way; the stream knows its scene already."""
    kind = FrameResult if policy is GROUND else KeyframeAnswer
    with Walker() as walker:
        async with (
            running_service(settings=quiet_settings(), grounder=remote_pipeline) as service,
            Client(service.target) as client,
            conversation(client, "dog", policy=policy) as talk,
        ):
            for number in range(_WARM_UP):
                talk.send(number, priority=FramePriority.HIGH)
                await answer_of(talk, kind)
                await asyncio.sleep(0.1)  # What follows an answer is over.
            with walker.walking() as walk:
                talk.send(_WARM_UP, priority=FramePriority.HIGH)
                await answer_of(talk, kind)
            talk.end()
    return walk


def main() -> None:
    """A line for each mode."""
    for name, policy in (("FOLLOW", FOLLOW), ("GROUND", GROUND)):
        walk = asyncio.run(walk_of(policy))
        for what, part in (("service", walk.of(*SERVICE)), ("with its client", walk)):
            print(
                f"{name}, {what}: {len(part.functions)} functions, {len(part.calls)} calls, "
                f"{len(part.modules)} modules"
            )
        if "-v" in sys.argv:
            for (module, function), count in walk.functions.most_common():
                print(f"  {count:4} {module}.{function}")
            print("  " + " ".join(walk.modules))


if __name__ == "__main__":
    main()
