"""Reading the log in Kafka: records at positions, from topics or from what the state keeps of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from ...delivery.spans import Span
from ...errors import EngineUnavailable
from ...record import Row, first_pos, log_of, offset_of
from ..base import Record
from . import header as h
from .ahead import UNREAD, Ahead
from .message import header_of, record, record_of, row_of
from .places import KafkaPlaces
from .reader import Reader, Trimmed

PAGE = 2000  # offsets read at a time where nobody says how many
FEW = 200  # as many at first, and where records are large:
MUCH = 1 << 20  # bytes of a page
NEAR, TOGETHER = 100, 500  # offsets that are read over; that are read at once


class KafkaReading(KafkaPlaces):
    """Reads through two consumers, so that a look around holds up no worker."""

    reader: Reader  # a worker's: it stays where it read last
    seeker: Reader  # everybody else's

    def __init__(self) -> None:
        KafkaPlaces.__init__(self)
        self._at_hand: dict[int, tuple[Row, bytes]] = {}  # what was read last, with its header
        self._once_parked: set[int] = set()  # of what was claimed last: to be had from the state
        self._ahead = Ahead()  # of ordered groups
        self._begins: dict[int, int] = {}  # of logs whose beginning was found to be trimmed (K1)

    def rows(self, spans: Iterable[Span]) -> list[Row]:
        """Return the records that exist in the spans, in the spans' order."""
        wanted = self._clipped(spans)
        kept = self._rows_kept([span for span in wanted if span.lo in self._once_parked])
        found: dict[int, tuple[Row, bytes]] = dict(kept)
        known: Collection[int] = kept
        if self._ahead.size[1]:
            ahead = [each for span in wanted for each in self._ahead.between(span.lo, span.hi)]
            if ahead and not kept and all(ahead):  # the usual case of an ordered group
                rows = [row for row, _ in ahead]
                self._at_hand = {row[0]: each for row, each in zip(rows, ahead, strict=True)}
                return rows
            known = _take_ahead(wanted, ahead, found)
        left = [span for span in wanted if not all(pos in known for pos in range(span.lo, span.hi))]
        while left:
            together, rest, seen = [], [], set()
            for span in left:  # of each log one range at a time
                if log_of(span.lo) in seen:
                    rest.append(span)
                else:
                    seen.add(log_of(span.lo))
                    together.append(span)
            self._read_into(found, self.reader, [(span.lo, span.hi) for span in together])
            left = rest
        self._at_hand = found
        if len(wanted) == 1 and known is kept and not kept:
            return [row for row, _ in found.values()]
        order = sorted(found)
        return [found[pos][0] for span in wanted for pos in _within(order, span.lo, span.hi)]

    def _clipped(self, spans: Iterable[Span]) -> list[Span]:
        """Return spans up to where their logs end: nothing ends a range beyond that.

        What was handed out and lies beyond is lost (K3), but for what the state keeps of it.
        """
        wanted = list(spans)
        beyond = {log_of(span.lo) for span in wanted if span.hi > self._ends_seen.get(log_of(span.lo), 0)}
        if beyond:
            ends = self.ends(self.known_logs(sorted(beyond)))
            clipped = []
            for span in wanted:
                end = ends.get(log_of(span.lo), span.hi)
                if end < span.hi and span.lo not in self._once_parked:
                    self._lose_end(max(span.lo, end), span.hi)
                    span = span.part(span.lo, end)
                clipped.append(span)
            wanted = clipped
        return [span for span in wanted if span.lo < span.hi]

    def _read_into(
        self, found: dict[int, tuple[Row, bytes]], reader: Reader, ranges: Sequence[tuple[int, int]]
    ) -> None:
        """Read ranges of positions, each of another log; what was trimmed is looked for in the state."""
        asked = [(self.place(log_of(lo)), offset_of(lo), offset_of(lo) + hi - lo) for lo, hi in ranges]
        try:
            read = reader.read(asked)
        except EngineUnavailable as error:
            self._say_leaderless([place for place, _, _ in asked], error)
            raise
        except Trimmed:
            starts = self.starts([log_of(lo) for lo, _ in ranges])
            ends = self.ends([log_of(lo) for lo, _ in ranges])
            self._begins |= {log_of(lo): starts[log_of(lo)] for lo, _ in ranges if lo < starts[log_of(lo)]}
            left = []
            for lo, hi in ranges:
                start = min(max(starts[log_of(lo)], lo), hi)
                if start > lo:
                    kept = self._rows_kept([Span(lo, start)])
                    found |= kept
                    self._lose(lo, start, kept)
                end = max(start, min(hi, ends[log_of(lo)]))
                if end < hi:
                    self._lose_end(end, hi)
                if start < end:
                    left.append((start, end))
            if left:
                self._read_into(found, reader, left)
            return
        for (lo, _), messages in zip(ranges, read, strict=True):
            log = log_of(lo)
            for message in messages:
                row = row_of(log, message)
                found[row[0]] = row, message

    def _forget_read(self, log: int) -> None:
        """Read a log anew: another leads it, whose records need not be those that are at hand (K3)."""
        self._ahead.forget(log)
        for reader in (self.reader, self.seeker):
            reader.forget(self.place(log))

    def _lose(self, lo: int, hi: int, kept: Iterable[int]) -> None:
        """Take note that records were trimmed before they were done (K1)."""

    def _lose_end(self, lo: int, hi: int) -> None:
        """Take note that a log has lost its end, and with it what was handed out of it (K3)."""

    def _rows_kept(self, spans: Sequence[Span]) -> dict[int, tuple[Row, Any]]:
        """Return what is kept in the state of records that are, or were, parked (H15)."""
        if not spans:
            return {}
        kept = {}
        for pos, _, body, packed in self.inner.rows(spans):
            assert packed is not None
            task, meta = h.row_of(packed)
            kept[pos] = (pos, task, body, meta), packed
        return kept  # type: ignore[return-value]

    def records(self, lo: int, hi: int, limit: int) -> list[Record]:
        """Return the records at lo <= p < hi in full, at most `limit`."""
        if hi - lo == 1:
            known = self._at_hand.get(lo)
            if known is not None:
                return [_full(lo, known)]
        found: list[Record] = []
        for log in sorted(self._logs_between(lo, hi)):
            low, high = max(lo, first_pos(log)), min(hi, first_pos(log + 1))
            for each in self._in_order(log, low, high, min(limit - len(found), PAGE)):
                found.append(each)
                if len(found) >= limit:
                    return found
        return found

    def _logs_between(self, lo: int, hi: int) -> list[int]:
        if not self._places or log_of(lo) not in self._places:
            self.refresh()
        return [log for log in self._places if first_pos(log + 1) > lo and first_pos(log) < hi]

    def _in_order(self, log: int, lo: int, hi: int, page: int) -> Iterator[Record]:
        """Yield records of one log: those that the state keeps of what was trimmed, then Kafka's."""
        start = self.starts([log])[log]
        if lo < start:
            kept = self._rows_kept([Span(lo, min(hi, start))])
            for pos in sorted(kept):
                yield _full(pos, kept[pos])
        for found in self._in_pages(max(lo, start), min(hi, self.ends([log])[log]), page):
            for pos in sorted(found):
                yield _full(pos, found[pos])

    def _in_pages(self, lo: int, hi: int, most: int) -> Iterator[dict[int, tuple[Row, Any]]]:
        """Yield what a range of one log holds, page by page: small ones where records are large."""
        page = min(FEW, max(most, 1))
        while lo < hi:
            upto = min(lo + page, hi)
            found: dict[int, tuple[Row, Any]] = {}
            self._read_into(found, self.seeker, [(lo, upto)])
            yield found
            small = sum(len(row[2]) for row, _ in found.values()) < MUCH
            lo, page = upto, min(2 * page, max(most, 1)) if small else min(FEW, page)


