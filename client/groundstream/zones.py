"""Zones and lines in a picture, and the geometry that events need. Pure functions.

A zone is a polygon, a line is one segment. Their points are shares of the picture, (0, 0) at its
top left and (1, 1) at its bottom right, or pixels of the frame as it was sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from groundstream.checks import check_text
from groundstream.errors import EventsError
from groundstream.types import Box

Point = tuple[float, float]

_OUTSIDE = 0.05
"""So far, in shares of the picture, a hand that draws may slip over its border."""
_MAX_PIXELS = 100_000.0
_LEAST_AREA = 1e-9
_ON_BORDER_PX = 1e-6


class Unit(Enum):
    """What the coordinates of a zone or line count."""

    SHARES = "SHARES"
    """Of the picture's width and height; fits every size of the same view."""
    PIXELS = "PIXELS"
    """Of the frame as it was sent."""


class Anchor(Enum):
    """Which point of a box says where a thing is."""

    BOTTOM_CENTRE = "BOTTOM_CENTRE"
    """Where it stands on the ground."""
    CENTRE = "CENTRE"

    def of(self, box: Box) -> Point:
        """The point of a box, in the box's pixels."""
        x1, y1, x2, y2 = box
        return (x1 + x2) / 2, y2 if self is Anchor.BOTTOM_CENTRE else (y1 + y2) / 2


class Direction(Enum):
    """Over which side of a line something went, seen by one who walks from its first point to
    its second.

    ::

            second
              ^
        LEFT  |  RIGHT          a thing that goes --> crosses TO_RIGHT
              |                 a thing that goes <-- crosses TO_LEFT
            first
    """

    TO_RIGHT = "TO_RIGHT"
    TO_LEFT = "TO_LEFT"

    @property
    def opposite(self) -> Direction:
        """The way back."""
        return Direction.TO_LEFT if self is Direction.TO_RIGHT else Direction.TO_RIGHT


@dataclass(frozen=True)
class Zone:
    """A part of the picture.

    Raises:
        EventsError: no name, one that is not in UTF-8, fewer than three points, a point that is not
            finite or lies outside the picture, no area, a border that crosses or touches itself, or
            an impossible time.
    """

    name: str
    points: tuple[Point, ...]
    """The corners in their order; the last one is joined to the first."""
    unit: Unit = Unit.SHARES
    dwell_s: float | None = None
    """Tell of things that have been inside for longer than this; None: never."""
    queries: tuple[str, ...] = ()
    """Names of the queries that it concerns; empty: all."""

    def __post_init__(self) -> None:
        what = f"zone {self.name!r}"
        _check_texts(self.name, self.queries)
        object.__setattr__(self, "points", _checked(what, self.points, self.unit))
        if len(self.points) < 3:
            raise EventsError(f"{what} has {len(self.points)} points and needs at least 3")
        if self.dwell_s is not None and not (math.isfinite(self.dwell_s) and self.dwell_s >= 0.0):
            raise EventsError(f"{what}: dwell_s is {self.dwell_s} and must be at least 0")
        _check_border(what, self.points)

    def in_pixels(self, width: int, height: int) -> tuple[Point, ...]:
        """Its corners in a frame of this size.

        Raises:
            EventsError: it is in pixels and does not lie in such a frame.
        """
        return _in_pixels(f"zone {self.name!r}", self.points, self.unit, width, height)


@dataclass(frozen=True)
class Line:
    """A segment that things cross; see `Direction` for what its order means.

    Raises:
        EventsError: no name, one that is not in UTF-8, other than two points, two equal ones, or
            one that is not finite or lies outside the picture.
    """

    name: str
    points: tuple[Point, Point]
    unit: Unit = Unit.SHARES
    queries: tuple[str, ...] = ()
    """Names of the queries that it concerns; empty: all."""

    def __post_init__(self) -> None:
        what = f"line {self.name!r}"
        _check_texts(self.name, self.queries)
        points = _checked(what, self.points, self.unit)
        if len(points) != 2:
            raise EventsError(f"{what} has {len(points)} points and needs 2")
        if points[0] == points[1]:
            raise EventsError(f"{what} begins where it ends")
        object.__setattr__(self, "points", points)

    def in_pixels(self, width: int, height: int) -> tuple[Point, Point]:
        """Its ends in a frame of this size.

        Raises:
            EventsError: it is in pixels and does not lie in such a frame.
        """
        first, second = _in_pixels(f"line {self.name!r}", self.points, self.unit, width, height)
        return first, second


