"""What all streams of one front-end replica share: threads that look, turns before the model."""

from __future__ import annotations

from agent.settings import SharingSettings
from deployments.keyframe_turns import KeyframeTurns
from deployments.looks import Looks


class Sharing:
    """Made once per front-end replica, on its event loop."""

    def __init__(self, settings: SharingSettings) -> None:
        self.settings = settings
        self.looks = Looks(settings.looks_at_once)
        self.keyframes = KeyframeTurns(settings)

    def close(self) -> None:
        """Free the threads."""
        self.looks.close()
