"""The words of the delivery core as data: what an engine reads (`View`) and writes (`Change`).

For every group, a record within its bounds is in exactly one place (P2):

    pending   at or above the cursor of its log
    leased    in a lease: owned by a worker, or ownerless ("returned")
    parked    one row: scheduled, retry, unknown, dead, …
    done      below the cursor and in none of these; needs no row
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from ..record import Row
from .spans import Span

Reason = Literal["scheduled", "retry", "blocked", "limited", "unknown", "gap", "dead"]
Ending = Literal["success", "failure", "revoked"]
"""How a call ended; the states SUCCESS, FAILURE and REVOKED."""

WAITING = 0
"""The owner of a lease that waits to be claimed together with more: its task takes batches.

Nobody's, like one without an owner; but by itself it is not work before the time that is its `since`.
"""

LIMITED = -1
"""In place of the child of a lease that waits: its task is stopped, and no claim takes it along too soon."""

MAX_LEASE = 4096
"""Records in a lease, at most. The journal's look-up and a worker's shared memory rely on it."""

MIDDLE = 4
"""The priority of what is sent without one, from 0 (last) to 9 (first)."""


class Parked(NamedTuple):
    """A record that waits by itself: until `due`, or until someone acts on it (`due` None)."""

    pos: int
    reason: Reason
    due: float | None
    task: str
    retries: int = 0
    deliveries: int = 0
    redrives: int = 0
    alone: bool = False
    body: bytes | None = None  # what is run instead of the record's own body (H15, edits)
    error: bytes | None = None  # why it was parked, as `remote.encode_error` gives it
    at: float = 0.0  # since when
    waits: int | None = None  # `limited`: for which bucket
    key: int | None = None  # in an ordered group, its key's hash; negative: nothing of its key waits for it

    def span(self) -> Span:
        """Return the record as a lease's span."""
        return Span(self.pos, self.pos + 1, self.retries, self.deliveries, self.redrives, self.alone)


class Lease(msgspec.Struct):
    """Records handed out and not finished: `spans` in the order in which they are to run."""

    id: int
    owner: int | None  # a worker's number; None: returned, for whoever comes next; or WAITING
    child: int
    spans: list[Span]
    bodies: dict[int, bytes] = {}
    since: float = 0.0
    admitted: dict[int, list[tuple[int, int]]] = {}
    """By bucket, the positions that it has let in: while there are any, the lease has one of its slots."""
    keys: bytes = b""  # in an ordered group: see `order.key_map`


class Position(NamedTuple):
    """How far a group has come in one log: it reads cursor <= p < min(end, stop)."""

    log: int
    cursor: int
    end: int  # one past the last record there is
    stop: int | None = None  # one past the last record the group is to read, None: no bound
    missing: tuple[tuple[int, int], ...] = ()
    """Ranges from the cursor on where no record is to be seen, and one may yet appear: its transaction took
    its number early and commits late (G4). Only before the last record that is seen."""
    priority: int = MIDDLE  # of the log's lane


class Bucket(NamedTuple):
    """What may start under one limit: one of a task, of a queue, or of one key of theirs.

    `tokens` is how many starts were left at `at`; they come back at `rate` a second, up to `burst`.
    """

    id: int
    rule: str  # whose limit it is, for people: "shop/task send"
    key: str
    rate: float | None  # starts a second; None: as many as there are
    burst: float
    slots: int | None  # leases that may hold some of its records at a time; None: any number
    tokens: float
    at: float


class Limits:
    """What a decision knows of limits; read only where it asks."""

    __slots__ = ("asked", "buckets", "holders", "queued", "set_back", "waiting")

    def __init__(self) -> None:
        self.buckets: dict[int, Bucket] = {}
        self.holders: dict[int, set[int]] = {}  # by bucket, the leases that have one of its slots
        self.queued: set[int] = set()  # buckets, of those asked for, for which records of the group wait
        self.waiting: dict[
            int, list[Parked]
        ] = {}  # by bucket that is open by now, the first that wait for it
        self.asked = 0  # how many of each were looked for, at most
        self.set_back: set[int] = set()  # buckets that were used last when our clock was far ahead of now


