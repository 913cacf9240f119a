"""What is parked goes into the state with its body, in the transaction that parks it (H15).

The log may be trimmed before it is run. A worker has just read what it parks; who has not, reads it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...delivery.model import Parked, View
from ...delivery.spans import Span
from ...errors import StreamBroken
from ...record import Row, log_of
from .losing import KafkaLosing
from .message import header_of
from .reading import header_at_hand


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

    def _fetch(self, pos: int) -> Row | None:
        """Return a record as it is kept, from the state or from Kafka; None where it is nowhere."""
        for row in self.inner.rows([Span(pos, pos + 1)]):
            return Row(*row)
        if not self.known_logs([log_of(pos)]):
            return None
        found: dict[int, Any] = {}
        try:
            if self.starts([log_of(pos)])[log_of(pos)] <= pos < self.ends([log_of(pos)])[log_of(pos)]:
                self._read_into(found, self.seeker, [(pos, pos + 1)])
        except StreamBroken:  # as gone as its topic; what parks it is settled all the same
            return None
        for row, message in found.values():
            return Row(pos, row[1], row[2], header_of(message))
        return None