def header_at_hand(known: Any) -> bytes:
    """Return the header of what was read: a message, or what the state has kept of one."""
    return known if isinstance(known, bytes) else header_of(known)


def _take_ahead(wanted: Sequence[Span], ahead: Sequence[Any], found: dict[int, Any]) -> set[int]:
    """Add what was read for a claim; return all positions of which is known what is there."""
    known = set(found)
    places = chain.from_iterable(range(span.lo, span.hi) for span in wanted)
    for pos, each in zip(places, ahead, strict=True):
        if each != UNREAD and pos not in known:
            known.add(pos)
            if each is not None:
                found[pos] = each
    return known


def _full(pos: int, known: tuple[Row, Any]) -> Record:
    row, behind = known
    if isinstance(behind, bytes):
        return record(pos, row[2], behind)
    return record_of(log_of(pos), behind)


def _within(order: Sequence[int], lo: int, hi: int) -> Sequence[int]:
    return order[bisect_left(order, lo) : bisect_left(order, hi)]


def near(positions: Iterable[int]) -> Iterator[tuple[int, int, set[int]]]:
    """Yield (lo, hi, positions in there): ranges of one log that are read at once, and hold little else."""
    some: list[int] = []
    for pos in sorted(positions):
        if some and (pos - some[-1] > NEAR or pos - some[0] >= TOGETHER):
            yield some[0], some[-1] + 1, set(some)
            some = []
        some.append(pos)
    if some:
        yield some[0], some[-1] + 1, set(some)
