"""The keys of what lies ahead of cursors, for claims of ordered groups (P8, `delivery.order`).

A claim decides by keys, and Kafka is not asked for them while the state is locked: what is expected to be
claimed is read before; a decision that needs more than is at hand is given up, that is read, and it is made
once more. What was read stays at hand until the cursor has passed it, so that who claims it need not read it
again.

What is kept is bounded, whatever lies in the log: of the records themselves so many bytes, beyond which who
claims them reads them again, and of keys so many. Where there is too much, what was not asked for for the
longest time goes first.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from ...delivery.model import Position, View
from ...record import Row, log_of
from .message import hash_of, kept_of

SPARE = 2  # times as many records as are asked for are read beyond them, or …
FEW = 100  # … so many, …
SPARE_BYTES = 4 << 20  # … of not more bytes, as far as can be told before
TOGETHER = 64  # partitions that are read at once, at most
KEYS = 200_000  # that are kept
BYTES = 16 << 20  # of records that are kept
OVERHEAD = 400  # bytes that a record takes besides its body and its header

Keyed = tuple[int, int | None]
Range = tuple[int, int]
Found = tuple[Row, bytes]  # a record and its header
UNREAD: tuple[()] = ()  # in place of a record that was not kept; None: there is none


class KeysMissing(Exception):
    """A decision needs keys that are not at hand: they are to be read, and it is to be made again."""

    def __init__(self, group: int, ranges: Sequence[Range]) -> None:
        super().__init__(group, ranges)
        self.group, self.ranges = group, ranges


class _Window:
    """What is known of a log from a group's cursor on: of each position the key, and the record."""

    __slots__ = ("decision", "found", "keys", "lo", "sizes")

    def __init__(self, at: int) -> None:
        self.lo = at
        self.decision = 0  # that asked for it last
        self.keys: list[int | None] = []
        self.found: list[Any] = []  # Found, None or UNREAD
        self.sizes = array("I")  # bytes that each takes

    @property
    def hi(self) -> int:
        """It is known up to here."""
        return self.lo + len(self.keys)

    def add_none(self, upto: int, what: tuple[()] | None) -> None:
        """There is no record up to there, or it is not at hand."""
        more = upto - self.hi
        self.keys += [None] * more
        self.found += [what] * more
        self.sizes.extend([0] * more)

    def leave_records(self) -> int:
        """Keep the keys alone; return how many bytes that frees."""
        freed, known = sum(self.sizes), len(self.keys)
        self.found = [each and UNREAD for each in self.found]
        self.sizes = array("I", [0] * known)
        return freed


