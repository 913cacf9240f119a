"""Moving a whole store to another engine: what `respool.transfer` asks of the two sides.

A store that takes part in a transfer has a *mark*. What the mark says is kept by the store itself, for every
process that uses it, and stays when all processes are gone:

    source  draining   nobody claims; appends and settlements go on, until it is sealed
            closed     nobody writes, but for workers' beats; all that was written before is to be seen
            moved      the same, for good: the other side has it all
    target  filling    what comes is under names of its own, so that nobody uses it yet; all else goes on

Rows come out of one engine and go into the other as they are, a page at a time. With each page the target
keeps, in one transaction, how far it is: what was killed goes on there, and nothing is taken twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from ..delivery.model import Lease
from ..errors import ConfigError
from ..keys import key_hash
from ..record import Id, id_of, read_meta
from .inspect import Bounds
from .things import Group, Stream

INCOMING = "\tincoming "
"""Begins the app's name of a stream that is being filled; no name that a user gives can begin so."""

IS_MOVING, WAS_MOVED = "is being moved to", "was moved to"

Phase = Literal["draining", "closed", "moved", "filling"]


class Mark(msgspec.Struct, frozen=True):
    """What a store says of the transfer that it takes part in."""

    id: str  # of the transfer: the same on both sides
    phase: Phase
    other: str  # the other side's URL, without password
    since: float
    same_numbers: bool = False  # of the target: what comes keeps its numbers
    names: dict[str, dict[int, int]] = {}  # of the target: by "streams", "logs", "groups": theirs to ours
    pieces: dict[
        int, list[tuple[int, int, int]]
    ] = {}  # of a target that numbers records: see transfer/mapping.py
    at: tuple[Any, ...] = ()  # of the target: the last page that it has taken
    sealed: bool = False  # of a source that drains: no record is appended any more, either
    put_back: dict[str, str | None] = {}  # of a source: what it has changed elsewhere, as it was before

    @property
    def is_source(self) -> bool:
        """Whether the store is what is moved."""
        return self.phase != "filling"

    def with_names(self, **more: dict[int, int]) -> Mark:
        """Return the mark with more numbers, by kind."""
        names = {kind: dict(known) for kind, known in self.names.items()}
        for kind, numbers in more.items():
            names.setdefault(kind, {}).update(numbers)
        return msgspec.structs.replace(self, names=names)


class RawRecord(NamedTuple):
    """A record as it is kept: its id is its head's, counted up by `seq`."""

    pos: int
    task: str
    body: bytes
    meta: bytes | None
    seq: int
    head: Id  # as stored
    micros: int  # since 1970

    @property
    def key(self) -> int | None:
        """The hash of its key, where it has one."""
        if self.meta is None or b"\xa3key" not in self.meta:
            return None
        key = read_meta(self.meta).key
        return None if key is None else key_hash(key)


class LogPlace(NamedTuple):
    """A log: where it is in its stream, and which positions it has given out."""

    log: int
    priority: int | None
    partition: int
    floor: int
    end: int  # the next to be given out


class BlobRow(NamedTuple):
    """A large payload that is kept elsewhere."""

    digest: bytes
    stamp: int
    size: int
    touched: float


class StateTable(NamedTuple):
    """What groups know, as one table of the same columns in each engine; all have `grp`."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]  # within a group: rows are read in this order
    positions: tuple[str, ...] = ()  # columns that hold the position of a record, or where a range begins …
    ends: tuple[str, ...] = ()  # … or ends
    sized: tuple[str, ...] = ()  # columns that may be large


STATE_TABLES = {
    table.name: table
    for table in (
        StateTable(
            "parked",
            (
                *("pos", "reason", "due", "task", "retries", "deliveries", "redrives"),
                *("alone", "body", "error", "at", "waits", "key"),
            ),
            ("pos",),
            ("pos",),
            sized=("body", "error"),
        ),
        StateTable(
            "outcome", ("pos", "ending", "value", "at", "until"), ("pos",), ("pos",), sized=("value",)
        ),
        StateTable("progress", ("pos", "value"), ("pos",), ("pos",), sized=("value",)),
        StateTable(
            "journal",
            ("lo", "n", "hi", "owner", "child", "started", "ended", "how", "retries", "note"),
            ("lo", "n"),
            ("lo",),
            ("hi",),
        ),
        StateTable("waiting", ("bucket", "next"), ("bucket",)),
        StateTable("once", ("pos", "step", "value", "at"), ("pos", "step"), ("pos",), sized=("value",)),
        StateTable("counter", ("name", "value"), ("name",)),
        StateTable("blob_ref", ("digest", "stamp", "pos", "at"), ("digest", "stamp", "pos"), ("pos",)),
    )
}
"""Everything a group knows, but for its positions and leases. A table that is added is to be added here.

Those of references to large payloads and of steps done that are records' are of the group 0."""

NOT_MOVED = frozenset({"worker", "beat", "version", "move", "gap", "lease_number", "bucket", "unique_lock"})
"""Tables that stay: of workers, which register anew; of the store; gaps, which a closed store has none of;
buckets, which begin anew; locks of unique calls, so that one that waits does not keep out another."""

WRITABLE = frozenset({"worker", "beat", "move"})
"""Tables that a closed store still lets be written."""

NUMBERED = ("stream", "log", "grp", "worker")
"""Tables whose numbers are never used twice."""

WITH_LOG = frozenset({"stream", "log", "record", "ids", "kept", "grp", "position", "cursor", "lease", "blob"})
"""Tables that have methods of their own below."""


