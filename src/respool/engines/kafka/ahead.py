"""The keys of what lies ahead of cursors, for claims of ordered groups (P8, `delivery.order`).

A claim decides by keys, and Kafka is not asked for them while the state is locked: a decision that needs more
than is at hand is given up, that is read, and it is made once more. What was read stays at hand until the
cursor has passed it, so that who claims it need not read it again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from ...delivery.model import Position, View
from ...keys import key_hash
from ...record import OFFSET_BITS
from .message import key_of

SPARE = 1000  # records that are read beyond those asked for
TOGETHER = 64  # partitions that are read at once, at most
WINDOWS = 256  # that are kept
BYTES = 16 << 20  # of bodies that are kept; the others are read again by who claims them

Keyed = tuple[int, int | None]
Range = tuple[int, int]


class KeysMissing(Exception):
    """A decision needs keys that are not at hand: they are to be read, and it is to be made again."""

    def __init__(self, group: int, ranges: Sequence[Range]) -> None:
        super().__init__(group, ranges)
        self.group, self.ranges = group, ranges


class _Window:
    """What is known of a log from a group's cursor on."""

    __slots__ = ("hi", "rows")

    def __init__(self, at: int) -> None:
        self.hi = at  # it is known up to here
        self.rows: deque[Keyed] = deque()  # those that never get a record are among them


class Ahead:
    """What this process knows of records that nobody has claimed, and of those claimed last."""

    def __init__(self) -> None:
        self.messages: dict[int, Any] = {}  # by position; None where no record is
        self._windows: OrderedDict[tuple[int, int], _Window] = OrderedDict()  # by group and log
        self._bytes = 0
        self._lock = threading.Lock()

    def rows(
        self, group: int, view: View, positions: Sequence[Position], limit: int
    ) -> dict[int, list[Keyed]]:
        """Return (position, key) from the cursors on, by log, of each at most so many. Raises KeysMissing."""
        with self._lock:
            found = {at.log: self._of_log(group, at, limit) for at in positions}
            if any(rows is None for rows in found.values()):
                raise KeysMissing(group, self._to_read(group, view, positions, limit))
        return found  # type: ignore[return-value]

    def _of_log(self, group: int, at: Position, limit: int) -> list[Keyed] | None:
        end = _end(at)
        if at.cursor >= end:
            return []
        window = self._windows.get((group, at.log))
        if window is None or not (at.cursor >= _first(window) and at.cursor <= window.hi):
            return None
        while window.rows and window.rows[0][0] < at.cursor:
            self._drop(window.rows.popleft()[0])
        if len(window.rows) < limit and window.hi < end:
            return None
        self._windows.move_to_end((group, at.log))
        return [row for row in islice(window.rows, limit) if row[0] < end]

    def _to_read(self, group: int, view: View, positions: Sequence[Position], limit: int) -> list[Range]:
        """Return what to read: what was asked for, and of the next partitions as much as fills a lease."""
        asked = {at.log for at in positions}
        places = [n for n, at in enumerate(view.positions) if at.log == positions[-1].log]
        after = view.positions[places[0] + 1 :] + view.positions[: places[0]] if places else []
        ranges: list[Range] = []
        expected = 0
        for at in (*positions, *(each for each in after if each.log not in asked)):
            end = _end(at)
            if at.log not in asked and (expected >= limit or len(ranges) >= TOGETHER):
                break
            if self._of_log(group, at, limit) is None:
                window = self._windows.get((group, at.log))
                known = window is not None and at.cursor >= _first(window) and at.cursor <= window.hi
                lo = window.hi if window is not None and known else at.cursor
                ranges.append((lo, min(end, max(lo, at.cursor + limit) + SPARE)))
            expected += min(end - at.cursor, limit)
        return ranges

    def keep(self, group: int, read: Iterable[tuple[Range, int, Sequence[Any]]]) -> None:
        """Take in what was read: of each range where its log begins now, and its messages, in their order."""
        with self._lock:
            for (lo, hi), begins, messages in read:
                self._keep(group, lo, hi, begins, messages)
            while len(self._windows) > WINDOWS:
                _, window = self._windows.popitem(last=False)
                self._forget(window)

    def _keep(self, group: int, lo: int, hi: int, begins: int, messages: Sequence[Any]) -> None:
        log = lo >> OFFSET_BITS
        window = self._windows.get((group, log))
        if window is None or window.hi != lo:
            if window is not None:
                self._forget(window)
            window = self._windows[group, log] = _Window(lo)
        window.rows.extend((pos, None) for pos in range(lo, begins))  # lost: who claims them says so (K1)
        following = begins
        for message in messages:
            pos = log << OFFSET_BITS | message.offset()
            self._keep_empty(window, following, pos)
            key = key_of(message)
            window.rows.append((pos, None if key is None else key_hash(key)))
            size = len(message)
            if self._bytes + size <= BYTES and pos not in self.messages:
                self.messages[pos] = message
                self._bytes += size
            following = pos + 1
        self._keep_empty(window, following, hi)
        window.hi = hi

    def _keep_empty(self, window: _Window, lo: int, hi: int) -> None:
        """There is no record where a log was compacted, or a transaction's mark lies."""
        for pos in range(lo, hi):
            window.rows.append((pos, None))
            self.messages[pos] = None

    def _forget(self, window: _Window) -> None:
        for pos, _ in window.rows:
            self._drop(pos)

    def _drop(self, pos: int) -> None:
        message = self.messages.pop(pos, None)
        if message is not None:
            self._bytes -= len(message)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self.messages, self._bytes = {}, 0
            self._windows.clear()


def _first(window: _Window) -> int:
    return window.rows[0][0] if window.rows else window.hi


def _end(at: Position) -> int:
    return at.end if at.stop is None else min(at.end, at.stop)
