"""Where every picture of a camera went. Knows no connection and no source.

pictures = sent + unsent + in hand
sent = answered + failed + superseded + lost + in flight
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from groundstream.events import StreamEvent, StreamOpened, StreamStats
from groundstream.types import FrameResult


@dataclass
class CameraBooks:
    """Counts since the runner has started."""

    pictures: int = 0
    """Taken from the source to be sent."""
    left_out: int = 0
    """Pictures of the source that came sooner than `fps` wants, or that nobody had time for."""
    sent: int = 0
    unsent: int = 0
    """Pictures that came while the service was away, or when the camera was stopped."""
    answered: int = 0
    failed: int = 0
    """Refused or failed, each with an error of its own."""
    superseded: int = 0
    """Newer pictures came before the service got to them; the service says so."""
    lost: int = 0
    """Sent, and never accounted for, because the service or the connection went away."""
    source_lost: int = 0
    service_lost: int = 0
    restarts: int = 0

    @property
    def in_flight(self) -> int:
        """Sent and not accounted for yet."""
        return self.sent - self.answered - self.failed - self.superseded - self.lost

    @property
    def are_closed(self) -> bool:
        """Nothing is in flight or in hand."""
        return self.pictures == self.sent + self.unsent and self.in_flight == 0

    def plus(self, other: CameraBooks) -> CameraBooks:
        """The sum of both."""
        names = [field.name for field in fields(self)]
        return CameraBooks(**{name: getattr(self, name) + getattr(other, name) for name in names})


class StreamBooks:
    """Keeps the books of one stream by what it says, over all its connections and sessions.

    Answers are counted here; what became of the other frames only the service knows. Its own books
    go on when the stream is opened again: what was lost with a connection it calls failed, and a
    session that it has forgotten begins with all that was not answered before as failed.
    """

    def __init__(self) -> None:
        self.books = CameraBooks()
        self._superseded_before = self._failed_before = 0
        """Of sessions that the service has forgotten."""
        self._inherited = 0
        """What the service's count of failed frames holds beside those that failed."""

    def note(self, event: StreamEvent, num_sent: int, num_unsent: int) -> int:
        """Count what the stream says; how many frames are lost, as that tells.

        Args:
            event: in the order in which they come.
            num_sent: frames that were written to the stream so far.
            num_unsent: frames for which there was no connection.
        """
        books = self.books
        books.sent, books.unsent = num_sent, num_unsent
        match event:
            case FrameResult():
                books.answered += 1
            case StreamStats():
                books.superseded = self._superseded_before + event.superseded
                failed = event.failed + event.rejected - self._inherited
                books.failed = self._failed_before + failed
            case StreamOpened():
                num_gap = 0 if event.gap is None else event.gap.num_frames
                if event.resumed:
                    self._inherited += num_gap
                    books.lost += num_gap
                    return num_gap
                self._superseded_before, self._failed_before = books.superseded, books.failed
                self._inherited = num_gap
                num_known = books.superseded + books.failed + books.lost
                books.lost += num_gap - num_known
                return num_gap - num_known
        return 0

    def close(self, num_sent: int) -> int:
        """The stream is over; how many frames nobody accounts for."""
        books = self.books
        books.sent = num_sent
        books.unsent = books.pictures - num_sent
        num_lost = books.in_flight
        books.lost += num_lost
        return num_lost
