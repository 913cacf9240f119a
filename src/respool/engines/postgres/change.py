"""Sending what was decided, in the pipeline that commits it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from psycopg.types.json import Jsonb

from ...delivery.model import MAX_LEASE, Change, LimitChange
from ...record import first_pos
from ..columns import journal_rows, lease_row, outcome_row
from .batch import Executes
from .references import put_references
from .sql import LIMITS_LOCK

FEW = 4  # rows that are cheaper one by one


def write_change(db: Executes, sql: dict[str, bytes], group: int, change: Change) -> None:
    """Send what was decided. Rows are removed before others are put in their place."""
    execute = db.execute
    if change.dropped_leases:
        execute(sql["drop_leases"], (change.dropped_leases,))
    for lease in change.leases:
        execute(sql["put_lease"], lease_row(group, lease))
    if change.unparked:
        execute(sql["drop_parked"], (group, change.unparked))
    for log, cursor in change.cursors:
        execute(sql["add_cursor"], (group, log, cursor))
    for log, start in change.starts:
        execute(sql["lower_start"], (start, group, log))
        bound = {"grp": group, "pos": start, "end": first_pos(log + 1)}
        execute(sql["forget_gaps"], bound)
        execute(sql["cut_gaps"], bound)
    for lo, hi in change.rewound:
        bound = {"grp": group, "lo": lo, "hi": hi, "low": lo - MAX_LEASE, "first": first_pos(lo >> 40)}
        for what in ("parked", "outcomes", "progress", "split", "journal"):
            execute(sql[f"rewind_{what}"], bound)
    if change.settings:
        gone = [name for name, value in change.settings.items() if value is None]
        kept = {name: value for name, value in change.settings.items() if value is not None}
        execute(sql["set_settings"], {"grp": group, "set": Jsonb(kept), "gone": gone})
    if change.generation is not None:
        execute(sql["set_generation"], (change.generation, group))
    for lo, hi in change.gaps:
        execute(sql["put_gap"], (group, lo, hi, time.time()))
    if change.parked:
        newest = {parked.pos: parked for parked in change.parked}
        _many(db, sql, ("put_parked", "put_many_parked"), group, list(newest.values()))
    if change.kept:
        columns = zip(*change.kept, strict=True)
        execute(sql["keep"], [list(column) for column in columns])
    if change.forgotten:
        execute(sql["forget_outcomes"], (group, change.forgotten))
    if change.results:
        results = dict(change.results)
        execute(sql["put_results"], (group, change.results_at, list(results), list(results.values())))
    if change.outcomes:
        outcomes = {outcome.pos: outcome_row(outcome) for outcome in change.outcomes}
        _many(db, sql, ("put_outcome", "put_many_outcomes"), group, list(outcomes.values()))
    for lock in change.moved_locks:
        execute(sql["move_lock"], lock)
    if change.references:
        put_references(db, sql, group, change.references)
    if change.edited:  # kept for as long as its record
        put_references(db, sql, 0, change.edited)
    if change.unprogressed:
        execute(sql["drop_progress"], (group, change.unprogressed))
    if change.journal:
        _many(db, sql, ("put_journal", "put_many_entries"), group, journal_rows(change.journal))
    for name, by in change.counted.items():
        execute(sql["add_count"], (group, name, by))
    if change.released:
        execute(sql["release"], (group,))
    if change.limits is not None:
        _write_limits(db, sql, group, change.limits)


def _write_limits(db: Executes, sql: dict[str, bytes], group: int, limits: LimitChange) -> None:
    """Send what was decided of limits; a settlement that frees a slot takes the lock only now."""
    if limits.freed or limits.refunds:
        db.execute(sql["lock_limits"], (LIMITS_LOCK,))
    if limits.buckets:
        columns = zip(*limits.buckets.values(), strict=True)
        db.execute(sql["put_buckets"], [list(column) for column in columns])
    if limits.refunds:
        db.execute(sql["refund"], (list(limits.refunds), list(limits.refunds.values())))
    if limits.next:
        db.execute(sql["put_waiting"], (group, list(limits.next), list(limits.next.values())))
    if limits.passed:
        db.execute(sql["drop_waiting"], (group, limits.passed))
    if limits.refunds:
        db.execute(sql["open_buckets"], (list(limits.refunds),))
    if limits.freed:
        db.execute(sql["slots_freed"], (sorted({one for _, one in limits.freed}),))


def _many(
    db: Executes,
    sql: dict[str, bytes],
    statements: tuple[str, str],
    group: int,
    rows: Sequence[Sequence[Any]],
) -> None:
    """Write rows one by one, or, where there are more than a few, as columns in one statement."""
    one, many = statements
    if len(rows) > FEW:
        db.execute(sql[many], (group, *(list(column) for column in zip(*rows, strict=True))))
        return
    for row in rows:
        db.execute(sql[one], (group, *row))
