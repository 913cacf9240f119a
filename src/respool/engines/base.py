"""The two seams: the Log (append, read, find) and the State (what groups know).

An engine is one object with both. It stores and finds; what becomes of a record is decided by
`respool.delivery`, whose functions run inside `State.transact`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import msgspec

from ..delivery.model import Change, JournalEntry, Lease, NewCall, Outcome, Parked, Position, View
from ..delivery.spans import Span
from ..record import Id, Meta, Row

if TYPE_CHECKING:
    from pathlib import Path


class Capabilities(NamedTuple):
    """What an engine can do; the docs print it, the code asks it."""

    name: str
    one_transaction: bool  # log and state change together (P4)
    many_hosts: bool
    id_index: bool  # find a record by any id; else only by ids that carry their place
    durable: bool  # survives the process


class Stream(msgspec.Struct, frozen=True):
    """A stream as it was created. A queue is a stream of calls and belongs to an app."""

    id: int
    kind: Literal["queue", "stream"]
    app: str  # "" for streams, which all apps share
    name: str
    logs: tuple[int, ...]  # numbers of its partitions' logs, in the partitions' order
    settings: dict[str, Any] = {}
    created: float = 0.0


class Group(msgspec.Struct, frozen=True):
    """A consumer group as it was created."""

    id: int
    stream: int
    app: str
    name: str
    kind: Literal["main", "subscription", "replay", "group"]
    settings: dict[str, Any] = {}  # tasks, since, until, outbox
    generation: int = 0
    created: float = 0.0


class Record(msgspec.Struct, frozen=True):
    """Everything that is kept of a call or an event."""

    pos: int
    id: Id
    time: float
    task: str
    body: bytes
    meta: Meta


class Worker(msgspec.Struct, frozen=True):
    """A worker as it registered, and its last beat."""

    id: int
    app: str
    name: str
    host: str
    boot: str  # identifies the machine since it started, so that pids and locks can be trusted
    pid: int
    beat: int
    started: float
    beaten: float
    draining: bool
    info: dict[str, Any]


class Registration(NamedTuple):
    """What a worker says of itself when it starts."""

    app: str
    name: str
    host: str
    boot: str
    pid: int
    started: float
    info: dict[str, Any]


class Reads(NamedTuple):
    """What a decision wants to see of a group, read inside its transaction."""

    group: int
    leases: tuple[int, ...] = ()
    positions: bool = False
    due: int = 0  # parked records that are due, at most so many
    returned: int = 0  # ownerless leases, at most so many
    now: float = 0.0
    tasks: Sequence[str] = ()  # parked as unknown, to be handed to one who knows these tasks
    parked: Sequence[int] = ()  # parked records at these positions, due or not, as View.due


class Status(msgspec.Struct, frozen=True):
    """Where one record is in one group, and what is known of its end."""

    place: Literal["pending", "leased", "parked", "done", "outside"]
    parked: Parked | None = None
    lease: Lease | None = None
    outcome: Outcome | None = None
    progress: bytes | None = None
    how: str | None = None  # from the journal, where nothing else is known


class ParkedFilter(NamedTuple):
    """Which parked records to list."""

    groups: Sequence[int]
    reasons: Sequence[str] = ()
    task: str | None = None
    positions: Sequence[int] = ()


class Counts(NamedTuple):
    """How many of a group's records are where, and since when the oldest waits."""

    pending: int
    leased: int
    returned: int
    parked: dict[str, int]
    oldest_pending: float | None  # wall-clock seconds when it was appended
    next_due: float | None


class Conflict(NamedTuple):
    """A record that was not appended since its id is taken: `same` where body and task are equal too."""

    row: int  # its place among those that were to be appended
    pos: int
    same: bool


class Log(Protocol):
    """Appending and reading records."""

    def append_run(
        self, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, head: bytes, now: float
    ) -> None:
        """Append records that share all but their bodies, with ids counted up from `head`.

        One synced statement. Appending the same head again appends nothing.
        """

    def append_rows(self, rows: Sequence[NewCall], fence: tuple[int, int] | None = None) -> list[Conflict]:
        """Append records of one log, each with an id of its own, in one synced statement.

        With a fence (lease, owner) nothing is appended unless that lease is still that owner's; then
        `LeaseLost` is raised.
        """

    def rows(self, spans: Iterable[Span]) -> list[Row]:
        """Return the records that exist in the spans, in the spans' order."""

    def records(self, lo: int, hi: int, limit: int) -> list[Record]:
        """Return the records at lo <= p < hi in full, at most `limit`."""

    def find(self, namespace: str, id: Id) -> int | None:
        """Return the position of the record with this id."""

    def window(self, stream: Stream, since: float | None, until: float | None) -> list[tuple[int, int, int]]:
        """Return (log, first, one past the last) position that can have a time in since <= t < until."""

    def bounds(self, stream: Stream) -> list[tuple[int, int, int]]:
        """Return (log, first, one past the last) position there is."""


class State(Protocol):
    """What groups know, changed in short exclusive transactions."""

    def transact(self, reads: Reads, decide: Callable[[View, Change], Any], *, synced: bool = False) -> Any:
        """Lock, read, let `decide` fill the change, write, commit; return what `decide` returned."""

    def status(self, group: Group, pos: int) -> Status:
        """Return where a record is in a group."""

    def journal(self, group: int, pos: int) -> list[JournalEntry]:
        """Return the entries that cover a position, the oldest first."""

    def parked(self, chosen: ParkedFilter, limit: int) -> list[tuple[int, Parked]]:
        """Return (group, parked record), the oldest first."""

    def counts(self, group: Group) -> Counts:
        """Return how many of a group's records are where."""


class Registry(Protocol):
    """Streams, groups and workers."""

    def create_stream(
        self, kind: Literal["queue", "stream"], app: str, name: str, partitions: int, settings: dict[str, Any]
    ) -> Stream:
        """Create a stream, for a queue with its `main`; return the stored one where it exists."""

    def streams(self) -> list[Stream]:
        """Return all streams."""

    def groups(self) -> list[Group]:
        """Return all groups."""


class LeaseLost(Exception):
    """A fenced append found that the lease is not the run's any more."""


class Engine(Log, State, Registry, Protocol):
    """Log and State in one."""

    capabilities: Capabilities
    run_folder: Path

    def close(self) -> None:
        """Release all resources."""

    def positions(self, group: Group) -> list[Position]:
        """Return how far a group is in each log."""
