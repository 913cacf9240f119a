"""Where a window in time begins and ends in a log: times may go back as positions go on (H19).

Most windows begin where the log does, or end where it ends: so the records there are looked at first, in
their order. Else it is the index on time that tells, partition by partition. Left to the planner, it reads
the log from its beginning, for positions are all it knows to be in order.
"""

from __future__ import annotations

from collections.abc import Iterable

from .connection import Bounded, one
from .partitions import SIZE, partition_of

NEAR = 10_000  # records that are looked at one by one


def within(db: Bounded, sql: dict[str, bytes], lo: int, hi: int, since: int, until: int) -> tuple[int, int]:
    """Return the first, and one past the last position at lo <= p < hi whose time is in since <= t < until.

    Both are `hi` where there is none.
    """
    bound = {"lo": lo, "hi": hi, "since": since, "until": until}
    starts = range(partition_of(lo), hi, SIZE)
    first: int | None = one(db, sql["first_within"], {**bound, "limit": NEAR})
    if first is None:
        first = _end(db, sql, bound, starts, 0)
    if first is None:
        return hi, hi
    last: int | None = one(db, sql["last_within"], {**bound, "limit": NEAR})
    if last is None:
        last = _end(db, sql, bound, reversed(starts), 1)
    return (hi, hi) if last is None else (first, last + 1)


def _end(
    db: Bounded, sql: dict[str, bytes], bound: dict[str, int], starts: Iterable[int], which: int
) -> int | None:
    """Return the first (0) or last (1) position in the first partition that has any."""
    for start in starts:
        part = {**bound, "lo": max(bound["lo"], start), "hi": min(bound["hi"], start + SIZE)}
        ends = db.execute(sql["ends_within"], part).fetchone()
        if ends is not None and ends[which] is not None:
            return int(ends[which])
    return None
