"""The state in PostgreSQL: one short transaction for each decision, under a lock of the group's.

    BEGIN; settings; advisory lock; reads          one round trip
    decide                                         pure, in this process
    writes; COMMIT                                 another

Where all that is asked for is a lease, and its owner says how it is (`Reads.known`), it is decided first, and
one round trip does the rest.

The order matters (G3). The lock takes no xid, each read sees all that was committed before it, and the xid
that becomes the barrier of new gaps is taken after the reads: whoever had a number by then is older.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import errors as pg

from ...delivery.model import Change, Lease, NewCall, View
from ...errors import AppendUnknown, EngineUnavailable, LogMoved
from ..base import Conflict, Reads
from ..columns import by_log, lease_row
from . import gaps
from .appends import ROWS_A_STATEMENT, insert
from .batch import Batch, Executes, Reply
from .change import write_change
from .connection import Bounded, Lost, milliseconds, one
from .gaps import GapsFound
from .limits import PostgresLimits
from .looks import PostgresLooks
from .partitions import LOCK_PATIENCE
from .sql import GROUP_LOCKS, LIMITS_LOCK
from .view import Known, look_at, read_view

T = TypeVar("T")


class NoPartition(Exception):
    """A run's calls got numbers that no partition of their log is there for."""

    def __init__(self, log: int) -> None:
        super().__init__(log)
        self.log = log


class HeldUp(EngineUnavailable):
    """An open transaction has sent a call with the id of one that a run has made; nothing was written."""


class _Otherwise(Exception):
    """A lease is not as its owner knows it."""


