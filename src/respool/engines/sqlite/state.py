"""The state in SQLite: one short IMMEDIATE transaction for each decision."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import apsw
import msgspec

from ...delivery.lanes import RETURNED_OF_LANES, due_of_lanes, has_lanes
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
from ...delivery.spans import Span, count, find, intersect
from ...errors import LogMoved
from ..base import Counts, Group, ParkedFilter, Reads, Status, looked_for
from ..ordering import read_order, read_waiting
from .blobs import put_references
from .connection import Connection
from .log import append_rows
from .sql import SQL

ENDINGS = ("success", "failure", "revoked")
_ENDING_NUMBER = {name: number for number, name in enumerate(ENDINGS)}
_ENDS = ("done", "skipped", "purged", "trimmed", "rewound")
"""What a journal entry can say of a record that is in no other place; no clock decides among them."""
_pack = msgspec.msgpack.Encoder().encode
_unpack_spans = msgspec.msgpack.Decoder(list[Span]).decode
_unpack_bodies = msgspec.msgpack.Decoder(dict[int, bytes]).decode
_unpack_admitted = msgspec.msgpack.Decoder(dict[int, list[tuple[int, int]]]).decode


class SQLiteState:
    """What groups know. `_state` does not sync its commits, `_writer` does."""

    _state: Connection
    _writer: Connection
    _reader: Connection

    def transact(self, reads: Reads, decide: Callable[[View, Change], Any], *, synced: bool = False) -> Any:
        """Lock, read, let `decide` fill the change, write, commit; return what `decide` returned."""
        connection = self._writer if synced else self._state
        with connection.lock, connection.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            change = Change()
            answer = decide(read_view(db, reads), change)
            write_change(db, reads.group, change)
            db.execute("COMMIT")
        return answer

    def look(self, reads: Reads, decide: Callable[[View, Change], Any]) -> Any:
        """Return what `decide` would, and write nothing: from one snapshot, without the write lock."""
        with self._reader.lock, self._reader.reading() as db:
            db.execute("BEGIN")
            try:
                return decide(read_view(db, reads), Change())
            finally:
                db.execute("COMMIT")

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
                return Status("done", outcome=_outcome(outcome))
            db.execute("BEGIN")
            try:
                return _status(db, group.id, pos)
            finally:
                db.execute("COMMIT")

    def journal(self, group: int, pos: int) -> list[JournalEntry]:
        """Return the entries that cover a position, the oldest first."""
        with self._reader.lock, self._reader.reading() as db:
            return [JournalEntry(*row) for row in db.execute(SQL["journal"], (group, pos, pos - MAX_LEASE))]

    def outcomes(self, group: int, lo: int, hi: int) -> list[Outcome]:
        """Return the outcomes stored for lo <= p < hi."""
        with self._reader.lock, self._reader.reading() as db:
            return [_outcome(row) for row in db.execute(SQL["outcomes"], (group, lo, hi))]

    def parked(self, chosen: ParkedFilter, limit: int) -> list[tuple[int, Parked]]:
        """Return (group, parked record), the oldest first."""
        bound = (
            json.dumps(list(chosen.groups)),
            json.dumps(list(chosen.reasons)) if chosen.reasons else None,
            chosen.task,
            json.dumps(list(chosen.positions)) if chosen.positions else None,
            limit,
            chosen.since,
            chosen.until,
        )
        with self._reader.lock, self._reader.reading() as db:
            return [(row[0], _parked(row[1:])) for row in db.execute(SQL["parked_list"], bound)]

    def positions(self, group: Group) -> list[Position]:
        """Return how far a group is in each log."""
        with self._reader.lock, self._reader.reading() as db:
            return _positions(db, group.id)

    def leases(self, group: Group) -> list[Lease]:
        """Return a group's leases, the returned ones among them."""
        with self._reader.lock, self._reader.reading() as db:
            return [_lease(row) for row in db.execute(SQL["leases"], (group.id,))]

    def leases_of(self, owner: int) -> list[tuple[int, Lease]]:
        """Return (group, lease) of a worker."""
        with self._reader.lock, self._reader.reading() as db:
            found = db.execute(SQL["leases_of_owner"], (owner,)).fetchall()
        return [(row[0], _lease(row[1:])) for row in found]

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
                    left += count(intersect(_lease(row).spans, [(lo, hi)]))
                return int(left + db.execute(SQL["parked_between"], (group.id, lo, hi)).get)
            finally:
                db.execute("COMMIT")

    def expire_outcomes(self, now: float, limit: int) -> int:
        """Drop the values of outcomes past their `result_ttl`, at most `limit`; return how many."""
        with self._reader.lock, self._reader.reading() as db:
            if not db.execute(SQL["has_expired"], (now,)).get:
                return 0  # no write lock for nothing
        try:
            with self._state.lock, self._state.writing() as db:
                db.execute(SQL["expire_outcomes"], (now, limit))
                return int(db.changes())
        except LogMoved:
            return 0  # it stays as it is

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

    def limited(self, group: int, most: int) -> int:
        """Return how many records wait for limits, counted up to `most`."""
        with self._reader.lock, self._reader.reading() as db:
            return int(db.execute(SQL["limited_count"], (group, most)).get)

    def buckets(self, ids: Sequence[int]) -> list[Bucket]:
        """Return those of these buckets that are stored."""
        with self._reader.lock, self._reader.reading() as db:
            return [Bucket(*row) for row in db.execute(SQL["buckets_of"], (json.dumps(list(ids)),))]

    def declare_limit(self, rule: str, limit: Limit) -> None:
        """Have the rule's buckets keep this limit from now on."""
        with self._reader.lock, self._reader.reading() as db:
            if not db.execute(SQL["declared"], (rule, *limit)).get:
                return
        with self._writer.lock, self._writer.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            for (one,) in db.execute(SQL["declared"], (rule, *limit)).fetchall():
                db.execute(SQL["declare"], (one, *limit))
                db.execute(SQL["open_bucket"], (one,))
            db.execute("COMMIT")

    def sweep_limits(self, before: float, limit: int) -> int:
        """Forget buckets that are full and were not used since, at most `limit`."""
        with self._reader.lock, self._reader.reading() as db:
            if not db.execute(SQL["unused_buckets"], (before, 1)).get and not db.execute(SQL["is_stuck"]).get:
                return 0  # no write lock for nothing
        with self._state.lock, self._state.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute(SQL["open_all"])
            held = {one for _, packed in db.execute(SQL["holders"]) for one in _unpack_admitted(packed)}
            unused = [one for (one,) in db.execute(SQL["unused_buckets"], (before, limit)).fetchall()]
            gone = [(one,) for one in unused if one not in held]
            db.executemany(SQL["drop_bucket"], gone)
            db.execute("COMMIT")
        return len(gone)

    def unknown_tasks(self, group: int) -> set[str]:
        """Return the names of tasks that no worker knew so far (P11)."""
        with self._reader.lock, self._reader.reading() as db:
            return {row[0] for row in db.execute(SQL["unknown_tasks"], (group,))}

    def set_progress(self, group: int, pos: int, value: bytes, fence: tuple[int, int] | None = None) -> None:
        """Keep what a running task says of itself, unless it lost its lease: one statement (H1)."""
        with self._state.lock, self._state.writing() as db:
            db.execute(SQL["put_progress"], (group, pos, value, *(fence or (None, None))))


