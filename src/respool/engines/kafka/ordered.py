"""Claims of ordered groups: the keys of what lies ahead are in Kafka, and read before the decision (P8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...delivery.model import Position, View
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

    def _by_key(self, reads: Reads, ends: dict[int, int]) -> Reads:
        """Return what a claim of an ordered group reads: by keys that are in Kafka."""
        who = reads.ordered
        assert who is not None
        before = self._cursors.get(reads.group, {})
        unread = max((end - before.get(log, end) for log, end in ends.items()), default=0)
        turn = self._stays.turn(who.turn, unread)
        now = Claimant(who.owner, who.child, who.want, turn, who.room)
        return reads._replace(ordered=now, elsewhere=_Elsewhere(reads.group, ends, self._ahead))

    def _read_keys(self, missing: KeysMissing) -> None:
        """Read what a claim needs to know."""
        self._ahead.keep(missing.group, self._messages_of(missing.ranges))

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
