"""Moving a log in Kafka away: closing its topics and its state, and reading both. See `engines/moving.py`.

The mark is the state's. Its triggers keep to it; what is sent straight to a topic they do not see. So to be
closed takes four steps, each of which may be done again: the state is *sealed*, so that nothing more is put
into the outbox; what waits there is sent; the topics are barred (`barring.py`); the state is closed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ...clock import now as wall_clock
from ...delivery.lapse import lapse
from ...delivery.model import Lease
from ...delivery.spans import Span, ranges_of
from ...errors import AppendUnknown, EngineUnavailable, LogMoved
from ...record import Id, first_pos, log_of
from ..base import Group, Reads, Stream, StreamKind
from ..moving import INCOMING, STATE_TABLES, BlobRow, LogPlace, Mark, RawRecord, StateTable, told
from . import header as h
from .barring import bar, sizes, unbar
from .cluster import PAUSE
from .reading import header_at_hand
from .retention import KafkaRetention

MOST = 1_000_000
OWN = STATE_TABLES["blob_ref"]


class KafkaMoving(KafkaRetention):
    """The source of a transfer."""

    def __init__(self) -> None:
        KafkaRetention.__init__(self)
        self._kept_below: dict[int, tuple[int, frozenset[int]]] = {}  # by log: its start, what is kept below

    @property
    def shown(self) -> str:
        """The URL, for people."""
        return self.options.shown

    def mark(self) -> Mark | None:
        """Return the mark, None where the store takes part in no transfer."""
        return self.inner.mark()

    def told_moved(self) -> LogMoved | None:
        """Return the error for those who send to topics that are barred; None where they are not."""
        mark = self.inner.mark()
        return LogMoved(told(mark, self.shown)) if mark is not None and mark.is_source else None

    # Marks

    def set_mark(self, mark: Mark | None) -> None:
        """Store a mark, and have state and topics keep to it."""
        self._kept_below.clear()
        stored = self.inner.mark()
        before = stored.put_back if stored is not None and stored.is_source else {}
        if mark is None:
            if before:
                unbar(self.cluster, before)
            self.inner.set_mark(None)
        elif mark.phase == "closed":
            self._close(mark, before)
        else:
            self.inner.set_mark(msgspec.structs.replace(mark, put_back=before if mark.is_source else {}))

    def _close(self, mark: Mark, before: dict[str, str | None]) -> None:
        logs = [log for stream in self.streams() for log in stream.logs]
        places = [self.place(log) for log in logs]
        new = {place.topic for place in places} - before.keys()
        before = {**before, **sizes(self.cluster, new)}
        mark = msgspec.structs.replace(mark, put_back=before)
        self.inner.set_mark(msgspec.structs.replace(mark, phase="draining", sealed=True))
        self._empty_outbox()
        bar(self.cluster, places)
        for stream in self.streams():
            self._tell_trimmed(stream)
        self.inner.set_mark(mark)

    def _empty_outbox(self) -> None:
        """Send what waits. Nothing is added any more."""
        outbox = self.outbox
        deadline = time.monotonic() + outbox.patience + self.cluster.timeout
        while True:
            try:
                outbox.recover()
                outbox.relay([box.log for box in outbox.boxes], everything=True).check()
            except AppendUnknown as error:
                raise EngineUnavailable(f"{error}; nothing was moved") from error
            if not any(self._waits(box.group) for box in outbox.boxes):
                return
            if time.monotonic() > deadline:
                raise EngineUnavailable(
                    f"{self.shown}: calls wait in the state and cannot be sent to their topics; "
                    "nothing was moved"
                )
            time.sleep(PAUSE)

    def _waits(self, relay: Group) -> bool:
        if self.inner.has_work(relay.id, wall_clock(), ()) or self.inner.leases_to_move(relay):
            return True
        return any(self.inner.counts(relay).parked.values())  # for its key

    def _tell_trimmed(self, stream: Stream) -> None:
        """Say of what was trimmed before it was run that it is lost, as its worker would have (K1)."""
        starts = self.starts(self.known_logs(stream.logs))
        kept = [
            Span(lo, hi)
            for log, start in starts.items()
            for lo, hi in ranges_of(self._kept_positions(log, start))
        ]
        for group in self.groups():
            if group.stream != stream.id:
                continue
            behind = any(at.cursor < starts.get(at.log, 0) for at in self.inner.positions(group))
            spans = [span for lease in self.inner.leases(group) for span in lease.spans]
            if behind or any(span.lo < starts.get(log_of(span.lo), 0) for span in spans):
                reads = Reads(group.id, positions=True, returned=MOST, now=wall_clock())
                self.transact(reads, lambda view, change: lapse(view, change, starts, wall_clock(), kept))

    def _kept_positions(self, log: int, start: int) -> frozenset[int]:
        """Return which records of a log the state keeps, of those that Kafka has no more (H15)."""
        found: set[int] = set()
        lo = first_pos(log)
        while rows := self.inner.raw_records(lo, start, MOST, 1 << 23):
            found |= {row.pos for row in rows}
            lo = rows[-1].pos + 1
        return frozenset(found)

    # Logs

    def log_places(self, stream: Stream) -> list[LogPlace]:
        """Return the logs of a stream, in the stream's order."""
        ends = {log: (start, end) for log, start, end in self.bounds(stream)}
        return [
            place._replace(floor=ends[place.log][0], end=ends[place.log][1])
            for place in self.inner.log_places(stream)
        ]

    def raw_records(self, lo: int, hi: int, limit: int, size: int) -> list[RawRecord]:
        """Return the first records at lo <= p < hi, those first that only the state keeps."""
        log = log_of(lo)
        start = self.starts([log])[log]
        if lo < start:
            kept = self.inner.raw_records(lo, min(hi, start), limit, size)
            if kept:
                return [_raw(row.pos, row.body, row.meta or b"") for row in kept]
        end = min(hi, self.ends([log])[log])
        found = []
        for record in self._whole_records(max(lo, start), end):
            found.append(record)
            size -= len(record.body) + len(record.meta or b"") + 100
            if len(found) >= limit or size <= 0:
                break
        return found

    def _whole_records(self, lo: int, end: int) -> Iterator[RawRecord]:
        for found in self._in_pages(lo, end, MOST):
            for pos in sorted(found):
                row, behind = found[pos]
                yield _raw(pos, row[2], header_at_hand(behind))

    def leases_to_move(self, group: Group) -> list[Lease]:
        """Return a group's leases, of a closed store."""
        return self.inner.leases_to_move(group)

    # What groups know

    def state_rows(
        self, table: StateTable, group: int, after: Sequence[Any] | None, limit: int, size: int
    ) -> list[tuple[Any, ...]]:
        """Return rows with a key past `after`, but for what is known of records that are nowhere any more."""
        while rows := self._rows_stored(table, group, after, limit, size):
            there = [row for row in rows if self._is_there(table, row)]
            if there:
                return there
            after = _key(table, rows[-1])
        return []

    def _rows_stored(
        self, table: StateTable, group: int, after: Sequence[Any] | None, limit: int, size: int
    ) -> list[tuple[Any, ...]]:
        if table is not OWN or group:
            return self.inner.state_rows(table, group, after, limit, size)
        # Who refers to a payload in Kafka is told as of an outcome of the outbox: see `blobs.py`
        groups = (group, *(box.group.id for box in self.outbox.boxes))
        found = [self.inner.state_rows(table, each, after, limit, size) for each in groups]
        last = min((_key(table, rows[-1]) for rows in found if rows), default=())
        return sorted(
            {row for rows in found for row in rows if _key(table, row) <= last}, key=lambda row: row[:3]
        )

    def _is_there(self, table: StateTable, row: tuple[Any, ...]) -> bool:
        if not table.positions or table.ends:
            return True
        pos = row[table.columns.index(table.positions[0])]
        log = log_of(pos)
        if log not in self._kept_below:
            if not self.known_logs([log]):
                return False  # the outbox's own
            start = self.starts([log])[log]
            self._kept_below[log] = start, self._kept_positions(log, start)
        start, kept = self._kept_below[log]
        return pos >= start or pos in kept

    def numbers_given(self) -> dict[str, int]:
        """Return the highest numbers that were given out."""
        return self.inner.numbers_given()

    def blob_rows(self, after: tuple[bytes, int] | None, limit: int) -> list[BlobRow]:
        """Return the payloads past (digest, stamp)."""
        return self.inner.blob_rows(after, limit)

    # What is not to be made, or removed, meanwhile

    def create_stream(
        self, kind: StreamKind, app: str, name: str, partitions: int, settings: dict[str, Any]
    ) -> Stream:
        """Create a stream with its topic, or check that the topic is the one it was; return it as stored."""
        if not any((s.kind, s.app, s.name) == (kind, app, name) for s in self.refresh()):
            self._refuse_moved(kind, app, name)
        return super().create_stream(kind, app, name, partitions, settings)

    def add_lane(self, stream: Stream, priority: int) -> Stream:
        """Make the lane of a priority."""
        self._refuse_moved("", "", "")
        return super().add_lane(stream, priority)

    def trim(self, stream: Stream, before: float, limit: int, upto: Mapping[int, int] | None = None) -> int:
        """Cut off old records at the beginning of the stream's logs; return how many."""
        mark = self.inner.mark()
        if mark is not None and mark.phase in ("closed", "moved"):
            return 0
        return super().trim(stream, before, limit, upto)

    def _refuse_moved(self, kind: str, app: str, name: str) -> None:
        """Raise LogMoved where no stream of that name may be made now, before a topic is."""
        mark = self.inner.mark()
        if mark is None:
            return
        closed = mark.phase in ("closed", "moved")
        if closed or any((s.kind, s.app, s.name) == (kind, INCOMING + app, name) for s in self.refresh()):
            raise LogMoved(told(mark, self.shown))


def _key(table: StateTable, row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(row[table.columns.index(column)] for column in table.key)


def _raw(pos: int, body: bytes, packed: bytes) -> RawRecord:
    """Return a record as engines exchange it: ids that are counted up have one head."""
    id: Id = h.id_of(packed)
    task, meta = h.row_of(packed)
    if isinstance(id, bytes):
        seq = int.from_bytes(id[13:], "big")
        return RawRecord(pos, task, body, meta, seq, id[:13] + b"\0\0\0", h.micros_of(packed))
    return RawRecord(pos, task, body, meta, 0, id, h.micros_of(packed))
