"""What an engine keeps and tells, as data: streams, groups, records, workers, and where a record is.

The words of the delivery core (leases, parked records, outcomes) are in `delivery.model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from ..delivery.model import MIDDLE, Lease, Outcome, Parked
from ..delivery.order import Claimant
from ..record import Id, Meta, id_text, offset_of
from ..units import utc

if TYPE_CHECKING:
    from .ordering import Elsewhere


StreamKind = Literal["queue", "stream"]
GroupKind = Literal["main", "subscription", "replay", "group"]
Place = Literal["pending", "leased", "parked", "done", "outside"]


class Capabilities(NamedTuple):
    """What an engine can do; the docs print it, the code asks it."""

    name: str
    one_transaction: bool  # log and state change together (P4)
    many_hosts: bool
    id_index: bool  # find a record by any id; else only by ids that carry their place
    durable: bool  # survives the process
    enlists: bool  # takes calls within a transaction of the caller's own
    joins_work: bool  # commits a run's own database work with its settlement
    foreign: bool = False  # reads streams that other programs write
    keeps_positions: bool = True  # records that come from another engine keep their numbers
    numbers_first: bool = (
        False  # a record has its number before it can be seen, and may appear behind others (G4)
    )


CAPABILITIES = {
    "sqlite:///path": Capabilities("SQLite", True, False, True, True, True, True),
    "sqlite:///:memory:": Capabilities("SQLite in memory", True, False, True, False, False, False),
    "postgresql://": Capabilities("PostgreSQL", True, True, True, True, True, True, numbers_first=True),
    "kafka://": Capabilities("Kafka", False, True, False, True, False, False, True, keeps_positions=False),
}
"""By how their URLs begin."""


class Stream(msgspec.Struct, frozen=True):
    """A stream as it was created. A queue is a stream of calls and belongs to an app."""

    id: int
    kind: StreamKind
    app: str  # "" for streams, which all apps share
    name: str
    logs: tuple[int, ...]  # numbers of its partitions' logs, in the partitions' order; lanes' after them
    settings: dict[str, Any] = {}
    created: float = 0.0
    lanes: dict[int, tuple[int, ...]] = {}  # by priority: those of the logs that are lanes, made on first use

    @property
    def partitions(self) -> int:
        """How many partitions it has, of each priority in use."""
        return len(self.logs) // (1 + len(self.lanes))

    def lane(self, priority: int | None) -> tuple[int, ...] | None:
        """Return the logs of a priority, in the partitions' order; None where it was not used so far."""
        if priority is None or priority == MIDDLE:
            return self.logs[: self.partitions]
        return self.lanes.get(priority)

    def place(self, log: int) -> tuple[int, int]:
        """Return the partition and the priority of one of its logs."""
        for priority, logs in self.lanes.items():
            if log in logs:
                return logs.index(log), priority
        return self.logs.index(log), MIDDLE

    def rings(self) -> dict[int, int]:
        """Return as which log each lane's log rings: who sleeps may know of the lane only from now on."""
        return {
            log: self.logs[partition] for logs in self.lanes.values() for partition, log in enumerate(logs)
        }


def is_ordered(stream: Stream, group: Group) -> bool:
    """Say whether a group takes the records of each key one by one (P8).

    All groups of an ordered queue do, replays among them; of a stream's, those that asked for it.
    """
    return bool((stream if stream.kind == "queue" else group).settings.get("ordered"))


def lanes_of(logs: Iterable[tuple[int, int | None]]) -> dict[int, tuple[int, ...]]:
    """Return a stream's lanes from the numbers and priorities (None: the common one) of its logs."""
    lanes: dict[int, tuple[int, ...]] = {}
    for log, priority in logs:
        if priority is not None:
            lanes[priority] = (*lanes.get(priority, ()), log)
    return lanes


class Group(msgspec.Struct, frozen=True):
    """A consumer group as it was created."""

    id: int
    stream: int
    app: str
    name: str
    kind: GroupKind
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

    def __repr__(self) -> str:
        when = utc(self.time).astimezone().isoformat(" ", "seconds")
        id = id_text(self.id)
        given = id.partition("\0")[2] or id  # without what the engine has put before it
        what = f"{self.task or 'event'} at offset {offset_of(self.pos):,}"
        return f"<Record {given}: {what}, {when}, {len(self.body):,} bytes>"


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

    @property
    def running(self) -> list[tuple[int, float, int]]:
        """What it ran as of its last beat: first position, since when, one past the last."""
        said = self.info.get("running", ())
        return [(lo, since, hi[0] if hi else lo + 1) for lo, _, since, *hi in said]


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
    due: int = 0  # with positions: parked records that are due, of each lane at most so many
    returned: int = 0  # ownerless leases, at most so many
    now: float = 0.0
    tasks: Sequence[str] = ()  # parked as unknown, to be handed to one who knows these tasks
    parked: Sequence[int] = ()  # parked records at these positions, due or not, as View.due
    settings: bool = False  # the group's settings and generation, which come with its positions anyway
    buckets: Sequence[int] = ()  # as View.limits, with who has their slots
    open: int = 0  # as View.limits: buckets that are open and waited for, at most so many, with who waits
    ordered: Claimant | None = None  # with positions, for a claim of an ordered group: see View.order
    elsewhere: Elsewhere | None = None  # for such a claim: knows the log, where that is not in this store
    bare: bool = (
        False  # with due: the records of what is claimed are not in this store, and not asked for here
    )
    known: Lease | None = None
    """The one lease asked for, as its owner knows it: where a look is a round trip, an engine may decide by
    that, and see whether it is so when it writes."""


class Status(msgspec.Struct, frozen=True):
    """Where one record is in one group, and what is known of its end."""

    place: Place
    parked: Parked | None = None
    lease: Lease | None = None
    outcome: Outcome | None = None
    progress: bytes | None = None
    how: str | None = None  # from the journal, where nothing else is known


class ParkedFilter(NamedTuple):
    """Which parked records to list. What is empty or None leaves the choice open, but for `groups`."""

    groups: Sequence[int]
    reasons: Sequence[str] = ()
    tasks: Sequence[str] = ()
    positions: Sequence[int] = ()
    since: float | None = None  # parked since <= at < until
    until: float | None = None


class Counts(NamedTuple):
    """How many of a group's records are where, and since when the oldest waits."""

    pending: int
    leased: int
    returned: int
    parked: dict[str, int]
    oldest_pending: float | None  # wall-clock seconds when it was appended
    next_due: float | None


def looked_for(due: int, buckets: int) -> int:
    """Return how many waiting records of each open bucket to read: for its share of a claim, and one."""
    return -(-2 * due // max(buckets, 1)) + 1


class UniqueLock(NamedTuple):
    """What a key is taken by: a record, as long as that has not ended in `main`, or until a moment (H16)."""

    key: str
    id: Id
    pos: int
    until: float | None
    placed: bool = True  # else the record is stored, on its way to its log, and `pos` is not where it will be
    expires: float | None = None  # of one that is on its way: from when on no run of it begins


class Conflict(NamedTuple):
    """A record that was not appended since its id is taken: `same` where body and task are equal too."""

    row: int  # its place among those that were to be appended
    pos: int
    same: bool


class LeaseLost(Exception):
    """A fenced append found that the lease is not the run's any more."""
