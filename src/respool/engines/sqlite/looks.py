"""What is asked of a group beside its decisions: where a record is, how far the group is, what it counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ...delivery.model import MAX_LEASE, JournalEntry, Lease, Outcome, Parked, Position
from ...delivery.spans import count, find, intersect
from ..base import Counts, Group, ParkedFilter, Status
from ..columns import counts_of, how_it_ended, lease_of, outcome_of, positions_of
from .part import Part
from .sql import SQL
from .view import parked_of


class SQLiteLooks(Part):
    """Reads without the write lock."""

    def status(self, group: Group, pos: int) -> Status:
        """Return where a record is in a group, from one snapshot."""
        with self._reader.lock, self._reader.reading() as db:
            found = db.execute(SQL["place"], (group.id, pos)).get
            if found is None:
                return Status("outside")
            cursor, start, stop, is_parked, *outcome = found
            if pos < start or (stop is not None and pos >= stop):
                return Status("outside")
            if pos >= cursor:
                return Status("pending")
            if outcome[0] is not None and not is_parked:
                return Status("done", outcome=outcome_of(outcome))
            db.execute("BEGIN")
            try:
                return _status(db, group.id, pos)
            finally:
                db.execute("COMMIT")

    def journal(self, group: int, pos: int) -> list[JournalEntry]:
        """Return the entries that cover a position, the oldest first."""
        with self._reader.lock, self._reader.reading() as db:
            return [JournalEntry(*row) for row in db.execute(SQL["journal"], (group, pos, pos - MAX_LEASE))]

    def began(self, group: int, ranges: Sequence[tuple[int, int]]) -> set[int]:
        """Return at which positions, of ranges [lo, hi), a run began that ended nothing."""
        with self._reader.lock, self._reader.reading() as db:
            return {pos for (pos,) in db.execute(SQL["began"], (group, json.dumps(ranges)))}

    def outcomes(self, group: int, lo: int, hi: int) -> list[Outcome]:
        """Return the outcomes stored for lo <= p < hi."""
        with self._reader.lock, self._reader.reading() as db:
            return [outcome_of(row) for row in db.execute(SQL["outcomes"], (group, lo, hi))]

    def parked(self, chosen: ParkedFilter, limit: int) -> list[tuple[int, Parked]]:
        """Return (group, parked record), the oldest first."""
        bound = {"groups": json.dumps(list(chosen.groups)), "limit": limit, **bound_of(chosen)}
        with self._reader.lock, self._reader.reading() as db:
            return [(row[0], parked_of(row[1:])) for row in db.execute(SQL["parked_list"], bound)]

    def dead_before(self, group: int, task: str | None, before: float, limit: int) -> list[int]:
        """Return where dead letters of a task are that died before a moment."""
        found: list[int] = []
        with self._reader.lock, self._reader.reading() as db:
            named = [(task,)] if task is not None else db.execute(SQL["dead_tasks"], (group,)).fetchall()
            for (its,) in named:
                bound = (group, its, before, limit - len(found))
                found += [pos for (pos,) in db.execute(SQL["dead_before"], bound)]
        return found

    def positions(self, group: Group) -> list[Position]:
        """Return how far a group is in each log."""
        with self._reader.lock, self._reader.reading() as db:
            return positions_of(db.execute(SQL["positions"], (group.id,)).fetchall())

    def leases(self, group: Group) -> list[Lease]:
        """Return a group's leases, the returned ones among them."""
        with self._reader.lock, self._reader.reading() as db:
            return [lease_of(row) for row in db.execute(SQL["leases"], (group.id,))]

    def leases_of(self, owner: int) -> list[tuple[int, Lease]]:
        """Return (group, lease) of a worker."""
        with self._reader.lock, self._reader.reading() as db:
            found = db.execute(SQL["leases_of_owner"], (owner,)).fetchall()
        return [(row[0], lease_of(row[1:])) for row in found]

    def counts(self, group: Group) -> Counts:
        """Return how many of a group's records are where, from one snapshot."""
        with self._reader.lock, self._reader.reading() as db:
            db.execute("BEGIN")
            try:
                return _counts(db, group.id)
            finally:
                db.execute("COMMIT")

    def counters(self, group: int) -> dict[str, int]:
        """Return what was skipped, refused, dropped: counted since the group was made."""
        with self._reader.lock, self._reader.reading() as db:
            return dict(db.execute(SQL["counters"], (group,)).fetchall())

    def unfinished(self, group: Group, lo: int, hi: int) -> int:
        """Return how many of the records at lo <= p < hi, in one log, are not done in a group."""
        with self._reader.lock, self._reader.reading() as db:
            db.execute("BEGIN")
            try:
                cursor, start, stop = db.execute(SQL["position"], (group.id, lo >> 40)).get
                lo, hi = max(lo, start), hi if stop is None else min(hi, stop)
                left = max(hi - max(cursor, lo), 0)
                for row in db.execute(SQL["leases"], (group.id,)):
                    left += count(intersect(lease_of(row).spans, [(lo, hi)]))
                return int(left + db.execute(SQL["parked_between"], (group.id, lo, hi)).get)
            finally:
                db.execute("COMMIT")

    def has_work(self, group: int, now: float, tasks: Sequence[str]) -> bool:
        """Say whether a claim would find something, without taking the write lock."""
        with self._reader.lock, self._reader.reading() as db:
            found = (
                any(
                    cursor < (end if stop is None else min(end, stop))
                    for _, cursor, end, stop, _ in db.execute(SQL["positions"], (group,)).fetchall()
                )
                or db.execute(SQL["has_work"], (group, now, json.dumps(tasks))).get
            )
            return bool(found) and not db.execute(SQL["is_held"], (group,)).get

    def next_due(self, group: int, after: float = -1.0) -> float | None:
        """Return when the next of the group's parked records is due."""
        with self._reader.lock, self._reader.reading() as db:
            both = (db.execute(SQL[name], (group, after)).get for name in ("next_due", "next_open"))
            return min((due for due in both if due is not None), default=None)

    def unknown_tasks(self, group: int) -> set[str]:
        """Return the names of tasks that no worker knew so far (P11)."""
        with self._reader.lock, self._reader.reading() as db:
            return {row[0] for row in db.execute(SQL["unknown_tasks"], (group,))}


