"""Gaps: numbers that a group has passed, and whose records may yet come (G1 to G4).

A number is given out when a record is inserted, and seen when that commits. What is missing when a cursor
passes is kept as a gap until its records are there, or nobody is left who could bring them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from ...delivery.model import Lease
from ...delivery.order import packed_keys
from ...delivery.spans import Span, joined, ranges_of
from ...record import log_of
from .batch import Executes

MAX_GAPS = 1000
"""Ranges of numbers that a group may keep as gaps; beyond that the cursor waits, visibly (G4)."""
A_CLAIM = 200  # ranges looked at in one claim
FOUND = 1000  # records found in one gap at a time
LONG = 1.0  # seconds that a gap is there before it is asked who could still fill it


class GapsFound:
    """What a look at a group's gaps says: records that have come, and numbers that never will (G4)."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.leases: list[Lease] = []  # with what came
        self.left: list[
            tuple[int, list[int], list[int]]
        ] = []  # lo of the gap; lows and highs of what is left


def ask(db: Executes, sql: dict[str, bytes], group: int, *, likely: bool) -> tuple[Any, Any]:
    """Send the reads of a group's gaps: what has come of them, and how many there are.

    Parameters:
        likely: there were some at the last look. Else what has come is asked once it is known that there are
            any: that statement may touch every partition of the log.
    """
    number = db.execute(sql["oldest_writer"], {"grp": group, "before": time.time() - LONG})
    return _ask_what_came(db, sql, group) if likely else None, number


def _ask_what_came(db: Executes, sql: dict[str, bytes], group: int) -> Any:
    return db.execute(sql["gaps"], {"grp": group, "limit": FOUND, "ranges": A_CLAIM}, binary=True)


def understood(
    db: Executes, sql: dict[str, bytes], group: int, asked: tuple[Any, Any], sync: Callable[[], None]
) -> tuple[GapsFound, int]:
    """Return what was read, and how many gaps the group keeps."""
    found, number = asked
    kept = int(number.fetchone()[1])
    if found is None:
        if not kept:
            return GapsFound(), 0
        found = _ask_what_came(db, sql, group)
        sync()
    return _found(found.fetchall()), kept


def _found(rows: Sequence[Any]) -> GapsFound:
    found = GapsFound()
    for lo, hi, closed, here in rows:
        left = [] if closed else between(lo, hi, here)
        if closed and len(here) >= FOUND and here[-1] + 1 < hi:
            left = [(here[-1] + 1, hi)]  # the look ended there: what follows may be there, and is not void
        found.came += here
        found.left.append((lo, [low for low, _ in left], [high for _, high in left]))
    return found


def between(lo: int, hi: int, here: Sequence[int]) -> list[tuple[int, int]]:
    """Return the ranges of lo <= p < hi without the positions that are here."""
    if len(here) == hi - lo:
        return []
    ends = [lo - 1, *here, hi]
    return [(low + 1, high) for low, high in pairwise(ends) if high > low + 1]


def given_back(
    db: Executes, sql: dict[str, bytes], sync: Callable[[], None], came: list[int], *, keyed: bool
) -> list[Lease]:
    """Return records that came late as if a worker had given them back, for whoever comes next (G4).

    A lease for each log: no lease is of two lanes.
    """
    by_log: dict[int, list[Span]] = {}
    for lo, hi in ranges_of(came):
        by_log.setdefault(log_of(lo), []).append(Span(lo, hi))
    given = [db.execute(sql["lease_number"]) for _ in by_log]
    asked = db.execute(sql["keys_at"], (came,)) if keyed else None
    sync()
    numbers = [(cursor.fetchone() or (0,))[0] for cursor in given]
    keys: dict[int, int] = dict(asked.fetchall()) if asked is not None else {}
    now = time.time()
    leases = []
    for number, spans in zip(numbers, by_log.values(), strict=True):
        lying = joined(spans)
        known = packed_keys(lying, keys) if keyed else b""
        leases.append(Lease(-number, None, 0, lying, {}, now, keys=known))
    return leases


def write(db: Executes, sql: dict[str, bytes], group: int, found: GapsFound) -> None:
    """Send what is left of the gaps that were looked at."""
    for lo, lows, highs in found.left:
        if lows:
            db.execute(sql["split_gap"], {"grp": group, "lo": lo, "los": lows, "his": highs})
        if lo not in lows:
            db.execute(sql["drop_gap"], (group, lo))