class PostgresState(PostgresLooks, PostgresLimits):
    """What groups know."""

    _known: Known
    _sequence: Callable[[int], str]
    add_partitions: Callable[..., None]
    forget_ahead: Callable[[], None]
    read_ahead: Callable[[Batch, Reads, Change], None]
    ring_written: Callable[[Executes, Change], Any]
    note_rung: Callable[[int], None]
    note_claim: Callable[[], None]

    def transact(self, reads: Reads, decide: Callable[[View, Change], T], *, synced: bool = False) -> T:
        """Lock, read, let `decide` fill the change, write, commit; return what `decide` returned."""
        if reads.known is not None:
            try:
                return self._transact_by_what_is_known(reads, reads.known, decide, synced)
            except _Otherwise:  # look first
                reads = reads._replace(known=None)
        while True:
            try:
                return self._transact(reads, decide, synced)
            except NoPartition as missing:  # undone; it begins again once there is one
                log = missing.log
            self._writer.append(partial(self.add_partitions, log=log))

    def _transact(self, reads: Reads, decide: Callable[[View, Change], T], synced: bool) -> T:
        connection = self._writer if synced else self._state
        commit: Reply | None = None
        try:
            with connection.using() as db, db.batch as batch:
                self._lock(batch, reads, synced)
                view, found = self.read(batch, reads, batch.sync)
                change = Change()
                answer = decide(view, change)
                decided = {*change.dropped_leases, *(kept.id for kept in change.leases)}
                change.leases += [lease for lease in found.leases if lease.id not in decided]
                if change.calls:
                    change.count("calls refused: id taken", self.append_calls(batch, change.calls))
                gaps.write(batch, self._sql, reads.group, found)
                commit = self._commit(batch, reads.group, change)
                if reads.due and not reads.bare:
                    self.read_ahead(batch, reads, change)
                # The last of it: what it holds to see whether anybody waits, nobody else can raise as a flag.
                rung = self.ring_written(batch, change)
            if rung is not None:
                self.note_rung(rung.rowcount)
        except Lost as lost:
            where = self.options.shown
            if commit is None:
                raise EngineUnavailable(f"{where}: {lost}; nothing was written") from lost
            if not commit.done:
                raise AppendUnknown(f"{where}: {lost}; it is not known whether it was written") from lost
            self.forget_ahead()
        except psycopg.Error as error:
            if commit is None or not commit.done:
                raise connection.translated(error) from error
            self.forget_ahead()
        if change.cursors or change.unparked:
            self.note_claim()
        return answer

    def _transact_by_what_is_known(
        self, reads: Reads, known: Lease, decide: Callable[[View, Change], T], synced: bool
    ) -> T:
        """Decide before the lock, and do all in one packet: the lock is held only while the server works.

        Raises: _Otherwise where the lease is not as it is known, and not by what is decided here.
        """
        connection = self._writer if synced else self._state
        view, change = View(), Change()
        view.leases[known.id] = msgspec.structs.replace(known)
        answer = decide(view, change)
        if change.calls:
            raise _Otherwise
        commit: Reply | None = None
        try:
            with connection.using() as db, db.batch as batch:
                self._lock(batch, reads, synced)
                id, group, owner, _, spans, *_ = lease_row(reads.group, known)
                batch.execute(self._sql["lease_is"], (id, group, owner, spans))
                commit = self._commit(batch, reads.group, change)
                rung = self.ring_written(batch, change)
            if rung is not None:
                self.note_rung(rung.rowcount)
        except (psycopg.Error, Lost) as error:
            if commit is not None and commit.done:
                return answer
            if not isinstance(error, pg.DivisionByZero | Lost):
                raise connection.translated(error) from error
            if not self._is_written(reads.group, change):
                raise _Otherwise from error
        return answer

    def _is_written(self, group: int, change: Change) -> bool:
        """Say whether a settlement whose answer may have been lost was written, by what the journal says.

        Said again it would be refused, and taken for one of a worker that has lost its lease. It is looked
        for under the group's lock: what broke may still be committing.
        """
        if not change.journal:
            return False
        bound = {"grp": group, **change.journal[-1]._asdict()}

        def look(db: Bounded) -> bool:
            with db.transaction():
                db.execute(self._sql["lock_group"], (GROUP_LOCKS, group))
                return bool(one(db, self._sql["is_in_journal"], bound))

        return self._state.read(look)

    def _lock(self, batch: Batch, reads: Reads, synced: bool) -> None:
        """Begin a transaction, and lock the group."""
        commit = "on" if synced and self.options.durability == "full" else "off"
        batch.execute(b"BEGIN ISOLATION LEVEL READ COMMITTED")
        bound = {
            "patience": milliseconds(self.options),
            "commit": commit,
            "locks": GROUP_LOCKS,
            "grp": reads.group,
        }
        batch.execute(self._sql["begin"], bound)

    def _commit(self, batch: Batch, group: int, change: Change) -> Reply:
        """Write what was decided, and commit: all that is sent behind it are hints."""
        write_change(batch, self._sql, group, change)
        return batch.execute(b"COMMIT")

    def read(self, db: Executes, reads: Reads, sync: Callable[[], None]) -> tuple[View, GapsFound]:
        """Read what a decision wants to see, in the transaction that is open and has locked the group."""
        if reads.buckets or reads.open:
            db.execute(self._sql["lock_limits"], (LIMITS_LOCK,))
        return read_view(db, self._sql, reads, sync, self._known)

    def look(self, reads: Reads, decide: Callable[[View, Change], T]) -> T:
        """Return what `decide` would, and write nothing: without a lock."""

        def run(db: Bounded) -> T:
            with db.batch as batch:
                batch.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                answer = decide(look_at(batch, self._sql, reads, batch.sync, self._known), Change())
                batch.execute(b"COMMIT")
            return answer

        return self._reader.read(run)

    def append_calls(self, db: Executes, calls: Sequence[NewCall]) -> int:
        """Append the calls of runs; return how many were refused since their id is another record's.

        The caller holds its group's lock: an open transaction that has one of the ids is waited for no longer
        than anybody should stand behind that. Raises HeldUp.
        """
        refused = sum(
            not conflict.same
            for log, some in by_log(calls).items()
            for start in range(0, len(some), ROWS_A_STATEMENT)
            for conflict in self._inserted(db, log, some[start : start + ROWS_A_STATEMENT])
        )
        most = milliseconds(self.options)
        db.execute(self._sql["lock_patience"], (most,))  # for the rest of the settlement
        return refused

    def _inserted(self, db: Executes, log: int, calls: Sequence[NewCall]) -> list[Conflict]:
        try:
            return insert(
                db, self._sql, self._sequence, calls, 0, None, settling=True, patience=LOCK_PATIENCE
            )
        except pg.CheckViolation as error:
            raise NoPartition(log) from error
        except pg.LockNotAvailable as error:
            raise HeldUp(
                f"{self.options.shown}: an open transaction has sent a call of the same id as a run has: "
                "nothing was written, which goes on when that has ended"
            ) from error

    def set_progress(self, group: int, pos: int, value: bytes, fence: tuple[int, int] | None = None) -> None:
        """Keep what a running task says of itself, unless it lost its lease: one statement."""
        lease, owner = fence or (None, None)
        bound = {"grp": group, "pos": pos, "value": value, "lease": lease, "owner": owner}
        self._state.append(lambda db: db.execute(self._sql["put_progress"], bound))

    def expire_outcomes(self, now: float, limit: int) -> int:
        """Drop the values of outcomes past their `result_ttl`, at most `limit`; return how many."""
        if not self._reader.read(lambda db: one(db, self._sql["has_expired"], (now,))):
            return 0
        try:
            return self._state.append(
                lambda db: db.execute(self._sql["expire_outcomes"], (now, limit)).rowcount
            )
        except LogMoved:
            return 0  # it stays as it is