class LimitChange:
    """What a decision wants written of limits."""

    __slots__ = ("buckets", "freed", "next", "passed", "refunds")

    def __init__(self) -> None:
        self.buckets: dict[int, Bucket] = {}
        self.next: dict[int, float | None] = {}  # when a bucket the group waits for opens; None: with a slot
        self.passed: list[int] = []  # buckets for which nothing of the group waits any more
        self.freed: list[tuple[int, int]] = []  # (lease, bucket): a slot that is free again
        self.refunds: dict[int, int] = {}  # starts that did not come to be


class NewCall(msgspec.Struct, array_like=True):
    """A call made by a run, waiting in its outbox to be sent with the settlement (P4)."""

    log: int
    task: str
    body: bytes
    meta: bytes | None
    id: Any  # an Id
    time: float
    key: int | None = None  # the hash of its key (`keys.key_hash`)


class Verdict(msgspec.Struct, array_like=True, omit_defaults=True):
    """How one run of one record ended, where there is more to say than "done, returned None".

    `ending` is None where the record is parked instead (`reason`, `due`), and for a record that the
    group leaves out (`skipped`).
    """

    pos: int
    ending: Ending | None = None
    value: bytes | None = None  # what it returned, or the error
    reason: Reason | None = None
    due: float | None = None
    task: str = ""
    error: bytes | None = None
    body: bytes | None = None
    charge: int = 0  # deliveries to count: 1 where its process died, -1 to take back what was charged before
    retried: bool = False  # count a retry
    skipped: bool = False
    quiet: bool = False  # store no outcome (ignore_result)
    ttl: float | None = None  # seconds that its outcome is kept
    calls: list[NewCall] = []
    dropped: int = 0  # calls and events it made that its group does not send
    note: str | None = None  # for the history: "retry: ValueError: …"
    started: float = 0.0
    ended: float = 0.0
    progressed: bool = False  # it called update_state: there is a progress row to clear
    offloaded: bool = False  # its value is a reference to a blob
    holds: bool = False  # a dead letter that holds up its key (on_dead="block")


class Settlement(msgspec.Struct):
    """What a worker has to say of one of its leases.

    `done` are the ranges it has been through, the records with a verdict included. With `release`
    what is left of the lease is given back, ownerless.
    """

    lease: int
    owner: int
    done: list[tuple[int, int]]
    verdicts: list[Verdict] = []
    results: list[tuple[int, bytes]] = []  # (position, value) of runs that just returned something
    started: float = 0.0
    ended: float = 0.0
    release: bool = False
    records: int = 0  # how many were run
    waits: list[Span] = []  # those of the lease that are to wait for more, and until when …
    waits_as: int = 0  # … as a lease of this id
    limited: list[Span] = []  # those whose task is stopped, and until when …
    limited_as: int = 0  # … as a lease of this id


class Outcome(NamedTuple):
    """What a run gave, kept per group."""

    pos: int
    ending: Ending
    value: bytes | None
    at: float
    until: float | None = None  # kept so long; 0: the value is gone, the ending stands

    def expired(self, now: float) -> bool:
        """Say whether the value is past its `result_ttl`."""
        return self.until is not None and self.until <= now


class JournalEntry(NamedTuple):
    """Who went through which positions, when, and how it ended (`how` "done", or what else happened)."""

    lo: int
    hi: int
    owner: int | None
    child: int
    started: float
    ended: float
    how: str
    retries: int = 0
    note: str | None = None


NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


