"""What a message can carry: text that UTF-8 can write, and whole numbers of the size of a field.

The client asks before it sends, and the service before it reads words to a model. Knows no
messages.
"""

from __future__ import annotations

import operator
import reprlib

from groundstream.errors import AgentError, InvalidQuery, InvalidRequest

UINT32, UINT64 = range(2**32), range(2**64)
INT64 = range(-(2**63), 2**63)


def strange_character(text: str) -> str | None:
    """The first part of a text that is no character; None: there is none.

    Python makes such parts (lone surrogates) of bytes that it cannot read, as in an argument of a
    command, and of escapes such as `"\\ud800"` in JSON.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def check_text(text: str, what: str, refused: type[AgentError] = InvalidQuery) -> str:
    """The text as it is.

    Args:
        text: to be sent, or read to a model.
        what: it is called in the message, for example "the query".
        refused: what is raised.

    Raises:
        AgentError: of the kind `refused`: it is no text, or UTF-8 cannot write it.
    """
    if not isinstance(text, str):
        raise refused(f"{what} is {reprlib.repr(text)}; give a text")
    strange = strange_character(text)
    if strange is not None:
        raise refused(f"{what} contains {strange!r}, which is no character; write it in UTF-8")
    return text


def check_whole(
    number: int, what: str, within: range, refused: type[AgentError] = InvalidRequest
) -> int:
    """The number as it is.

    Args:
        number: for a field of a message.
        what: it is called in the message.
        within: the numbers that the field holds.
        refused: what is raised.

    Raises:
        AgentError: of the kind `refused`: it is not whole, or out of bounds.
    """
    try:
        whole = operator.index(number)
    except TypeError:
        whole = None
    if whole is None or whole not in within:
        raise refused(f"{what} is {number!r}; give a whole number from {within[0]} to {within[-1]}")
    return whole
