"""A request too large for its stage's memory fails alone and by type; the next one is answered.

Turned into our own error inside the stage: torch's would make the front end import torch.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from agent.errors import Overloaded

_logger = logging.getLogger(__name__)
_RETRY_S = 1.0


@contextlib.contextmanager
def memory_errors_typed() -> Iterator[None]:
    """Whatever runs out of memory inside raises Overloaded."""
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        _logger.warning("a request ran out of memory: %s", error)
        _free_device_memory()
        raise Overloaded(
            "the stage has too little memory for this request now; send a smaller picture, fewer "
            "boxes or queries, or try again later",
            retry_after_s=_RETRY_S,
        ) from None


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (
        torch is not None and isinstance(error, torch.OutOfMemoryError)
    )


def _free_device_memory() -> None:
    """What torch keeps for later is of no use to those who find no room."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
