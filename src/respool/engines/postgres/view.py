"""What a decision reads of a group, in the pipeline that locks it; beside it, what has come of its gaps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ...delivery.lanes import RETURNED_OF_LANES, due_of_lanes
from ...delivery.model import Bucket, Lease, Limits, Ordering, Parked, Position, View
from ...record import OFFSET_BITS, log_of
from ..base import Reads, looked_for
from ..columns import add_holders, lease_of, positions_of
from ..ordering import FEW, read_order, read_waiting
from . import gaps
from .batch import Executes
from .gaps import GapsFound

PASSED = 50_000
"""Records of a log that are seen by who does not claim them, but passes over them (`delivery/passing.py`)."""
PARTITIONS_AT_ONCE = 8
"""Of an ordered group, read in one round trip."""
NUMBERS_MISLED = 1.0
"""Seconds for which an ordered group's records are looked at, once the numbers given out told of none."""


class Known:
    """What a process knows of groups from its last looks: hints, by which it asks for no more than it takes.

    A statement that may touch every partition is planned, and begun, for every partition there is.
    """

    def __init__(self) -> None:
        self.gaps: set[int] = set()  # groups that had some
        self.misled: dict[int, float] = {}  # ordered groups: until when numbers are not to be trusted


def read_view(
    db: Executes, sql: dict[str, bytes], reads: Reads, sync: Callable[[], None], known: Known
) -> tuple[View, GapsFound]:
    """Read what a decision asked for, and take in what has come of the group's gaps.

    Parameters:
        sync: ends a round trip of the pipeline.
    """
    asked = _ask(db, sql, reads, known)
    sync()
    view, found = _understood(asked, reads, db, sql, sync, known)
    if found.came:
        found.leases = gaps.given_back(db, sql, sync, found.came, keyed=reads.ordered is not None)
    _complete(view, asked, reads, found.leases, _Order(db, sql, reads, sync, asked, known))
    return view, found


def look_at(
    db: Executes, sql: dict[str, bytes], reads: Reads, sync: Callable[[], None], known: Known
) -> View:
    """Read the same, and leave gaps as they are."""
    asked = _ask(db, sql, reads, known)
    sync()
    view, _ = _understood(asked, reads, db, sql, sync, known)
    _complete(view, asked, reads, [], _Order(db, sql, reads, sync, asked, known))
    return view


def _ask(db: Executes, sql: dict[str, bytes], reads: Reads, known: Known) -> dict[str, Any]:
    """Send the reads of a decision, in the pipeline of its lock."""
    group = reads.group
    asked: dict[str, Any] = {}
    if reads.leases:
        asked["leases"] = db.execute(sql["lease"], (group, list(reads.leases)))
    if reads.positions:
        asked["gaps"] = gaps.ask(db, sql, group, likely=group in known.gaps)
        if reads.ordered is not None:
            asked["all_leases"] = db.execute(sql["leases"], (group,))
            asked["due_logs"] = db.execute(sql["due_logs"], {"grp": group, "now": reads.now})
            asked["keyed"] = db.execute(sql["keyed"], (group, FEW + 1), binary=True)
            # What the sequences say costs a tenth of a look at all partitions, and may be too much.
            trusted = time.monotonic() >= known.misled.get(group, 0.0)
            asked["ends"] = db.execute(sql["numbers" if trusted else "positions"], (group,))
        else:
            asked["claimable"] = db.execute(sql["claimable"], {"grp": group, "want": reads.due or PASSED})
    if reads.settings or reads.ordered is not None:
        asked["settings"] = db.execute(sql["group_settings"], (group,))
    if reads.returned and reads.ordered is None:
        bound = {"grp": group, "now": reads.now, "most": reads.returned, "lanes": RETURNED_OF_LANES}
        asked["returned"] = db.execute(sql["returned"], bound)
    if reads.due and reads.ordered is None:
        due = {"grp": group, "now": reads.now, "want": reads.due}
        asked["due"] = db.execute(sql["due"], due, binary=True)
    if reads.tasks:
        asked["unknown"] = db.execute(sql["unknown"], (group, list(reads.tasks), reads.due), binary=True)
    if reads.parked:
        asked["parked"] = db.execute(sql["parked_at"], (group, list(reads.parked)), binary=True)
    if reads.buckets or reads.open:
        about: dict[str, Any] = {
            "grp": group,
            "now": reads.now,
            "open": reads.open,
            "due": reads.due,
            "ids": list(reads.buckets),
        }
        asked["limits"] = db.execute(sql["limits"], about)
        asked["holders"] = db.execute(sql["holders"])
        if reads.open:
            asked["open"] = db.execute(sql["open_waiting"], about, binary=True)
    return asked