def bound_of(chosen: ParkedFilter) -> dict[str, Any]:
    """Return what a filter of parked records binds in a statement."""
    return {
        "reasons": json.dumps(list(chosen.reasons)) if chosen.reasons else None,
        "tasks": json.dumps(list(chosen.tasks)) if chosen.tasks else None,
        "positions": json.dumps(list(chosen.positions)) if chosen.positions else None,
        "since": chosen.since,
        "until": chosen.until,
    }


def _status(db: Any, group: int, pos: int) -> Status:
    """Find a record that the cursor has passed: ended, parked, leased, or done without a row."""
    outcome = db.execute(SQL["outcome"], (group, pos)).get
    known = outcome_of(outcome) if outcome else None
    row = db.execute(SQL["parked_one"], (group, pos)).get
    if row:
        return Status("parked", parked=parked_of(row), outcome=known)
    if known:
        return Status("done", outcome=known)
    for each in db.execute(SQL["leases"], (group,)):
        lease = lease_of(each)
        if find(lease.spans, pos):
            return Status("leased", lease=lease, progress=db.execute(SQL["progress"], (group, pos)).get)
    ends = {row[6] for row in db.execute(SQL["journal"], (group, pos, pos - MAX_LEASE))}
    return Status("done", how=how_it_ended(ends))


def _counts(db: Any, group: int) -> Counts:
    pending, oldest = 0, None
    for at in positions_of(db.execute(SQL["positions"], (group,)).fetchall()):
        end = at.end if at.stop is None else min(at.end, at.stop)
        if end > at.cursor:
            pending += end - at.cursor
            row = db.execute(SQL["records"], (at.cursor, end, 1)).fetchone()
            if row and (oldest is None or row[6] < oldest):
                oldest = row[6]
    leases = (lease_of(row) for row in db.execute(SQL["leases"], (group,)))
    parked = dict(db.execute(SQL["parked_counts"], (group,)).fetchall())
    return counts_of(pending, oldest, leases, parked, db.execute(SQL["next_due"], (group, -1.0)).get)
