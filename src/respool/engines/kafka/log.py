"""The log in Kafka: appending, reading, finding."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...clock import now as wall_clock
from ...delivery.model import NewCall
from ...delivery.spans import Span
from ...errors import AppendUnknown, ConfigError
from ...record import OFFSET_BITS, Id, Row, first_pos, log_of, offset_of
from ...reference import is_reference
from ..base import Conflict, Reads, Record, Stream
from ..lent import LendsState
from . import header as h
from .ahead import Ahead
from .cluster import Cluster
from .epochs import Epochs
from .message import header_of, item, items_of_run, place_from, record, record_of, row_of
from .moved import Moved, Page, between, edges, end_of
from .options import KafkaOptions
from .outbox import EARLY, Outbox
from .places import HIDDEN, KafkaPlaces
from .reader import Reader, Trimmed
from .sender import Sender

MICRO = h.MICRO
PAGE = 2000  # offsets read at a time where nobody says how many
FEW = 200  # as many at first, and where records are large:
MUCH = 1 << 20  # bytes of a page
LATE = 2.0  # seconds that a record is stored after its time at most, unless a counter says more
BEHIND = "late"  # how the counters are named that say more: "late 7", in ms, for log 7
RECENT = 10_000
UNKNOWN = object()


class KafkaLog(KafkaPlaces):
    """Appends through one producer; reads through two consumers, so that a look around holds up no worker."""

    options: KafkaOptions
    inner: LendsState
    cluster: Cluster
    sender: Sender
    outbox: Outbox
    reader: Reader  # a worker's: it stays where it read last
    seeker: Reader  # everybody else's
    moved: Moved
    epochs: Epochs

    def __init__(self) -> None:
        KafkaPlaces.__init__(self)
        self._recent: OrderedDict[Id, list[tuple[int, int]]] = OrderedDict()
        self._at_hand: dict[int, tuple[Row, bytes]] = {}  # what was read last, with its header
        self._once_parked: set[int] = set()  # of what was claimed last: to be had from the state
        self._ahead = Ahead()  # of ordered groups
        self._doubtful: set[Id] = set()
        self._remembering = threading.Lock()
        self._late: dict[int, int] = {}

    # Appending

    def append_run(
        self, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, head: bytes, now: float
    ) -> None:
        """Append records that share all but their bodies; the same head again appends nothing."""
        place = self.place(log)
        if head in self._recent:
            return
        refers = meta is not None and any(map(is_reference, bodies))
        if not is_fresh(head, now) or head in self._doubtful or refers:
            first = int.from_bytes(head[13:], "big")
            ids = [head[:13] + (first + seq).to_bytes(3, "big") for seq in range(len(bodies))]
            self.outbox.append(
                [NewCall(log, task, body, meta, id, now) for id, body in zip(ids, bodies, strict=True)]
            )
            self.inner.ring(log, everyone=len(bodies) > 1)
            return
        items = items_of_run(bodies, task, meta, head, now, self._events(log))
        with self._doubting([head]):
            offsets = self.sender.append(place, items)
        self._note_time(log, now)
        self._remember(head, log, offsets)
        self.inner.ring(log, everyone=len(bodies) > 1)

    def append_row(self, row: NewCall) -> int | Conflict:
        """Append one record; return its position, or the conflict where its id is another record's."""
        if self._goes_straight(row):
            return self._append_fresh([row])[0]
        done = self._sent_before(row)
        if done is None:
            done = self.outbox.append_one(row)
            self.inner.ring(row.log)
        return done

    def append_rows(self, rows: Sequence[NewCall], fence: tuple[int, int] | None = None) -> list[Conflict]:
        """Append records of one log, each with an id of its own."""
        if not rows:
            return []
        straight = fence is None and all(map(self._goes_straight, rows))
        if straight and len({row.id for row in rows}) == len(rows):
            self._append_fresh(rows)
            return []
        places, new, conflicts = [], [], []
        for n, row in enumerate(rows):
            done = self._sent_before(row) if fence is None else None
            if done is None:
                places.append(n)
                new.append(row)
            elif isinstance(done, Conflict):
                conflicts.append(done._replace(row=n))
        if new:
            found = self.outbox.append(new, fence)
            conflicts += [each._replace(row=places[each.row]) for each in found]
            self.inner.ring(rows[0].log, everyone=len(rows) > 1)
        return conflicts

    def _append_fresh(self, rows: Sequence[NewCall]) -> list[int]:
        """Append records whose ids were made just now, and are nobody else's."""
        log, events = rows[0].log, self._events(rows[0].log)
        place = self.place(log)
        with self._doubting([row.id for row in rows]):
            offsets = self.sender.append(place, [item(row, events) for row in rows])
        self._note_time(log, min(row.time for row in rows))
        for row, offset in zip(rows, offsets, strict=True):
            self._remember(row.id, log, [offset])
        self.inner.ring(log, everyone=len(rows) > 1)
        return [log << OFFSET_BITS | offset for offset in offsets]

    def _goes_straight(self, row: NewCall) -> bool:
        """Say whether a record need not go by way of the outbox: nobody else can have its id, nor a claim on
        what it refers to (H18)."""
        if row.meta is not None and is_reference(row.body):
            return False
        return is_fresh(row.id, row.time) and row.id not in self._recent and row.id not in self._doubtful

    @contextmanager
    def _doubting(self, ids: Sequence[Id]) -> Iterator[None]:
        """Where it is not known whether something was stored, its ids are no longer fresh."""
        try:
            yield
        except AppendUnknown:
            self._doubtful.update(ids)
            raise

    def _events(self, log: int) -> bool:
        return bool(self.stream_of_log(log).settings.get("cloudevents"))

    def _sent_before(self, row: NewCall) -> int | Conflict | None:
        """Return where a record is that was appended as fresh, and whose sender could not tell.

        Its id was of ours and is given now: it is looked for about the time that the id says (P1).
        """
        if not isinstance(row.id, bytes) or row.id[13:] != b"\0\0\0":
            return None
        pos = self._recently(row.id)
        if pos is None and self._made_lately(row.id):
            pos = self._look_for(row.log, {row.id}, _time_of(row.id) - EARLY).get(row.id)
        if pos is None:
            return None
        (known,) = self.records(pos, pos + 1, 1)
        same = (known.task, known.body) == (row.task, row.body)
        return pos if same else Conflict(0, pos, same=False)

    def _made_lately(self, id: bytes) -> bool:
        age = wall_clock() - _time_of(id)
        return -EARLY <= age <= self.options.id_window

    def _note_time(self, log: int, time: float) -> None:
        """Take note of how much later than its time a record was stored: windows in time go by that."""
        late = int(self.sender.behind - time * 1000)
        known = self._late.get(log, 0)
        if late > max(known, LATE * 1000):
            self._late[log] = late
            group = self.outbox.group.id
            stored = self.inner.counters(group).get(f"{BEHIND} {log}", 0)
            if late > stored:
                self.inner.transact(
                    Reads(group), lambda view, change: change.count(f"{BEHIND} {log}", late - stored)
                )

    def _remember(self, id: Id, log: int, offsets: Sequence[int]) -> None:
        first, last = offsets[0], offsets[-1]
        base = log << OFFSET_BITS
        if last - first == len(offsets) - 1:
            spans = [(base + first, base + last + 1)]
        else:
            spans = _ranges(base + offset for offset in offsets)
        with self._remembering:
            self._recent[id] = spans
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)

    def forget(self) -> None:
        """Forget what is known of streams and groups."""
        super().forget()
        self.moved.forget()
        self.epochs.forget()

    def enlist(self, connection: Any) -> Any:
        """Refuse: Kafka takes part in no transaction of a database."""
        raise ConfigError(f"{self.options.shown}: Kafka takes no calls within transactions of others")

    def append_enlisted(self, connection: Any, rows: Sequence[NewCall]) -> list[Conflict]:
        """Refuse, as `enlist`."""
        return self.enlist(connection)  # type: ignore[no-any-return]

    def append_run_enlisted(
        self,
        connection: Any,
        log: int,
        task: str,
        bodies: Sequence[bytes],
        meta: bytes | None,
        head: bytes,
        now: float,
    ) -> None:
        """Refuse, as `enlist`."""
        self.enlist(connection)

    # Reading

    def rows(self, spans: Iterable[Span]) -> list[Row]:
        """Return the records that exist in the spans, in the spans' order."""
        wanted = self._clipped(spans)
        kept = self._rows_kept([span for span in wanted if span.lo in self._once_parked])
        found: dict[int, tuple[Row, bytes]] = dict(kept)
        known: Collection[int] = kept
        if self._ahead.messages:
            known = self._take_ahead(wanted, found)
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

    def _take_ahead(self, wanted: Sequence[Span], found: dict[int, tuple[Row, Any]]) -> set[int]:
        """Add what was read for a claim; return all positions of which is known what is there."""
        known, messages = set(found), self._ahead.messages
        for span in wanted:
            log = log_of(span.lo)
            for pos in range(span.lo, span.hi):
                message = messages.get(pos, UNKNOWN)
                if message is UNKNOWN or pos in found:
                    continue
                known.add(pos)
                if message is not None:
                    found[pos] = row_of(log, message), message
        return known

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
                    self._lose(max(span.lo, end), span.hi, ())
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
        except Trimmed:
            starts = self.starts([log_of(lo) for lo, _ in ranges])
            ends = self.ends([log_of(lo) for lo, _ in ranges])
            left = []
            for lo, hi in ranges:
                start = min(max(starts[log_of(lo)], lo), hi)
                if start > lo:
                    kept = self._rows_kept([Span(lo, start)])
                    found |= kept
                    self._lose(lo, start, kept)
                end = max(start, min(hi, ends[log_of(lo)]))
                if end < hi:  # the log has lost its end (K3)
                    self._lose(end, hi, ())
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

    def _lose(self, lo: int, hi: int, kept: Iterable[int]) -> None:
        """Take note that records were trimmed before they were done (K1)."""

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

    # Finding

    def find(self, namespace: str, id: Id) -> int | None:
        """Return the position of the record with this id.

        There is no index of ids: it is known here, or in the outbox, or says its place, or its time, about
        which it is looked for.
        """
        known = self._recently(id)
        if known is not None:
            return known
        place = place_from(id)
        if place is not None:
            return self._at_place(place)
        stored: Id = f"{namespace}\0{id}" if isinstance(id, str) else id
        pos = self.outbox.find(stored)
        if pos is not None or isinstance(id, str):
            return pos
        return self._find_by_time(namespace, id)

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

    def _find_by_time(self, namespace: str, id: bytes) -> int | None:
        at = _time_of(id)
        streams = self.refresh()
        if namespace.startswith("stream:"):
            streams = [
                s for s in streams if s.kind == "stream" and s.name == namespace.removeprefix("stream:")
            ]
        elif namespace:
            streams = [s for s in streams if s.kind == "queue" and s.app == namespace]
        for stream in streams:
            if stream.app == HIDDEN:
                continue
            for log in stream.logs:
                pos = self._look_for(log, {id}, at - EARLY, at + LATE).get(id)
                if pos is not None:
                    return pos
        return None

    def _look_for(self, log: int, wanted: set[Id], since: float, until: float | None = None) -> dict[Id, int]:
        """Return where records with these ids are, of those stored in a window of time."""
        pages = self._pages(log)
        lo = max(self._first_stored(log, since), end_of(pages, 0))
        hi = self.ends([log])[log] if until is None else self._first_stored(log, until + self._lateness(log))
        found: dict[Id, int] = {}
        for at, end in [*self._about(pages, log, since, until), (lo, hi)]:
            while at < end and len(found) < len(wanted):
                upto = min(at + PAGE, end)
                page: dict[int, tuple[Row, Any]] = {}
                self._read_into(page, self.seeker, [(at, upto)])
                for pos, (_, message) in page.items():
                    id = h.id_of(_header(message))
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
        place = self.place(log)
        milliseconds = min(max(int(moment * 1000), 0), (1 << 62))
        ((offset, _),) = self.cluster.offsets([place], milliseconds)
        return first_pos(log) + offset if offset >= 0 else self.ends([log])[log]

    def _lateness(self, log: int) -> float:
        """Return how many seconds after its time a record of a log was stored at most."""
        stored = self.inner.counters(self.outbox.group.id).get(f"{BEHIND} {log}", 0)
        return max(stored / 1000 + 0.001, LATE)

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
                place = ids.get(h.id_of(_header(message)))
                if place is not None:
                    found.setdefault(place, pos)
            lo = upto
        return _ranges(found[n] for n in sorted(found))

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
        late = self._lateness(log)
        lo = first if low < 0 else min(max(self._first_stored(log, low / MICRO - EARLY), first), end)
        sure, stop = end, end
        if high < 1 << 61:
            sure = min(max(self._first_stored(log, high / MICRO - EARLY), lo), end)
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
                yield pos, h.micros_of(_header(page[pos][1]))
            lo = upto

    def outside(self, spans: Iterable[Span], since: float | None, until: float | None) -> list[int]:
        """Return the positions in the spans whose time is not in since <= t < until."""
        low = -(1 << 62) if since is None else int(since * MICRO)
        high = 1 << 62 if until is None else int(until * MICRO)
        found = []
        for span in spans:
            at_hand = [(pos, self._at_hand[pos]) for pos in range(span.lo, span.hi) if pos in self._at_hand]
            if len(at_hand) == span.hi - span.lo:
                times = [(pos, h.micros_of(_header(known[1]))) for pos, known in at_hand]
            else:
                end = self.ends([log_of(span.lo)])[log_of(span.lo)]
                times = [
                    (each.pos, int(each.time * MICRO))
                    for each in self._in_order(log_of(span.lo), span.lo, min(span.hi, end), PAGE)
                ]
            found += [pos for pos, at in times if not low <= at < high]
        return found


def is_fresh(id: Id, time: float) -> bool:
    """Say whether an id was made for this very append, so that nobody else can have it."""
    return isinstance(id, bytes) and id[13:] == b"\0\0\0" and id[:6] == int(time * 1000).to_bytes(6, "big")


def _time_of(id: bytes) -> float:
    return int.from_bytes(id[:6], "big") / 1000


def _header(known: Any) -> bytes:
    return known if isinstance(known, bytes) else header_of(known)


def _full(pos: int, known: tuple[Row, Any]) -> Record:
    row, behind = known
    if isinstance(behind, bytes):
        return record(pos, row[2], behind)
    return record_of(log_of(pos), behind)


def _within(order: Sequence[int], lo: int, hi: int) -> Sequence[int]:
    from bisect import bisect_left

    return order[bisect_left(order, lo) : bisect_left(order, hi)]


def _ranges(positions: Iterable[int]) -> list[tuple[int, int]]:
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
