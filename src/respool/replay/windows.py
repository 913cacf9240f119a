"""A window in time as smaller ones, so that its first page costs no look at all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..clock import now as wall_clock
from ..engines.base import Engine, Stream

FIRST = 60.0  # seconds of the first one; each that follows is …
WIDER = 4.0  # … so much wider


class Window(NamedTuple):
    """Part of a log, and the times that count in it (H19): since <= time < until."""

    log: int
    lo: int
    hi: int
    since: float | None
    until: float | None


def windows(
    engine: Engine, stream: Stream, since: float | None, until: float | None, *, oldest: bool
) -> Iterator[list[Window]]:
    """Yield the windows of a stream's logs, piece by piece in the order of time."""
    if since is None and until is None:
        yield [Window(log, lo, hi, None, None) for log, lo, hi in engine.bounds(stream)]
        return
    for low, high in _forth(engine, stream, since, until) if oldest else _back(since, until):
        yield [Window(log, lo, hi, low, high) for log, lo, hi in engine.window(stream, low, high)]


Piece = tuple[float | None, float | None]


def _back(since: float | None, until: float | None) -> Iterator[Piece]:
    size, now = FIRST, wall_clock()
    high, low = until, (now if until is None else min(until, now)) - FIRST
    if until is not None and since is not None and since >= until:
        return
    while True:
        if since is not None and low <= since:
            yield since, high
            return
        if low <= 0:
            yield since, high
            return
        yield low, high
        size *= WIDER
        high, low = low, low - size


def _forth(engine: Engine, stream: Stream, since: float | None, until: float | None) -> Iterator[Piece]:
    size, now, low = FIRST, wall_clock(), since
    if until is not None and since is not None and since >= until:
        return
    at = since if since is not None else _first_time(engine, stream)
    while True:
        high = at + size
        if until is not None and high >= until:
            yield low, until
            return
        if high > now:
            yield low, until
            return
        yield low, high
        size *= WIDER
        at = low = high


def _first_time(engine: Engine, stream: Stream) -> float:
    """Return the time of the first records; others may be older, and are in the first piece all the same."""
    found = [r.time for _, lo, hi in engine.bounds(stream) if hi > lo for r in engine.records(lo, hi, 1)]
    return min(found, default=wall_clock())
