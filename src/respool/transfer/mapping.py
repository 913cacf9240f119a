"""Where the records of the source are on the target: at the same offsets, or where the target put them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ..delivery.model import Lease
from ..delivery.order import key_map, packed_keys
from ..delivery.spans import Span
from ..engines.base import Group
from ..engines.inspect import Bounds
from ..engines.moving import StateTable
from ..errors import EngineError
from ..record import OFFSET_BITS, first_pos, log_of

Piece = tuple[int, int, int]
"""Positions that follow one another on both sides: the first of the source, of the target, how many."""


class Places(Protocol):
    """The places of one transfer."""

    def record(self, pos: int) -> int:
        """Return where a record is."""

    def edge(self, log: int, pos: int) -> int:
        """Return where a range of a log begins or ends: what is before it is so there, what is not is not."""


class SameOffsets:
    """Of an engine that keeps positions: only logs may have other numbers."""

    def __init__(self, logs: Mapping[int, int]) -> None:
        self._by = {log: (there - log) << OFFSET_BITS for log, there in logs.items()}

    def record(self, pos: int) -> int:
        """Return where a record is."""
        return pos + self._by[log_of(pos)]

    def edge(self, log: int, pos: int) -> int:
        """Return where a range of a log begins or ends."""
        return pos + self._by[log]


class OwnOffsets:
    """Of an engine that numbers records itself: known by pieces, of which there is one for each gap."""

    def __init__(self, logs: Mapping[int, int], pieces: Mapping[int, Sequence[Piece]]) -> None:
        self._logs, self._pieces = logs, pieces
        self._starts = {log: [piece[0] for piece in each] for log, each in pieces.items()}

    def record(self, pos: int) -> int:
        """Return where a record is. Raises EngineError for one that was not taken."""
        at = self._piece(log_of(pos), pos)
        if at is None or pos >= at[0] + at[2]:
            raise EngineError(
                f"there is no record at {log_of(pos)}:{pos - first_pos(log_of(pos))} to be moved"
            )
        return at[1] + pos - at[0]

    def edge(self, log: int, pos: int) -> int:
        """Return where a range of a log begins or ends: in a gap, at the next record, or after the last."""
        at = self._piece(log, pos)
        if at is not None and pos < at[0] + at[2]:
            return at[1] + pos - at[0]
        later = bisect_right(self._starts.get(log, []), pos)
        pieces = self._pieces.get(log, ())
        if later < len(pieces):
            return pieces[later][1]
        return at[1] + at[2] if at is not None else first_pos(self._logs[log])

    def _piece(self, log: int, pos: int) -> Piece | None:
        at = bisect_right(self._starts.get(log, []), pos) - 1
        return self._pieces[log][at] if at >= 0 else None


def with_places(pieces: Sequence[Piece], theirs: Iterable[int], ours: Iterable[int]) -> list[Piece]:
    """Return pieces with more records, in order, those that follow one another on both sides as one."""
    found = list(pieces)
    for here, there in zip(theirs, ours, strict=True):
        if found and (here, there) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((here, there, 1))
    return found


def moved_bounds(bounds: Iterable[Bounds], logs: Mapping[int, int], places: Places) -> list[Bounds]:
    """Return what a group reads of each log, and how far it is, in the target's positions."""
    return [
        Bounds(
            logs[at.log],
            places.edge(at.log, at.start),
            places.edge(at.log, at.cursor),
            None if at.stop is None else places.edge(at.log, at.stop),
        )
        for at in bounds
    ]


def moved_group(group: Group, places: Places) -> Group:
    """Return a group whose settings name the target's positions: its rewinds and its choice."""
    settings = dict(group.settings)
    if settings.get("rewinds"):
        settings["rewinds"] = [
            [places.edge(log_of(first), first), number, places.edge(log_of(first), end)]
            for first, number, end in settings["rewinds"]
        ]
    if settings.get("positions"):
        settings["positions"] = [found for pos in settings["positions"] for found in _if_there(pos, places)]
    return msgspec.structs.replace(group, settings=settings)


def _if_there(pos: int, places: Places) -> list[int]:
    try:
        return [places.record(pos)]
    except EngineError:  # past retention
        return []


def moved_leases(leases: Iterable[Lease], places: Places) -> list[Lease]:
    """Return leases in the target's positions, without an owner. Spans of gaps only are left out."""
    found = []
    for lease in leases:
        spans = [_moved_span(span, places) for span in lease.spans]
        spans = [span for span in spans if span.lo < span.hi]
        bodies = {places.record(pos): body for pos, body in lease.bodies.items()}
        if spans:
            keys = b""
            if lease.keys:
                known = {places.edge(log_of(pos), pos): key for pos, key in key_map(lease).items() if key}
                keys = packed_keys(spans, known)
            moved = msgspec.structs.replace(lease, owner=None, spans=spans, bodies=bodies, keys=keys)
            found.append(moved)
    return found


def _moved_span(span: Span, places: Places) -> Span:
    log = log_of(span.lo)
    return span.part(places.edge(log, span.lo), places.edge(log, span.hi))


def moved_rows(
    table: StateTable, rows: Sequence[tuple[Any, ...]], places: Places
) -> Sequence[tuple[Any, ...]]:
    """Return rows of a group's state with the target's positions; none of records past retention."""
    if not table.positions:
        return rows
    first = table.columns.index(table.positions[0])
    if not table.ends:
        needed = table.name == "parked"
        moved_to = [[places.record(row[first])] if needed else _if_there(row[first], places) for row in rows]
        return [
            (*row[:first], pos, *row[first + 1 :])
            for row, at in zip(rows, moved_to, strict=True)
            for pos in at
        ]
    edges = [table.columns.index(column) for column in (*table.positions, *table.ends)]
    moved = []
    for row in rows:
        values, log = list(row), log_of(row[first])
        for at in edges:
            values[at] = places.edge(log, row[at])
        moved.append(tuple(values))
    return moved