class Ordering:
    """What a decision about an ordered group needs to know besides."""

    __slots__ = ("ahead", "blocked", "claimed", "leases", "stopped", "waiting")

    def __init__(self) -> None:
        self.leases: list[Lease] = []  # for a claim: all of the group, but for …
        self.stopped: list[Lease] = []  # … those whose tasks are stopped: nobody's, but their keys are taken
        self.claimed: list[int] = []  # for a claim: the logs that it may take from, those to begin with first
        self.ahead: dict[int, list[tuple[int, int | None]]] = {}  # by log: (position, key) from the cursor on
        self.waiting: dict[int, list[Parked]] = {}  # by key, in their order: what is parked and holds it up
        self.blocked: dict[int, int] = {}  # by log: how many are parked as blocked


class View(msgspec.Struct):
    """What a decision needs to know, read by the engine inside the transaction."""

    settings: Mapping[str, Any] = NO_SETTINGS  # the group's, as of now
    generation: int = 0
    gap_room: int = 0  # how many more ranges may be kept as gaps (G4)
    positions: list[Position] = []
    near: bool = False  # it was looked only so far ahead in each log as a claim may take
    due: list[Parked] = []  # parked records to hand out, the earliest of each lane first
    returned: list[Lease] = []  # ownerless leases, those that wait too, the oldest first
    leases: dict[int, Lease] = {}  # those asked for, that exist
    limits: Limits | None = None
    order: Ordering | None = None  # where records of an ordered group are concerned


class Change(msgspec.Struct):
    """What a decision wants written, all of it in the transaction of the view."""

    cursors: list[tuple[int, int]] = []  # log, new cursor
    starts: list[tuple[int, int]] = []  # log, where the group begins to read, if it began further on
    settings: dict[str, Any] = {}  # of the group, that change; None: removed
    generation: int | None = None
    rewound: list[tuple[int, int]] = []  # ranges of which all that is known becomes history
    gaps: list[tuple[int, int]] = []  # passed by a cursor before anything was seen there (G4)
    leases: list[Lease] = []  # stored, replacing those with the same id
    dropped_leases: list[int] = []
    parked: list[Parked] = []
    kept: list[Row] = []  # records that are parked, to be had when their log has lost them (H15)
    unparked: list[int] = []
    outcomes: list[Outcome] = []
    references: list[tuple[int, bytes]] = []  # outcomes whose value is a reference to a blob (H18)
    edited: list[tuple[int, bytes]] = []  # the same of bodies that are run instead of the record's
    results: list[tuple[int, bytes]] = []  # outcomes of the plainest kind: success and a value
    results_at: float = 0.0
    results_ordered: bool = False  # by position, each once
    moved_locks: list[tuple[str, int, int]] = []  # key, and where its record was and is now (H16)
    forgotten: list[int] = []  # outcomes to remove: the record runs again
    unprogressed: list[int] = []
    journal: list[JournalEntry] = []
    calls: list[NewCall] = []
    counted: dict[str, int] = {}
    released: bool = False  # what is limited may be claimed again
    limits: LimitChange | None = None

    def freed_logs(self) -> set[int]:
        """Return the logs in which a record may go whose key is free again."""
        return {each.pos >> 40 for each in self.parked if each.reason == "blocked" and each.due is not None}

    def freed_buckets(self) -> list[int]:
        """Return the limits that may let in more than they did."""
        limits = self.limits
        return [] if limits is None else sorted({*(one for _, one in limits.freed), *limits.refunds})

    def absorb_limits(self, other: Change) -> None:
        """Take over what a partial decision frees and refunds."""
        if other.limits is None:
            return
        if self.limits is None:
            self.limits = other.limits
            return
        self.limits.freed += other.limits.freed
        for one, starts in other.limits.refunds.items():
            self.limits.refunds[one] = self.limits.refunds.get(one, 0) + starts

    def count(self, name: str, by: int = 1) -> None:
        """Add to one of the group's counters: skipped, refused, dropped calls, …"""
        if by:
            self.counted[name] = self.counted.get(name, 0) + by