def _understood(
    asked: dict[str, Any],
    reads: Reads,
    db: Executes,
    sql: dict[str, bytes],
    sync: Callable[[], None],
    known: Known,
) -> tuple[View, GapsFound]:
    """Return what was read as a decision wants to see it."""
    view, found = View(), GapsFound()
    for row in asked["leases"].fetchall() if reads.leases else ():
        lease = lease_of(row)
        view.leases[lease.id] = lease
    if reads.positions:
        found, kept = gaps.understood(db, sql, reads.group, asked["gaps"], sync)
        view.gap_room = gaps.MAX_GAPS - kept
        (known.gaps.add if kept else known.gaps.discard)(reads.group)
        if reads.ordered is not None:
            view.positions = positions_of(asked["ends"].fetchall())
        else:
            seen = asked["claimable"].fetchall()
            view.positions, view.near = _seen(seen), bool(reads.due)
            if seen and seen[0][6] is not None:
                view.settings, view.generation = seen[0][6:8]
    if reads.settings or reads.ordered is not None:
        view.settings, view.generation = asked["settings"].fetchone() or ({}, 0)
    return view, found


def _complete(view: View, asked: dict[str, Any], reads: Reads, came: list[Lease], source: _Order) -> None:
    """Enter what is given back, due, and asked for by its position; read what order asks for, too."""
    if reads.ordered is not None:
        order = view.order = Ordering()
        order.leases = [lease_of(row) for row in asked["all_leases"].fetchall()] + came
        view.returned = [lease for lease in order.leases if not lease.owner]
    elif reads.returned:
        view.returned = [lease_of(row) for row in asked["returned"].fetchall()] + came
    if reads.due and reads.ordered is None:
        view.due = _due(view, [parked_of(row) for row in asked["due"].fetchall()], reads.due)
    if reads.tasks:
        view.due += [parked_of(row) for row in asked["unknown"].fetchall()][
            : max(reads.due - len(view.due), 0)
        ]
    if reads.parked:
        at = {row[0]: parked_of(row) for row in asked["parked"].fetchall()}
        view.due += [at[pos] for pos in reads.parked if pos in at]
    if reads.buckets or reads.open:
        view.limits = _limits(asked, reads)
    if reads.ordered is not None:
        due = [log for (log,) in asked["due_logs"].fetchall()]
        read_order(
            *(view, reads.ordered, reads.leases, due, source, reads.now),
            at_once=PARTITIONS_AT_ONCE,
            elsewhere=reads.elsewhere,
        )
    elif any(lease.keys for lease in (*view.leases.values(), *view.returned)) or any(p.key for p in view.due):
        read_waiting(view, source)


