"""App: the registry of tasks, queues and streams of one application, and its engine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

from . import celery_names, pickled
from .config import settings
from .declared import (
    DEFAULT_QUEUE,
    Queue,
    Subscription,
    check_foreign,
    check_subscription,
    check_task,
    compare,
    defined_at,
    queue_partitions,
    stream_partitions,
    task_name,
)
from .engines.base import Engine, Group, Stream, StreamKind
from .errors import ConfigError, UnknownName
from .location import locate
from .misspelt import suggests
from .opened import Opened, open_log
from .options import OF_CALLS, TaskOptions, check_defaults, check_limit, limit_of, task_options
from .payloads import Payloads
from .pressure import UNSAID, declared_terms, lag
from .record import first_pos, parse_id
from .result import AsyncResult
from .retention import UNSET, stored_retention
from .sending import Sender
from .stream import StreamHandle, check_name
from .task import Task
from .transaction import Enlisted, enlist
from .units import moment, size

if TYPE_CHECKING:
    from .dead import DeadLetters

_abandoned: list[Opened] = []
"""What a parent process had open: never touched after fork, and never closed here either (S2)."""


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

    def __init__(self, name: str = "", url: str | None = None, **options: Any) -> None:
        if name == "":
            raise ConfigError("an app needs a name, that of its project: App('shop')")
        self.name = check_name("app", name)
        self.settings = settings(options)
        check_defaults(self.settings["task_defaults"])
        caller = sys._getframe(1).f_globals.get("__file__")
        self.url, self.location = locate(url, caller)
        self.settings["url"] = self.url
        self.payloads = Payloads(self)
        self.sender = Sender(self)
        self.tasks: dict[str, Task[Any, Any]] = {}
        self.queues: dict[str, Queue] = {DEFAULT_QUEUE: Queue(self, DEFAULT_QUEUE)}
        self.stream_handles: dict[str, StreamHandle] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.looks = False  # a command that only looks: opening creates nothing
        self.lost = False  # the file was deleted or replaced in use: opening creates nothing in its place
        self._opening = threading.RLock()
        self._opened: Opened | None = None

    if not TYPE_CHECKING:  # else any name would do for type checkers

        def __getattr__(self, name):
            return celery_names.missing(self, celery_names.APP, name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the module that has it; what is open stays here. Raises PicklingError where none has."""
        return pickled.app_at, pickled.place_of(self)

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
        name = task_name(fn, options.get("name"), "@app.task")
        if "queue" in options:
            options = {**options, "queue": self.queue_name(options["queue"])}
        checked = self._task_options(options, f"task {name}")
        task: Task[Any, Any] = Task(self, fn, check_name("task", name), checked)
        for each in (name, *checked["aliases"]):
            if each in self.tasks:
                both = f"{defined_at(self.tasks[each].fn)} and {defined_at(fn)}"
                raise ConfigError(f"two tasks are called {each!r}: {both}; give one a name=")
        queue = self.queues.get(checked["queue"])
        if queue is not None and queue.declared:  # else that may yet come; it is asked again at opening
            check_task(task, queue)
        if "queue" in options and queue is None:
            self.queues[checked["queue"]] = Queue(self, check_name("queue", checked["queue"]))
        self.tasks.update(dict.fromkeys((name, *checked["aliases"]), task))
        return task

    def _task_options(self, options: Mapping[str, Any], what: str, *, events: bool = False) -> TaskOptions:
        defaults = {"result_ttl": self.settings["result_ttl"], **self.settings["task_defaults"]}
        if events:
            defaults = {name: value for name, value in defaults.items() if name not in OF_CALLS}
        return task_options(options, defaults, self.settings["max_deliveries"], what)

    @suggests("queue option")
    def queue(
        self,
        name: str,
        *,
        retention: Any = UNSET,
        rate_limit: Any = None,
        rate_burst: Any = None,
        max_concurrency: Any = None,
        max_pending: Any = UNSAID,
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
            max_pending: calls to do, at about which nobody sends more: `delay()` waits for room, then
                raises QueueFull. What a task sends is not held up, and what is parked does not count. It is
                stored with the queue when the app opens, and what was declared last holds for all who send
                to it, also where they do not declare it. None: no bound any more. Default: as stored.
            when_full: "wait" (default), or "raise": QueueFull at once.
            max_pending_wait: seconds to wait at most; default: the app's `append_timeout`.

        Raises: DeclarationConflict where it is declared otherwise here; on first use, where it was
            created otherwise.
        """
        check_name("queue", name)
        terms = declared_terms(name, max_pending, when_full, max_pending_wait)
        given = {"rate_limit": rate_limit, "rate_burst": rate_burst, "max_concurrency": max_concurrency}
        limit = limit_of(check_limit(given, f"queue {name}"), f"queue {name}")
        kept = UNSET if retention is UNSET else stored_retention(retention)
        count = queue_partitions(name, ordered, partitions)
        queue = self.queues.get(name) or Queue(self, name)
        queue.take_in(kept, ordered, count, limit, terms)
        queue.declared = True
        self.queues[name] = queue
        for task in self.tasks.values():
            if task.queue == name:
                check_task(task, queue)
        return queue

    def lag(self, queue: str | Queue | None = None) -> int:
        """Return how many calls there are to do, in a queue or in all of the app's: the number to watch.

        Those that run count, and those that are over a limit or stopped; what is scheduled, to be retried or
        dead does not.

        Parameters:
            queue: one queue, by name or as `app.queue` returned it; None: all of them, summed.

        Raises: UnknownName for a queue that the app does not have; EngineUnavailable.
        """
        names = self.queues if queue is None else (self.queue_name(queue),)
        return sum(lag(self.engine, self.main_of(name)) for name in names)

    def pressure(self, queue: str | Queue | None = None) -> float:
        """Return how full a queue is, of its `max_pending`: 1.0 is full. Of all queues, the fullest.

        0.0 where none has a `max_pending`. A producer that can wait slows down by it.

        Parameters:
            queue: one queue, by name or as `app.queue` returned it; None: the fullest of all.

        Raises: UnknownName for a queue that the app does not have; EngineUnavailable.
        """
        opened = self.opened
        names = (*opened.gates,) if queue is None else (self.queue_name(queue),)
        mains = {name: self.main_of(name) for name in names}  # says which are not known
        full = [
            lag(opened.engine, main) / opened.gates[name].terms.most
            for name, main in mains.items()
            if name in opened.gates
        ]
        return max(full, default=0.0)

    def queue_name(self, queue: Any) -> Any:
        """Return the name of a queue that is given as `queue` returned it; else what is given.

        Raises: ConfigError for a queue of another app.
        """
        if not isinstance(queue, Queue):
            return queue
        if queue.app.name != self.name:
            raise ConfigError(f"queue {queue.name} is of app {queue.app.name}, not of app {self.name}")
        return queue.name

    @suggests("stream option")
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
        check_name("stream", name)
        check_foreign(name, foreign=foreign, codec=codec, key=key, cloudevents=cloudevents)
        count = stream_partitions(name, key, partitions)
        kept = UNSET if retention is UNSET else stored_retention(retention)
        over = self.payloads.over(None if offload_over is None else size(offload_over, "offload_over"))
        handle = StreamHandle(
            self,
            name,
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
        compare("stream", name, known.settings, handle.settings)
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
        name = task_name(fn, options.get("name"), "subscribe")
        group = check_name("group", name if group is None else group)
        checked = self._task_options(options, f"subscription {name}", events=True)
        check_subscription(name, stream, checked, ordered=ordered)
        if group in self.subscriptions:
            raise ConfigError(
                f"two subscriptions of app {self.name} use the group {group!r}; name another group="
            )
        task: Task[Any, Any] = Task(self, fn, name, checked, event=True)
        self.subscriptions[group] = Subscription(stream, task, group, start, ordered=ordered)
        opened = self._opened
        if opened is not None and opened.engine.usable():  # else it is made when the log is opened
            self.stream_of("stream", stream.name)
            opened.create_subscriptions(opened.engine.groups())
        return task

    # The log

    @property
    def durability(self) -> str:
        """As the URL says, else the settings."""
        said: str = self.location.options.get("durability", self.settings["durability"])
        return said

    @property
    def opened(self) -> Opened:
        """What is open: opened when first used, and again in each process (safe across fork)."""
        opened = self._opened
        if opened is None or not opened.engine.usable():
            with self._opening:
                if self._opened is not None and not self._opened.engine.usable():
                    _abandoned.append(self._opened)
                    self._opened = None
                opened = self._opened = self._opened or open_log(self)
                self.lost = False
        return opened

    @property
    def engine(self) -> Engine:
        """The engine; see `opened`."""
        return self.opened.engine

    def close(self) -> None:
        """Close the engine; the next use opens it again."""
        with self._opening:
            if self._opened is not None and self._opened.engine.usable():
                self._opened.engine.close()
            self._opened, self.lost = None, False

    def close_lost(self) -> None:
        """Close a file that was deleted or replaced in use: what is there next is opened, and none made."""
        with self._opening:
            self.close()
            self.lost = True

    def __enter__(self) -> App:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def stream_of(self, kind: StreamKind, name: str) -> Stream:
        """Return a declared queue or stream as stored, creating it where it is new."""
        opened = self.opened
        stream = opened.streams.get((kind, name))
        if stream is not None:
            return stream
        with self._opening:
            if kind == "queue" and name in self.queues:
                queue = self.queues[name]
                return opened.create_stream(kind, self.name, name, queue.partitions, queue.settings)
            if kind == "stream" and name in self.stream_handles:
                handle = self.stream_handles[name]
                return opened.create_stream(kind, "", name, handle.partitions, handle.settings)
        if kind == "queue":
            raise UnknownName("queue", name, self.queues, otherwise=f"declare it: app.queue({name!r})")
        raise UnknownName("stream", name, self.stream_handles, otherwise=f"declare it: app.stream({name!r})")

    def main_of(self, queue: str) -> Group:
        """Return the group that runs a queue's calls."""
        return self.opened.group_at(first_pos(self.stream_of("queue", queue).logs[0]), "main")

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

        Arguments are not checked here unless the task is registered.

        Parameters:
            name: the task's name.
            args, kwargs: the call's arguments.
            queue: the queue to send to, by name or as `app.queue` returned it; default: the task's where it
                is registered here, else "default".
            options: as `Task.apply_async` takes them.

        Returns: the call's handle. Raises: as `Task.apply_async`.
        """
        task = self.tasks.get(name)
        if task is None:
            checked = task_options({"name": name}, {}, self.settings["max_deliveries"], f"task {name}")
            task = Task(self, _anything, check_name("task", name), checked)
        return task.apply_async(args, kwargs, queue=queue, **options)

    @contextmanager
    def transaction(self, connection: Any) -> Iterator[None]:
        """Send what is sent in this block within a transaction of the caller's own.

        The calls and events exist if, and only if, that transaction commits. The block neither begins nor
        ends it. Works where the log is in that very database: on PostgreSQL with a connection of psycopg's,
        SQLAlchemy's (or its Session) or Django's; on SQLite with one of apsw's, and no other (S1).

        A thread or coroutine that is begun in the block and outlives it sends nothing any more: Refused.

        Raises: ConfigError for a connection that cannot be used: of another database, or another driver.

        >>> with connection.transaction(), app.transaction(connection):  # doctest: +SKIP
        ...     connection.execute("INSERT INTO orders …")
        ...     confirm.delay(order_id)
        """
        sender = Enlisted.on(self.engine, connection, self.settings["max_record_size"])
        with enlist(self, sender):
            yield

    # Looking up

    def AsyncResult(self, id: str, group: str = "main") -> AsyncResult[Any]:
        """Return the handle of a call by its id."""
        return AsyncResult(self, parse_id(id), group)

    @suggests("filter")
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
        from .dead.find import checked

        low, high = (None if each is None else moment(each) for each in (since, until))
        name = self.queue_name(queue)
        chosen = DeadFilter(name, group, task, ids, error, message, low, high, key, headers)
        return DeadLetters(self, checked(chosen))

    def groups(self) -> list[Group]:
        """Return all consumer groups on the log, as of now."""
        return self.engine.groups()


def _anything(*args: Any, **kwargs: Any) -> None:
    """Stand for a task whose code is elsewhere."""
