"""What a decision reads of a group, in its transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ...delivery.lanes import RETURNED_OF_LANES, due_of_lanes, has_lanes, ranges_of_lanes
from ...delivery.model import Bucket, Limits, Ordering, Parked, Position, View
from ..base import Reads, looked_for
from ..columns import add_holders, lease_of
from ..ordering import read_order, read_waiting
from .sql import SQL


def read_view(db: Any, reads: Reads) -> View:
    """Read what a decision asked for."""
    view, group = View(), reads.group
    for lease_id in reads.leases:
        row = db.execute(SQL["lease"], (group, lease_id)).fetchone()
        if row is not None:
            view.leases[lease_id] = lease_of(row)
    returned, tasks, due, settings = reads.returned > 0, bool(reads.tasks), [], None
    if reads.positions:
        for log, cursor, end, stop, priority, some_returned, some_due, some_unknown, its in db.execute(
            SQL["claimable"], (group, reads.now)
        ):
            view.positions.append(Position(log, cursor, end, stop, (), priority))
            settings = its
            returned, tasks = returned and some_returned, tasks and some_unknown
            if some_due:
                due.append(log)
    if reads.settings or settings not in (None, "{}"):
        settings, view.generation = db.execute(SQL["group_settings"], (group,)).get or ("{}", 0)
        view.settings = json.loads(settings)
    if reads.ordered is not None:
        order = view.order = Ordering()
        order.leases = [lease_of(row) for row in db.execute(SQL["leases"], (group,)).fetchall()]
        view.returned = [lease for lease in order.leases if not lease.owner]
    elif returned:
        most = max(reads.returned, RETURNED_OF_LANES) if has_lanes(view) else reads.returned
        view.returned = [lease_of(row) for row in db.execute(SQL["returned"], (group, most, reads.now))]
    if due and reads.due and reads.ordered is None:
        view.due = due_of_lanes(
            view,
            due,
            reads.due,
            lambda log, most: [
                parked_of(row) for row in db.execute(SQL["due"], (group, log, reads.now, most)).fetchall()
            ],
        )
    if tasks and len(view.due) < reads.due:
        bound = (group, json.dumps(list(reads.tasks)), reads.due - len(view.due))
        view.due += [parked_of(row) for row in db.execute(SQL["unknown"], bound)]
    if reads.parked:
        rows = db.execute(SQL["parked_at"], (group, json.dumps(list(reads.parked)))).fetchall()
        at = {row[0]: parked_of(row) for row in rows}
        view.due += [at[pos] for pos in reads.parked if pos in at]
    if reads.buckets or reads.open:
        view.limits = _read_limits(db, reads, view)
    if reads.ordered is not None:
        source = _Order(db, group, reads.now)
        read_order(view, reads.ordered, reads.leases, due, source, reads.now, elsewhere=reads.elsewhere)
    elif any(lease.keys for lease in (*view.leases.values(), *view.returned)) or any(p.key for p in view.due):
        read_waiting(view, _Order(db, group, reads.now))
    return view


def _read_limits(db: Any, reads: Reads, view: View) -> Limits | None:
    """Read the buckets that were asked for, or are open; None where there is nothing to be said of limits."""
    limits, group, ids = Limits(), reads.group, list(reads.buckets)
    if reads.open:
        opened = db.execute(SQL["open_waiting"], (group, reads.now, reads.open)).fetchall()
        if not opened and not ids:
            return None
        limits.asked = looked_for(reads.due, len(opened))
        for (one,) in opened:
            found = {
                row[0]: row
                for lane in ranges_of_lanes(view)
                for row in db.execute(SQL["waiting_for"], (group, one, *lane, limits.asked))
            }
            limits.waiting[one] = [parked_of(found[pos]) for pos in sorted(found)]
        ids += limits.waiting
    for one in ids:
        row = db.execute(SQL["bucket"], (one,)).fetchone()
        if row is not None:
            limits.buckets[one] = Bucket(*row)
            if db.execute(SQL["is_waited_for"], (group, one)).get:
                limits.queued.add(one)
    add_holders(limits, db.execute(SQL["holders"]))
    return limits


class _Order:
    """What a claim of an ordered group, or a settlement in one, needs to know besides."""

    def __init__(self, db: Any, group: int, now: float) -> None:
        self._db, self._group, self._now = db, group, now

    def ahead(
        self, view: View, positions: Sequence[Position], limit: int
    ) -> dict[int, list[tuple[int, int | None]]]:
        found: dict[int, list[tuple[int, int | None]]] = {}
        for at in positions:
            end = at.end if at.stop is None else min(at.end, at.stop)
            rows = found[at.log] = self._db.execute(SQL["keys_ahead"], (at.cursor, end, limit)).fetchall()
            if len(rows) < limit:  # positions left empty for an id that was known are passed as well
                rows += [(pos, None) for pos in range(rows[-1][0] + 1 if rows else at.cursor, end)]
        return found

    def due(self, log: int, most: int) -> list[Parked]:
        return self._parked("due", self._group, log, self._now, most)

    def keyed(self, limit: int) -> list[Parked]:
        return self._parked("keyed", self._group, limit)

    def waiting(self, keys: Iterable[int]) -> list[Parked]:
        return self._parked("waiting", self._group, json.dumps(list(keys)))

    def blocked(self, log: int, most: int) -> int:
        return int(self._db.execute(SQL["blocked"], (self._group, log << 40, log + 1 << 40, most)).get)

    def _parked(self, name: str, *bound: Any) -> list[Parked]:
        return [parked_of(row) for row in self._db.execute(SQL[name], bound).fetchall()]


def parked_of(row: Any) -> Parked:
    """Return a parked record from its row."""
    values = list(row)
    values[7] = bool(values[7])  # alone
    return Parked._make(values)