def read_view(db: Any, reads: Reads) -> View:
    """Read what a decision asked for."""
    view, group = View(), reads.group
    for lease_id in reads.leases:
        row = db.execute(SQL["lease"], (group, lease_id)).fetchone()
        if row is not None:
            view.leases[lease_id] = _lease(row)
    returned, tasks, due, settings = reads.returned > 0, bool(reads.tasks), [], None
    if reads.positions:
        for log, cursor, end, stop, priority, some_returned, some_due, some_unknown, its in db.execute(
            SQL["claimable"], (group, reads.now)
        ):
            view.positions.append(Position(log, cursor, end, stop, (), priority))
            settings = its
            returned, tasks = returned and some_returned, tasks and some_unknown
            if some_due:
                due.append(log)
    if reads.settings or settings not in (None, "{}"):
        settings, view.generation = db.execute(SQL["group_settings"], (group,)).get or ("{}", 0)
        view.settings = json.loads(settings)
    if reads.ordered is not None:
        order = view.order = Ordering()
        order.leases = [_lease(row) for row in db.execute(SQL["leases"], (group,)).fetchall()]
        view.returned = [lease for lease in order.leases if not lease.owner]
    elif returned:
        most = max(reads.returned, RETURNED_OF_LANES) if has_lanes(view) else reads.returned
        view.returned = [_lease(row) for row in db.execute(SQL["returned"], (group, most))]
    if due and reads.due and reads.ordered is None:
        view.due = due_of_lanes(
            view,
            due,
            reads.due,
            lambda log, most: [
                _parked(row) for row in db.execute(SQL["due"], (group, log, reads.now, most)).fetchall()
            ],
        )
    if tasks and len(view.due) < reads.due:
        bound = (group, json.dumps(list(reads.tasks)), reads.due - len(view.due))
        view.due += [_parked(row) for row in db.execute(SQL["unknown"], bound)]
    if reads.parked:
        rows = db.execute(SQL["parked_at"], (group, json.dumps(list(reads.parked)))).fetchall()
        at = {row[0]: _parked(row) for row in rows}
        view.due += [at[pos] for pos in reads.parked if pos in at]
    if reads.buckets or reads.open:
        view.limits = _read_limits(db, reads)
    if reads.ordered is not None:
        read_order(view, reads.ordered, reads.leases, due, _Order(db, group, reads.now))
    elif any(lease.keys for lease in (*view.leases.values(), *view.returned)) or any(p.key for p in view.due):
        read_waiting(view, _Order(db, group, reads.now))
    return view


