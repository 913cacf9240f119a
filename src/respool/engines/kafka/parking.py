"""What is parked goes into the state with its body, in the transaction that parks it (H15).

The log may be trimmed before it is run. A worker has just read what it parks; who has not, reads it first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ...delivery.model import Parked, View
from ...delivery.spans import Span, ranges_of
from ...errors import StreamBroken
from ...record import Row, log_of
from .losing import KafkaLosing
from .reading import header_at_hand, near


class NotAtHand(Exception):
    """A decision parks records that are not at hand: they are read, and it is made again."""

    def __init__(self, positions: list[int]) -> None:
        super().__init__(positions)
        self.positions = positions


def parked_before(view: View) -> set[int]:
    """Return what a decision has seen of what is parked: the state has it already (H15)."""
    found = {parked.pos for parked in view.due}
    if view.order is not None:
        found.update(parked.pos for chain in view.order.waiting.values() for parked in chain)
    return found


class KafkaParking(KafkaLosing):
    """Gives what is parked along."""

    def _to_keep(self, parked: Sequence[Parked], fetched: dict[int, Row], absent: set[int]) -> list[Row]:
        """Return what is parked, to be kept in the state: from what a worker has just read, or fetched.

        But for what is `absent`: it is there already, or nowhere.
        """
        kept, missing = [], []
        for each in parked:
            pos = each.pos
            if pos in absent:
                continue
            known = self._at_hand.get(pos) or self._ahead.between(pos, pos + 1)[0]
            if known:
                row, behind = known
                kept.append(Row(pos, row[1], row[2], header_at_hand(behind)))
            elif pos in fetched:
                kept.append(fetched[pos])
            else:
                missing.append(pos)
        if missing:
            raise NotAtHand(missing)
        return kept

    def _fetch(self, positions: Sequence[int]) -> dict[int, Row]:
        """Return records as they are kept, from the state or from Kafka, but for those that are nowhere.

        All of them together: there may be as many as a long run gives back, and nobody beats meanwhile.
        """
        kept = self.inner.rows([Span(lo, hi) for lo, hi in ranges_of(positions)])
        found = {row[0]: Row(*row) for row in kept}
        by_log: dict[int, list[int]] = {}
        for pos in positions:
            if pos not in found:
                by_log.setdefault(log_of(pos), []).append(pos)
        return found | self._fetch_from(self.known_logs(sorted(by_log)), by_log)

    def _fetch_from(self, logs: Sequence[int], by_log: Mapping[int, Sequence[int]]) -> dict[int, Row]:
        """Return what there is in logs at some positions of each."""
        found: dict[int, Row] = {}
        if not logs:
            return found
        try:
            starts, ends = self.starts(logs), self.ends(logs)
            there = {log: [pos for pos in by_log[log] if starts[log] <= pos < ends[log]] for log in logs}
            for together in zip_longest(*(near(each) for each in there.values())):  # one range of each log
                ranges = [each for each in together if each is not None]
                read: dict[int, Any] = {}
                self._read_into(read, self.seeker, [(lo, hi) for lo, hi, _ in ranges])
                for pos in set().union(*(wanted for _, _, wanted in ranges)).intersection(read):
                    row, message = read[pos]
                    found[pos] = Row(pos, row[1], row[2], header_at_hand(message))
        except StreamBroken:  # as gone as its topic; what parks it is settled all the same
            if len(logs) == 1:
                return {}
            return {pos: row for log in logs for pos, row in self._fetch_from([log], by_log).items()}
        return found
