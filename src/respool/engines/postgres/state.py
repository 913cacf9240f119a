"""The state in PostgreSQL: one short transaction for each decision, under a lock of the group's.

    BEGIN; settings; advisory lock; reads          one round trip
    decide                                         pure, in this process
    writes; COMMIT                                 another

The order matters (G3). The lock takes no xid, each read sees all that was committed before it, and the xid
that becomes the barrier of new gaps is taken after the reads: whoever had a number by then is older.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import errors as pg
from psycopg.types.json import Jsonb

from ...delivery.lanes import RETURNED_OF_LANES, due_of_lanes
from ...delivery.limits import Limit
from ...delivery.model import (
    LIMITED,
    MAX_LEASE,
    WAITING,
    Bucket,
    Change,
    JournalEntry,
    Lease,
    LimitChange,
    Limits,
    NewCall,
    Ordering,
    Outcome,
    Parked,
    Position,
    View,
)
from ...delivery.order import packed_keys
from ...delivery.spans import Span, count, find, intersect, joined
from ...errors import AppendUnknown, EngineUnavailable, LogMoved
from ...record import OFFSET_BITS, first_pos, log_of
from ..base import Conflict, Counts, Group, ParkedFilter, Reads, Status, looked_for
from ..ordering import read_order, read_waiting
from .connection import Connection, Lost
from .log import insert, ranges
from .reach import PostgresOptions
from .references import put_references

T = TypeVar("T")
Db = psycopg.Connection[Any]

ENDINGS = ("success", "failure", "revoked")
_ENDING_NUMBER = {name: number for number, name in enumerate(ENDINGS)}
_ENDS = ("done", "skipped", "purged", "trimmed", "rewound")
"""What a journal entry can say of a record that is in no other place; no clock decides among them."""
MAX_GAPS = 1000
"""Ranges of numbers that a group may keep as gaps; beyond that the cursor waits, visibly (G4)."""
PARTITIONS_AT_ONCE = 8
"""Of an ordered group, read in one round trip."""
_GAPS_A_CLAIM = 200  # looked at in one claim
_FOUND_A_GAP = 1000
FEW = 4  # rows that are cheaper one by one
_LONG = 1.0  # seconds that a gap is there before it is asked who could still fill it
LIMITS_LOCK = 0x5269
GROUP_LOCKS = 0x5265  # the first half of a group's lock; the second is its number
_pack = msgspec.msgpack.Encoder().encode
_unpack_spans = msgspec.msgpack.Decoder(list[Span]).decode
_unpack_bodies = msgspec.msgpack.Decoder(dict[int, bytes]).decode
_unpack_admitted = msgspec.msgpack.Decoder(dict[int, list[tuple[int, int]]]).decode


class NoPartition(Exception):
    """A run's calls got numbers that no partition of their log is there for."""

    def __init__(self, log: int) -> None:
        super().__init__(log)
        self.log = log


