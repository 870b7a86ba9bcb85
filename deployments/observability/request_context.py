"""Which request the code that runs just now works for; follows asyncio's tasks by itself.

The id is what a client quotes when it reports an error, and what every log line of the request
holds. A client may bring its own (`x-request-id`). Knows no wire beyond that name.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import uuid
from collections.abc import Iterable, Iterator

REQUEST_ID_HEADER = "x-request-id"
_ALLOWED = re.compile(r"[\w.:-]{1,64}", re.ASCII)
"""What a client's own id may be: it is written into logs."""
_current: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")


def request_id() -> str:
    """Of the request under way; empty outside any."""
    return _current.get()


@contextlib.contextmanager
def serving_request(metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[str]:
    """Everything inside belongs to one call, whose metadata this is."""
    brought = next((value for name, value in metadata if name == REQUEST_ID_HEADER), "")
    usable = isinstance(brought, str) and _ALLOWED.fullmatch(brought)
    token = _current.set(str(brought) if usable else uuid.uuid4().hex)
    try:
        yield _current.get()
    finally:
        _current.reset(token)
