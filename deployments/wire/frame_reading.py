"""From a frame on the wire to one that may be answered: paid for first, then read.

Knows quotas and the wire; knows no session.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from agent.clock import steady_ns
from agent.frame import FrameLimits
from agent.quotas import TenantQuota
from deployments.wire import messages
from deployments.wire.messages import ReceivedFrame

_QUICK_BYTES = 65_536
"""A picture of this size is read at once, which takes at most a millisecond or two; a larger one
in a thread, for its bytes are gone through and hashed."""


async def receive_frame(message: Any, *, limits: FrameLimits, quota: TenantQuota) -> ReceivedFrame:
    """A frame whose header has been read and that its tenant has paid for.

    Raises:
        QuotaExceeded: too many frames, pixels or questions of late; nothing was read, where it is
            not for the pixels.
        InvalidFrame, FrameTooLarge, FrameTooCostly, InvalidBoxes, InvalidRequest: see
            `messages.frame_from_message`; the frame is paid for all the same.
    """
    received_time_ns = steady_ns()
    await quota.spend_arrival()
    read = functools.partial(
        messages.frame_from_message, message, limits=limits, received_time_ns=received_time_ns
    )
    is_quick = len(message.encoded_image) <= _QUICK_BYTES
    received = read() if is_quick else await asyncio.to_thread(read)
    await quota.spend_pixels(received.frame.width * received.frame.height)
    return received