class PostgresState:
    """What groups know."""

    options: PostgresOptions
    _state: Connection
    _writer: Connection
    _reader: Connection

    @property
    def _sql(self) -> dict[str, bytes]:
        return self._writer.sql

    _sequence: Callable[[int], str]
    add_partitions: Callable[..., None]
    ring_done: Callable[[Db, Sequence[tuple[int, int]]], Any]
    note_rung: Callable[[int], None]
    note_claim: Callable[[], None]

    def transact(self, reads: Reads, decide: Callable[[View, Change], T], *, synced: bool = False) -> T:
        """Lock, read, let `decide` fill the change, write, commit; return what `decide` returned."""
        while True:
            try:
                return self._transact(reads, decide, synced)
            except NoPartition as missing:  # undone; it begins again once there is one
                log = missing.log
            self._writer.append(partial(self.add_partitions, log=log))

    def _transact(self, reads: Reads, decide: Callable[[View, Change], T], synced: bool) -> T:
        connection = self._writer if synced else self._state
        committing = False
        try:
            # One pipeline for all: psycopg leaves one with a Flush behind the Sync, and that stops the clock
            # by which the server ends who is idle in a transaction (G7).
            with connection.using() as db, db.pipeline() as pipeline:
                view, gaps = self._begin(db, pipeline, reads, synced)
                change = Change()
                answer = decide(view, change)
                decided = {*change.dropped_leases, *(kept.id for kept in change.leases)}
                change.leases += [lease for lease in gaps.leases if lease.id not in decided]
                if change.calls:
                    change.count("calls refused: id taken", self.append_calls(db, change.calls))
                settled = [(entry.lo, entry.hi) for entry in change.journal]
                write_change(db, self._sql, reads.group, change, gaps)
                committing = True
                db.execute("COMMIT")
                if settled:
                    pipeline.sync()
                    rung = self.ring_done(db, settled)
            if settled:
                self.note_rung(rung.rowcount)
        except Lost as lost:
            where = self.options.shown
            if committing:
                raise AppendUnknown(f"{where}: {lost}; it is not known whether it was written") from lost
            raise EngineUnavailable(f"{where}: {lost}; nothing was written") from lost
        except psycopg.Error as error:
            raise connection.translated(error) from error
        if change.cursors or change.unparked:
            self.note_claim()
        return answer

    def _begin(
        self, db: Db, pipeline: psycopg.Pipeline, reads: Reads, synced: bool
    ) -> tuple[View, GapsFound]:
        milliseconds = f"{int(self.options.timeout * 1000)}ms"
        commit = "on" if synced and self.options.durability == "full" else "off"
        db.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        db.execute(self._sql["begin"], (milliseconds, milliseconds, commit))
        return self.lock_and_read(db, pipeline, reads)

    def lock_and_read(self, db: Db, pipeline: psycopg.Pipeline, reads: Reads) -> tuple[View, GapsFound]:
        """Lock the group, then read what a decision wants to see, in the transaction that is open."""
        db.execute(self._sql["lock_group"], (GROUP_LOCKS, reads.group))
        if reads.buckets or reads.open:
            db.execute(self._sql["lock_limits"], (LIMITS_LOCK,))
        asked = _ask(db, self._sql, reads)
        pipeline.sync()
        view, found = _understood(asked, reads)
        if found.came:
            found.leases = self._given_back(db, pipeline, found.came, keyed=reads.ordered is not None)
        _take_in(view, asked, reads, found.leases)
        _read_order(view, asked, reads, _Order(db, self._sql, reads, pipeline.sync))
        return view, found

    def look(self, reads: Reads, decide: Callable[[View, Change], T]) -> T:
        """Return what `decide` would, and write nothing: without a lock."""

        def run(db: Db) -> T:
            with _snapshot(db):
                asked = _ask(db, self._sql, reads)
                view, _ = _understood(asked, reads)
                _take_in(view, asked, reads, [])
                _read_order(view, asked, reads, _Order(db, self._sql, reads, lambda: None))
                return decide(view, Change())

        return self._reader.read(run)

    def _given_back(self, db: Db, pipeline: psycopg.Pipeline, came: list[int], *, keyed: bool) -> list[Lease]:
        """Return records that came late as if a worker had given them back, for whoever comes next (G4).

        A lease for each log: no lease is of two lanes.
        """
        by_log: dict[int, list[Span]] = {}
        for lo, hi in ranges(came):
            by_log.setdefault(log_of(lo), []).append(Span(lo, hi))
        given = [db.execute(self._sql["lease_number"]) for _ in by_log]
        asked = db.execute(self._sql["keys_at"], (came,)) if keyed else None
        pipeline.sync()
        numbers = [(cursor.fetchone() or (0,))[0] for cursor in given]
        keys: dict[int, int] = dict(asked.fetchall()) if asked is not None else {}
        now = time.time()
        leases = []
        for number, spans in zip(numbers, by_log.values(), strict=True):
            lying = joined(spans)
            known = packed_keys(lying, keys) if keyed else b""
            leases.append(Lease(-number, None, 0, lying, {}, now, keys=known))
        return leases

    def append_calls(self, db: Db, calls: Sequence[NewCall]) -> int:
        """Append the calls of runs; return how many were refused since their id is another record's."""
        by_log: dict[int, list[NewCall]] = {}
        for call in calls:
            by_log.setdefault(call.log, []).append(call)
        return sum(
            not conflict.same
            for log, some in by_log.items()
            for start in range(0, len(some), 256)
            for conflict in self._inserted(db, log, some[start : start + 256])
        )

    def _inserted(self, db: Db, log: int, calls: Sequence[NewCall]) -> list[Conflict]:
        try:
            return insert(db, self._sql, self._sequence, calls, 0, None, settling=True)
        except pg.CheckViolation as error:
            raise NoPartition(log) from error

    def has_work(self, group: int, now: float, tasks: Sequence[str]) -> bool:
        """Say whether a claim would find something, without a lock."""
        bound = {"grp": group, "now": now, "tasks": list(tasks), "gaps": MAX_GAPS}
        return bool(self._reader.read(lambda db: _one(db, self._sql["has_work"], bound)))

    def next_due(self, group: int, after: float = -1.0) -> float | None:
        """Return when the next of the group's parked records is due."""
        bound = {"grp": group, "after": after}
        due: float | None = self._reader.read(lambda db: _one(db, self._sql["next_open"], bound))
        return due

    def limited(self, group: int, most: int) -> int:
        """Return how many records wait for limits, counted up to `most`."""
        return int(self._reader.read(lambda db: _one(db, self._sql["limited_count"], (group, most))))

    def buckets(self, ids: Sequence[int]) -> list[Bucket]:
        """Return those of these buckets that are stored."""
        return self._reader.read(
            lambda db: [Bucket(*row) for row in db.execute(self._sql["buckets"], (list(ids),))]
        )

    def declare_limit(self, rule: str, limit: Limit) -> None:
        """Have the rule's buckets keep this limit from now on."""
        sql, bound = self._sql, {"rule": rule, **limit._asdict()}
        if self._reader.read(lambda db: _one(db, sql["declared"], bound)) is None:
            return

        def declare(db: Db) -> None:
            with db.transaction():
                db.execute(sql["lock_limits"], (LIMITS_LOCK,))
                ids = [one for (one,) in db.execute(sql["declared"], bound).fetchall()]
                db.execute(sql["declare"], {**bound, "ids": ids})
                db.execute(sql["open_buckets"], (ids,))

        self._writer.append(declare)

    def sweep_limits(self, before: float, limit: int) -> int:
        """Forget buckets that are full and were not used since, at most `limit`."""
        sql, bound = self._sql, {"before": before, "limit": limit}

        def some(db: Db) -> bool:
            return _one(db, sql["unused_buckets"], bound) is not None or bool(_one(db, sql["is_stuck"], ()))

        def sweep(db: Db) -> int:
            with db.transaction():
                db.execute(sql["lock_limits"], (LIMITS_LOCK,))
                db.execute(sql["open_all"])
                held = {one for _, packed in db.execute(sql["holders"]) for one in _unpack_admitted(packed)}
                unused = [one for (one,) in db.execute(sql["unused_buckets"], bound).fetchall()]
                gone = [one for one in unused if one not in held]
                db.execute(sql["drop_buckets"], (gone,))
                return len(gone)

        return self._state.append(sweep) if self._reader.read(some) else 0

    def set_progress(self, group: int, pos: int, value: bytes, fence: tuple[int, int] | None = None) -> None:
        """Keep what a running task says of itself, unless it lost its lease: one statement."""
        lease, owner = fence or (None, None)
        bound = {"grp": group, "pos": pos, "value": value, "lease": lease, "owner": owner}
        self._state.append(lambda db: db.execute(self._sql["put_progress"], bound))

    def status(self, group: Group, pos: int) -> Status:
        """Return where a record is in a group, from one snapshot."""
        return self._reader.read(lambda db: self._status(db, group.id, pos))

    def _status(self, db: Db, group: int, pos: int) -> Status:
        bound = {"grp": group, "pos": pos, "log": pos >> 40}
        found = db.execute(self._sql["place"], bound).fetchone()
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
            return Status("done", outcome=_outcome(outcome))
        with _snapshot(db):
            return _status(db, self._sql, group, pos)

    def journal(self, group: int, pos: int) -> list[JournalEntry]:
        """Return the entries that cover a position, the oldest first."""
        bound = {"grp": group, "pos": pos, "low": pos - MAX_LEASE, "first": first_pos(pos >> 40)}
        return self._reader.read(
            lambda db: [JournalEntry(*row) for row in db.execute(self._sql["journal"], bound)]
        )

    def outcomes(self, group: int, lo: int, hi: int) -> list[Outcome]:
        """Return the outcomes stored for lo <= p < hi."""
        return self._reader.read(
            lambda db: [
                _outcome(row) for row in db.execute(self._sql["outcomes"], (group, lo, hi), binary=True)
            ]
        )

    def unfinished(self, group: Group, lo: int, hi: int) -> int:
        """Return how many of the positions lo <= p < hi, in one log, are not done in a group."""

        def run(db: Db) -> int:
            with _snapshot(db):
                bound = {"grp": group.id, "pos": lo, "log": lo >> 40}
                place = db.execute(self._sql["place"], bound).fetchone()
                assert place is not None
                cursor, start, stop = place[:3]
                low, high = max(lo, start), hi if stop is None else min(hi, stop)
                left = max(high - max(cursor, low), 0)
                for lease in _leases(db, self._sql, group.id):
                    left += count(intersect(lease.spans, [(low, high)]))
                left += int(_one(db, self._sql["gaps_between"], {"grp": group.id, "lo": low, "hi": high}))
                return int(left) + int(_one(db, self._sql["parked_between"], (group.id, low, high)))

        return self._reader.read(run)

    def parked(self, chosen: ParkedFilter, limit: int) -> list[tuple[int, Parked]]:
        """Return (group, parked record), the oldest first."""
        bound = {
            "groups": list(chosen.groups),
            "reasons": list(chosen.reasons) or None,
            "task": chosen.task,
            "positions": list(chosen.positions) or None,
            "since": chosen.since,
            "until": chosen.until,
            "limit": limit,
        }
        return self._reader.read(
            lambda db: [(row[0], _parked(row[1:])) for row in db.execute(self._sql["parked_list"], bound)]
        )

    def positions(self, group: Group) -> list[Position]:
        """Return how far a group is in each log."""
        return self._reader.read(lambda db: _positions(db, self._sql, group.id))

    def leases(self, group: Group) -> list[Lease]:
        """Return a group's leases, the returned ones among them."""
        return self._reader.read(lambda db: _leases(db, self._sql, group.id))

    def leases_of(self, owner: int) -> list[tuple[int, Lease]]:
        """Return (group, lease) of a worker."""
        return self._reader.read(
            lambda db: [
                (row[0], _lease(row[1:])) for row in db.execute(self._sql["leases_of_owner"], (owner,))
            ]
        )

    def counts(self, group: Group) -> Counts:
        """Return how many of a group's records are where, from one snapshot."""

        def run(db: Db) -> Counts:
            with _snapshot(db):
                return _counts(db, self._sql, group.id)

        return self._reader.read(run)

    def counters(self, group: int) -> dict[str, int]:
        """Return what was skipped, refused, dropped: counted since the group was made."""
        return self._reader.read(lambda db: dict(db.execute(self._sql["counters"], (group,)).fetchall()))

    def expire_outcomes(self, now: float, limit: int) -> int:
        """Drop the values of outcomes past their `result_ttl`, at most `limit`; return how many."""
        if not self._reader.read(lambda db: _one(db, self._sql["has_expired"], (now,))):
            return 0
        try:
            return self._state.append(
                lambda db: db.execute(self._sql["expire_outcomes"], (now, limit)).rowcount
            )
        except LogMoved:
            return 0  # it stays as it is


