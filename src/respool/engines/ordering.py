"""Reading what a claim of an ordered group needs: as few partitions as fill a lease (`delivery.order`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ..delivery.model import Ordering, Parked, Position, View
from ..delivery.order import Claimant, Filling, asked_keys, choose, is_stopped

FEW = 1000
"""Parked records with a key that are read at once; where there are more, they are looked up by key."""


class OrderSource(Protocol):
    """What an engine reads for it, in the transaction of the decision."""

    def ahead(
        self, view: View, positions: Sequence[Position], limit: int
    ) -> Mapping[int, list[tuple[int, int | None]]]:
        """Return (position, key) of the records from the cursors on, by log, of each at most so many.

        Where records may come in between later, the view's positions are to say what is missing (G4).
        """

    def due(self, log: int, most: int) -> list[Parked]:
        """Return what is due in a log, the earliest first."""

    def keyed(self, limit: int) -> list[Parked]:
        """Return parked records with a key that they hold up, without errors; at most so many."""

    def waiting(self, keys: Iterable[int]) -> list[Parked]:
        """Return those of some keys."""

    def blocked(self, log: int, most: int) -> int:
        """Return how many records of a log are blocked, counted up to so many."""


class Elsewhere(Protocol):
    """What knows a log whose State is lent to it (`lent.py`): where its logs end, and its keys."""

    def tell_ends(self, view: View) -> None:
        """Tell the view's positions where their logs end."""

    def ahead(
        self, view: View, positions: Sequence[Position], limit: int
    ) -> Mapping[int, list[tuple[int, int | None]]]:
        """Return what `OrderSource.ahead` does. What it raises undoes the transaction."""


def read_waiting(view: View, source: OrderSource) -> None:
    """Read what waits for the keys of the leases, and of the parked records, that a decision asked for."""
    keys = asked_keys(view)
    if not keys:
        return
    view.order = view.order or Ordering()
    few = source.keyed(FEW + 1)
    _enter(view.order, few if len(few) <= FEW else source.waiting(keys))


def read_order(
    view: View,
    who: Claimant,
    settled: Sequence[int],
    due: Iterable[int],
    source: OrderSource,
    now: float,
    *,
    at_once: int = 1,
    elsewhere: Elsewhere | None = None,
) -> None:
    """Read what a claim needs to know, partition by partition until that fills a lease.

    Parameters:
        view: with positions and all of the group's leases. due: logs in which something may be due.
        at_once: partitions that are read together at most, where each reading is a round trip.
        elsewhere: knows the records, where they are not in this store.
    """
    if elsewhere is not None:
        elsewhere.tell_ends(view)
    order = view.order
    assert order is not None
    order.stopped = [lease for lease in order.leases if is_stopped(lease, now)]
    if order.stopped:
        order.leases = [lease for lease in order.leases if not is_stopped(lease, now)]
        view.returned = [lease for lease in order.leases if not lease.owner]
    due = set(due)
    few = source.keyed(FEW + 1)
    complete = len(few) <= FEW
    if complete:
        _enter(order, few)
    else:
        _enter(order, source.waiting(asked_keys(view)))
    offered = {parked.pos >> 40 for parked in view.due}  # of tasks that nobody knew so far
    logs = choose(view, due | offered, settled, who)
    filling = Filling(view, settled, who)
    while logs:
        some = logs[: _filling([at for at, _ in logs[:at_once]], who.want)]
        logs = logs[len(some) :]
        plain = not few and not order.stopped and not any(shared for _, shared in some)
        limit = who.want if plain else who.want + who.room
        order.ahead.update((elsewhere or source).ahead(view, [at for at, _ in some], limit))
        for at, _ in some:
            order.claimed.append(at.log)
            if at.log in due:
                view.due += source.due(at.log, who.want)
        if not complete:
            _enter(order, source.waiting(asked_keys(view) - order.waiting.keys()))
        if few:
            order.blocked.update((at.log, source.blocked(at.log, who.room)) for at, _ in some)
        if filling.enough(at.log for at, _ in some):
            return


def _filling(positions: Sequence[Position], want: int) -> int:
    """Return how many of these partitions, the first of them, seem to hold a lease's worth of records."""
    there = 0
    for n, at in enumerate(positions, 1):
        there += at.end - at.cursor
        if there >= want:
            return n
    return len(positions)


def _enter(order: Ordering, parked: Iterable[Parked]) -> None:
    for each in sorted(parked):
        if each.key is not None:
            order.waiting.setdefault(each.key, []).append(each)