class Moving(Protocol):
    """What a transfer asks of an engine. Each page is one transaction."""

    def mark(self) -> Mark | None:
        """Return the mark, None where the store takes part in no transfer."""

    def set_mark(self, mark: Mark | None) -> None:
        """Store a mark in place of the one there, and have the store keep to it, in one transaction. Synced.

        When it returns for `draining`, nobody claims any more; for `closed`, every append and every enqueue
        within a transaction of a caller's own has ended, and what they wrote is to be seen. Who writes what
        the mark forbids gets LogMoved, which names the other side. None opens the store.

        Raises: EngineUnavailable where an open transaction holds it up, ConfigError where the role may not;
            nothing has changed then. EngineError for `closed` while a worker has a lease.
        """

    # Of the source

    def log_places(self, stream: Stream) -> list[LogPlace]:
        """Return the logs of a stream, in the stream's order."""

    def raw_records(self, lo: int, hi: int, limit: int, size: int) -> list[RawRecord]:
        """Return the first records at lo <= p < hi, also those below the floor: at most `limit`.

        They end before `size` bytes are passed, but for the last of them.
        """

    def leases_to_move(self, group: Group) -> list[Lease]:
        """Return a group's leases, of a closed store, and what came late in its gaps as one more."""

    def state_rows(
        self, table: StateTable, group: int, after: Sequence[Any] | None, limit: int, size: int
    ) -> list[tuple[Any, ...]]:
        """Return rows with a key past `after` (None: all), in the order of keys; limited as records are."""

    def numbers_given(self) -> dict[str, int]:
        """Return the highest number that a "stream", "log", "grp" and "worker" has had here; 0: none."""

    def blob_rows(self, after: tuple[bytes, int] | None, limit: int) -> list[BlobRow]:
        """Return the payloads past (digest, stamp) that are not being removed, at most `limit`."""

    # Of the target

    def take_stream(self, mark: Mark, stream: Stream, places: Sequence[LogPlace]) -> Mark:
        """Create an incoming stream, without records or groups; return the mark with its numbers, stored.

        With `mark.same_numbers` stream and logs keep their numbers: none was ever given out here. What the
        logs have given out, up to `end`, is not given out again; nothing is to be read below `floor`.
        """

    def take_records(self, mark: Mark, log: int, rows: Sequence[RawRecord]) -> list[int]:
        """Append records to an incoming stream's log, at their positions; return where they are.

        An engine that numbers records itself (`Capabilities.keeps_positions`) gives others, and may have
        taken rows whose `mark` was not stored: they are at the log's end. `mark.at` is stored with them.
        Raises: ConfigError where an id is taken.
        """

    def take_group(
        self, mark: Mark, stream: int, group: Group, bounds: Sequence[Bounds], leases: Sequence[Lease]
    ) -> Mark:
        """Create a group of an incoming stream; return the mark with its number, stored.

        Parameters:
            stream: its number here; bounds and leases are in positions of here, the group's number and the
                leases' are the source's. The leases get others, and no owner.
        """

    def take_state(self, mark: Mark, table: StateTable, group: int, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add what a group knows. `mark.at` is stored with it."""

    def take_blobs(self, mark: Mark, rows: Sequence[BlobRow]) -> None:
        """Enter large payloads, before they are stored; `mark.at` is stored with it.

        Raises: ConfigError where the same payload is known under another stamp.
        """

    def take_worker_number(self, number: int) -> None:
        """Give out no worker's number up to this one: journals name them."""

    def give_names(self, mark: Mark) -> None:
        """Give the incoming streams their names, and drop the mark, in one transaction. Synced.

        Raises: ConfigError where a stream has one of the names by now; nothing has changed then.
        """

    def discard(self, stream: Stream, limit: int) -> bool:
        """Remove a stream with all that is known of it, in steps; True where there is more to be removed."""


def arranged(rows: Sequence[RawRecord], floor: int) -> Iterator[tuple[RawRecord, Id, int]]:
    """Yield (record, its head's id, its place after that) as they are to be kept.

    Runs are cut where their records do not stand side by side: what follows is a run of its own, whose head
    has its id, so that it is found as before. So it is at the beginning of a page, and each record below the
    log's floor stands by itself.
    """
    run: Id | None = None
    head: Id = b""
    start = next_pos = base = 0
    for row in rows:
        if row.pos < floor or row.head != run or row.pos != next_pos or row.seq != base + row.pos - start:
            start, base = row.pos, row.seq
            head = id_of(row.head, row.seq)
            run = row.head if row.pos >= floor else None
        yield row, head, row.pos - start
        next_pos = row.pos + 1


def told(mark: Mark, shown: str) -> str:
    """Return what those are told who meet a store that is not theirs to write to any more."""
    if mark.phase == "filling":
        return f"{shown} is being filled from {mark.other} (respool transfer); try again when that has ended"
    what = WAS_MOVED if mark.phase == "moved" else IS_MOVING
    return (
        f"this log {what} {mark.other}: set url= or RESPOOL_URL to that"
        + ("" if mark.phase == "moved" else ", once `respool transfer` has ended")
        + "; nothing was sent"
    )


def same_payload(shown: str) -> ConfigError:
    """Return the error for a large payload that both sides have stored, each for itself."""
    return ConfigError(
        f"{shown} has stored a large payload that is also the source's, under another name: two blobs of one "
        "content cannot become one. Take another target"
    )
