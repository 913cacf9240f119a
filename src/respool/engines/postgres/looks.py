"""What is asked of a group beside its decisions: where a record is, how far the group is, what it counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...delivery.model import MAX_LEASE, JournalEntry, Lease, Outcome, Parked, Position
from ...delivery.spans import count, find, intersect
from ...record import first_pos
from ..base import Counts, Group, ParkedFilter, Status
from ..columns import counts_of, how_it_ended, lease_of, outcome_of, positions_of
from . import gaps
from .connection import Bounded, one, snapshot, value
from .part import Part
from .view import parked_of

LOGS_AT_ONCE = 8
"""Of a group that are looked at in one round trip for something new."""


class PostgresLooks(Part):
    """Reads without a lock."""

    def has_work(self, group: int, now: float, tasks: Sequence[str]) -> bool:
        """Say whether a claim would find something, without a lock."""
        bound = {"grp": group, "now": now, "tasks": list(tasks)}

        def run(db: Bounded) -> bool:
            found = db.batch.run(self._sql["may_have_work"], bound).fetchall()
            held, certain, kept = found[0][:3]
            if held or certain:
                return bool(certain)
            ahead = [(cursor, stop) for *_, cursor, stop in found if cursor is not None]
            return self._is_new(db, ahead, room=kept < gaps.MAX_GAPS) or (
                kept > 0 and bool(value(db.batch.run(self._sql["gap_filled"], (group,))))
            )

        return self._reader.read(run)

    def _is_new(self, db: Bounded, ahead: Sequence[tuple[int, int]], *, room: bool) -> bool:
        """Say whether there is a record that a claim may take, in the logs where numbers were given out.

        Parameters:
            ahead: the cursor and the end of each. room: for another gap; else a cursor waits before one.
        """
        for start in range(0, len(ahead), LOGS_AT_ONCE):
            some = ahead[start : start + LOGS_AT_ONCE]
            with db.batch as batch:
                replies = [batch.execute(self._sql["first_after"], each) for each in some]
                batch.sync()
            firsts = [value(reply) for reply in replies]
            if any(
                pos is not None and (room or pos == at) for pos, (at, _) in zip(firsts, some, strict=True)
            ):
                return True
        return False

    def next_due(self, group: int, after: float = -1.0) -> float | None:
        """Return when the next of the group's parked records is due."""
        bound = {"grp": group, "after": after}
        due: float | None = self._reader.read(lambda db: value(db.batch.run(self._sql["next_open"], bound)))
        return due

    def status(self, group: Group, pos: int) -> Status:
        """Return where a record is in a group, from one snapshot."""
        return self._reader.read(lambda db: self._status(db, group.id, pos))

    def _status(self, db: Bounded, group: int, pos: int) -> Status:
        bound = {"grp": group, "pos": pos, "log": pos >> 40}
        found = db.batch.run(self._sql["place"], bound).fetchone()
        if found is None:
            return Status("outside")
        cursor, start, stop, is_parked, in_gap, *outcome = found
        if pos < start or (stop is not None and pos >= stop):
            return Status("outside")
        if pos >= cursor:
            return Status("pending")
        if in_gap:
            return Status("parked", parked=Parked(pos, "gap", None, ""))
        if outcome[0] is not None and not is_parked:
            return Status("done", outcome=outcome_of(outcome))
        with snapshot(db):
            return _status(db, self._sql, group, pos)

    def journal(self, group: int, pos: int) -> list[JournalEntry]:
        """Return the entries that cover a position, the oldest first."""
        bound = {"grp": group, "pos": pos, "low": pos - MAX_LEASE, "first": first_pos(pos >> 40)}
        return self._reader.read(
            lambda db: [JournalEntry(*row) for row in db.execute(self._sql["journal"], bound)]
        )

    def began(self, group: int, ranges: Sequence[tuple[int, int]]) -> set[int]:
        """Return at which positions, of ranges [lo, hi), a run began that ended nothing."""
        bound = {"grp": group, "los": [lo for lo, _ in ranges], "his": [hi for _, hi in ranges]}
        return self._reader.read(lambda db: {pos for (pos,) in db.execute(self._sql["began"], bound)})

    def outcomes(self, group: int, lo: int, hi: int) -> list[Outcome]:
        """Return the outcomes stored for lo <= p < hi."""
        return self._reader.read(
            lambda db: [
                outcome_of(row) for row in db.execute(self._sql["outcomes"], (group, lo, hi), binary=True)
            ]
        )

    def unfinished(self, group: Group, lo: int, hi: int) -> int:
        """Return how many of the positions lo <= p < hi, in one log, are not done in a group."""

        def run(db: Bounded) -> int:
            with snapshot(db):
                bound = {"grp": group.id, "pos": lo, "log": lo >> 40}
                place = db.execute(self._sql["place"], bound).fetchone()
                assert place is not None
                cursor, start, stop = place[:3]
                low, high = max(lo, start), hi if stop is None else min(hi, stop)
                left = max(high - max(cursor, low), 0)
                for lease in _leases(db, self._sql, group.id):
                    left += count(intersect(lease.spans, [(low, high)]))
                left += int(one(db, self._sql["gaps_between"], {"grp": group.id, "lo": low, "hi": high}))
                return int(left) + int(one(db, self._sql["parked_between"], (group.id, low, high)))

        return self._reader.read(run)

    def parked(self, chosen: ParkedFilter, limit: int) -> list[tuple[int, Parked]]:
        """Return (group, parked record), the oldest first."""
        bound = {"groups": list(chosen.groups), "limit": limit, **bound_of(chosen)}
        return self._reader.read(
            lambda db: [(row[0], parked_of(row[1:])) for row in db.execute(self._sql["parked_list"], bound)]
        )

    def dead_before(self, group: int, task: str | None, before: float, limit: int) -> list[int]:
        """Return where dead letters of a task are that died before a moment."""

        def run(db: Bounded) -> list[int]:
            found: list[int] = []
            tasks = db.execute(self._sql["dead_tasks"], {"grp": group}) if task is None else [(task,)]
            for (its,) in list(tasks):
                bound = (group, its, before, limit - len(found))
                found += [pos for (pos,) in db.execute(self._sql["dead_before"], bound)]
            return found

        return self._reader.read(run)

    def positions(self, group: Group) -> list[Position]:
        """Return how far a group is in each log."""
        return self._reader.read(
            lambda db: positions_of(db.execute(self._sql["positions"], (group.id,)).fetchall())
        )

    def leases(self, group: Group) -> list[Lease]:
        """Return a group's leases, the returned ones among them."""
        return self._reader.read(lambda db: _leases(db, self._sql, group.id))

    def leases_of(self, owner: int) -> list[tuple[int, Lease]]:
        """Return (group, lease) of a worker."""
        return self._reader.read(
            lambda db: [
                (row[0], lease_of(row[1:])) for row in db.execute(self._sql["leases_of_owner"], (owner,))
            ]
        )

    def counts(self, group: Group) -> Counts:
        """Return how many of a group's records are where, from one snapshot."""

        def run(db: Bounded) -> Counts:
            with snapshot(db):
                return _counts(db, self._sql, group.id)

        return self._reader.read(run)

    def counters(self, group: int) -> dict[str, int]:
        """Return what was skipped, refused, dropped: counted since the group was made."""
        return self._reader.read(lambda db: dict(db.execute(self._sql["counters"], (group,)).fetchall()))