# ---- as text ----


def zone_from_text(text: str, *, dwell_s: float | None = None) -> Zone:
    """`NAME=x1,y1;x2,y2;x3,y3` in shares of the picture, `NAME=px:x1,y1;...` in pixels.

    Args:
        text: the zone.
        dwell_s: see `Zone`.

    Raises:
        EventsError: the text does not read so, or `Zone` refuses it.
    """
    name, unit, points = _parts(text)
    return Zone(name, points, unit, dwell_s)


def line_from_text(text: str) -> Line:
    """`NAME=x1,y1;x2,y2` in shares of the picture, `NAME=px:x1,y1;x2,y2` in pixels.

    Raises:
        EventsError: the text does not read so, or `Line` refuses it.
    """
    name, unit, points = _parts(text)
    if len(points) != 2:
        raise EventsError(f"line {name!r} has {len(points)} points and needs 2")
    return Line(name, (points[0], points[1]), unit)


def _parts(text: str) -> tuple[str, Unit, tuple[Point, ...]]:
    name, equals, rest = text.partition("=")
    unit = Unit.SHARES
    if rest.startswith("px:"):
        unit, rest = Unit.PIXELS, rest[len("px:") :]
    try:
        if not equals:
            raise ValueError
        pairs = [tuple(map(float, pair.split(","))) for pair in rest.strip().strip(";").split(";")]
        return name.strip(), unit, tuple((x, y) for x, y in pairs)
    except ValueError:
        raise EventsError(
            f"{text!r} does not read NAME=x1,y1;x2,y2;... (shares of the picture) or "
            "NAME=px:x1,y1;x2,y2;... (pixels)"
        ) from None


# ---- checks ----


def _check_texts(name: str, queries: tuple[str, ...]) -> None:
    if not name:
        raise EventsError("a zone or line has no name")
    check_text(name, "the name of a zone or line", EventsError)
    for query in queries:
        check_text(query, "the name of a query", EventsError)


def _checked(what: str, points: tuple[Point, ...], unit: Unit) -> tuple[Point, ...]:
    try:
        points = tuple((float(x), float(y)) for x, y in points)
    except (TypeError, ValueError):
        raise EventsError(f"{what}: its points are not pairs of numbers") from None
    low, high = (-_OUTSIDE, 1.0 + _OUTSIDE)
    if unit is Unit.PIXELS:
        low, high = (-_OUTSIDE * _MAX_PIXELS, _MAX_PIXELS)
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            raise EventsError(f"{what}: the point ({x}, {y}) is not finite")
        if not (low <= x <= high and low <= y <= high):
            hint = "; pixels are written px:x1,y1;..." if unit is Unit.SHARES else ""
            raise EventsError(f"{what}: the point ({x:g}, {y:g}) is outside the picture{hint}")
    return points


def _check_border(what: str, points: tuple[Point, ...]) -> None:
    count = len(points)
    edges = [(points[i], points[(i + 1) % count]) for i in range(count)]
    if any(start == end for start, end in edges):
        raise EventsError(f"{what} has the same point twice in a row")
    for i in range(count):
        for j in range(i + 1, count):
            if j == i + 1 or (i == 0 and j == count - 1):
                # Neighbours share a corner; more than that is a border that runs back on itself.
                shared, one, other = (
                    (edges[i][1], edges[i][0], edges[j][1])
                    if j == i + 1
                    else (edges[i][0], edges[i][1], edges[j][0])
                )
                is_back = (
                    side_of(shared, one, other) == 0.0
                    and (
                        (one[0] - shared[0]) * (other[0] - shared[0])
                        + (one[1] - shared[1]) * (other[1] - shared[1])
                    )
                    > 0.0
                )
                if is_back:
                    raise EventsError(f"{what}: its border runs back on itself")
            elif segments_meet(*edges[i], *edges[j]):
                raise EventsError(f"{what}: its border crosses itself")
    doubled = sum(a[0] * b[1] - b[0] * a[1] for a, b in edges)
    if abs(doubled) < _LEAST_AREA:
        raise EventsError(f"{what} has no area")


