"""What is kept of a group, and goes with it."""

from __future__ import annotations

from ...record import first_pos
from .connection import Db
from .sql import LIMITS_LOCK

FEW = ("position", "cursor", "gap", "lease", "counter")
MANY = ("journal", "progress", "outcome", "parked")
"""Each has a statement by which a group is dropped from it; so has `waiting`, which is the limits' too."""


def forget_group(db: Db, sql: dict[str, bytes], group: int) -> None:
    """Forget a group and all that it knows; in a transaction, which may have locked the group."""
    for table in MANY:
        db.execute(sql[f"drop_group_{table}"], (group,))
    _forget_few(db, sql, group)
    _free(db, sql, group)


def take_out_of_sight(db: Db, sql: dict[str, bytes], group: int, stream: int) -> list[int]:
    """Drop a group, and note what is left of it; in a transaction that has locked the group.

    Returns: buckets of which others have waited for a slot, that it may have had.
    """
    _forget_few(db, sql, group)
    db.execute(sql["note_dropped"], (group, stream))
    return _free(db, sql, group)


def _forget_few(db: Db, sql: dict[str, bytes], group: int) -> None:
    for table in FEW:
        db.execute(sql[f"drop_group_{table}"], (group,))
    db.execute(sql["drop_group"], (group,))


def _free(db: Db, sql: dict[str, bytes], group: int) -> list[int]:
    db.execute(sql["lock_limits"], (LIMITS_LOCK,))  # last: all groups' limits wait for it until the commit
    db.execute(sql["drop_group_waiting"], (group,))
    return sorted({one for (one,) in db.execute(sql["open_all"])})  # its leases may have had slots


class LeftOver:
    """What is left of groups that were dropped, and how far one has come with it; of one process.

    Slices go on where the last one ended: one that began anew would pass over all that went, row by row,
    while a transaction is open that might still see it (G5). A slice is of so many positions from the next on
    that something is known of: outcomes are found by position only, so by any group.
    """

    def __init__(self) -> None:
        self._group = 0
        self._rest: list[tuple[str, int, int]] = []  # what is to go, from the end: where of which table

    def forget(self, db: Db, sql: dict[str, bytes], limit: int) -> int:
        """Delete what lies at `limit` positions; return how many rows, at least 1 where there may be more."""
        if not self._rest:
            row = db.execute(sql["dropped_group"]).fetchone()
            if row is None:
                return 0
            self._group, logs = row
            self._rest = [(table, first_pos(log), first_pos(log + 1)) for table in MANY for log in logs]
        gone = 0
        if self._rest:
            table, lo, hi = self._rest[-1]
            bound = {"grp": self._group, "lo": lo, "hi": hi}
            first = db.execute(sql[f"first_of_{table}"], bound).fetchone()
            end = hi if first is None else min(first[0] + limit, hi)
            if first is not None:
                bound |= {"lo": first[0], "hi": end}
                gone = db.execute(sql[f"drop_some_{table}"], bound).rowcount
            self._rest[-1:] = [(table, end, hi)] if end < hi else []
        if not self._rest:
            db.execute(sql["drop_group_counter"], (self._group,))
        return max(gone, 1)