def bound_of(chosen: ParkedFilter) -> dict[str, Any]:
    """Return what a filter of parked records binds in a statement."""
    return {
        "reasons": list(chosen.reasons) or None,
        "tasks": list(chosen.tasks) or None,
        "positions": list(chosen.positions) or None,
        "since": chosen.since,
        "until": chosen.until,
    }


def _leases(db: Bounded, sql: dict[str, bytes], group: int) -> list[Lease]:
    return [lease_of(row) for row in db.execute(sql["leases"], (group,)).fetchall()]


def _status(db: Bounded, sql: dict[str, bytes], group: int, pos: int) -> Status:
    """Find a record that the cursor has passed: ended, parked, leased, or done without a row."""
    outcome = db.execute(sql["outcomes"], (group, pos, pos + 1)).fetchone()
    known = outcome_of(outcome) if outcome else None
    row = db.execute(sql["parked_at"], (group, [pos])).fetchone()
    if row:
        return Status("parked", parked=parked_of(row), outcome=known)
    if known:
        return Status("done", outcome=known)
    for lease in _leases(db, sql, group):
        if find(lease.spans, pos):
            return Status("leased", lease=lease, progress=one(db, sql["progress"], (group, pos)))
    bound = {"grp": group, "pos": pos, "low": pos - MAX_LEASE, "first": first_pos(pos >> 40)}
    ends = {row[6] for row in db.execute(sql["journal"], bound)}
    return Status("done", how=how_it_ended(ends))


def _counts(db: Bounded, sql: dict[str, bytes], group: int) -> Counts:
    pending, oldest = 0, None
    for at in positions_of(db.execute(sql["positions"], (group,)).fetchall()):
        end = at.end if at.stop is None else min(at.end, at.stop)
        if end > at.cursor:
            pending += int(one(db, sql["count_between"], (at.cursor, end)))
            micros = one(db, sql["time_at_or_after"], (at.cursor, end))
            if micros is not None and (oldest is None or micros < oldest):
                oldest = micros
    parked = dict(db.execute(sql["parked_counts"], (group,)).fetchall())
    if gap := int(one(db, sql["gap_total"], (group,))):
        parked["gap"] = gap
    due = one(db, sql["next_due"], (group, -1.0))
    return counts_of(pending, oldest, _leases(db, sql, group), parked, due)
