"""Zones and lines of one stream: which things are inside, and which have crossed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from groundstream.errors import EventsError
from groundstream.event_settings import EventSettings
from groundstream.event_state import NS, QueryState, SeenFrame, Sighting, Stay, Track, Way
from groundstream.event_teller import EventTeller
from groundstream.scene_events import EventKind
from groundstream.zones import Line, Point, Zone, distance_to_zone, is_inside


class PlaceEvents:
    """Tells of things that enter, stay in, leave and cross."""

    def __init__(
        self,
        zones: Sequence[Zone],
        lines: Sequence[Line],
        settings: EventSettings,
        teller: EventTeller,
    ) -> None:
        """Raises EventsError: two zones, or two lines, have one name."""
        _check_names(zones, lines)
        self._zones = tuple(zones)
        self._lines = tuple(lines)
        self._settings = settings
        self._teller = teller
        self._size: tuple[int, int] | None = None
        self._corners: dict[str, tuple[Point, ...]] = {}
        self._ends: dict[str, tuple[Point, Point]] = {}

    def change(
        self, zones: Sequence[Zone], lines: Sequence[Line], queries: Iterable[QueryState]
    ) -> None:
        """Go on with others; what the queries' things did at those that are gone is forgotten.

        Raises:
            EventsError: two zones, or two lines, have one name; nothing has changed then.
        """
        _check_names(zones, lines)
        stayed = {place.name for place in self._zones if place in zones}
        crossed = {place.name for place in self._lines if place in lines}
        self._zones, self._lines, self._size = tuple(zones), tuple(lines), None
        for query in queries:
            for track in (*query.tracks.values(), *query.departed.values()):
                track.stays = {name: stay for name, stay in track.stays.items() if name in stayed}
                track.ways = {name: way for name, way in track.ways.items() if name in crossed}
            query.counts = {
                place: count
                for place, count in query.counts.items()
                if not place or place in stayed
            }

    def fit(self, frame: SeenFrame) -> None:
        """Bring zones and lines to the size of the frame.

        Raises:
            EventsError: one in pixels does not lie in it.
        """
        size = (frame.width, frame.height)
        if size == self._size or min(size) <= 0:
            return
        self._corners = {zone.name: zone.in_pixels(*size) for zone in self._zones}
        self._ends = {line.name: line.in_pixels(*size) for line in self._lines}
        self._size = size

    def see(self, query: QueryState, track: Track, now: Sighting) -> None:
        """A thing was seen."""
        if min(now.frame.width, now.frame.height) <= 0:
            return
        for zone in self._zones:
            if not zone.queries or query.name in zone.queries:
                self._place(query, track, zone, now)
        for line in self._lines:
            if not line.queries or query.name in line.queries:
                self._cross(query, track, line, now)

    def leave(self, query: QueryState, track: Track) -> None:
        """A thing has left the picture, and with it all zones."""
        for name, stay in track.stays.items():
            if stay.is_told:
                stay.is_told = False
                self._teller.tell(EventKind.ZONE_LEFT, query, track.last, track, place=name)

    def counts(self, present: Sequence[Track]) -> list[tuple[str, int]]:
        """How many of these things are in each zone."""
        inside = Counter(
            name for track in present for name, stay in track.stays.items() if stay.is_told
        )
        return [(zone.name, inside[zone.name]) for zone in self._zones]

    def _place(self, query: QueryState, track: Track, zone: Zone, now: Sighting) -> None:
        stay = track.stays.setdefault(zone.name, Stay())
        corners, point = self._corners[zone.name], self._settings.anchor.of(now.box)
        # Once inside, it must be clear of the border to be outside: boxes tremble.
        inside = is_inside(corners, point) or (
            stay.is_inside and distance_to_zone(corners, point) <= self._margin_px(now.frame)
        )
        if inside is stay.is_inside:
            stay.turning = None
        else:
            stay.turning = stay.turning or now
            if now.frame.has_held(stay.turning.frame, self._settings.settle_s):
                stay.is_inside, stay.since, stay.turning = inside, stay.turning, None
                stay.has_dwelt = False
        if not track.has_appeared or stay.since is None:
            return
        if stay.is_inside is not stay.is_told:
            stay.is_told = stay.is_inside
            kind = EventKind.ZONE_ENTERED if stay.is_inside else EventKind.ZONE_LEFT
            self._teller.tell(kind, query, stay.since, track, place=zone.name, rests_on=now)
        if (
            zone.dwell_s is not None
            and stay.is_told
            and inside
            and not stay.has_dwelt
            and now.frame.has_held(stay.since.frame, zone.dwell_s)
        ):
            stay.has_dwelt = True
            dwelt_s = (now.frame.clock_ns - stay.since.frame.clock_ns) / NS
            self._teller.tell(
                EventKind.DWELT, query, stay.since, track,
                place=zone.name, rests_on=now, dwell_s=dwelt_s,
            )  # fmt: skip

    def _cross(self, query: QueryState, track: Track, line: Line, now: Sighting) -> None:
        way = track.ways.setdefault(line.name, Way())
        direction = way.crossing.step(
            self._ends[line.name],
            self._settings.anchor.of(now.box),
            width=now.frame.width,
            height=now.frame.height,
            margin_px=self._margin_px(now.frame),
        )
        if direction is not None:
            if way.pending and way.pending[-1][0] is direction.opposite:
                way.pending.pop()  # There and back before anybody was told.
            else:
                way.pending.append((direction, now))
        while (
            way.pending
            and track.has_appeared
            and way.crossing.is_clear
            and now.frame.has_held(way.pending[0][1].frame, self._settings.settle_s)
        ):
            crossed, since = way.pending.pop(0)
            self._teller.tell(
                EventKind.LINE_CROSSED, query, since, track,
                place=line.name, direction=crossed, rests_on=now,
            )  # fmt: skip

    def _margin_px(self, frame: SeenFrame) -> float:
        return self._settings.margin * max(frame.width, frame.height)


def _check_names(zones: Sequence[Zone], lines: Sequence[Line]) -> None:
    for places in (zones, lines):
        names = [place.name for place in places]
        if len(set(names)) < len(names):
            raise EventsError(f"two of {', '.join(names)} have one name")