class GapsFound:
    """What a look at a group's gaps says: records that have come, and numbers that never will (G4)."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.leases: list[Lease] = []  # with what came
        self.left: list[
            tuple[int, list[int], list[int]]
        ] = []  # lo of the gap; lows and highs of what is left


def _ask(db: Db, sql: dict[str, bytes], reads: Reads) -> dict[str, Any]:
    """Send the reads of a decision, in the pipeline of its lock."""
    group = reads.group
    asked: dict[str, Any] = {}
    if reads.leases:
        asked["leases"] = db.execute(sql["lease"], (group, list(reads.leases)))
    if reads.positions:
        db.execute(sql["oldest_writer"], {"grp": group, "before": time.time() - _LONG})
        bound = {"grp": group, "limit": _FOUND_A_GAP, "ranges": _GAPS_A_CLAIM}
        asked["gaps"] = db.execute(sql["gaps"], bound, binary=True)
        asked["gap_count"] = db.execute(sql["gap_count"], (group,))
        if reads.ordered is not None:
            _ask_for_order(db, sql, reads, asked)
        else:
            asked["claimable"] = db.execute(sql["claimable"], {"grp": group, "want": reads.due or MAX_LEASE})
        if not reads.due or reads.ordered is not None:  # not a claim of anything: it may want all there is
            asked["ends"] = db.execute(sql["positions"], (group,))
    if reads.settings or reads.ordered is not None:
        asked["settings"] = db.execute(sql["group_settings"], (group,))
    if reads.returned and reads.ordered is None:
        most = {"grp": group, "most": reads.returned, "lanes": RETURNED_OF_LANES}
        asked["returned"] = db.execute(sql["returned"], most)
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


def _ask_for_order(db: Db, sql: dict[str, bytes], reads: Reads, asked: dict[str, Any]) -> None:
    asked["all_leases"] = db.execute(sql["leases"], (reads.group,))
    asked["due_logs"] = db.execute(sql["due_logs"], {"grp": reads.group, "now": reads.now})


def _understood(asked: dict[str, Any], reads: Reads) -> tuple[View, GapsFound]:
    """Return what was read as a decision wants to see it."""
    view, found = View(), GapsFound()
    for row in asked["leases"].fetchall() if reads.leases else ():
        lease = _lease(row)
        view.leases[lease.id] = lease
    if reads.positions:
        found = _gaps_found(asked["gaps"].fetchall())
        view.gap_room = MAX_GAPS - int(asked["gap_count"].fetchone()[0])
        if reads.ordered is not None:
            view.positions = _positions_from(asked["ends"].fetchall())
        else:
            seen = asked["claimable"].fetchall()
            view.positions = _seen(seen)
            if seen and seen[0][6] is not None:
                view.settings, view.generation = seen[0][6:8]
        if not reads.due and reads.ordered is None:
            ends = {log: end for log, _, end, *_ in asked["ends"].fetchall()}
            view.positions = [at._replace(end=max(at.end, ends[at.log])) for at in view.positions]
    if reads.settings or reads.ordered is not None:
        view.settings, view.generation = asked["settings"].fetchone() or ({}, 0)
    return view, found


def _take_in(view: View, asked: dict[str, Any], reads: Reads, came: list[Lease]) -> None:
    """Enter what is given back, due, and asked for by its position."""
    if reads.ordered is not None:
        order = view.order = Ordering()
        order.leases = [_lease(row) for row in asked["all_leases"].fetchall()] + came
        view.returned = [lease for lease in order.leases if not lease.owner]
    elif reads.returned:
        view.returned = [_lease(row) for row in asked["returned"].fetchall()] + came
    if reads.due and reads.ordered is None:
        view.due = _due(view, [_parked(row) for row in asked["due"].fetchall()], reads.due)
    if reads.tasks:
        view.due += [_parked(row) for row in asked["unknown"].fetchall()][: max(reads.due - len(view.due), 0)]
    if reads.parked:
        at = {row[0]: _parked(row) for row in asked["parked"].fetchall()}
        view.due += [at[pos] for pos in reads.parked if pos in at]
    if reads.buckets or reads.open:
        view.limits = _limits(asked, reads)


def _read_order(view: View, asked: dict[str, Any], reads: Reads, source: _Order) -> None:
    """Read what order asks for, in further round trips, where anything of an ordered group is concerned."""
    if reads.ordered is not None:
        due = [log for (log,) in asked["due_logs"].fetchall()]
        read_order(view, reads.ordered, reads.leases, due, source, at_once=PARTITIONS_AT_ONCE)
    elif any(lease.keys for lease in (*view.leases.values(), *view.returned)) or any(p.key for p in view.due):
        read_waiting(view, source)


class _Order:
    """What a claim of an ordered group, or a settlement in one, needs to know besides."""

    def __init__(self, db: Db, sql: dict[str, bytes], reads: Reads, sync: Callable[[], None]) -> None:
        self._db, self._sql, self._reads, self._sync = db, sql, reads, sync

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
            missing = tuple(_between(at.cursor, rows[-1][0], [pos for pos, _ in rows[:-1]])) if rows else ()
            if missing:
                now = at._replace(missing=missing)
                view.positions = [now if each.log == at.log else each for each in view.positions]
        return found

    def due(self, log: int, most: int) -> list[Parked]:
        return self._parked("due_in_log", self._reads.group, log, self._reads.now, most)

    def keyed(self, limit: int) -> list[Parked]:
        return self._parked("keyed", self._reads.group, limit)

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
        return [_parked(row) for row in cursor.fetchall()]


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
        if row[0] is not None:
            waiting.append(_parked(row))
    if not limits.waiting and not reads.buckets:
        return None
    limits.asked = looked_for(reads.due, len(limits.waiting))
    for *row, queued in asked["limits"].fetchall():
        limits.buckets[row[0]] = Bucket(*row)
        if queued:
            limits.queued.add(row[0])
    for lease, packed in asked["holders"].fetchall():
        for one in _unpack_admitted(packed):
            limits.holders.setdefault(one, set()).add(lease)
    return limits


def _gaps_found(rows: Sequence[Any]) -> GapsFound:
    found = GapsFound()
    for lo, hi, closed, here in rows:
        left = [] if closed else _between(lo, hi, here)
        if closed and len(here) >= _FOUND_A_GAP and here[-1] + 1 < hi:
            left = [(here[-1] + 1, hi)]  # the look ended there: what follows may be there, and is not void
        found.came += here
        found.left.append((lo, [low for low, _ in left], [high for _, high in left]))
    return found


def _between(lo: int, hi: int, here: Sequence[int]) -> list[tuple[int, int]]:
    """Return the ranges of lo <= p < hi without the positions that are here."""
    ends = [lo - 1, *here, hi]
    return [(low + 1, high) for low, high in pairwise(ends) if high > low + 1]


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


def write_change(db: Db, sql: dict[str, bytes], group: int, change: Change, gaps: GapsFound) -> None:
    """Send what was decided. Rows are removed before others are put in their place."""
    execute = db.execute
    for lo, lows, highs in gaps.left:
        if lows:
            execute(sql["split_gap"], {"grp": group, "lo": lo, "los": lows, "his": highs})
        if lo not in lows:
            execute(sql["drop_gap"], (group, lo))
    if change.dropped_leases:
        execute(sql["drop_leases"], (change.dropped_leases,))
    for lease in change.leases:
        bodies = _pack(lease.bodies) if lease.bodies else None
        spans = _pack(lease.spans)
        admitted = _pack(lease.admitted) if lease.admitted else None
        whose = (lease.id, group, lease.owner, lease.child)
        execute(sql["put_lease"], (*whose, spans, bodies, lease.since, admitted, lease.keys or None))
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
        outcomes = {o[0]: (o[0], _ENDING_NUMBER[o[1]], *o[2:]) for o in change.outcomes}
        _many(db, sql, ("put_outcome", "put_many_outcomes"), group, list(outcomes.values()))
    if change.references:
        put_references(db, sql, group, change.references)
    if change.edited:  # kept for as long as its record
        put_references(db, sql, 0, change.edited)
    if change.unprogressed:
        execute(sql["drop_progress"], (group, change.unprogressed))
    if change.journal:
        ns = time.time_ns()
        entries = [(e[0], ns + i, *e[1:]) for i, e in enumerate(change.journal)]
        _many(db, sql, ("put_journal", "put_many_entries"), group, entries)
    for name, by in change.counted.items():
        execute(sql["add_count"], (group, name, by))
    if change.released:
        execute(sql["release"], (group,))
    if change.limits is not None:
        _write_limits(db, sql, group, change.limits)


def _write_limits(db: Db, sql: dict[str, bytes], group: int, limits: LimitChange) -> None:
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
    db: Db, sql: dict[str, bytes], statements: tuple[str, str], group: int, rows: Sequence[Sequence[Any]]
) -> None:
    """Write rows one by one, or, where there are more than a few, as columns in one statement."""
    one, many = statements
    if len(rows) > FEW:
        db.execute(sql[many], (group, *(list(column) for column in zip(*rows, strict=True))))
        return
    for row in rows:
        db.execute(sql[one], (group, *row))


def _snapshot(db: Db) -> Any:
    """Return a block whose reads all see the same moment."""
    db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    return _Ending(db)


class _Ending:
    def __init__(self, db: Db) -> None:
        self._db = db

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self._db.execute("COMMIT")


def _one(db: Db, statement: bytes, bound: Any) -> Any:
    row = db.execute(statement, bound).fetchone()
    return None if row is None else row[0]


def _positions(db: Db, sql: dict[str, bytes], group: int) -> list[Position]:
    return _positions_from(db.execute(sql["positions"], (group,)).fetchall())


def _positions_from(rows: Sequence[Any]) -> list[Position]:
    return [Position(log, cursor, end, stop, (), priority) for log, cursor, end, stop, priority in rows]


def _leases(db: Db, sql: dict[str, bytes], group: int) -> list[Lease]:
    return [_lease(row) for row in db.execute(sql["leases"], (group,)).fetchall()]


def _lease(row: Any) -> Lease:
    id, owner, child, spans, bodies, since, admitted, keys = row
    return Lease(
        id,
        owner,
        child,
        _unpack_spans(spans),
        _unpack_bodies(bodies) if bodies else {},
        since,
        _unpack_admitted(admitted) if admitted else {},
        keys or b"",
    )


def _parked(row: Any) -> Parked:
    return Parked._make(row)


def _outcome(row: Any) -> Outcome:
    pos, ending, value, at, until = row
    return Outcome(pos, ENDINGS[ending], value, at, until)  # type: ignore[arg-type]


def _status(db: Db, sql: dict[str, bytes], group: int, pos: int) -> Status:
    """Find a record that the cursor has passed: ended, parked, leased, or done without a row."""
    outcome = db.execute(sql["outcomes"], (group, pos, pos + 1)).fetchone()
    known = _outcome(outcome) if outcome else None
    row = db.execute(sql["parked_at"], (group, [pos])).fetchone()
    if row:
        return Status("parked", parked=_parked(row), outcome=known)
    if known:
        return Status("done", outcome=known)
    for lease in _leases(db, sql, group):
        if find(lease.spans, pos):
            return Status("leased", lease=lease, progress=_one(db, sql["progress"], (group, pos)))
    bound = {"grp": group, "pos": pos, "low": pos - MAX_LEASE, "first": first_pos(pos >> 40)}
    ends = {row[6] for row in db.execute(sql["journal"], bound)}
    return Status("done", how=next((how for how in _ENDS if how in ends), None))


def _counts(db: Db, sql: dict[str, bytes], group: int) -> Counts:
    pending, oldest = 0, None
    for at in _positions(db, sql, group):
        end = at.end if at.stop is None else min(at.end, at.stop)
        if end > at.cursor:
            pending += int(_one(db, sql["count_between"], (at.cursor, end)))
            micros = _one(db, sql["time_at_or_after"], (at.cursor, end))
            if micros is not None and (oldest is None or micros < oldest):
                oldest = micros
    owned = returned = limited = 0
    for lease in _leases(db, sql, group):
        if lease.owner == WAITING and lease.child == LIMITED:
            limited += count(lease.spans)
        elif not lease.owner:  # nobody's, or waiting for more
            returned += count(lease.spans)
        else:
            owned += count(lease.spans)
    parked = dict(db.execute(sql["parked_counts"], (group,)).fetchall())
    if limited:
        parked["limited"] = parked.get("limited", 0) + limited
    if gap := int(_one(db, sql["gap_total"], (group,))):
        parked["gap"] = gap
    due = _one(db, sql["next_due"], (group, -1.0))
    return Counts(pending, owned, returned, parked, oldest / 1e6 if oldest else None, due)