def _read_limits(db: Any, reads: Reads) -> Limits | None:
    """Read the buckets that were asked for, or are open; None where there is nothing to be said of limits."""
    limits, group, ids = Limits(), reads.group, list(reads.buckets)
    if reads.open:
        opened = db.execute(SQL["open_waiting"], (group, reads.now, reads.open)).fetchall()
        if not opened and not ids:
            return None
        limits.asked = looked_for(reads.due, len(opened))
        for (one,) in opened:
            rows = db.execute(SQL["waiting_for"], (group, one, limits.asked)).fetchall()
            limits.waiting[one] = [_parked(row) for row in rows]
        ids += limits.waiting
    for one in ids:
        row = db.execute(SQL["bucket"], (one,)).fetchone()
        if row is not None:
            limits.buckets[one] = Bucket(*row)
            if db.execute(SQL["is_waited_for"], (group, one)).get:
                limits.queued.add(one)
    for lease, packed in db.execute(SQL["holders"]):
        for one in _unpack_admitted(packed):
            limits.holders.setdefault(one, set()).add(lease)
    return limits


class _Order:
    """What a claim of an ordered group, or a settlement in one, needs to know besides."""

    def __init__(self, db: Any, group: int, now: float) -> None:
        self._db, self._group, self._now = db, group, now

    def ahead(
        self, view: View, positions: Sequence[Position], limit: int
    ) -> dict[int, list[tuple[int, int | None]]]:
        found: dict[int, list[tuple[int, int | None]]] = {}
        for at in positions:
            end = at.end if at.stop is None else min(at.end, at.stop)
            rows = found[at.log] = self._db.execute(SQL["keys_ahead"], (at.cursor, end, limit)).fetchall()
            if len(rows) < limit:  # positions left empty for an id that was known are passed as well
                rows += [(pos, None) for pos in range(rows[-1][0] + 1 if rows else at.cursor, end)]
        return found

    def due(self, log: int, most: int) -> list[Parked]:
        return self._parked("due", self._group, log, self._now, most)

    def keyed(self, limit: int) -> list[Parked]:
        return self._parked("keyed", self._group, limit)

    def waiting(self, keys: Iterable[int]) -> list[Parked]:
        return self._parked("waiting", self._group, json.dumps(list(keys)))

    def blocked(self, log: int, most: int) -> int:
        return int(self._db.execute(SQL["blocked"], (self._group, log << 40, log + 1 << 40, most)).get)

    def _parked(self, name: str, *bound: Any) -> list[Parked]:
        return [_parked(row) for row in self._db.execute(SQL[name], bound).fetchall()]


