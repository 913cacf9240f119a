"""App: the registry of tasks, queues and streams of one application, and its engine."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload
from zlib import crc32

from msgspec.structs import replace

from .blobs import INSTALL, Blobs, Store, installed, only_named, store_of
from .clock import now as wall_clock
from .codec import codec_for
from .config import SETTINGS, Location, duration, find_url, moment, parse_url, settings, size
from .delivery.limits import Limit
from .delivery.model import Lease, NewCall
from .engines import open_engine, public_id, stored_id
from .engines.base import Engine, Group, LeaseLost, Stream
from .errors import (
    BlobsUnavailable,
    ConfigError,
    DatabaseGone,
    DeclarationConflict,
    EngineUnavailable,
    RecordTooLarge,
    Refused,
    UnknownName,
)
from .keys import key_hash, partition_of
from .options import TaskOptions, check_limit, limit_of, task_options
from .pressure import Gate, Terms, lag
from .producer import MAX_TOGETHER, Producer, chunks, conflict_error
from .record import NO_META, Id, Meta, log_of, new_head, parse_id
from .reference import is_reference
from .result import AsyncResult, Found, ResultSet
from .retention import DEFAULT_AGE, UNSET, shown_age, stored_retention
from .running import Run, current_run
from .stream import StreamHandle, check_name
from .task import Task
from .transaction import Collector, Enlisted, enlist, enlisted
from .unique import Unique
from .unique import send as send_unique
from .why import explain_waiting

if TYPE_CHECKING:
    from .dead import DeadLetters

DEFAULT_QUEUE = "default"
KEYED_PARTITIONS = 64
NEVER = sys.maxsize  # bytes beyond which a payload goes to the blob store
MAX_PARTITIONS = 4096
_abandoned: list[Any] = []
"""Engines of a parent process: never touched after fork, and never closed here either (S2)."""


class Queue:
    """A queue as an app declares it."""

    def __init__(self, app: App, name: str, retention: Any = UNSET) -> None:
        self.app, self.name, self.retention = app, name, retention
        self.ordered, self.partitions = False, 1
        self.limit: Limit | None = None  # of all its calls together; not stored: its workers keep it

    def __repr__(self) -> str:
        return f"<Queue {self.name} of {self.app.name}>"

    @property
    def settings(self) -> dict[str, Any]:
        """What is declared: stored at creation, and compared with later declarations."""
        order = {"ordered": self.ordered, "partitions": self.partitions}
        return order if self.retention is UNSET else {"retention": self.retention, **order}


class Subscription:
    """A function that a group of this app calls with each event of a stream."""

    def __init__(
        self, stream: StreamHandle, task: Task[Any, Any], group: str, start: str, *, ordered: bool
    ) -> None:
        self.stream, self.task, self.group, self.start, self.ordered = stream, task, group, start, ordered


class App:
    """An application: its tasks, queues and streams, and the log they live on.

    Parameters:
        name: tells this app's queues and groups from those of other apps on the same log.
        url: where the log is, for instance `sqlite:///respool.db`; default: RESPOOL_URL, else respool.db
            beside the nearest pyproject.toml above the calling module, else in the working directory.
        options: settings; see `respool.config.SETTINGS`.

    Raises: ConfigError for a setting that does not exist or cannot be. Nothing is opened until used.

    >>> from respool import App
    >>> app = App("shop", url="sqlite:///:memory:")
    >>> @app.task
    ... def add(x: int, y: int) -> int:
    ...     return x + y
    >>> add(2, 3)
    5
    """

    def __init__(self, name: str, url: str | None = None, **options: Any) -> None:
        self.name = check_name("app", name)
        self.settings = settings(options)
        caller = sys._getframe(1).f_globals.get("__file__")
        self.url = find_url(url, caller)
        self.settings["url"] = self.url
        self.location: Location = parse_url(self.url)
        self._store = self._blob_store()
        self._blobs: Blobs | None = None
        self.tasks: dict[str, Task[Any, Any]] = {}
        self.queues: dict[str, Queue] = {DEFAULT_QUEUE: Queue(self, DEFAULT_QUEUE)}
        self.stream_handles: dict[str, StreamHandle] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self._gates: dict[str, Gate] = {}  # of queues with a max_pending
        self._opening = threading.RLock()
        self._engine: Engine | None = None
        self._producer: Producer | None = None
        self._streams: dict[tuple[str, str], Stream] = {}
        self._mains: dict[int, Group] = {}  # by the log of their queue

    def __repr__(self) -> str:
        return f"<App {self.name} on {self.location.shown}>"

    # Declaring

    @overload
    def task(self, fn: Callable[..., Any], /) -> Task[Any, Any]: ...
    @overload
    def task(self, fn: None = None, /, **options: Any) -> Callable[[Callable[..., Any]], Task[Any, Any]]: ...
    def task(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Make a function a task. Options: see `respool.options.OPTIONS`.

        Raises: ConfigError for two tasks of one name, UnknownName for a misspelt option.
        """
        if fn is None:
            return lambda function: self.task(function) if not options else self._add_task(function, options)
        return self._add_task(fn, options)

    def _add_task(self, fn: Callable[..., Any], options: Mapping[str, Any]) -> Task[Any, Any]:
        if not callable(fn):
            raise ConfigError(f"@app.task: {fn!r} is not a function")
        name = options.get("name") or _name_of(fn, "app.task")
        if "queue" in options:
            options = {**options, "queue": self.queue_name(options["queue"])}
        checked = self._task_options(options, f"task {name}")
        task: Task[Any, Any] = Task(self, fn, check_name("task", name), checked)
        for each in (name, *checked["aliases"]):
            if each in self.tasks:
                other = self.tasks[each].fn
                raise ConfigError(
                    f"two tasks are called {each!r}: {_where(other)} and {_where(fn)}; give one a name="
                )
        if "queue" in options:
            self.queue(checked["queue"])
        self.tasks.update(dict.fromkeys((name, *checked["aliases"]), task))
        return task

    def _task_options(self, options: Mapping[str, Any], what: str) -> TaskOptions:
        defaults = {"result_ttl": self.settings["result_ttl"], **self.settings["task_defaults"]}
        return task_options(options, defaults, self.settings["max_deliveries"], what)

    def queue(
        self,
        name: str,
        *,
        retention: Any = UNSET,
        rate_limit: Any = None,
        rate_burst: Any = None,
        max_concurrency: Any = None,
        max_pending: int | None = None,
        when_full: str | None = None,
        max_pending_wait: Any = None,
        ordered: bool = False,
        partitions: int | None = None,
    ) -> Queue:
        """Declare a queue. A task's `queue=` does so too.

        Parameters:
            ordered: calls of one key (a task's `key=`, or that of `apply_async`) run one by one and in order,
                their retries included; those of different keys side by side.
            partitions: of an ordered queue: a partition is worked on by one worker at a time. Fixed at
                creation; default 64.
            retention: what stays on record: calls no older than this (seconds, timedelta, "30d"), or
                `{"age": "30d", "size": "10GiB", "count": 1_000_000}`, any of these; None: for ever. What
                `main` has yet to do, and dead letters, stay longer. Default: 30 days, or as stored.
            rate_limit, rate_burst, max_concurrency: limits of all its calls together, over all workers; as
                of a task.
            max_pending: calls to do, at about which this app sends no more: `delay()` waits for room, then
                raises QueueFull. What a task sends is not held up, and what is parked does not count.
            when_full: "wait" (default), or "raise": QueueFull at once.
            max_pending_wait: seconds to wait at most; default: the app's `append_timeout`.

        Raises: DeclarationConflict where it is declared otherwise here; on first use, where it was
            created otherwise.
        """
        gate = self._gate(name, max_pending, when_full, max_pending_wait)
        given = {"rate_limit": rate_limit, "rate_burst": rate_burst, "max_concurrency": max_concurrency}
        limit = limit_of(check_limit(given, f"queue {name}"), f"queue {name}")
        known = self.queues.get(name)
        kept = UNSET if retention is UNSET else stored_retention(retention)
        if known is None or (kept is not UNSET and known.retention is UNSET):
            known = self.queues[check_name("queue", name)] = Queue(self, name, kept)
        elif kept is not UNSET:
            _compare("queue", name, known.settings, {"retention": kept})
        count = _partitions(name, ordered, partitions)
        if ordered and not known.ordered:
            known.ordered, known.partitions = True, count
        elif ordered:
            _compare("queue", name, known.settings, {"partitions": count})
        if limit is not None and known.limit not in (None, limit):
            raise DeclarationConflict(f"queue {name} is declared with two limits: {known.limit} and {limit}")
        known.limit = limit or known.limit
        if gate is not None:
            if name in self._gates and self._gates[name].terms != gate.terms:
                raise DeclarationConflict(
                    f"queue {name} is declared with two different max_pending; keep one"
                )
            self._gates.setdefault(name, gate)
        return known

    def _gate(self, name: str, most: Any, when_full: Any, wait: Any) -> Gate | None:
        if most is None:
            if when_full is not None or wait is not None:
                raise ConfigError(f"queue {name}: say how much is full: max_pending=")
            return None
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ConfigError(f"queue {name}: max_pending={most!r} is not a whole number above 0")
        if when_full not in (None, "wait", "raise"):
            raise UnknownName("when_full", str(when_full), ("wait", "raise"), f"of queue {name}")
        seconds = self.settings["append_timeout"] if wait is None else duration(wait, "max_pending_wait")
        return Gate(name, Terms(most, when_full == "raise", seconds))

    def lag(self, queue: str | Queue | None = None) -> int:
        """Return how many calls there are to do, in a queue or in all of the app's: the number to watch.

        Those that run count, and those that are over a limit or stopped; what is scheduled, to be retried or
        dead does not.
        """
        names = self.queues if queue is None else (self.queue_name(queue),)
        return sum(lag(self.engine, self._main_of(name)) for name in names)

    def pressure(self, queue: str | Queue | None = None) -> float:
        """Return how full a queue is, of its `max_pending`: 1.0 is full. Of all queues, the fullest.

        0.0 where none has a `max_pending`. A producer that can wait slows down by it.
        """
        names = self._gates if queue is None else (self.queue_name(queue),)
        full = [
            lag(self.engine, self._main_of(name)) / self._gates[name].terms.most
            for name in names
            if name in self._gates
        ]
        return max(full, default=0.0)

    def _main_of(self, queue: str) -> Group:
        return self.group_at(self.stream_of("queue", queue).logs[0] << 40, "main")

    def queue_name(self, queue: Any) -> Any:
        """Return the name of a queue that is given as `queue` returned it; else what is given.

        Raises: ConfigError for a queue of another app.
        """
        if not isinstance(queue, Queue):
            return queue
        if queue.app.name != self.name:
            raise ConfigError(f"queue {queue.name} is of app {queue.app.name}, not of app {self.name}")
        return queue.name

    def stream(
        self,
        name: str,
        *,
        key: str | None = None,
        partitions: int | None = None,
        serializer: str = "json",
        retention: Any = UNSET,
        offload_over: int | str | None = None,
        foreign: bool = False,
        codec: Any = None,
        cloudevents: bool = False,
    ) -> StreamHandle:
        """Declare a stream of events, shared by all apps on the log.

        Parameters:
            key: the field of each event that says whose it is; events of one key stay in one partition.
            partitions: fixed at creation; default 64 with a key, else 1.
            serializer: "json" or "msgpack".
            retention: what stays: events no older than this (seconds, timedelta, "30d"), or
                `{"age": "30d", "size": "10GiB", "count": 1_000_000}`, any of these; None: for ever. What a
                group has yet to read is held up to twice as long, or as much. Default: 30 days, or as stored.
            offload_over: bytes ("1MiB") beyond which an event goes to the blob store; default: the app's.
            foreign: on Kafka, a topic of this very name that another program writes; it is only read here.
            codec: with `foreign`, what reads it instead of the serializer: an object with `decode(bytes)`.
            cloudevents: on Kafka, events carry CloudEvents' headers too (binary mode).

        Raises: DeclarationConflict where it is declared otherwise here; on first use, where it was
            created otherwise. ConfigError, on first use, where the engine has no such streams.
        """
        if codec is not None and not (foreign and callable(getattr(codec, "decode", None))):
            raise ConfigError(f"stream {name}: codec= is for foreign=True, an object with decode(bytes)")
        if foreign and (key is not None or cloudevents):
            raise ConfigError(
                f"stream {name}: foreign=True is only read here; key= and cloudevents= say nothing"
            )
        count = partitions if partitions is not None else (1 if key is None else KEYED_PARTITIONS)
        if not isinstance(count, int) or not 1 <= count <= 4096:
            raise ConfigError(f"stream {name}: partitions={partitions!r} is not a number from 1 to 4096")
        kept = UNSET if retention is UNSET else stored_retention(retention)
        over = self.offload_over(None if offload_over is None else size(offload_over, "offload_over"))
        handle = StreamHandle(
            self,
            check_name("stream", name),
            key,
            count,
            serializer,
            kept,
            over,
            foreign,
            codec,
            cloudevents,
        )
        known = self.stream_handles.setdefault(name, handle)
        _compare("stream", name, known.settings, handle.settings)
        return known

    def add_subscription(
        self,
        stream: StreamHandle,
        fn: Callable[..., Any],
        group: str | None,
        start: str,
        options: Mapping[str, Any],
        *,
        ordered: bool = False,
    ) -> Task[Any, Any]:
        """Register a function for a group of a stream; see `StreamHandle.subscribe`."""
        if not callable(fn):
            raise ConfigError(f"subscribe: {fn!r} is not a function")
        name = options.get("name") or _name_of(fn, "subscribe")
        group = check_name("group", group or name)
        checked = self._task_options(options, f"subscription {name}")
        for option in ("key", "priority"):
            if checked[option] is not None:
                raise ConfigError(f"subscription {name}: {option}= is of calls; an event has its stream's")
        if ordered and checked["batch"] is not None:
            raise ConfigError(
                f"subscription {name}: ordered and batch exclude each other: events of a key come one by one"
            )
        if ordered and stream.key is None:
            raise ConfigError(
                f"subscription {name}: ordered=True needs a stream with a key: app.stream("
                f"{stream.name!r}, key=…)"
            )
        if group in self.subscriptions:
            raise ConfigError(
                f"two subscriptions of app {self.name} use the group {group!r}; name another group="
            )
        task: Task[Any, Any] = Task(self, fn, name, checked, event=True)
        self.subscriptions[group] = Subscription(stream, task, group, start, ordered=ordered)
        return task

    # The engine

    @property
    def engine(self) -> Engine:
        """The engine, opened when first used, and again in each process (safe across fork)."""
        engine = self._engine
        if engine is None or not engine.usable():
            with self._opening:
                if self._engine is not None and not self._engine.usable():
                    _abandoned.append((self._engine, self._producer))
                    self._forget()
                engine = self._engine or self._open()
        return engine

    def _open(self) -> Engine:
        durability = self.location.options.get("durability", self.settings["durability"])
        SETTINGS["durability"].check(durability, "durability")
        engine = open_engine(self.location, durability, self.settings["append_timeout"])
        try:
            self._producer = Producer(engine, self.settings["max_record_size"])
            for queue in self.queues.values():
                self._create(engine, "queue", self.name, queue.name, queue.partitions, queue.settings)
            for handle in self.stream_handles.values():
                self._create(engine, "stream", "", handle.name, handle.partitions, handle.settings)
            self._create_subscriptions(engine)
        except BaseException:
            engine.close()
            self._forget()
            raise
        self._engine = engine
        return engine

    def _create(
        self, engine: Any, kind: Any, app: str, name: str, partitions: int, declared: dict[str, Any]
    ) -> Stream:
        if not engine.capabilities.foreign and (declared.get("foreign") or declared.get("cloudevents")):
            option = "foreign" if declared.get("foreign") else "cloudevents"
            raise ConfigError(
                f"{kind} {name}: {option}=True is for Kafka; {engine.capabilities.name} "
                "shares its log with nobody"
            )
        if declared.get("ordered"):
            _refuse_order(engine, f"queue {name}")
        settings = {"retention": DEFAULT_AGE, **declared}
        stream: Stream = engine.create_stream(kind, app, name, partitions, settings)
        usual = {"ordered": False, "partitions": 1} if kind == "queue" else {}
        _compare(kind, name, {**usual, **stream.settings}, declared)
        if declared.get("foreign"):
            self.stream_handles[name].partitions = stream.partitions
        self._streams[kind, name] = stream
        return stream

    def _create_subscriptions(self, engine: Any) -> None:
        groups = engine.groups()
        known = {(g.stream, g.app, g.name): g for g in groups}
        for subscription in self.subscriptions.values():
            stream = self._streams["stream", subscription.stream.name]
            if (stream.id, self.name, subscription.group) in known:
                kept = known[stream.id, self.name, subscription.group].settings.get("ordered", False)
                _compare(
                    "subscription", subscription.group, {"ordered": kept}, {"ordered": subscription.ordered}
                )
                continue
            self._refuse_name_of_replay(engine, subscription.group, groups)
            latest = subscription.start == "latest"
            bounds = [(log, end if latest else first, None) for log, first, end in engine.bounds(stream)]
            if subscription.ordered:
                _refuse_order(engine, f"subscription {subscription.group}")
            settings = {"ordered": True} if subscription.ordered else {}
            engine.create_group(stream, self.name, subscription.group, "subscription", settings, bounds)

    def _refuse_name_of_replay(self, engine: Engine, name: str, groups: list[Group]) -> None:
        """A worker started with --group and this name would serve both."""
        taken = [g for g in groups if (g.app, g.name, g.kind) == (self.name, name, "replay")]
        if taken:
            queue = next(stream.name for stream in engine.streams() if stream.id == taken[0].stream)
            raise ConfigError(
                f"subscription {name} of app {self.name}: a replay of queue {queue} has that name; give the "
                f"subscription another group=, or drop the replay: respool --url … groups drop {name} "
                f"--queue {queue}"
            )

    def _forget(self) -> None:
        self._engine = self._producer = self._blobs = None
        self._streams.clear()
        self._mains.clear()

    def close(self) -> None:
        """Close the engine; the next use opens it again."""
        with self._opening:
            if self._engine is not None and self._engine.usable():
                self._engine.close()
            self._forget()

    def __enter__(self) -> App:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def producer(self) -> Producer:
        """What appends for this process."""
        _ = self.engine
        assert self._producer is not None
        return self._producer

    def stream_of(self, kind: str, name: str) -> Stream:
        """Return a declared queue or stream as stored, creating it where it is new."""
        engine = self.engine
        stream = self._streams.get((kind, name))
        if stream is not None:
            return stream
        with self._opening:
            if kind == "queue" and name in self.queues:
                queue = self.queues[name]
                return self._create(engine, kind, self.name, name, queue.partitions, queue.settings)
            if kind == "stream" and name in self.stream_handles:
                handle = self.stream_handles[name]
                return self._create(engine, kind, "", name, handle.partitions, handle.settings)
        if kind == "queue":
            raise UnknownName("queue", name, self.queues, f"declare it: app.queue({name!r})")
        raise UnknownName("stream", name, self.stream_handles, f"declare it: app.stream({name!r})")

    # Large payloads

    def _blob_store(self) -> Store | None:
        """Return where large payloads go, None where there is no such place. Raises ConfigError."""
        durability = self.location.options.get("durability", self.settings["durability"])
        return store_of(self.location, self.settings["blobs"], self.settings["blob_timeout"], durability)

    @property
    def blob_store(self) -> Store | None:
        """The store of large payloads, None where there is none."""
        return self._store

    @property
    def blobs(self) -> Blobs:
        """The store of large payloads. Raises BlobsUnavailable where there is none."""
        blobs, engine = self._blobs, self.engine
        if blobs is None or self._engine is not engine:
            if self._store is None:
                raise BlobsUnavailable(f"there is no store of large payloads here; {self._no_store()}")
            most, over = self.settings["max_blob_size"], self.offload_over(None)
            blobs = self._blobs = Blobs(engine, self._store, most, over)
        return blobs

    def _no_store(self) -> str:
        return f"to have one: {INSTALL}" if not installed() else "name one: blobs='s3://…' or RESPOOL_BLOBS"

    def offload_over(self, given: int | None) -> int:
        """Return the bytes beyond which a payload goes to the blob store."""
        over: int | None = self.settings["offload_over"] if given is None else given
        if over is None:
            return NEVER
        return over if self._store is not None else max(over, self.settings["max_record_size"])

    def offload(self, body: bytes, meta: Meta) -> tuple[bytes, Meta]:
        """Put a large payload into the blob store; return what is recorded in its place.

        Raises: RecordTooLarge, BlobsUnavailable: nothing was sent.
        """
        if self._store is None:
            raise RecordTooLarge(
                f"the record has {len(body):,} bytes, max_record_size allows "
                f"{self.settings['max_record_size']:,}; larger ones go to a blob store, {self._no_store()}"
            )
        run = current_run.get()
        described = replace(meta, offloaded=len(body))
        if run is not None and run.serves(self.engine) and enlisted(self) is None:
            if not run.sends:
                return only_named(body), described
            if run.excludes:  # it holds the only lock: the payload could not be entered
                most = self.settings["max_record_size"]
                if len(body) > most:
                    raise RecordTooLarge(
                        f"the record has {len(body):,} bytes; within self.transaction() no more than "
                        f"max_record_size, {most:,}, can be sent here: send it before that, or after"
                    )
                return body, meta
            with run.shield():
                return self._stored(body, None), described
        sender = enlisted(self)
        return self._stored(body, None if sender is None else sender.connection), described

    def _stored(self, body: bytes, connection: Any) -> bytes:
        try:
            return self.blobs.offload(body, connection)
        except BlobsUnavailable as error:
            raise BlobsUnavailable(f"{error}; nothing was sent") from error

    def payload(self, body: Any) -> Any:
        """Return a body or a result as it was sent, from the blob store where it is there.

        Raises: BlobLost, BlobsUnavailable.
        """
        return self.blobs.load(body) if is_reference(body) else body

    # Sending

    def send_task(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        queue: str | Queue | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Append a call of a task by name, without its code.

        Arguments are not checked here unless the task is registered. Options: as `Task.apply_async`.
        """
        task = self.tasks.get(name)
        if task is None:
            checked = task_options({"name": name}, {}, self.settings["max_deliveries"], f"task {name}")
            task = Task(self, _anything, check_name("task", name), checked)
        return task.apply_async(args, kwargs, queue=queue, **options)

    def send_call(
        self, queue: str, task: str, body: bytes, meta: Meta, id: Id | None, over: int = NEVER
    ) -> AsyncResult[Any]:
        """Append one encoded call, or put it in the outbox of the present run.

        Parameters:
            over: bytes beyond which its arguments go to the blob store.
        """
        if len(body) > over:
            body, meta = self.offload(body, meta)
        engine = self.engine
        stream = self._streams.get(("queue", queue)) or self.stream_of("queue", queue)
        log = stream.logs[0]
        if meta.priority is not None or meta.key is not None or stream.settings.get("ordered"):
            log = self._log_in(stream, meta, body)
        run = current_run.get()
        if run is not None and run.serves(engine) and enlisted(self) is None:
            return self._to_outbox(run, log, task, body, meta, id)
        if self._gates and (gate := self._gates.get(queue)) is not None:  # not for a task's own calls (H16)
            gate.enter(engine, self._main_of(queue))
        row = self._row(log, task, body, meta, id)
        pos = self._append(row)
        return AsyncResult(self, row.id if id is None else public_id(row.id), pos=pos)

    async def asend_call(
        self, queue: str, task: str, body: bytes, meta: Meta, id: Id | None, over: int = NEVER
    ) -> AsyncResult[Any]:
        """Append one encoded call without holding up the event loop."""
        if len(body) > over:
            body, meta = await self._aoffload(body, meta)
        log = self._log_in(self.stream_of("queue", queue), meta, body)
        run = self._run()
        if run is not None:
            return self._to_outbox(run, log, task, body, meta, id)
        if self._gates and (gate := self._gates.get(queue)) is not None:
            await gate.aenter(self.engine, self._main_of(queue))
        row = self._row(log, task, body, meta, id)
        with self._sending() as producer:
            await producer.aappend(row)
        return AsyncResult(self, public_id(row.id))

    def send_unique(
        self, queue: str, rule: Unique, key: str, body: bytes, meta: Meta, id: Id | None
    ) -> AsyncResult[Any]:
        """Append one encoded call unless there is one like it; at once, also within a run (H16)."""
        if not self.engine.capabilities.unique:
            raise ConfigError(
                f"task {rule.task}: {self.engine.capabilities.name} has no unique calls; give each a task_id "
                "made of what is to be unique, or take another engine"
            )
        log, run, outer = (
            self._log_in(self.stream_of("queue", queue), meta, body),
            self._run(),
            enlisted(self),
        )
        if run is not None and not run.sends:
            return self._to_outbox(run, log, rule.task, body, meta, id)
        self.producer.check_size(body, meta.packed())
        connection = None if outer is None else outer.connection
        try:
            if run is None:
                if self._gates and (gate := self._gates.get(queue)) is not None:
                    gate.enter(self.engine, self._main_of(queue))
                row = self._row(log, rule.task, body, meta, id)
                self._refuse_taken(row, id)
                return send_unique(self, rule, key, row, None, connection)
            with run.shield():
                row, fence = run.call_now(log, rule.task, body, meta, id, self.name)
                return send_unique(self, rule, key, row, fence, None)
        except LeaseLost:
            raise Refused("the run that made this call has lost its lease; nothing was sent") from None
        except DatabaseGone:
            self.close()
            raise

    def _refuse_taken(self, row: NewCall, id: Id | None) -> None:
        """Raise IdConflict where an id that was given is another record's."""
        pos = None if id is None else self.engine.find(self.name, id)
        if pos is not None:
            (record,) = self.engine.records(pos, pos + 1, 1)
            if (record.task, record.body) != (row.task, row.body):
                raise conflict_error(row)

    @staticmethod
    async def in_thread(send: Callable[..., Any], *args: Any) -> Any:
        """Send without holding up the event loop."""
        import asyncio  # see producer.py

        return await asyncio.to_thread(send, *args)

    def _log_in(self, stream: Stream, meta: Meta, body: bytes) -> int:
        """Return the log that a call goes to. Raises ConfigError for a key or priority it cannot have."""
        if not stream.settings.get("ordered"):
            if meta.key is not None:
                raise ConfigError(
                    f"queue {stream.name} is not ordered, and would run calls of one key side by side: "
                    "declare another with app.queue(…, ordered=True); nothing was sent"
                )
            return stream.logs[0] if meta.priority is None else self._lane(stream, meta.priority)
        if meta.priority is not None:
            raise ConfigError(
                f"queue {stream.name} is ordered, and takes no priorities: its calls keep the order of their "
                "keys; nothing was sent"
            )
        # Without a key any will do; the same for the same call, so that a rerun makes the same ids.
        partition = crc32(body) % stream.partitions
        return stream.logs[partition if meta.key is None else partition_of(meta.key, stream.partitions)]

    def _lane(self, stream: Stream, priority: int) -> int:
        """Return the log of a priority, made when it is first used."""
        logs = stream.lane(priority)
        if logs is None:
            try:
                stream = self.engine.add_lane(stream, priority)
            except EngineUnavailable as error:
                if enlisted(self) is None:
                    raise
                raise EngineUnavailable(
                    f"{error}. Priority {priority} is new to queue {stream.name}: its lane is made in a "
                    "transaction of its own, which may have to wait for yours. Send a first call of that "
                    "priority outside of yours"
                ) from error
            self._streams[stream.kind, stream.name] = stream
            logs = stream.lanes[priority]
        return logs[0]

    async def _aoffload(self, body: bytes, meta: Meta) -> tuple[bytes, Meta]:
        import asyncio  # see producer.py

        return await asyncio.to_thread(self.offload, body, meta)

    def _to_outbox(
        self, run: Run, log: int, task: str, body: bytes, meta: Meta, id: Id | None
    ) -> AsyncResult[Any]:
        """Have a call sent with the settlement of the run that makes it. Raises Refused."""
        self.producer.check_size(body, None)
        return AsyncResult(self, run.send(log, task, body, meta, id, self.name), unsent=run)

    def _run(self) -> Run | None:
        """Return the run whose outbox takes our calls: one that settles on the same log."""
        run = current_run.get()
        return run if run is not None and run.serves(self.engine) and enlisted(self) is None else None

    def _row(self, log: int, task: str, body: bytes, meta: Meta, id: Id | None, space: str = "") -> NewCall:
        moment = wall_clock()
        stored = new_head(moment) if id is None else stored_id(space or self.name, id)
        if meta is NO_META:
            return NewCall(log, task, body, None, stored, moment)
        key = None if meta.key is None else key_hash(meta.key)
        return NewCall(log, task, body, meta.packed(), stored, moment, key)

    def _append(self, row: NewCall) -> int | None:
        """As within `_sending`, without the cost of a generator."""
        producer = enlisted(self) or self._of_run() or self._producer or self.producer
        try:
            return producer.append(row)
        except DatabaseGone:
            self.close()
            raise

    @contextmanager
    def _sending(self) -> Iterator[Producer | Enlisted | Collector]:
        """Give the producer; where the file is gone, the next call opens what is there then."""
        try:
            yield enlisted(self) or self._of_run() or self.producer
        except DatabaseGone:
            self.close()
            raise

    def _of_run(self) -> Enlisted | Collector | None:
        """Return what events are sent by from a run with a transaction of its own, or that sends nothing."""
        run = current_run.get()
        if run is None or run.enlisted is None or not run.serves(self.engine):
            return None
        if isinstance(run.enlisted, Collector):
            return run.enlisted
        return Enlisted(self.engine, run.enlisted, self.settings["max_record_size"])

    @contextmanager
    def transaction(self, connection: Any) -> Iterator[None]:
        """Send what is sent in this block within a transaction of the caller's own.

        The calls and events exist if, and only if, that transaction commits. The block neither begins nor
        ends it. Works where the log is in that very database: on PostgreSQL with a connection of psycopg's,
        SQLAlchemy's (or its Session) or Django's; on SQLite with one of apsw's, and no other (S1).

        Raises: ConfigError for a connection that cannot be used: of another database, or another driver.

        >>> with connection.transaction(), app.transaction(connection):  # doctest: +SKIP
        ...     connection.execute("INSERT INTO orders …")
        ...     confirm.delay(order_id)
        """
        sender = Enlisted.on(self.engine, connection, self.settings["max_record_size"])
        with enlist(self, sender):
            yield

    def send_run(
        self, queue: str, task: str, bodies: Iterator[bytes], meta: Meta, over: int = NEVER
    ) -> ResultSet[Any]:
        """Append many encoded calls of one task."""
        stream = self.stream_of("queue", queue)
        if stream.settings.get("ordered"):
            return self.send_keyed(queue, task, ((body, meta) for body in bodies), over)
        log = self._log_in(stream, meta, b"")
        results: ResultSet[Any] = ResultSet(self)
        run = self._run()
        if run is not None:
            for body in bodies:
                sent, described = self.offload(body, meta) if len(body) > over else (body, meta)
                results.add_run(self._to_outbox(run, log, task, sent, described, None)._id, 1)  # type: ignore[arg-type]
            return results
        self._append_run(log, task, bodies, meta, results, over, queue)
        return results

    def send_keyed(
        self, queue: str, task: str, calls: Iterable[tuple[bytes, Meta]], over: int = NEVER
    ) -> ResultSet[Any]:
        """Append many encoded calls of one task, each to the partition of its key."""
        stream, run = self.stream_of("queue", queue), self._run()
        results: ResultSet[Any] = ResultSet(self)
        waiting: dict[int, list[NewCall]] = {}
        with self._sending() as producer:
            for given, described in calls:
                body, meta = self.offload(given, described) if len(given) > over else (given, described)
                log = self._log_in(stream, meta, body)
                if run is not None:
                    results.add_run(self._to_outbox(run, log, task, body, meta, None)._id, 1)  # type: ignore[arg-type]
                    continue
                producer.check_size(body, None)
                row = self._row(log, task, body, meta, None)
                results.add_run(row.id, 1)
                rows = waiting.setdefault(log, [])
                rows.append(row)
                if len(rows) >= MAX_TOGETHER:
                    producer.append_rows(waiting.pop(log))
            for rows in waiting.values():
                producer.append_rows(rows)
        return results

    def _append_run(
        self,
        log: int,
        task: str,
        bodies: Iterator[bytes],
        meta: Meta,
        results: ResultSet[Any] | None,
        over: int,
        queue: str = "",
    ) -> int:
        packed, sent = meta.packed(), 0
        gate = self._gates.get(queue)
        with self._sending() as producer:
            for chunk in chunks(bodies, over):
                if gate is not None:
                    gate.enter(self.engine, self._main_of(queue), len(chunk))
                if len(chunk) == 1 and len(chunk[0]) > over:  # it stands alone, in a run of one
                    row = self._row(log, task, *self.offload(chunk[0], meta), None)
                    producer.append(row)
                    sent += 1
                    if results is not None:
                        results.add_run(row.id, 1)
                    continue
                producer.check_size(max(chunk, key=len), packed)
                head = producer.append_run(log, task, chunk, packed, wall_clock())
                sent += len(chunk)
                if results is not None:
                    results.add_run(head, len(chunk))
        return sent

    def publish(
        self, stream: StreamHandle, partition: int, type: str, body: bytes, meta: Meta, id: Id | None
    ) -> Id:
        """Append one encoded event; return its id."""
        if len(body) > stream.offload_over:
            body, meta = self.offload(body, meta)
        row = self._event_row(stream, partition, type, body, meta, id)
        self._append(row)
        return public_id(row.id)

    async def apublish(
        self, stream: StreamHandle, partition: int, type: str, body: bytes, meta: Meta, id: Id | None
    ) -> Id:
        """Append one encoded event without holding up the event loop."""
        if len(body) > stream.offload_over:
            body, meta = await self._aoffload(body, meta)
        row = self._event_row(stream, partition, type, body, meta, id)
        with self._sending() as producer:
            await producer.aappend(row)
        return public_id(row.id)

    def _event_row(
        self, stream: StreamHandle, partition: int, type: str, body: bytes, meta: Meta, id: Id | None
    ) -> NewCall:
        log = self.stream_of("stream", stream.name).logs[partition]
        return self._row(log, type, body, meta, id, f"stream:{stream.name}")

    def publish_run(self, stream: StreamHandle, type: str, bodies: Iterator[bytes], meta: Meta) -> int:
        """Append many encoded events to a stream without a key; return how many."""
        log = self.stream_of("stream", stream.name).logs[0]
        return self._append_run(log, type, bodies, meta, None, stream.offload_over)

    def publish_keyed(
        self, stream: StreamHandle, type: str, events: Iterable[tuple[bytes, Meta, int]]
    ) -> int:
        """Append many encoded events to the partitions of their keys; return how many."""
        logs = self.stream_of("stream", stream.name).logs
        waiting: dict[int, list[NewCall]] = {}
        sent = 0
        with self._sending() as producer:
            for body, meta, partition in events:
                if len(body) > stream.offload_over:
                    body, meta = self.offload(body, meta)
                producer.check_size(body, None)
                rows = waiting.setdefault(partition, [])
                rows.append(self._row(logs[partition], type, body, meta, None))
                sent += 1
                if len(rows) >= MAX_TOGETHER:
                    producer.append_rows(waiting.pop(partition))
            for rows in waiting.values():
                producer.append_rows(rows)
        return sent

    # Looking up

    def AsyncResult(self, id: str, group: str = "main") -> AsyncResult[Any]:
        """Return the handle of a call by its id."""
        return AsyncResult(self, parse_id(id), group)

    def dead_letters(
        self,
        queue: str | Queue | None = None,
        group: str | None = None,
        task: str | None = None,
        *,
        ids: Sequence[str] = (),
        error: str | None = None,
        message: str | None = None,
        since: Any = None,
        until: Any = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> DeadLetters:
        """Return this app's dead letters: calls that failed for good.

        What is not given leaves the choice open.

        Parameters:
            queue: a queue's name, or a stream's. ids: those of calls.
            error: the error's type, with or without its module; `*` stands for anything: "*Timeout".
            message: a regular expression, found anywhere in the error's message.
            since, until: aware datetimes, since <= died < until.
            key, headers: those of the call.

        >>> app.dead_letters(task="fetch", error="TimeoutError").redrive(rate="50/s")  # doctest: +SKIP
        """
        from .dead import DeadFilter, DeadLetters

        low, high = (None if each is None else moment(each) for each in (since, until))
        name = self.queue_name(queue)
        return DeadLetters(self, DeadFilter(name, group, task, ids, error, message, low, high, key, headers))

    def groups(self) -> list[Group]:
        """Return all consumer groups on the log, as of now."""
        return self.engine.groups()

    def group_at(self, pos: int, name: str) -> Group:
        """Return the group of this name that reads the stream of a position. Raises UnknownName."""
        if name == "main" and (main := self._mains.get(log_of(pos))) is not None:
            return main  # it lives as long as its queue; other groups come and go
        stream = self.stream_at(pos)
        here = [group for group in self.groups() if group.stream == stream.id]
        for group in here:
            if group.name == name and group.app in (self.name, stream.app):
                if name == "main":
                    self._mains[log_of(pos)] = group
                return group
        raise UnknownName("group", name, [g.name for g in here], f"on {stream.kind} {stream.name}")

    def stream_at(self, pos: int) -> Stream:
        """Return the stream that a position lies in."""
        log = log_of(pos)
        for stream in self._streams.values():
            if log in stream.logs:
                return stream
        for stream in self.engine.streams():
            if log in stream.logs:
                return stream
        raise UnknownName("log", str(log), ())

    def windows(
        self, stream: StreamHandle, since: float | None, until: float | None
    ) -> list[tuple[int, int, int]]:
        """Return (partition, first, one past the last) position of a window in time."""
        stored = self.stream_of("stream", stream.name)
        return [(stored.logs.index(log), lo, hi) for log, lo, hi in self.engine.window(stored, since, until)]

    @staticmethod
    def public_id(id: Id) -> Id:
        """Return an id as it was given, without the namespace it is stored with."""
        return public_id(id)

    def decode_value(self, body: bytes) -> Any:
        """Return what a task returned. Raises BlobLost, BlobsUnavailable."""
        return codec_for("msgpack").decode(self.payload(body))

    def is_running(self, lease: Lease, pos: int) -> bool:
        """Say whether a leased record is being run, as of its worker's last beat."""
        for worker in self.engine.workers():
            if worker.id == lease.owner:
                return any(lo <= pos < hi for lo, _, _, hi in worker.running)
        return False

    def why_waiting(self, found: Found, pos: int, group: Group) -> str:
        """Say what an unfinished call waits for."""
        return explain_waiting(self.engine, self.stream_at(pos), group, pos, found.reason, self)


def _refuse_order(engine: Engine, what: str) -> None:
    """Raise ConfigError where the engine cannot keep the order of keys."""
    if not engine.capabilities.orders:
        raise ConfigError(
            f"{what}: {engine.capabilities.name} does not keep the order of keys: no ordered=True"
        )


def _partitions(name: str, ordered: bool, given: int | None) -> int:
    """Return how many partitions a queue is to have. Raises ConfigError."""
    if given is None:
        return KEYED_PARTITIONS if ordered else 1
    if not isinstance(given, int) or isinstance(given, bool) or not 0 < given <= MAX_PARTITIONS:
        raise ConfigError(f"queue {name}: partitions={given!r} is no number from 1 to {MAX_PARTITIONS}")
    if not ordered and given != 1:
        raise ConfigError(f"queue {name}: partitions={given} goes with ordered=True; others need none")
    return given


def _anything(*args: Any, **kwargs: Any) -> None:
    """Stand for a task whose code is elsewhere."""


def _name_of(fn: Callable[..., Any], where: str) -> str:
    name: str = getattr(fn, "__name__", "<nameless>")
    if name.startswith("<"):
        raise ConfigError(
            f"{where}: {fn!r} has no name under which its calls could be recorded; give it one, name='…', or "
            "write it as a function with def"
        )
    return name


def _where(fn: Any) -> str:
    code = getattr(fn, "__code__", None)
    return f"{fn.__module__}.{fn.__qualname__}" + (
        f" ({os.path.basename(code.co_filename)}:{code.co_firstlineno})" if code else ""
    )


def _compare(kind: str, name: str, stored: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
    differ = [key for key in declared if stored.get(key) != declared[key]]
    if differ:
        raise DeclarationConflict(
            f"{kind} {name} was declared with "
            + ", ".join(f"{key}={_declared(key, stored.get(key))}" for key in differ)
            + ", now with "
            + ", ".join(f"{key}={_declared(key, declared[key])}" for key in differ)
            + "; declare it as it was, or under another name"
        )


def _declared(key: str, value: Any) -> str:
    """Write a setting as it may be declared: a retention as "30d", not as its seconds."""
    if key != "retention" or value is None or isinstance(value, Mapping):
        return repr(value)
    return shown_age(value)
