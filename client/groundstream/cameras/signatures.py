"""How a webhook knows that a record is ours: HMAC-SHA256 over a time stamp and the body.

The receiver's side is here, too; it is also what `docs/cameras.md` shows.
"""

from __future__ import annotations

import hashlib
import hmac
import time

TIMESTAMP_HEADER = "X-Groundstream-Timestamp"
SIGNATURE_HEADER = "X-Groundstream-Signature"
_VERSION = "v1"


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The value of `SIGNATURE_HEADER`.

    Args:
        secret: what sender and receiver share.
        timestamp: the value of `TIMESTAMP_HEADER`, seconds since 1970.
        body: exactly the bytes that are sent.
    """
    signed = timestamp.encode() + b"." + body
    return f"{_VERSION}={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


def is_authentic(
    secret: str, timestamp: str, body: bytes, signature: str, *, max_age_s: float = 300.0
) -> bool:
    """Whether a request was signed with the secret, and not so long ago.

    Who has seen an old request cannot send it again after `max_age_s`; within it, the receiver
    knows a repeated record by its `id`.
    """
    if not (timestamp.isascii() and timestamp.isdecimal()) or len(timestamp) > 12:
        return False
    if abs(time.time() - int(timestamp)) > max_age_s:
        return False
    # compare_digest, or the time that it takes would tell how much of a guess is right.
    return hmac.compare_digest(sign(secret, timestamp, body).encode(), signature.encode())