def write_change(db: Any, group: int, change: Change) -> None:
    """Write what was decided. Rows are removed before others are put in their place."""
    execute, many = db.execute, db.executemany
    for lease_id in change.dropped_leases:
        execute(SQL["drop_lease"], (lease_id,))
    for lease in change.leases:
        bodies = _pack(lease.bodies) if lease.bodies else None
        admitted = _pack(lease.admitted) if lease.admitted else None
        execute(
            SQL["put_lease"],
            (
                *(lease.id, group, lease.owner, lease.child, _pack(lease.spans), bodies, lease.since),
                *(admitted, lease.keys or None),
            ),
        )
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
        many(SQL["put_outcome"], [(group, o[0], _ENDING_NUMBER[o[1]], *o[2:]) for o in change.outcomes])
    if change.references:
        put_references(db, group, change.references)
    if change.edited:  # kept for as long as its record
        put_references(db, 0, change.edited)
    if change.unprogressed:
        many(SQL["drop_progress"], [(group, pos) for pos in change.unprogressed])
    if change.journal:
        ns = time.time_ns()
        many(SQL["put_journal"], [(group, e[0], ns + i, *e[1:]) for i, e in enumerate(change.journal)])
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
    by_log: dict[int, list[NewCall]] = {}
    for call in change.calls:
        by_log.setdefault(call.log, []).append(call)
    for calls in by_log.values():
        refused = [conflict for conflict in append_rows(db, calls, None, settling=True) if not conflict.same]
        change.count("calls refused: id taken", len(refused))


def _positions(db: Any, group: int) -> list[Position]:
    return [
        Position(log, cursor, end, stop, (), priority)
        for log, cursor, end, stop, priority in db.execute(SQL["positions"], (group,)).fetchall()
    ]


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
    values = list(row)
    values[7] = bool(values[7])  # alone
    return Parked._make(values)


def _outcome(row: Any) -> Outcome:
    pos, ending, value, at, until = row
    return Outcome(pos, ENDINGS[ending], value, at, until)  # type: ignore[arg-type]


def _status(db: Any, group: int, pos: int) -> Status:
    """Find a record that the cursor has passed: ended, parked, leased, or done without a row."""
    outcome = db.execute(SQL["outcome"], (group, pos)).get
    known = _outcome(outcome) if outcome else None
    row = db.execute(SQL["parked_one"], (group, pos)).get
    if row:
        return Status("parked", parked=_parked(row), outcome=known)
    if known:
        return Status("done", outcome=known)
    for each in db.execute(SQL["leases"], (group,)):
        lease = _lease(each)
        if find(lease.spans, pos):
            return Status("leased", lease=lease, progress=db.execute(SQL["progress"], (group, pos)).get)
    ends = {row[6] for row in db.execute(SQL["journal"], (group, pos, pos - MAX_LEASE))}
    return Status("done", how=next((how for how in _ENDS if how in ends), None))


def _counts(db: Any, group: int) -> Counts:
    pending, oldest = 0, None
    for at in _positions(db, group):
        end = at.end if at.stop is None else min(at.end, at.stop)
        if end > at.cursor:
            pending += end - at.cursor
            row = db.execute(SQL["records"], (at.cursor, end, 1)).fetchone()
            if row and (oldest is None or row[6] < oldest):
                oldest = row[6]
    owned = returned = limited = 0
    for row in db.execute(SQL["leases"], (group,)):
        lease = _lease(row)
        if lease.owner == WAITING and lease.child == LIMITED:
            limited += count(lease.spans)
        elif not lease.owner:  # nobody's, or waiting for more
            returned += count(lease.spans)
        else:
            owned += count(lease.spans)
    parked = dict(db.execute(SQL["parked_counts"], (group,)).fetchall())
    if limited:
        parked["limited"] = parked.get("limited", 0) + limited
    due = db.execute(SQL["next_due"], (group, -1.0)).get
    return Counts(pending, owned, returned, parked, oldest / 1e6 if oldest else None, due)
