"""Copying a closed store into another, page after page: streams, records, groups, then what groups know.

The order is fixed, so that `Mark.at`, kept by the target with each page, says all that is to be known when it
goes on: (stage, …) of the page that was taken last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ..blobs import Store
from ..engines.base import Engine, Group, Stream
from ..engines.moving import STATE_TABLES, BlobRow, Mark, RawRecord, StateTable
from ..errors import EngineError
from ..record import first_pos, id_of
from ..reference import Reference
from .mapping import (
    OwnOffsets,
    Places,
    SameOffsets,
    moved_bounds,
    moved_group,
    moved_leases,
    moved_rows,
    with_places,
)

ROWS, BYTES = 5000, 8 << 20  # of a page
BLOBS_A_PAGE = 20
RECORDS_OWN = 0  # in place of a group: references of records to large payloads
STREAMS, RECORDS, GROUPS, STATE, BLOBS = range(5)

Tell = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and how much there is (0: nobody knows)."""

Stores = tuple[Store, Store] | None
"""Where large payloads are, and where they are to be; None: they stay where they are."""


class Copy:
    """One transfer's copying, from where it was left."""

    def __init__(
        self, source: Engine, target: Engine, mark: Mark, records: int, stores: Stores, tell: Tell
    ) -> None:
        self.source, self.target, self.mark = source, target, mark
        self.taken = self.rows = self.blobs = self.lost = 0
        self._records, self._stores, self._tell = records, stores, tell
        self._streams = sorted(source.streams(), key=lambda stream: stream.id)
        self._keeps = target.capabilities.keeps_positions

    def run(self) -> None:
        """Copy all that is not copied yet."""
        self._take_streams()
        self._take_records()
        places = self._places()
        self._take_groups(places)
        self._take_state(places)
        self._take_blobs()
        self.target.take_worker_number(self.source.numbers_given()["worker"])

    def _at(self, *at: Any) -> Mark:
        """Return the mark to be kept with the next page."""
        self.mark = msgspec.structs.replace(self.mark, at=at)
        return self.mark

    def _reached(self, stage: int) -> tuple[Any, ...] | None:
        """Return how far a stage is: None where it is over, () where it has not begun."""
        at = self.mark.at
        if not at or at[0] < stage:
            return ()
        return at[1:] if at[0] == stage else None

    def _take_streams(self) -> None:
        for stream in self._streams:
            if stream.id not in self.mark.names.get("streams", {}):
                places = self.source.log_places(stream)
                if not self._keeps:  # what it gives out begins at 0
                    places = [
                        place._replace(floor=first_pos(place.log), end=first_pos(place.log))
                        for place in places
                    ]
                self.mark = self.target.take_stream(self._at(STREAMS, stream.id), stream, places)

    def _places(self) -> Places:
        logs = self.mark.names.get("logs", {})
        return SameOffsets(logs) if self._keeps else OwnOffsets(logs, self.mark.pieces)

    # Records

    def _take_records(self) -> None:
        reached = self._reached(RECORDS)
        if reached is None:
            return
        for log in sorted(log for stream in self._streams for log in stream.logs):
            lo = first_pos(log)
            if reached and log < reached[0]:
                continue
            if reached and log == reached[0]:
                lo = reached[1]
            if not self._keeps:
                lo = self._caught_up(log, lo)
            self._take_log(log, lo)

    def _take_log(self, log: int, lo: int) -> None:
        there = self.mark.names["logs"][log]
        by = first_pos(there) - first_pos(log)
        while rows := self.source.raw_records(lo, first_pos(log + 1), ROWS, BYTES):
            lo = rows[-1].pos + 1
            mark = self._at(RECORDS, log, lo)
            shifted = [row._replace(pos=row.pos + by) for row in rows] if by else rows
            ours = self.target.take_records(mark, there, shifted)
            if not self._keeps:
                self._keep_places(log, [row.pos for row in rows], ours)
            self.taken += len(rows)
            self._tell("records", self.taken, self._records)

    def _keep_places(self, log: int, theirs: list[int], ours: list[int]) -> None:
        pieces = with_places(self.mark.pieces.get(log, ()), theirs, ours)
        self.mark = msgspec.structs.replace(self.mark, pieces={**self.mark.pieces, log: pieces})
        self.target.set_mark(self.mark)

    def _caught_up(self, log: int, lo: int) -> int:
        """Find what the target's log has beyond what its mark says: a page whose mark was not kept."""
        there = self.mark.names["logs"][log]
        pieces = self.mark.pieces.get(log, ())
        known = pieces[-1][1] + pieces[-1][2] if pieces else first_pos(there)
        while more := self.target.raw_records(known, first_pos(there + 1), ROWS, BYTES):
            wanted = {_id(row) for row in more}
            rows = self.source.raw_records(lo, first_pos(log + 1), len(more), 1 << 62)
            rows = [row for row in rows if _id(row) in wanted]
            if len(rows) != len(more):
                raise EngineError(
                    f"{self.target.shown}: a log that is being filled holds what is not the source's, or "
                    "that twice; give the transfer up (respool transfer --undo), and begin again"
                )
            known, lo = more[-1].pos + 1, rows[-1].pos + 1
            self._at(RECORDS, log, lo)
            self._keep_places(log, [row.pos for row in rows], [row.pos for row in more])
            self.taken += len(rows)
        return lo

    # Groups

    def _groups(self) -> list[Group]:
        here = {stream.id for stream in self._streams}
        return sorted((g for g in self.source.groups() if g.stream in here), key=lambda group: group.id)

    def _take_groups(self, places: Places) -> None:
        names = self.mark.names
        for group in self._groups():
            if group.id not in self.mark.names.get("groups", {}):
                bounds = moved_bounds(self.source.group_bounds(group), names["logs"], places)
                leases = moved_leases(self.source.leases_to_move(group), places)
                stream = names["streams"][group.stream]
                mark = self._at(GROUPS, group.id)
                self.mark = self.target.take_group(mark, stream, moved_group(group, places), bounds, leases)

    def _take_state(self, places: Places) -> None:
        reached = self._reached(STATE)
        if reached is None:
            return
        for group in (RECORDS_OWN, *(group.id for group in self._groups())):
            for index, table in enumerate(STATE_TABLES.values()):
                if reached and (group, index) < tuple(reached[:2]):
                    continue
                here = reached and (group, index) == tuple(reached[:2])
                after = tuple(map(_decoded, reached[2:])) if here and reached else None
                self._take_table(group, index, table, after, places)

    def _take_table(
        self, group: int, index: int, table: StateTable, after: tuple[Any, ...] | None, places: Places
    ) -> None:
        there = self.mark.names["groups"][group] if group != RECORDS_OWN else RECORDS_OWN
        for rows in self._pages(table, group, after):
            key = [_encoded(rows[-1][table.columns.index(column)]) for column in table.key]
            mark = self._at(STATE, group, index, *key)
            self.target.take_state(mark, table, there, moved_rows(table, rows, places))
            self.rows += len(rows)
            self._tell("rows of groups", self.rows, 0)

    def _pages(
        self, table: StateTable, group: int, after: tuple[Any, ...] | None
    ) -> Iterator[list[tuple[Any, ...]]]:
        while rows := self.source.state_rows(table, group, after, ROWS, BYTES):
            yield rows
            after = tuple(rows[-1][table.columns.index(column)] for column in table.key)

    # Large payloads

    def _take_blobs(self) -> None:
        """Take what is kept elsewhere: first the payload itself, if it is to be copied, then its entry."""
        reached = self._reached(BLOBS)
        after = (bytes.fromhex(reached[0]), int(reached[1])) if reached else None
        while rows := self.source.blob_rows(after, BLOBS_A_PAGE):
            for row in rows:
                self._copy_payload(row)
            after = rows[-1].digest, rows[-1].stamp
            self.target.take_blobs(self._at(BLOBS, after[0].hex(), after[1]), rows)

    def _copy_payload(self, row: BlobRow) -> None:
        if self._stores is None:
            return
        name = Reference(row.digest, row.size, row.stamp).name
        try:
            content = self._stores[0].get(name, row.size)
        except (FileNotFoundError, ValueError):
            self.lost += 1  # as it was lost on the source: its call says so when it is run
        else:
            self._stores[1].put(name, bytes(content))
            self.blobs += 1
            self._tell("large payloads", self.blobs, 0)


def _encoded(key: Any) -> Any:
    """Return a part of a key as JSON keeps it."""
    return ["hex", key.hex()] if isinstance(key, bytes) else key


def _decoded(key: Any) -> Any:
    return bytes.fromhex(key[1]) if isinstance(key, list) else key


def _id(row: RawRecord) -> Any:
    return id_of(row.head, row.seq)


def by_name(streams: list[Stream]) -> dict[tuple[str, str, str], Stream]:
    """Return streams by what users call them."""
    return {(stream.kind, stream.app, stream.name): stream for stream in streams}
