"""Claims of ordered groups: the keys of what lies ahead are in Kafka, and read before the decision (P8)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...delivery.model import Change, Position, View
from ...delivery.order import Claimant
from ...record import log_of, offset_of
from ..base import Reads
from .ahead import Ahead, KeysMissing, Range
from .ends import tell_ends
from .parking import KafkaParking
from .reader import Trimmed
from .stays import Stays


class _Elsewhere:
    """What a claim of an ordered group wants to know of the log, in the transaction of the state."""

    def __init__(self, group: int, ends: dict[int, int], ahead: Ahead) -> None:
        self._group, self._ends, self._ahead = group, ends, ahead

    def tell_ends(self, view: View) -> None:
        tell_ends(view, self._ends)

    def ahead(
        self, view: View, positions: Sequence[Position], limit: int
    ) -> Mapping[int, list[tuple[int, int | None]]]:
        return self._ahead.rows(self._group, view, positions, limit)


class KafkaOrdered(KafkaParking):
    """Reads keys for claims."""

    def __init__(self) -> None:
        KafkaParking.__init__(self)
        self._stays = Stays()
        self._held: set[int] = set()  # logs of which others held records when we claimed last

    def _by_key(self, reads: Reads, ends: dict[int, int]) -> Reads:
        """Return what a claim of an ordered group reads: by keys that are in Kafka."""
        who, group = reads.ordered, reads.group
        assert who is not None
        self._ahead.begin()
        before = self._cursors.get(group, {})
        unread = {log: end - before[log] for log, end in ends.items() if end > before.get(log, end)}
        prefers = self._stays.in_order(
            group,
            unread,
            self._held,
            lambda log: self._ahead.missing(group, log, before[log], ends[log], 1) is None,
        )
        now = Claimant(who.owner, who.child, who.want, who.turn, who.room, prefers)
        return reads._replace(ordered=now, elsewhere=_Elsewhere(group, ends, self._ahead))

    def _read_on(self, reads: Reads, ends: dict[int, int]) -> None:
        """Read what the claim is expected to need: else it is begun in vain, and made once more."""
        who, group = reads.ordered, reads.group
        if who is None or not who.prefers or not reads.due:
            return
        before, left, ranges = self._cursors[group], who.want, []
        for log in who.prefers:
            if log in self._held:
                continue
            missing = self._ahead.missing(group, log, before[log], ends[log], who.want)
            if missing is not None:
                ranges.append(missing)
            left -= ends[log] - before[log]
            if left <= 0:
                break
        self._read_ahead(group, ranges)

    def _claimed_by_key(self, reads: Reads, view: View, change: Change) -> None:
        """Take note of where it was claimed, and of what others hold."""
        assert view.order is not None
        assert reads.ordered is not None
        if change.cursors:
            self._stays.took(reads.group, change.cursors[-1][0])
        us = reads.ordered.owner, reads.ordered.child
        self._held = {
            log_of(span.lo)
            for lease in view.order.leases
            if lease.owner and (lease.owner, lease.child) != us
            for span in lease.spans
        }

    def _read_keys(self, missing: KeysMissing) -> None:
        """Read what a claim needs to know."""
        self._read_ahead(missing.group, missing.ranges)

    def _read_ahead(self, group: int, ranges: Iterable[Range]) -> None:
        """Read ranges, a page at a time: what is not kept of one is gone before the next is read."""
        left = deque(ranges)
        while left:
            room, page = self._ahead.page, []
            while left and room > 0:
                lo, end = left.popleft()
                hi = min(end, lo + room)
                page.append((lo, hi))
                room -= hi - lo
                if hi < end:
                    left.appendleft((hi, end))
            self._ahead.keep(group, self._messages_of(page))

    def _messages_of(self, ranges: Sequence[Range]) -> list[tuple[Range, int, list[Any]]]:
        """Return ranges, where the log begins in each, and the messages from there on."""
        if not ranges:
            return []
        asked = [(self.place(log_of(lo)), offset_of(lo), offset_of(lo) + hi - lo) for lo, hi in ranges]
        try:
            read = self.reader.read(asked)
        except Trimmed:
            starts = self.starts([log_of(lo) for lo, _ in ranges])
            there = {each: (min(max(each[0], starts[log_of(each[0])]), each[1]), each[1]) for each in ranges}
            left = self._messages_of([now for now in there.values() if now[0] < now[1]])
            found = {now: (begins, messages) for now, begins, messages in left}
            return [(each, *found.get(now, (now[0], []))) for each, now in there.items()]
        return [(each, each[0], messages) for each, messages in zip(ranges, read, strict=True)]
