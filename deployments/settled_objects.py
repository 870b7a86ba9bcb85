"""What a process makes while it starts stays; the garbage collector may leave it alone."""

from __future__ import annotations

import gc


def settle_objects() -> None:
    """The collector never looks again at what exists now; to be called once, at the end of a start.

    Ray, torch and transformers leave some 200,000 objects, and each full collection would hold all
    threads while it walks over them.
    """
    # What is garbage already would stay for good.
    gc.collect()
    gc.freeze()
