"""The run that is going on: its request, its outbox, its progress."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import celery_names
from ..clock import now as wall_clock
from ..delivery.model import MIDDLE, Change, NewCall, View
from ..delivery.spans import Span, ranges_of
from ..encoding.codec import codec_for
from ..engines import public_id, stored_id
from ..engines.base import Engine, LeaseLost, Reads, Record, Work
from ..errors import AppendUnknown, ConfigError, EngineUnavailable, IdConflict, Refused, RespoolError
from ..keys import key_hash
from ..producer import MAX_TOGETHER
from ..record import Id, Meta, Row, derived_id, id_text, is_text, offset_of
from ..reference import same_payload
from .services import Service

log = logging.getLogger("respool.worker")
MANY_CALLS = 10_000
MANY_BYTES = 16 << 20
_begun_by: ContextVar[object] = ContextVar("respool_begun_by", default=None)
"""The mark of the run that has begun the code that asks.

Threads and coroutines that a run leaves behind keep it, where they have a copy of the run's context, while
`CurrentRun` moves on.
"""
BRIEF = 2_000  # nanoseconds; no run hands its context to a thread in so short a time
BLOB_HOLD = 3600.0  # seconds that a large payload waits for its call; a sweep waits longer (H18)


@dataclass(frozen=True, slots=True)
class Request:
    """What a task can know of the call it runs (`self.request`)."""

    id: str
    task: str
    retries: int
    deliveries: int  # runs before this one that ended with the death of their process
    consumer_group: str
    replay: bool
    headers: Mapping[str, str]
    queue: str
    partition: int
    offset: int
    key: str | None
    priority: int
    time: float
    root_id: str | None
    parent_id: str | None

    if not TYPE_CHECKING:  # else any name would do for type checkers

        def __getattr__(self, name):
            return celery_names.missing(self, celery_names.REQUEST, name)


class CurrentRun:
    """What a worker's present run is, for the code that it runs. One object, moved from run to run."""

    def __init__(self, engine: Engine, hold: float | None) -> None:
        self._engine = engine
        self._hold = hold
        self._lock = threading.RLock()
        self._closed = False
        self.mark: object = None
        """What the code of the present run is known by; None: there is none, or it takes nothing any more."""
        self._record: Record | None = None
        self._calls: list[NewCall] = []
        self._bytes = 0
        self._left: list[NewCall] = []  # appended in the run's own transaction: a failure sends them as well
        self._places: dict[int, tuple[Any, ...]] = {}  # logs by their names
        self._made: dict[bytes, int] = {}  # how often the same call was made in this run
        self._given: dict[Id, tuple[str, bytes]] = {}  # what was sent with ids of the user's own
        self._flusher: _Flusher | None = None
        self._sends_at: float | None = None  # when what is in the outbox leaves
        self.row: Row | None = None
        self.span = Span(0, 0)
        self.work: Work | None = None
        """The run's own transaction, to be committed with its settlement."""
        self.batch: Sequence[tuple[Row, Span]] | None = None
        self._others: tuple[str, ...] = ()  # stands for the other records of the batch
        self.used = False
        """Whether the run made calls or said how far it is: else there is nothing to look after."""
        self.dropped = 0
        self.progressed = False
        self.shield: Callable[[], AbstractContextManager[None]] = nullcontext
        """What keeps a soft time limit from striking within our code, which the task's has called (H17)."""

    def begin_lease(self, service: Service, lease: int, owner: int) -> None:
        """Move on to another lease. A run begins by setting `row` and `span`, and then by `begin`."""
        self.service = service
        self._fence = (lease, owner)

    def begin(self) -> None:
        """Have what is begun from now on belong to the present run only.

        After a run that was `BRIEF`, the next one may go without: nothing of that one is left.
        """
        self.mark = object()
        _begun_by.set(self.mark)

    def begin_batch(self, batch: Sequence[tuple[Row, Span]]) -> None:
        """Move on to a run of many records; what it sends is sent for the first."""
        self.batch = batch
        self.row, self.span = batch[0]
        self.begin()
        positions = repr([row[0] for row, _ in batch[1:]]).encode()
        self._others = (hashlib.blake2b(positions, digest_size=16).hexdigest(),)

    def end_batch(self) -> None:
        """Leave it: from here on a run is of one record."""
        self.batch, self.row, self.mark, self._others = None, None, None, ()

    def end(self) -> tuple[list[NewCall], int, bool]:
        """Close the outbox; return the calls to settle, how many are dropped, whether there was progress."""
        with self._lock:
            ended = self._calls, self.dropped, self.progressed
            self._calls, self._bytes, self.dropped = [], 0, 0
            self._made, self._given, self._record, self._sends_at = {}, {}, None, None
            self.used = self.progressed = False
            self.mark = None
        return ended

    def close(self) -> None:
        """Take nothing more, and let go of the worker's memory: handles of calls outlive it."""
        with self._lock:
            self._closed, self.row, self.mark, self.shield = True, None, None, nullcontext

    @property
    def _is_over(self) -> bool:
        """Whether the code that asks was begun by a run that has ended."""
        return self.mark is None or _begun_by.get() is not self.mark

    def _refuse_strays(self, what: str = "the run that made this call has ended; nothing was sent") -> None:
        if self._is_over:
            raise Refused(what)

    @property
    def engine(self) -> Engine:
        """What it settles on."""
        return self._engine

    @property
    def record(self) -> Record:
        """The record in full, read when first asked for."""
        assert self.row is not None
        pos = self.row[0]
        if self._record is None or self._record.pos != pos:
            self._record = self._engine.records(pos, pos + 1, 1)[0]
        return self._record

    def request(self) -> Request:
        """Return what is known of the call."""
        self._refuse_strays("self.request: the run that this code was begun by has ended")
        if self.batch is not None:
            raise ConfigError("a batch is many calls: take self.calls, a list of their requests")
        return self._request(self.record, self.span)

    def requests(self) -> list[Request]:
        """Return what is known of each call of a batch, in their order."""
        self._refuse_strays("self.calls: the run that this code was begun by has ended")
        if self.batch is None:
            raise ConfigError("self.calls exists only in a task with batch=; this one has self.request")
        found: dict[int, Record] = {}
        for lo, hi in ranges_of(row[0] for row, _ in self.batch):
            found.update((record.pos, record) for record in self._engine.records(lo, hi, hi - lo))
        return [self._request(found[row[0]], span) for row, span in self.batch]

    def _request(self, record: Record, span: Span) -> Request:
        group, meta = self.service.group, record.meta
        return Request(
            id_text(public_id(record.id)),
            record.task,
            span.retries,
            span.deliveries,
            group.name,
            group.kind == "replay",
            meta.headers or {},
            self.service.stream.name,
            self._partition(record.pos >> 40),
            offset_of(record.pos),
            meta.key,
            MIDDLE if meta.priority is None else meta.priority,
            record.time,
            _shown(meta.root),
            _shown(meta.parent),
        )

    def _partition(self, log: int) -> int:
        service = self.service
        if log not in service.stream.logs:  # a lane made since this process looked
            service.stream = next(s for s in self._engine.streams() if s.id == service.stream.id)
        return service.stream.place(log)[0]

    def update_state(self, meta: Any) -> None:
        """Keep what the task says of its progress: one statement (H1)."""
        self._refuse_strays("self.update_state: the run that this code was begun by has ended")
        assert self.row is not None
        if self.batch is not None:
            raise ConfigError("a batch is many calls: there is no one state to update")
        value = codec_for("msgpack").encode(meta, "meta")
        if self.excludes:
            raise ConfigError(
                "self.update_state() within self.transaction(): nobody could see it; call it before"
            )
        self.used = self.progressed = True
        with self.shield():
            self._engine.set_progress(self.service.group.id, self.row[0], value, self._fence)

    # Its own transaction

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Begin the run's own transaction; where the block raises it is undone at once."""
        self._refuse_strays("self.transaction: the run that this code was begun by has ended")
        can = self._engine.capabilities
        if not can.joins_work:
            raise ConfigError(
                f"self.transaction(): on {can.name} a task's own work and its settlement cannot be one"
            )
        if self.batch is not None:
            raise ConfigError("self.transaction(): a batch is many calls, each settled by itself")
        if self.work is not None:
            raise ConfigError("self.transaction(): one for each run, and this run has one")
        with self.shield(), self._lock:  # or what is being sent meanwhile would get into it
            self.work, self._left = self._engine.begin_work(self._fence), []
            self.used = True
        try:
            yield self.work.connection
        except BaseException:
            with self.shield(), self._lock:
                self._calls = self.undo() + self._calls
            raise

    @property
    def enlisted(self) -> Any:
        """What events are appended on while there is a transaction of the run's own."""
        return None if self.work is None or self._is_over else self.work.enlisted

    def undo(self) -> list[NewCall]:
        """Undo what the run did in a transaction of its own, if any; return the calls that left with it."""
        work, self.work = self.work, None
        calls, self._left = self._left, []
        if work is not None:
            work.roll_back()
        return calls

    def settle_work(self, reads: Reads, decide: Callable[[View, Change], bool]) -> bool:
        """Commit the run's own transaction with its settlement, as `Work.settle` does."""
        work, self.work = self.work, None
        assert work is not None
        return work.settle(reads, decide)

    # The outbox

    def serves(self, engine: Any) -> bool:
        """Say whether calls for an engine can go to this outbox: only those for the log it settles on."""
        return bool(engine.target == self._engine.target)

    @property
    def sends(self) -> bool:
        """Whether the calls and events it makes are sent; else they are counted."""
        return self.service.sends

    @property
    def excludes(self) -> bool:
        """Whether it is in a transaction of its own beside which nothing else can be written."""
        return self.work is not None and self.work.exclusive

    def send(self, log: int, task: str, body: bytes, meta: Meta, id: Id | None, namespace: str) -> Id:
        """Put a call in the outbox; it leaves with the settlement, or after `outbox_hold` (P4)."""
        with self.shield(), self._lock:
            self._refuse_strays()
            self.used = True
            if len(self._calls) >= MANY_CALLS or self._bytes >= MANY_BYTES:
                self._make_room(task)
            call = self._call(log, task, body, meta, id, namespace)
            if not self.service.sends:
                self.dropped += 1
                return public_id(call.id)
            self._calls.append(call)
            self._bytes += len(body)
            # Those of a batch wait: a rerun may be of other records, and so make other ids of the same calls.
            hold = self._hold if self.batch is None else None
            if hold is None and meta.offloaded is not None:
                hold = BLOB_HOLD
            if hold is not None and self._sends_at is None:
                self._sends_at = time.monotonic() + hold
                self._watch()
            if self._is_time() and self.work is None:
                self._flush_in_time()
            return public_id(call.id)

    def take(self, events: Sequence[Any]) -> None:
        """Count events, and calls for other logs, where nothing is sent. Raises Refused."""
        with self._lock:
            self._refuse_strays("the run that published this has ended; nothing was sent")
            self.used = True
            self.dropped += len(events)

    def _make_room(self, task: str) -> None:
        """Send what fills the outbox, before another call comes. Raises: Refused, where it stays full."""
        try:
            self.flush()
        except AppendUnknown as error:
            raise EngineUnavailable(
                f"{task}: the outbox of its run is full: {error}; nothing was sent"
            ) from error

    def _flush_in_time(self) -> None:
        """Send what has waited for long enough; where that cannot be, it leaves with the settlement."""
        try:
            self.flush()
        except RespoolError as error:
            log.warning("calls wait for the end of their run: %s", error)
            self._sends_at = None  # the next call begins another wait

    def call_now(
        self, log: int, task: str, body: bytes, meta: Meta, id: Id | None, namespace: str
    ) -> tuple[NewCall, tuple[int, int]]:
        """Return a call that does not wait in the outbox, and the fence to append it with. Raises Refused."""
        with self._lock:
            self._refuse_strays()
            if self.excludes:
                raise Refused(
                    f"{task}: a unique call within self.transaction() could not be sent at once; nothing was "
                    "sent. Make it before, or after"
                )
            self.used = True
            return self._call(log, task, body, meta, id, namespace), self._fence

    def is_latest(self, key: str, pos: int) -> bool:
        """Say whether no later call has taken the key of the one at this position."""
        lock = self._engine.lock_of(key)
        if lock is None or lock.placed:
            return lock is None or lock.pos == pos
        return any(record.id == lock.id for record in self._engine.records(pos, pos + 1, 1))

    # Steps

    def step(self, name: str) -> bytes | None:
        """Return what a step of this call gave, in whatever run of whatever group; None: not done yet."""
        self._check_step(name)
        with self.shield():
            return self._engine.step_done(self.record.pos, name)

    def keep_step(self, name: str, value: bytes) -> None:
        """Keep what a step of this call gave."""
        self._refuse_strays(f"self.once({name!r}): the run that this code was begun by has ended")
        with self.shield():
            self._engine.keep_step(self.record.pos, name, value, wall_clock())

    def _check_step(self, name: str) -> None:
        self._refuse_strays("self.once: the run that this code was begun by has ended")
        if not is_text(name) or not 0 < len(name) <= 200 or "\0" in name:
            raise ConfigError(f"self.once: {name!r} is no name of a step: text of 1 to 200 characters")
        if self.batch is not None:
            raise ConfigError("self.once: a batch is many calls; a step is one call's")
        if self.excludes:
            raise ConfigError(
                f"self.once({name!r}) within self.transaction(): its value could not be kept at once; call "
                "it before"
            )

    def _call(self, log: int, task: str, body: bytes, meta: Meta, id: Id | None, namespace: str) -> NewCall:
        parent = self.record
        group = self.service.group
        lineage = Meta(
            meta.key,
            meta.headers,
            meta.due,
            meta.expires,
            meta.priority,
            meta.content_type,
            meta.version,
            parent.id,
            parent.meta.root or parent.id,
            group.name,
            self.service.generation_at(parent.pos),
            meta.offloaded,
            meta.latest,
        )
        if id is None:
            id = self._derived(log, task, body, parent)
        else:
            self._refuse_taken(task, body, id, namespace)
            id = stored_id(namespace, id)
        key = None if meta.key is None else key_hash(meta.key)
        return NewCall(log, task, body, lineage.packed(), id, wall_clock(), key)

    def _refuse_taken(self, task: str, body: bytes, id: Id, namespace: str) -> None:
        """The same id with another body is an error, not silence (H8)."""
        known = self._given.setdefault(stored_id(namespace, id), (task, body))
        pos = self._engine.find(namespace, id)
        if pos is not None:
            (record,) = self._engine.records(pos, pos + 1, 1)
            known = known if (record.task, record.body) == (task, body) else (record.task, record.body)
        if known != (task, body):
            raise IdConflict(
                f"the id {id_text(id)} is taken by a record with another body; nothing was sent. "
                "Use another id, or send the same arguments"
            )

    def _derived(self, log: int, task: str, body: bytes, parent: Record) -> bytes:
        """Return an id that a rerun gives to the same call, and to no other (H8)."""
        group, span = self.service.group, self.span
        generation = self.service.generation_at(parent.pos)
        # By names and ids, not by numbers: those change where a transfer takes the log elsewhere.
        whose = (group.app, group.name, group.created, generation, parent.id, *self._others)
        history = (*whose, span.retries, span.redrives, self._place_of(log))
        parts = (repr(history).encode(), task.encode(), same_payload(body))
        first = derived_id(parent.time, *parts, b"")
        occurrence = self._made[first] = self._made.get(first, 0) + 1
        return first if occurrence == 1 else derived_id(parent.time, *parts, str(occurrence).encode())

    def _place_of(self, log: int) -> tuple[Any, ...]:
        """Return a log by the names that it has on every engine."""
        found = self._places.get(log)
        if found is None:
            stream = next(each for each in self._engine.streams() if log in each.logs)
            found = self._places[log] = (stream.kind, stream.app, stream.name, *stream.place(log))
        return found

    def flush(self) -> None:
        """Send what is in the outbox now. The append checks that the lease is still ours.

        Raises: what `delay()` raises; the calls then stay for the settlement. LeaseLost: the run is void.
        """
        with self.shield(), self._lock:
            while self._calls and not self._closed:
                log = self._calls[0].log
                together = [call for call in self._calls if call.log == log][:MAX_TOGETHER]
                if self.work is not None:
                    self.work.append(together)
                    self._left += together
                else:
                    self._engine.append_rows(together, self._fence)
                sent = {id(call) for call in together}
                self._calls = [call for call in self._calls if id(call) not in sent]
            self._bytes = 0

    def _is_time(self) -> bool:
        return self._sends_at is not None and time.monotonic() >= self._sends_at

    def _watch(self) -> None:
        if self._flusher is None:
            self._flusher = _Flusher(self)
            self._flusher.start()
        self._flusher.wake.set()

    def flush_if_held(self) -> float | None:
        """Send what has waited long enough; return how long the rest may still wait, None: nothing does."""
        with self._lock:
            if self._sends_at is None or not self._calls or self.work is not None:
                return None  # nothing leaves before a transaction of the run's own
            left = self._sends_at - time.monotonic()
            if left <= 0:
                self.flush()
                return None
            return left


class _Flusher(threading.Thread):
    """Sends the calls of a run that goes on for long. Started by the first call made in any run."""

    def __init__(self, run: CurrentRun) -> None:
        super().__init__(name="respool-outbox", daemon=True)
        self._run = run
        self.wake = threading.Event()

    def run(self) -> None:
        """Sleep until there are calls, then until they have waited long enough."""
        while True:
            self.wake.wait()
            self.wake.clear()
            while (left := self._flush()) is not None:
                self.wake.wait(left)
                self.wake.clear()

    def _flush(self) -> float | None:
        try:
            return self._run.flush_if_held()
        except (RespoolError, LeaseLost) as error:
            log.warning("calls wait for the end of their run: %s", error)
            return None


def _shown(id: Any) -> str | None:
    return None if id is None else id_text(public_id(id))
