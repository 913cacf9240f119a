"""Writing what was decided, in the transaction of the decision."""

from __future__ import annotations

import json
from typing import Any

import apsw

from ...delivery.model import MAX_LEASE, Change, LimitChange
from ..columns import by_log, journal_rows, lease_row, outcome_row
from .blobs import put_references
from .log import append_rows
from .sql import SQL


def write_change(db: Any, group: int, change: Change) -> None:
    """Write what was decided. Rows are removed before others are put in their place."""
    execute, many = db.execute, db.executemany
    for lease_id in change.dropped_leases:
        execute(SQL["drop_lease"], (lease_id,))
    for lease in change.leases:
        execute(SQL["put_lease"], lease_row(group, lease))
    if change.unparked:
        many(SQL["drop_parked"], [(group, pos) for pos in change.unparked])
    for log, cursor in change.cursors:
        execute(SQL["set_cursor"], (group, log, cursor))
    for log, start in change.starts:
        execute(SQL["lower_start"], (group, log, start))
    for lo, hi in change.rewound:
        _rewind(db, group, lo, hi)
    if change.settings:
        execute(SQL["set_settings"], (group, json.dumps(change.settings)))
    if change.generation is not None:
        execute(SQL["set_generation"], (group, change.generation))
    if change.parked:
        many(SQL["put_parked"], [(group, *parked) for parked in change.parked])
    if change.kept:
        many(SQL["keep"], change.kept)
    if change.forgotten:
        many(SQL["forget_outcome"], [(group, pos) for pos in change.forgotten])
    if change.results:
        _put_results(db, group, change)
    if change.outcomes:
        many(SQL["put_outcome"], [(group, *outcome_row(each)) for each in change.outcomes])
    if change.moved_locks:
        many(SQL["move_lock"], change.moved_locks)
    if change.references:
        put_references(db, group, change.references)
    if change.edited:  # kept for as long as its record
        put_references(db, 0, change.edited)
    if change.unprogressed:
        many(SQL["drop_progress"], [(group, pos) for pos in change.unprogressed])
    if change.journal:
        many(SQL["put_journal"], [(group, *row) for row in journal_rows(change.journal)])
    if change.calls:
        _append_calls(db, change)
    for name, by in change.counted.items():
        execute(SQL["add_count"], (group, name, by))
    if change.released:
        execute(SQL["release"], (group,))
    if change.limits is not None:
        _write_limits(db, group, change.limits)


def _write_limits(db: Any, group: int, limits: LimitChange) -> None:
    many = db.executemany
    many(SQL["put_bucket"], limits.buckets.values())
    many(SQL["refund"], limits.refunds.items())
    many(SQL["put_waiting"], [(group, one, at) for one, at in limits.next.items()])
    many(SQL["drop_waiting"], [(group, one) for one in limits.passed])
    many(SQL["open_bucket"], [(one,) for one in limits.refunds])
    many(SQL["slot_freed"], [(one,) for one in dict.fromkeys(one for _, one in limits.freed)])


def _rewind(db: Any, group: int, lo: int, hi: int) -> None:
    for what in ("rewind_parked", "rewind_outcomes", "rewind_progress"):
        db.execute(SQL[what], (group, lo, hi))
    low = lo - MAX_LEASE
    db.execute(SQL["rewind_split"], (group, lo, low))
    db.execute(SQL["rewind_cut"], (group, lo, low))
    db.execute(SQL["rewind_cut_purges"], (group, lo, low))
    db.execute(SQL["rewind_journal"], (group, lo, hi))


def _put_results(db: Any, group: int, change: Change) -> None:
    """Store what runs returned: in one statement where they stand side by side, the common case."""
    results, at = change.results, change.results_at
    first, last = results[0][0], results[-1][0]
    if last - first == len(results) - 1 and change.results_ordered:
        db.execute(SQL["put_results"], (group, first, apsw.carray(tuple(value for _, value in results)), at))
    else:
        db.executemany(SQL["put_outcome"], [(group, pos, 0, value, at, None) for pos, value in results])


def _append_calls(db: Any, change: Change) -> None:
    for calls in by_log(change.calls).values():
        refused = [conflict for conflict in append_rows(db, calls, None, settling=True) if not conflict.same]
        change.count("calls refused: id taken", len(refused))
