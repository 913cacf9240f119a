"""What is known of records that came from another engine: they were stored long after their time.

Kafka tells when a record was stored, which is about its time; so it is found by its id or its time. Of what a
transfer has brought, *pages* tell instead from when to when the records of a range are. Ids that do not say
their records' times are known for `id_window`, as if they had come by way of the outbox. Both are records of
hidden streams in the state, two for each stream that came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from ...delivery.model import NewCall
from ...delivery.spans import Span
from ...record import Id, first_pos, id_of
from ...reference import is_reference
from .. import stored_id
from ..base import Engine, Stream
from ..moving import INCOMING, RawRecord
from . import header as h
from .places import HIDDEN

_pack = msgspec.msgpack.Encoder().encode
_unpack_place = msgspec.msgpack.Decoder(int).decode
_unpack_page = msgspec.msgpack.Decoder(tuple[int, int, int, int]).decode
READ = 5000  # pages read at a time


class Page(NamedTuple):
    """A range of positions of one log, and the times of its records in microseconds."""

    lo: int
    hi: int
    least: int
    most: int


class Moved:
    """What a state says of the records that came to its streams."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self._known: dict[int, list[Page]] = {}  # by log

    def forget(self) -> None:
        """Forget what was read."""
        self._known = {}

    def note(self, stream: Stream, lo: int, rows: Sequence[RawRecord], since: float) -> None:
        """Take note of records that stand, or will, side by side from a position on; again is no harm.

        Parameters:
            since: ids of what is older are not kept; one says its record's time, or is looked for by nobody.
        """
        times = [row.micros for row in rows]
        page = Page(lo, lo + len(rows), min(times), max(times))
        log = self._hidden(stream, "pages")
        id = stored_id(HIDDEN, f"p{lo} {len(rows)}")
        self._inner.append_rows([NewCall(log, "", _pack(tuple(page)), None, id, page.most / h.MICRO)])
        known = [(id_of(row.head, row.seq), row, pos) for pos, row in enumerate(rows, lo)]
        young = [each for each in known if each[1].micros >= since * h.MICRO]
        given = [each for each in young if not says_time(each[0], each[1].micros)]
        if given:
            log = self._hidden(stream, "ids")
            self._inner.append_rows([_told(log, *each) for each in given])

    def _hidden(self, stream: Stream, what: str) -> int:
        return self._inner.create_stream("stream", HIDDEN, hidden_name(what, stream), 1, {}).logs[0]

    def streams_of(self, stream: Stream) -> list[Stream]:
        """Return the hidden streams of a stream."""
        names = {hidden_name(what, stream) for what in ("pages", "ids")}
        return [each for each in self._inner.streams() if each.app == HIDDEN and each.name in names]

    def pages(self, stream: Stream, log: int) -> list[Page]:
        """Return the pages of a log, by position; none where nothing came from elsewhere."""
        found = self._known.get(log)
        if found is None:
            found = self._read(stream, log)
            if not stream.app.startswith(INCOMING):
                self._known[log] = found
        return found

    def _read(self, stream: Stream, log: int) -> list[Page]:
        found = set()
        for each in self.streams_of(stream):
            if each.name != hidden_name("pages", stream):
                continue
            lo, hi = first_pos(each.logs[0]), first_pos(each.logs[0] + 1)
            while rows := self._inner.records(lo, hi, READ):
                pages = (Page(*_unpack_page(row.body)) for row in rows)
                found |= {page for page in pages if first_pos(log) <= page.lo < first_pos(log + 1)}
                lo = rows[-1].pos + 1
        return sorted(found)

    def place(self, pos: int) -> int | None:
        """Return where the record is that a row of a hidden stream of ids tells of."""
        for row in self._inner.rows([Span(pos, pos + 1)]):
            return _unpack_place(row[3] or b"")
        return None


def hidden_name(what: str, stream: Stream) -> str:
    """Return the name of a hidden stream."""
    return f"{what} {stream.kind} {stream.app.removeprefix(INCOMING)}\t{stream.name}"


def _told(log: int, id: Id, row: RawRecord, pos: int) -> NewCall:
    """Return what is kept of an id: enough to tell the record from another, but for a large payload."""
    body = b"" if is_reference(row.body) else row.body
    stored = stored_id(HIDDEN, outbox_id(id))
    return NewCall(log, row.task, body, _pack(pos), stored, row.micros / h.MICRO)


def outbox_id(id: Id) -> str:
    """Return an id as the outbox stores it, within its own namespace."""
    return f"b{id.hex()}" if isinstance(id, bytes) else f"t{id}"


def says_time(id: Id, micros: int) -> bool:
    """Say whether an id tells about when its record was made."""
    return isinstance(id, bytes) and abs(int.from_bytes(id[:6], "big") - micros // 1000) <= 1


def end_of(pages: Sequence[Page], start: int) -> int:
    """Return where what came from elsewhere ends: `start` where nothing did."""
    return max((page.hi for page in pages), default=start)


def between(pages: Iterable[Page], low: int, high: int, lo: int) -> list[tuple[int, int]]:
    """Return the ranges at or past `lo` that may hold records of a window of time [low, high)."""
    return [
        (max(page.lo, lo), page.hi)
        for page in pages
        if page.least < high and page.most >= low and page.hi > lo
    ]


def edges(
    pages: Sequence[Page],
    low: int,
    high: int,
    lo: int,
    times: Callable[[int, int], Iterable[tuple[int, int]]],
) -> tuple[int, int] | None:
    """Return the first, and one past the last, position at or past `lo` with a time in [low, high).

    Parameters:
        times: gives (position, time) of the records of a range.
    """
    ranges = between(pages, low, high, lo)
    start = next((pos for each in ranges for pos, at in times(*each) if low <= at < high), None)
    if start is None:
        return None
    stops = (
        max((pos for pos, at in times(*each) if low <= at < high), default=0) for each in reversed(ranges)
    )
    return start, next(stop for stop in stops if stop) + 1