class Ahead:
    """What this process knows of records that nobody has claimed, and of those claimed last."""

    def __init__(self) -> None:
        self._windows: OrderedDict[tuple[int, int], _Window] = OrderedDict()  # by group and log
        self._group = 0  # that claimed last
        self._decision = 0  # the one that is being made
        self._bytes = self._keys = 0
        self._mean = SPARE_BYTES // 100  # bytes of a record, as read last
        self._lock = threading.Lock()

    @property
    def size(self) -> tuple[int, int]:
        """How many bytes of records, and how many keys, are kept."""
        return self._bytes, self._keys

    @property
    def page(self) -> int:
        """How many records to read at once, as far as can be told: as much as is kept."""
        return max(BYTES // self._mean, 1)

    def begin(self) -> None:
        """Before a decision: forget keys that are too many. Those that it asks for stay until its end."""
        with self._lock:
            self._decision += 1
            while self._keys > KEYS:
                self._forget(next(iter(self._windows)))

    # Keys

    def rows(
        self, group: int, view: View, positions: Sequence[Position], limit: int
    ) -> dict[int, list[Keyed]]:
        """Return (position, key) from the cursors on, by log, of each at most so many. Raises KeysMissing."""
        with self._lock:
            self._group = group
            found = {at.log: self._of_log(group, at, limit) for at in positions}
            if any(rows is None for rows in found.values()):
                raise KeysMissing(group, self._to_read(group, view, positions, limit))
        return found  # type: ignore[return-value]

    def _of_log(self, group: int, at: Position, limit: int) -> list[Keyed] | None:
        lo, wanted = at.cursor, min(_end(at) - at.cursor, limit)
        if wanted <= 0:
            return []
        window = self._window(group, at.log, lo)
        if window is None:
            return None
        self._pass(window, lo)
        if len(window.keys) < wanted:
            return None
        window.decision = self._decision
        self._windows.move_to_end((group, at.log))
        return list(zip(range(lo, lo + wanted), window.keys, strict=False))

    def _window(self, group: int, log: int, pos: int) -> _Window | None:
        """Return what is known of a log from a position on."""
        window = self._windows.get((group, log))
        return window if window is not None and window.lo <= pos <= window.hi else None

    def _to_read(self, group: int, view: View, positions: Sequence[Position], limit: int) -> list[Range]:
        """Return what to read: what was asked for, and of the next partitions as much as fills a lease."""
        asked = {at.log for at in positions}
        places = [n for n, at in enumerate(view.positions) if at.log == positions[-1].log]
        after = view.positions[places[0] + 1 :] + view.positions[: places[0]] if places else []
        ranges: list[Range] = []
        expected = 0
        for at in (*positions, *(each for each in after if each.log not in asked)):
            if at.log not in asked and (expected >= limit or len(ranges) >= TOGETHER):
                break
            if self._of_log(group, at, limit) is None:
                ranges.append(self._range(group, at.log, at.cursor, _end(at), limit))
            expected += min(_end(at) - at.cursor, limit)
        return ranges

    def missing(self, group: int, log: int, cursor: int, end: int, want: int) -> Range | None:
        """Return what is to be read of a log, so that a claim may take so many; None: it is at hand."""
        with self._lock:
            window = self._window(group, log, cursor)
            if window is not None and window.hi >= min(cursor + want, end):
                return None
            return self._range(group, log, cursor, end, want)

    def _range(self, group: int, log: int, cursor: int, end: int, limit: int) -> Range:
        window = self._window(group, log, cursor)
        lo = cursor if window is None else window.hi
        hi = max(lo, cursor + limit)
        spare = min(max(SPARE * limit, FEW), SPARE_BYTES // self._mean)
        left = end - hi - spare
        return lo, end if left <= min(limit, spare) else hi + spare  # no crumbs

    # Records

    def between(self, lo: int, hi: int) -> list[Any]:
        """Return what is at hand of each position: Found, None where there is no record, or UNREAD."""
        with self._lock:
            window = self._windows.get((self._group, log_of(lo)))
            if window is None or not window.lo <= lo < window.hi:
                return [UNREAD] * (hi - lo)
            found = window.found[lo - window.lo : hi - window.lo]
        return found + [UNREAD] * (hi - lo - len(found))

    def keep(self, group: int, read: Iterable[tuple[Range, int, Sequence[Any]]]) -> None:
        """Take in what was read: of each range where its log begins now, and its messages, in their order."""
        with self._lock:
            for (lo, hi), begins, messages in read:
                self._keep(group, lo, hi, begins, messages)

    def _keep(self, group: int, lo: int, hi: int, begins: int, messages: Sequence[Any]) -> None:
        log = log_of(lo)
        window = self._windows.get((group, log))
        if window is None or window.hi != lo:
            self._forget((group, log))
            window = self._windows[group, log] = _Window(lo)
        window.decision = self._decision
        self._windows.move_to_end((group, log))
        known = len(window.keys)
        if begins > lo:
            window.add_none(begins, UNREAD)  # lost: who claims them says so (K1)
        following = begins
        room, took = BYTES - self._bytes, 0
        keys, found, sizes = window.keys, window.found, window.sizes
        for message in messages:
            each = kept_of(log, message)
            row, header = each
            pos = row[0]
            if pos != following:  # the log was compacted, or a transaction's mark lies there
                window.add_none(pos, None)
            key = message.key()
            keys.append(None if key is None else hash_of(key))
            size = len(row[2]) + len(header) + OVERHEAD
            if size > room:
                room += self._make_room(window, size - room)
            if size <= room:
                room -= size
                found.append(each)
                sizes.append(size)
            else:  # who claims it reads it again
                found.append(UNREAD)
                sizes.append(0)
            took += size
            following = pos + 1
        if hi > following:
            window.add_none(hi, None)
        self._bytes, self._keys = BYTES - room, self._keys + len(keys) - known
        self._mean = max(took // max(len(messages), 1), 1)

    def _make_room(self, window: _Window, wanted: int) -> int:
        """Forget what was not asked for for the longest time; return how many bytes that frees.

        Of what the present decision has asked for the keys stay: else it might ask for them for ever.
        """
        freed = 0
        for which, other in list(self._windows.items()):
            if freed >= wanted:
                break
            if other is not window:
                freed += other.leave_records()
                if other.decision != self._decision:
                    self._forget(which)
        return freed

    def _pass(self, window: _Window, cursor: int) -> None:
        """Forget what a cursor has passed."""
        passed = cursor - window.lo
        if passed > 0:
            self._bytes -= sum(window.sizes[:passed])
            self._keys -= passed
            del window.keys[:passed], window.found[:passed], window.sizes[:passed]
            window.lo = cursor

    def _forget(self, which: tuple[int, int]) -> None:
        window = self._windows.pop(which, None)
        if window is not None:
            self._pass(window, window.hi)

    def forget(self, log: int) -> None:
        """Forget what is known of a log: it may have other records by now (K3)."""
        with self._lock:
            for which in [each for each in self._windows if each[1] == log]:
                self._forget(which)


def _end(at: Position) -> int:
    return at.end if at.stop is None else min(at.end, at.stop)
