"""What is kept of a group, and goes with it."""

from __future__ import annotations

from .connection import Db
from .sql import LIMITS_LOCK

TABLES = ("position", "cursor", "gap", "lease", "parked", "outcome", "progress", "journal", "counter")
"""Each has a statement by which a group is dropped from it; so has `waiting`, which is the limits' too."""


def forget_group(db: Db, sql: dict[str, bytes], group: int) -> None:
    """Forget a group and all that it knows; in a transaction, which may have locked the group."""
    for table in TABLES:
        db.execute(sql[f"drop_group_{table}"], (group,))
    db.execute(sql["drop_group"], (group,))
    db.execute(sql["lock_limits"], (LIMITS_LOCK,))  # last: all groups' limits wait for it until the commit
    db.execute(sql["drop_group_waiting"], (group,))
    db.execute(sql["open_all"])  # its leases may have had slots