def _in_pixels(
    what: str, points: tuple[Point, ...], unit: Unit, width: int, height: int
) -> tuple[Point, ...]:
    if unit is Unit.SHARES:
        return tuple((x * width, y * height) for x, y in points)
    for x, y in points:
        inside_x = -_OUTSIDE * width <= x <= (1.0 + _OUTSIDE) * width
        if not (inside_x and -_OUTSIDE * height <= y <= (1.0 + _OUTSIDE) * height):
            raise EventsError(
                f"{what}: the point ({x:g}, {y:g}) is outside a picture of {width}x{height}; "
                "shares of the picture fit every size"
            )
    return points


# ---- geometry ----


def side_of(first: Point, second: Point, point: Point) -> float:
    """Twice the area of the triangle: above zero on the right-hand side of the way from `first`
    to `second` (y points down), below on the left, zero on the straight line through both."""
    (ax, ay), (bx, by), (px, py) = first, second, point
    return (bx - ax) * (py - ay) - (by - ay) * (px - ax)


def distance_to_segment(first: Point, second: Point, point: Point) -> float:
    """From a point to the nearest point of a segment."""
    (ax, ay), (bx, by), (px, py) = first, second, point
    dx, dy = bx - ax, by - ay
    length = dx * dx + dy * dy
    along = 0.0 if length == 0.0 else ((px - ax) * dx + (py - ay) * dy) / length
    along = min(max(along, 0.0), 1.0)
    return math.hypot(px - ax - along * dx, py - ay - along * dy)


def segments_meet(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether the segments from a to b and from c to d have a point in common, ends included."""
    sides = (side_of(a, b, c), side_of(a, b, d), side_of(c, d, a), side_of(c, d, b))
    if _differ(sides[0], sides[1]) and _differ(sides[2], sides[3]):
        return True
    touching = ((a, b, c), (a, b, d), (c, d, a), (c, d, b))
    return any(
        side == 0.0 and _is_between(*three) for side, three in zip(sides, touching, strict=True)
    )


def is_inside(corners: tuple[Point, ...], point: Point) -> bool:
    """Whether a point lies in a polygon; its border belongs to it."""
    return distance_to_zone(corners, point) <= _ON_BORDER_PX


def distance_to_zone(corners: tuple[Point, ...], point: Point) -> float:
    """How far a point is from a polygon; zero inside."""
    x, y = point
    inside = False
    for i, (ax, ay) in enumerate(corners):
        bx, by = corners[i - 1]
        if (ay > y) != (by > y) and x < (bx - ax) * (y - ay) / (by - ay) + ax:
            inside = not inside
    if inside:
        return 0.0
    return min(distance_to_segment(corners[i - 1], corners[i], point) for i in range(len(corners)))


def _differ(one: float, other: float) -> bool:
    return (one > 0.0 > other) or (one < 0.0 < other)


def _is_between(a: Point, b: Point, point: Point) -> bool:
    """Of a point on the straight line through both."""
    return min(a[0], b[0]) <= point[0] <= max(a[0], b[0]) and min(a[1], b[1]) <= point[1] <= max(
        a[1], b[1]
    )


@dataclass
class Crossing:
    """One thing's way over one line; owned by whoever follows the thing.

    A thing is on a side only when it is clear of the line by a margin: while it stands on the line
    it is still on the side from which it came. It crosses when the straight way between two
    neighbouring clear places meets the segment; past an end of the segment nothing is crossed.
    """

    is_clear: bool = False
    """Whether it was on one side of the line, and not on it, at the last step."""
    _clear: Point | None = field(default=None)
    """Where it was clear of the line last, in shares of the picture."""

    def step(
        self, line: tuple[Point, Point], point: Point, *, width: int, height: int, margin_px: float
    ) -> Direction | None:
        """The direction in which it has crossed with this step, if it has.

        Args:
            line: its two ends, pixels.
            point: where the thing is now, pixels.
            width: of the frame.
            height: of the frame.
            margin_px: how far from the line a thing must be to be on one side of it.
        """
        first, second = line
        length = math.hypot(second[0] - first[0], second[1] - first[1])
        side = side_of(first, second, point)
        self.is_clear = abs(side) > max(margin_px * length, _ON_BORDER_PX)
        if not self.is_clear:
            return None
        before, self._clear = self._clear, (point[0] / width, point[1] / height)
        if before is None:
            return None
        start = before[0] * width, before[1] * height
        came_from = side_of(first, second, start)
        if (came_from > 0.0) == (side > 0.0) or not segments_meet(first, second, start, point):
            return None
        return Direction.TO_RIGHT if side > 0.0 else Direction.TO_LEFT
