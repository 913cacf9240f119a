"""The two seams: the Log (append, read, find) and the State (what groups know).

An engine is one object with both, and with what belongs to them: streams, groups and workers
(`registry.py`), retention (`retention.py`), bells (`bells.py`), references to large payloads (`blobs.py`) and
reads for commands and checks (`inspect.py`). It stores and finds; what becomes of a record is decided by
`respool.delivery`, whose functions run inside `State.transact`.

What holds for every method, where it says nothing else:

- *Threads.* Any thread may call it, several at once. After `fork` the child calls `usable` and nothing else.
- *Waiting.* It may block, but no longer than the engine's timeout (`append_timeout`) and then raises.
- *Errors of reads.* EngineUnavailable: out of reach for too long; the same call may work later. EngineError:
  the store is damaged, or refuses.
- *Errors of writes.* EngineUnavailable: **nothing** was stored. AppendUnknown: it may have been; the engine
  does not try again by itself. EngineError: nothing was stored, and trying again is no use; DatabaseGone
  where the store is not the one that was opened. Never does an exception of a driver come out.
- *Atomicity.* A write is one transaction: all or nothing, also when the process is killed in the middle.
  A read that gives more than one figure shows one moment (one snapshot), and sees what was committed before
  it began, by whomever. No transaction is left open between two calls.
- *Moved.* Where the store is being moved to another, or was (`moving.py`), writes raise LogMoved: nothing was
  stored. `trim` and `expire_outcomes` then do nothing, and return 0.
- *Durability.* "Synced" means: on disk when it returns (P1), unless `durability="os"`. What is not synced
  survives the death of the process, and a power cut once any synced write came after it (P3).
- *Positions.* lo <= p < hi, both in one log unless it says otherwise. A log can have gaps.
- *Times* are seconds since 1970, kept to the microsecond; in a log they need not rise (H19).
- *Ids* that users gave are stored, and returned in records, as `engines.stored_id` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..delivery.limits import Limit
from ..delivery.model import Bucket, Change, JournalEntry, Lease, NewCall, Outcome, Parked, Position, View
from ..delivery.spans import Span
from ..record import Id, Row
from .bells import AsyncWaiter, Bells, Sleeper, Waiter
from .blobs import BlobRefs
from .inspect import Inspect
from .moving import Moving
from .registry import Registry
from .retention import Retention
from .things import (
    CAPABILITIES,
    Capabilities,
    Conflict,
    Counts,
    Group,
    GroupKind,
    LeaseLost,
    ParkedFilter,
    Reads,
    Record,
    Registration,
    Status,
    Stream,
    StreamKind,
    UniqueLock,
    Worker,
    looked_for,
)
from .work import Work

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "CAPABILITIES",
    "AsyncWaiter",
    "Bells",
    "Capabilities",
    "Conflict",
    "Counts",
    "Engine",
    "Group",
    "GroupKind",
    "Inspect",
    "LeaseLost",
    "Log",
    "Moving",
    "ParkedFilter",
    "Reads",
    "Record",
    "Registration",
    "Registry",
    "Retention",
    "Sleeper",
    "State",
    "Status",
    "Stream",
    "StreamKind",
    "UniqueLock",
    "Waiter",
    "Work",
    "Worker",
    "looked_for",
]

T = TypeVar("T")


class Log(Protocol):
    """Appending and reading records. What is appended rings the bell for workers that sleep on its log.

    No position is given out twice, be all that a log held deleted since (H10), and a record is seen only
    once all below it in its log are: a cursor that has passed a position never finds a record there later.
    """

    def append_run(
        self, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, head: bytes, now: float
    ) -> None:
        """Append records that share all but their bodies, at positions that follow one another. Synced.

        Their ids are counted up from `head` (`record.id_of`). One statement: the whole run, or nothing.
        The same head again appends nothing and is no error. Raises EngineError where there is no such log.
        """

    def append_row(self, row: NewCall) -> int | Conflict:
        """Append one record with an id of its own; return its position. Synced.

        The same record again appends nothing and returns where it is. A Conflict says that the id is
        another record's. Raises EngineError where there is no such log.
        """

    def append_rows(self, rows: Sequence[NewCall], fence: tuple[int, int] | None = None) -> list[Conflict]:
        """Append records of one log in their order, each with an id of its own. Synced.

        Where none has a key, those whose ids are given may come after the others. An id that is known, as a
        run's member too, is passed over, and its position may stay empty.

        Parameters:
            fence: (lease, owner): append only while that lease is that owner's, looked at in the transaction
                that appends. Where all rows are known already, it may go unnoticed that it is not.

        Returns: the rows whose id another record has, in no certain order. One that is equal in task, body
            and time is the row itself, sent again, and not among them.
        Raises: LeaseLost; nothing of that statement was appended. EngineError where there is no such log.
            PartlyAppended where it is known which rows are stored, and only the others failed.

        At most 256 rows are one statement; more may become several, so that a part of them is stored when
        it raises.
        """

    def append_many(self, rows: Sequence[NewCall]) -> None:
        """Append records of any logs, those of one log in their order, whose ids were made for them. Synced.

        As `append_rows` would log by log, for an engine that has nothing better. What is known already, sent
        again, is passed over.

        Raises: EngineError where there is no such log. PartlyAppended where some of them are stored already.
        """

    def enlist(self, connection: Any) -> Any:
        """Return what appends in a transaction of the caller's need of a connection of the caller's.

        Raises: ConfigError where it cannot be used: of another driver or database, or not in a transaction;
            or where the engine has no such thing (`Capabilities.enlists`).
        """

    def append_enlisted(self, connection: Any, rows: Sequence[NewCall]) -> list[Conflict]:
        """Append records of one log on what `enlist` returned; they are there when the caller commits.

        Errors of the caller's driver come out as they are: they are the caller's to handle.
        """

    def append_run_enlisted(
        self,
        connection: Any,
        log: int,
        task: str,
        bodies: Sequence[bytes],
        meta: bytes | None,
        head: bytes,
        now: float,
    ) -> None:
        """Append a run as `append_run` would, on what `enlist` returned."""

    def rows(self, spans: Iterable[Span]) -> list[Row]:
        """Return the records that exist in the spans: in the spans' order, within one by position.

        On a worker's way: one round trip. Plain tuples in the order of `Row` will do.
        """

    def records(self, lo: int, hi: int, limit: int) -> list[Record]:
        """Return the first `limit` records at lo <= p < hi in full, by position; logs may lie between."""

    def find(self, namespace: str, id: Id) -> int | None:
        """Return the position of the record with this id, None where there is none.

        Parameters:
            namespace: an app's name, or "stream:" and a stream's: text ids are unique within it only.
        """

    def run_spans(self, head: bytes, size: int) -> list[tuple[int, int]] | None:
        """Return the ranges of positions of a run, in the order of its ids; None where there is no such run.

        Others may have appended between its records, where an engine gives out numbers one by one.
        """

    def window(self, stream: Stream, since: float | None, until: float | None) -> list[tuple[int, int, int]]:
        """Return (log, lo, hi) for each log, in the logs' order: all with since <= time < until is within.

        No wider than from the first record with since <= time to the last with time < until, and better
        from the first to the last with both. What lies between can be outside (`outside` tells).
        """

    def outside(self, spans: Iterable[Span], since: float | None, until: float | None) -> list[int]:
        """Return the positions of records in the spans whose time is not in since <= time < until."""

    def bounds(self, stream: Stream) -> list[tuple[int, int, int]]:
        """Return (log, first, end) for each log, in the logs' order.

        `end` is the next position to be given out: it never falls. An empty log has first == end.
        """


class State(Protocol):
    """What groups know, changed in short exclusive transactions."""

    def transact(self, reads: Reads, decide: Callable[[View, Change], T], *, synced: bool = False) -> T:
        """Lock the group, read, let `decide` fill the change, write, commit; return what `decide` returned.

        One transaction, calls to other logs included (P4). Two of the same group never overlap. Where
        `decide` raises anything, nothing is written and the exception goes on.

        `decide` does no I/O and takes well under a millisecond. It owns the view and may change what is in
        it. An engine whose commit was refused for a conflict may begin again, with a new View and Change;
        never when it is not known whether it was committed: that is AppendUnknown.

        Read, as `reads` asks: `leases` those of the group with these ids; `positions` all of the group's,
        where `end` is one past the last record, or the cursor where there is none; `returned` ownerless
        leases by id, then those that wait beyond `now` (at least 500 where there are lanes); and `due` parked
        records, of each lane at most `reads.due`: those due by `now`, the earliest first but for a fair share
        of each partition, then those parked as unknown, without a due time, of these `tasks`. Then those at
        the positions `reads.parked`, in that order, as far as there are any. The group's settings and
        generation come with its positions (where there are no settings, neither may), or as asked for.
        Of both, limited leases (`delivery.model.LIMITED`) come after the others, by when they wait no longer.

        `View.limits` is there where `buckets` or `open` ask for it, and something is found for `open`: the
        buckets, as far as they are stored; the owned leases that have one of their slots, of any group;
        which of them records of the group wait for; of those open by `now`, the first open first, the first
        records that wait, by position, at most `looked_for` of each lane of each. Nobody else changes a
        bucket, nor adds to who has its slots, until the transaction ends.
        `order` where records of an ordered group are concerned: for a claim (`reads.ordered`), or where a
        lease or parked record that was asked for has keys; `ordering.py` says what is read then.

        Written, in this order, where what is gone is no error: dropped leases; leases, which replace the
        one of the same id (`child` and `since` stay); `unparked`; cursors; starts, where they become lower;
        `rewound` ranges, of which parked records, outcomes and progress go, and entries of the journal that
        end a record become `rewound`, split where they begin below; settings; generation; `parked`, one for
        each position; `forgotten` outcomes; `results` (success, at `results_at`, for good) and outcomes,
        which replace; progress that is removed; journal entries, kept in their order; calls, as `append_rows`
        would, where each conflict that is not `same` adds 1 to the counter "calls refused: id taken";
        counters. Where `released`, all limited leases of the group have waited long enough.
        Of `limits`: buckets, whose limit as stored stays (`declare_limit`); `next` and `passed`, of
        the group; refunds, up to the burst, after which who waits for these buckets is looked at again; what
        waits for a slot (`next` None) of a bucket that is `freed` is looked at at once, in all groups.

        Rung for, once it is committed: workers that serve what waits for one of these buckets, in any group,
        and those that serve a record whose key is free again (`Change.freed_logs`).
        """

    def begin_work(self, fence: tuple[int, int]) -> Work:
        """Begin a transaction for a run's own work, which its settlement joins (`Capabilities.joins_work`).

        Parameters:
            fence: (lease, owner) of the run. Raises LeaseLost where that lease is not that owner's.
        """

    def look(self, reads: Reads, decide: Callable[[View, Change], T]) -> T:
        """Return what `decide` makes of what `transact` would read now, and write nothing. Without a lock."""

    def has_work(self, group: int, now: float, tasks: Sequence[str]) -> bool:
        """Say whether a claim would find anything: new, due, returned, let in by limits, or unknown so
        far and of these tasks.

        A lease that waits for more (`WAITING`) counts once its time has come: its `since`.

        Idle workers ask all the time: cheap, and without a lock. One round trip.
        """

    def next_due(self, group: int, after: float = -1.0) -> float | None:
        """Return when the next of the group's parked records is due, a lease has waited, or a bucket
        opens; None: never by itself.

        Maybe long ago, but later than `after`.
        """

    def limited(self, group: int, most: int) -> int:
        """Return how many of the group's records wait for limits; counted up to `most`."""

    def buckets(self, ids: Sequence[int]) -> list[Bucket]:
        """Return those of these buckets that are stored, as they were used last."""

    def declare_limit(self, rule: str, limit: Limit) -> None:
        """Have the rule's buckets keep this limit from now on; who waits for them is looked at again. Synced.

        No lock where they keep it already.
        """

    def sweep_limits(self, before: float, limit: int) -> int:
        """Forget buckets that were full by `before` and not used since, at most `limit`; return how many.

        Also has buckets looked at of which a slot is waited for and is free, of the next `limit` that are
        waited for, lest one be overlooked for good.
        """

    def lock_of(self, key: str, connection: Any = None) -> UniqueLock | None:
        """Return what a key is taken by, or was: whether that holds is for the caller to tell (H16).

        Parameters:
            connection: what `enlist` returned, to see what its transaction has written.
        """

    def append_unique(
        self,
        row: NewCall,
        key: str,
        seen: Id | None,
        until: float | None,
        fence: tuple[int, int] | None = None,
        connection: Any = None,
    ) -> int | None:
        """Append a record and have it take a key, both or neither; return where it is. Synced.

        Parameters:
            seen: the id that the key was taken by when the caller looked, None: it was free.
            until: a moment until which the key stays taken, whatever becomes of the record.
            fence, connection: as of `append_rows` and `append_enlisted`.

        Returns: None where the key is taken by another record than was seen; nothing was appended.
        Raises: LeaseLost; nothing was appended. EngineError where there is no such log.
        """

    def step_done(self, pos: int, step: str) -> bytes | None:
        """Return what a step of the record at this position gave; None where it was not done."""

    def keep_step(self, pos: int, step: str, value: bytes, now: float) -> None:
        """Keep what a step gave, for all groups, until the record is cut off. What is there stays. Synced."""

    def sweep_locks(self, now: float, limit: int) -> int:
        """Forget locks of records that have ended in `main`, of the next `limit` locks; return how many.

        Ended: passed by the cursor, in no lease, and not parked. A dead letter keeps its lock, which holds
        nothing until it is given back. Where a lock has an `until`, that must be over, too.
        """

    def set_progress(self, group: int, pos: int, value: bytes, fence: tuple[int, int] | None = None) -> None:
        """Keep what a running task says of itself, in place of what it said before. One statement, unsynced.

        Parameters:
            fence: (lease, owner): where that lease is not that owner's, nothing happens, and no error.
        """

    def status(self, group: Group, pos: int) -> Status:
        """Return where a record is in a group, whether or not there is one at this position.

        In this order: outside the bounds (or in no log of the group), pending at or above the cursor, parked
        (with its outcome, for a dead letter), done with an outcome, leased (with its progress), else done.
        Then `how` is the first of done, skipped, purged, trimmed that the journal says; None: none.
        """

    def journal(self, group: int, pos: int) -> list[JournalEntry]:
        """Return the entries that cover a position, the oldest (by `ended`) first.

        No entry is longer than `MAX_LEASE`, but for those of a purge, which can cover a whole log.
        """

    def began(self, group: int, ranges: Sequence[tuple[int, int]]) -> set[int]:
        """Return at which positions, of ranges [lo, hi), a run began that did not end the record's way.

        By the journal: it ended with its process, or the record was to run again. What is looked at is as
        much as the journal has there; ranges may be thousands.
        """

    def outcomes(self, group: int, lo: int, hi: int) -> list[Outcome]:
        """Return the outcomes at lo <= p < hi, by position; logs may lie between."""

    def unfinished(self, group: Group, lo: int, hi: int) -> int:
        """Return how many of lo <= p < hi are pending, leased, or parked other than as dead.

        What is outside the group's bounds does not count. Whoever waits for many calls asks this again and
        again: not a look at each record.
        """

    def parked(self, chosen: ParkedFilter, limit: int) -> list[tuple[int, Parked]]:
        """Return (group, parked record), at most `limit`, the oldest (by `at`, then position) first."""

    def dead_before(self, group: int, task: str | None, before: float, limit: int) -> list[int]:
        """Return where the group has dead letters of a task that died before a moment, at most `limit`.

        Those of one task the oldest first. Workers ask this every few seconds: nothing younger is looked at.

        Parameters:
            task: None: of all tasks.
        """

    def positions(self, group: Group) -> list[Position]:
        """Return how far a group is in each log; `end` as `transact` reads it."""

    def leases(self, group: Group) -> list[Lease]:
        """Return a group's leases by id, the returned ones among them."""

    def leases_of(self, owner: int) -> list[tuple[int, Lease]]:
        """Return (group, lease) of a worker, by the lease's id."""

    def counts(self, group: Group) -> Counts:
        """Return how many of a group's records are where.

        `oldest_pending` is the earliest time among the first pending record of each log.
        """

    def counters(self, group: int) -> dict[str, int]:
        """Return what was skipped, refused, dropped: counted since the group was made, by name."""


class Engine(Log, State, Registry, Retention, BlobRefs, Bells, Inspect, Moving, Protocol):
    """Log and State in one, with all that belongs to them. `engines.open_engine` opens one."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do. Never changes."""

    @property
    def target(self) -> str:
        """What names the store: two engines with equal targets are on the same log.

        Only ever compared. Not to be shown: it may hold a password.
        """

    @property
    def shown(self) -> str:
        """The URL, for people: no options, no password."""

    @property
    def breaks(self) -> int:
        """A number that changes where a server was away, and may have lost what was committed last."""

    @property
    def run_folder(self) -> Path:
        """A folder on this host, for the files by which its workers tell that another is dead.

        The same for all processes of a host that open the same store, on a local disk, and of no other store.
        It need not exist; the folder that it is in must.
        """

    def usable(self) -> bool:
        """Say whether this process opened the engine: nothing is used across `fork` (S2). Never blocks."""

    def close(self) -> None:
        """Release all resources; may be called twice. Reads and writes then raise EngineUnavailable."""