class _Order:
    """What a claim of an ordered group, or a settlement in one, needs to know besides."""

    def __init__(
        self,
        db: Executes,
        sql: dict[str, bytes],
        reads: Reads,
        sync: Callable[[], None],
        asked: dict[str, Any],
        known: Known,
    ) -> None:
        self._db, self._sql, self._reads, self._sync = db, sql, reads, sync
        self._asked, self._known = asked, known

    def ahead(
        self, view: View, positions: Sequence[Position], limit: int
    ) -> dict[int, list[tuple[int, int | None]]]:
        asked = [
            self._db.execute(self._sql["keys_ahead"], (at.cursor, at.end, limit), binary=True)
            for at in positions
        ]
        self._sync()
        found: dict[int, list[tuple[int, int | None]]] = {}
        for at, cursor in zip(positions, asked, strict=True):
            rows = found[at.log] = cursor.fetchall()
            if not rows and at.end > at.cursor:  # given out, and not to be seen: yet, or for good
                self._known.misled[self._reads.group] = time.monotonic() + NUMBERS_MISLED
            missing = (
                tuple(gaps.between(at.cursor, rows[-1][0], [pos for pos, _ in rows[:-1]])) if rows else ()
            )
            if missing:
                now = at._replace(missing=missing)
                view.positions = [now if each.log == at.log else each for each in view.positions]
        return found

    def due(self, log: int, most: int) -> list[Parked]:
        return self._parked("due_in_log", self._reads.group, log, self._reads.now, most)

    def keyed(self, limit: int) -> list[Parked]:
        asked = self._asked.get("keyed")  # with all else, where it is a claim
        if asked is None:
            return self._parked("keyed", self._reads.group, limit)
        return [parked_of(row) for row in asked.fetchall()]

    def waiting(self, keys: Iterable[int]) -> list[Parked]:
        return self._parked("waiting", self._reads.group, list(keys))

    def blocked(self, log: int, most: int) -> int:
        cursor = self._db.execute(
            self._sql["blocked"], (self._reads.group, log << OFFSET_BITS, log + 1 << OFFSET_BITS, most)
        )
        self._sync()
        return int((cursor.fetchone() or (0,))[0])

    def _parked(self, name: str, *bound: Any) -> list[Parked]:
        cursor = self._db.execute(self._sql[name], bound, binary=True)
        self._sync()
        return [parked_of(row) for row in cursor.fetchall()]


def _due(view: View, found: list[Parked], want: int) -> list[Parked]:
    """Return what is due of each lane, `want` at most; it was read for each log."""
    by_log: dict[int, list[Parked]] = {}
    for parked in found:
        by_log.setdefault(log_of(parked.pos), []).append(parked)
    if len(by_log) < 2:
        return found
    return due_of_lanes(view, list(by_log), want, lambda log, most: by_log[log][:most])


def _limits(asked: dict[str, Any], reads: Reads) -> Limits | None:
    """Return what was read of limits; None where there is nothing to be said of them."""
    limits = Limits()
    for one, *row in asked["open"].fetchall() if reads.open else ():
        waiting = limits.waiting.setdefault(one, [])
        if row[0] is not None and (not waiting or waiting[-1].pos != row[0]):  # within two lanes' bounds
            waiting.append(parked_of(row))
    if not limits.waiting and not reads.buckets:
        return None
    limits.asked = looked_for(reads.due, len(limits.waiting))
    for *row, queued in asked["limits"].fetchall():
        limits.buckets[row[0]] = Bucket(*row)
        if queued:
            limits.queued.add(row[0])
    add_holders(limits, asked["holders"].fetchall())
    return limits


def _seen(rows: Sequence[Any]) -> list[Position]:
    """Return positions with what is missing in each, from the ranges that are to be seen."""
    by_log: dict[int, tuple[int, int | None, int, list[tuple[int, int]]]] = {}
    for log, cursor, stop, lo, hi, priority, *_ in rows:
        seen = by_log.setdefault(log, (cursor, stop, priority, []))[3]
        if lo is not None:
            seen.append((lo, hi))
    positions = []
    for log, (cursor, stop, priority, seen) in by_log.items():
        ends = [cursor, *(hi for _, hi in seen)]
        missing = tuple((end, lo) for end, (lo, _) in zip(ends, seen, strict=False) if lo > end)
        positions.append(Position(log, cursor, ends[-1], stop, missing, priority))
    return positions


def parked_of(row: Any) -> Parked:
    """Return a parked record from its row."""
    return Parked._make(row)
