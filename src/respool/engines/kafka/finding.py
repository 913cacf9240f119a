"""Finding records in Kafka, which has no index of ids: by a place, a time, or what the outbox knows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...delivery.spans import Span
from ...errors import OF_ONE_STREAM, RespoolError
from ...record import Id, Row, first_pos, log_of
from ..base import Stream
from . import header as h
from .message import place_from
from .moved import Moved, Page, between, edges, end_of
from .outbox import Outbox
from .places import HIDDEN
from .reading import PAGE, KafkaReading, header_at_hand

MICRO = h.MICRO
LATE = 2.0  # seconds that a record is stored after its time at most, unless a counter says more
EARLY = 2.0  # seconds that one is stored before its time at most, unless a counter says more: clocks differ
BEHIND = "late"  # how the counters are named that say more: "late 7", in ms, for log 7
AHEAD = "early"  # and the one that says how far a clock was ahead of the brokers', in ms


class KafkaFinding(KafkaReading):
    """Finds by id and by time."""

    outbox: Outbox
    moved: Moved

    def __init__(self) -> None:
        KafkaReading.__init__(self)
        self._recent: OrderedDict[Id, list[tuple[int, int]]] = OrderedDict()  # what was appended here

    def find(self, namespace: str, id: Id) -> int | None:
        """Return the position of the record with this id.

        There is no index of ids: it is known here, or in the outbox, or says its place, or its time, about
        which it is looked for. What is parked is kept in the state, also when its topic has it no more.
        """
        known = self._recently(id)
        if known is not None:
            return known
        place = place_from(id)
        if place is not None:
            return self._at_place(place)
        stored: Id = f"{namespace}\0{id}" if isinstance(id, str) else id
        pos = self.outbox.find(stored)
        if pos is None and isinstance(id, bytes):
            pos = self._find_by_time(namespace, id)
        return self._find_kept(namespace, stored) if pos is None else pos

    def _recently(self, id: Id) -> int | None:
        """Return where this process has appended an id, be it in a run."""
        spans = self._recent.get(id)
        if spans is not None:
            return spans[0][0]
        if isinstance(id, str):
            return None
        head = id[:13] + b"\0\0\0"
        spans = self._recent.get(head)
        return None if spans is None else _nth(spans, int.from_bytes(id[13:], "big"))

    def _at_place(self, place: tuple[str, int, int]) -> int | None:
        topic, partition, offset = place
        for log, (name, number) in self._places.items():
            if (name, number) == (topic, partition):
                pos = first_pos(log) + offset
                found = self.records(pos, pos + 1, 1)
                return pos if found else None
        return None

    def _streams_of(self, namespace: str) -> list[Stream]:
        """Return the streams in which an id may be."""
        streams = [stream for stream in self.refresh() if stream.app != HIDDEN]
        if namespace.startswith("stream:"):
            name = namespace.removeprefix("stream:")
            return [s for s in streams if s.kind == "stream" and s.name == name]
        return [s for s in streams if s.kind == "queue" and s.app == namespace] if namespace else streams

    def _find_kept(self, namespace: str, stored: Id) -> int | None:
        pos = self.inner.find_kept(h.up_to_id(stored))
        if pos is None or isinstance(stored, str):
            return pos
        return pos if any(log_of(pos) in stream.logs for stream in self._streams_of(namespace)) else None

    def _find_by_time(self, namespace: str, id: bytes) -> int | None:
        at = time_of(id)
        unseen: RespoolError | None = None
        for stream in self._streams_of(namespace):
            try:
                for log in stream.logs:
                    pos = self._look_for(log, {id}, at, at + LATE).get(id)
                    if pos is not None:
                        return pos
            except OF_ONE_STREAM as error:  # it may be in another
                unseen = error
        if unseen is not None:
            raise unseen
        return None

    def _look_for(self, log: int, wanted: set[Id], since: float, until: float | None = None) -> dict[Id, int]:
        """Return where records with these ids are, of those made in a window of time."""
        pages = self._pages(log)
        lo = max(self._first_stored(log, since - self._earliness()), end_of(pages, 0))
        hi = self.ends([log])[log] if until is None else self._first_stored(log, until + self._lateness(log))
        found: dict[Id, int] = {}
        for at, end in [*self._about(pages, log, since, until), (lo, hi)]:
            while at < end and len(found) < len(wanted):
                upto = min(at + PAGE, end)
                page: dict[int, tuple[Row, Any]] = {}
                self._read_into(page, self.seeker, [(at, upto)])
                for pos, (_, message) in page.items():
                    id = h.id_of(header_at_hand(message))
                    if id in wanted:
                        found.setdefault(id, pos)
                at = upto
        return found

    def _pages(self, log: int) -> list[Page]:
        """Return what is known of records that came to a log from another engine."""
        return self.moved.pages(self.stream_of_log(log), log)

    def _about(self, pages: list[Page], log: int, since: float, until: float | None) -> list[tuple[int, int]]:
        """Return the ranges of such records that a window of time may be in."""
        if not pages:
            return []
        high = 1 << 62 if until is None else int(until * MICRO) + 1
        return between(pages, int(since * MICRO), high, self.starts([log])[log])

    def _first_stored(self, log: int, moment: float) -> int:
        """Return the first position that was stored at or after a moment; the end where none was."""
        return self._first_stored_in([log], moment)[log]

    def _first_stored_in(self, logs: Sequence[int], moment: float) -> dict[int, int]:
        """Return the same of several logs."""
        milliseconds = min(max(int(moment * 1000), 0), (1 << 62))
        found = self.cluster.offsets([self.place(log) for log in logs], milliseconds)
        stored = {log: first_pos(log) + at for log, (at, _) in zip(logs, found, strict=True) if at >= 0}
        return self.ends([log for log in logs if log not in stored]) | stored

    def _lateness(self, log: int) -> float:
        """Return how many seconds after its time a record of a log was stored at most."""
        stored = self.inner.counters(self.outbox.group.id).get(f"{BEHIND} {log}", 0)
        return max(stored / 1000 + 0.001, LATE)

    def _earliness(self) -> float:
        """Return how many seconds before its time a record was stored at most: the clock of whoever made it
        was so far ahead of the brokers'. Of any log, since it is the same clock."""
        stored = self.inner.counters(self.outbox.group.id).get(AHEAD, 0)
        return max(stored / 1000 + 0.001, EARLY)

    def run_spans(self, head: bytes, size: int) -> list[tuple[int, int]] | None:
        """Return the ranges of positions of a run, in the order of its ids."""
        known = self._recent.get(head)
        if known is not None:
            return known
        first = self.find("", head)
        if first is None:
            return None
        seq = int.from_bytes(head[13:], "big")
        ids: dict[Id, int] = {head[:13] + (seq + n).to_bytes(3, "big"): n for n in range(size)}
        found: dict[int, int] = {}
        log, lo = log_of(first), first
        hi = self.ends([log])[log]
        while lo < hi and len(found) < size:
            upto = min(lo + PAGE, hi)
            page: dict[int, tuple[Row, Any]] = {}
            self._read_into(page, self.seeker, [(lo, upto)])
            for pos, (_, message) in page.items():
                place = ids.get(h.id_of(header_at_hand(message)))
                if place is not None:
                    found.setdefault(place, pos)
            lo = upto
        return ranges_in_order(found[n] for n in sorted(found))

    def window(self, stream: Stream, since: float | None, until: float | None) -> list[tuple[int, int, int]]:
        """Return (log, first, one past the last) position of what has a time in since <= t < until.

        Kafka knows when a record was stored, which is about its time: what is near the ends is looked at.
        """
        bounds = self.bounds(stream)
        if since is None and until is None:
            return bounds
        low = -1 if since is None else int(since * MICRO)
        high = 1 << 62 if until is None else int(until * MICRO)
        return [(log, *self._narrowed(log, first, end, low, high)) for log, first, end in bounds]

    def _narrowed(self, log: int, first: int, end: int, low: int, high: int) -> tuple[int, int]:
        pages = self._pages(log)
        came = edges(pages, low, high, first, lambda lo, hi: self._times(log, lo, min(hi, end)))
        start, stop = self._of_our_own(log, min(max(first, end_of(pages, first)), end), end, low, high)
        if came is None:
            return start, stop
        return came[0], came[1] if start == stop else stop

    def _of_our_own(self, log: int, first: int, end: int, low: int, high: int) -> tuple[int, int]:
        late, early = self._lateness(log), self._earliness()
        lo = first if low < 0 else min(max(self._first_stored(log, low / MICRO - early), first), end)
        sure, stop = end, end
        if high < 1 << 61:
            sure = min(max(self._first_stored(log, high / MICRO - early), lo), end)
            stop = min(max(self._first_stored(log, high / MICRO + late + 0.001), sure), end)
        start = next((pos for pos, at in self._times(log, lo, stop) if low <= at < high), None)
        if start is None:
            return end, end
        last = max(start, sure - 1)
        for pos, at in self._times(log, max(sure, start), stop):
            if low <= at < high:
                last = pos
        if last < sure and last > start:  # the last that is sure to be before
            last = max(
                (pos for pos, at in self._times(log, max(start, sure - PAGE), sure) if low <= at < high),
                default=start,
            )
        return start, last + 1

    def _times(self, log: int, lo: int, hi: int) -> Iterator[tuple[int, int]]:
        while lo < hi:
            upto = min(lo + PAGE, hi)
            page: dict[int, tuple[Row, Any]] = {}
            self._read_into(page, self.seeker, [(lo, upto)])
            for pos in sorted(page):
                yield pos, h.micros_of(header_at_hand(page[pos][1]))
            lo = upto

    def outside(self, spans: Iterable[Span], since: float | None, until: float | None) -> list[int]:
        """Return the positions in the spans whose time is not in since <= t < until."""
        low = -(1 << 62) if since is None else int(since * MICRO)
        high = 1 << 62 if until is None else int(until * MICRO)
        found = []
        for span in spans:
            at_hand = [(pos, self._at_hand[pos]) for pos in range(span.lo, span.hi) if pos in self._at_hand]
            if len(at_hand) == span.hi - span.lo:
                times = [(pos, h.micros_of(header_at_hand(known[1]))) for pos, known in at_hand]
            else:
                end = self.ends([log_of(span.lo)])[log_of(span.lo)]
                times = [
                    (each.pos, int(each.time * MICRO))
                    for each in self._in_order(log_of(span.lo), span.lo, min(span.hi, end), PAGE)
                ]
            found += [pos for pos, at in times if not low <= at < high]
        return found


def time_of(id: bytes) -> float:
    """Return the time that an id of ours says."""
    return int.from_bytes(id[:6], "big") / 1000


def ranges_in_order(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Return positions as ranges, those joined that follow one another."""
    found: list[tuple[int, int]] = []
    for pos in positions:
        if found and found[-1][1] == pos:
            found[-1] = (found[-1][0], pos + 1)
        else:
            found.append((pos, pos + 1))
    return found


def _nth(spans: Sequence[tuple[int, int]], place: int) -> int | None:
    for lo, hi in spans:
        if place < hi - lo:
            return lo + place
        place -= hi - lo
    return None
