"""Tasks: functions whose calls are records."""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar

import msgspec

from . import celery_names, pickled
from . import result as handles
from .callkeys import CallKey
from .celery_names import instead
from .clock import now as wall_clock
from .delivery.model import MIDDLE
from .encoding.codec import Codec, codec_for
from .encoding.refusals import brief
from .encoding.signature import Signature
from .errors import BadArguments, ConfigError, Retry, UnknownName
from .keys import KeyOf, key_function, key_text
from .options import OPTIONS, TaskOptions
from .options import priority as checked_priority
from .record import NO_META, Id, Meta, checked_headers, parse_id
from .result import ResultSet
from .running import current_run
from .stream import check_name
from .unique import Unique
from .units import coming_moment, duration

if TYPE_CHECKING:
    from .app import App
    from .declared import Queue

P = ParamSpec("P")
R = TypeVar("R")

_CALL_OPTIONS = (
    "countdown",
    "eta",
    "expires",
    "queue",
    "key",
    "priority",
    "task_id",
    "headers",
    "connection",
)
_RETRY_OPTIONS = ("countdown", "eta", "exc", "max_retries")
_A_PAIR_EACH = "each item is (args, kwargs), as in ((1, 2), {})"
_ONE_EACH = f"delay_many takes the one argument of each call; for more there is apply_many: {_A_PAIR_EACH}"


class Task(Generic[P, R]):
    """A function whose calls can be sent to a queue. Made by `@app.task`.

    Calling it runs the function here and now. `delay`, `apply_async` and the like append a call to the
    task's queue and return a handle; a worker runs it.
    """

    def __init__(
        self, app: App, fn: Callable[..., R], name: str, options: TaskOptions, *, event: bool = False
    ) -> None:
        self.app = app
        self.name = name
        self.options = options
        self.fn = fn
        batch: Any = "no" if options["batch"] is None else "events" if event else "calls"
        self.parameters = Signature(fn, bound=options["bind"], name=name, batch=batch)
        self.queue: str = options["queue"]
        self.expires = options["expires"]
        self.offload_over = app.payloads.over(options["offload_over"])
        self.content_type: str = options["serializer"] or "msgpack"
        self.codec: Codec = codec_for(self.content_type, app.settings["pickle_key"])
        key = options["limit_key"]
        self.limit_key = (
            None if key is None else CallKey(f"task {name}: limit_key", key, fn, bool(options["bind"]))
        )
        self.unique = (
            None
            if options["unique"] is None
            else Unique(
                name, fn, bool(options["bind"]), options.values, self.codec.encode, self.parameters.plain
            )
        )
        functools.update_wrapper(self, fn, updated=())
        self.priority: int | None = options["priority"]
        self.key_of: KeyOf | None = None
        if options["key"] is not None:
            self.key_of = key_function(options["key"], fn, options["bind"], name)
        plain = msgspec.structs.replace(self._meta(None, None, None, self.priority), expires=None)
        self._plain_meta = NO_META if plain == NO_META else plain

    if not TYPE_CHECKING:  # else any name would do for type checkers

        def __getattr__(self, name):
            return celery_names.missing(self, celery_names.TASK, name)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle by its module and name, else by its app's. Raises PicklingError where neither has it."""
        if pickled.is_global(self):
            return str(vars(self)["__qualname__"])
        if self.app.tasks.get(self.name) is not self:
            raise pickle.PicklingError(f"task {self.name} is in no module under its function's name")
        return pickled.task_of, (self.app, self.name)

    def __repr__(self) -> str:
        return f"<Task {self.name} of {self.app.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, with nothing recorded."""
        if self.options["bind"]:
            return self.fn(self, *args, **kwargs)
        return self.fn(*args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> handles.AsyncResult[R]:
        """Append a call; it is on disk when this returns (P1).

        Returns: the call's handle.
        Raises: BadArguments, NotEncodable, RecordTooLarge, EngineUnavailable: nothing was sent.
            AppendUnknown: it may have been; send the same `task_id` again.

        >>> add.delay(2, 3).get(timeout=5)  # doctest: +SKIP
        5
        """
        return self._send(args, kwargs)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> handles.AsyncResult[R]:
        """Append a call without holding up the event loop; else like `delay`."""
        return await self._asend(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        countdown: Any = None,
        eta: datetime | None = None,
        expires: Any = None,
        queue: str | Queue | None = None,
        key: str | int | None = None,
        priority: int | None = None,
        task_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        connection: Any = None,
        **unknown: Any,
    ) -> handles.AsyncResult[R]:
        """Append a call with options.

        Parameters:
            args, kwargs: the call's arguments.
            countdown: seconds (or timedelta, "5m") before which it does not start.
            eta: the same as an aware datetime.
            expires: seconds, or an aware datetime, after which it is revoked instead of started.
            queue: another queue than the task's, by name or as `app.queue` returned it.
            key: calls of one key run one by one and in order, in a queue declared with `ordered=True`;
                default: by the task's `key`. A key has no priority: the two exclude each other.
            priority: 0 to 9, 9 first; default: the task's, else 4. A call of priority 9 starts before all
                that waits with a lower one; those still get a share, so that none starves.
            task_id: an id of your own, printable text of up to 200 bytes, unique in the app. Sending the same
                id with the same arguments again sends nothing and returns the handle.
            headers: text by name, carried along to `self.request.headers`.
            connection: a database connection of yours: the call is part of its transaction, see
                `App.transaction`.

        Returns: the call's handle. Raises: as `delay`; ConfigError for an option that cannot be used.
        """
        _no_unknown(unknown, self.name)
        given = self._arguments("apply_async", args, kwargs)
        lane = self._priority(priority)
        if key is not None:
            key = key_text(key, f"{self.name}.apply_async(): key")
        if key is not None and self.options["batch"] is not None:
            raise BadArguments(
                f"{self.name}.apply_async(): key and batch exclude each other: calls of one key run one by "
                "one; nothing was sent"
            )
        if lane is not None and (key is not None or self.key_of is not None):
            raise BadArguments(
                f"{self.name}.apply_async(): key and priority exclude each other: calls of one key "
                "keep their order; nothing was sent"
            )
        meta = self._meta(_due(countdown, eta), expires, headers, lane, key)
        if connection is None:
            return self._send(*given, meta=meta, queue=queue, task_id=task_id)
        with self.app.transaction(connection):
            return self._send(*given, meta=meta, queue=queue, task_id=task_id)

    def delay_many(self, items: Iterable[Any]) -> ResultSet[R]:
        """Append one call for each item (its one argument), in large synced chunks.

        The task's `expires` counts from when a call is appended, however long the items take to come.

        Returns: the calls' handles, of which ten million take a few hundred kilobytes.
        Raises: as `delay`; PartlyAppended where some are stored already: `error.stored` of them, which stay.
        """
        each = self._iterable("delay_many", items, "the one argument of each call")
        item: Any = None

        def bodies() -> Iterator[bytes]:
            nonlocal item
            encode, check = self.codec.encode, self.parameters.check
            for item in each:
                yield encode(check((item,), {}), "args")

        def calls() -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
            nonlocal item
            for item in each:
                yield (item,), {}

        try:
            if self.unique is None and self.key_of is None and self.limit_key is None:
                return self._send_bodies(bodies(), self.queue)
            return self._send_many(calls(), None)
        except BadArguments as error:
            if isinstance(item, tuple | list):
                error.args = (f"{error}; {_ONE_EACH}",)
            raise

    def apply_many(
        self, calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]], *, queue: str | Queue | None = None
    ) -> ResultSet[R]:
        """Append many calls, each given as (args, kwargs), in large synced chunks.

        Parameters:
            calls: the arguments of each.
            queue: another queue than the task's, by name or as `app.queue` returned it.

        Returns: the calls' handles. Raises: as `delay_many`.

        >>> add.apply_many([((1, 2), {}), ((3, 4), {})])  # doctest: +SKIP
        """
        each = self._iterable("apply_many", calls, "(args, kwargs) for each call")
        return self._send_many((self._pair(call) for call in each), queue)

    def AsyncResult(self, id: str) -> handles.AsyncResult[R]:
        """Return the handle of a call by its id."""
        return self.app.AsyncResult(id)

    # For a bound task, inside a run

    @property
    def request(self) -> Any:
        """What is known of the call that is running: id, retries, deliveries, headers, queue, …"""
        return self._run("request").request()

    @property
    def calls(self) -> Any:
        """In a batch function: the requests of its calls, in the order of its list."""
        return self._run("calls").requests()

    def retry(
        self,
        *,
        countdown: Any = None,
        eta: datetime | None = None,
        exc: BaseException | None = None,
        max_retries: int | None = None,
        **unknown: Any,
    ) -> NoReturn:
        """End this run and have the call run again later; raise what this raises.

        Parameters:
            countdown: exact seconds to wait; default: the task's backoff.
            eta: the same as an aware datetime.
            exc: the error that led to it; raised instead where `max_retries` is used up.
            max_retries: how often this call may have been retried in all; None: as the task says. It counts
                for this time only, and is to be said again the next time.

        Raises: Retry, which is to leave the task; ConfigError outside of a run, or for what is no number;
            UnknownName for another option, with `exc` as its cause.
        """
        self._run("retry")
        if unknown:
            name = next(iter(unknown))
            use = instead(celery_names.RETRY_OPTIONS, name)
            raise UnknownName("retry option", name, _RETRY_OPTIONS, instead=use) from exc
        if max_retries is not None:
            max_retries = _max_retries(max_retries, f"{self.name}: self.retry(): max_retries", exc)
        wait = None if countdown is None else duration(countdown, "countdown")
        if eta is not None:
            wait = max(coming_moment(eta, "eta") - wall_clock(), 0.0)
        told = f"retry: {exc!r}" if exc else "asked for by the task"
        raise Retry(told, countdown=wait, cause=exc, max_retries=max_retries)

    def once(self, step: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do a step of this call once and for all: `charged = self.once("charge", card.charge, amount)`.

        What it gives is kept with the call. A run that comes later, after a retry, a crash or a seek, or in a
        replay, gets that value and does not do it again. Where the process dies after the step and before its
        value is kept, the next run does it once more: let it be repeatable elsewhere, too, if it can be.

        Parameters:
            step: the step's name, text of 1 to 200 characters, each once in the task.
            fn: called with the rest. It may return what a task may; where it raises, nothing is kept.

        Returns: what `fn` gave, as it comes back from the log (tuples are lists).
        """
        run = self._run("once")
        kept = run.step(step)
        if kept is None:
            value = fn(*args, **kwargs)
            if inspect.isawaitable(value):
                if inspect.iscoroutine(value):
                    value.close()
                raise ConfigError(f"self.once({step!r}): {fn!r} is a coroutine; write await self.aonce(…)")
            kept = self._keep(run, step, value)
        return codec_for("msgpack").decode(kept)

    async def aonce(self, step: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do a step once and for all in a coroutine task: `fn` may be a coroutine function. See `once`."""
        run = self._run("aonce")
        kept = run.step(step)
        if kept is None:
            value = fn(*args, **kwargs)
            kept = self._keep(run, step, await value if inspect.isawaitable(value) else value)
        return codec_for("msgpack").decode(kept)

    @staticmethod
    def _keep(run: Any, step: str, value: Any) -> bytes:
        encoded = codec_for("msgpack").encode(value, f"what self.once({step!r}) gave")
        run.keep_step(step, encoded)
        return encoded

    def update_state(self, meta: Any = None, state: str = "PROGRESS") -> None:
        """Say how far this run is; seen as state PROGRESS and `AsyncResult.info`.

        Parameters:
            meta: what msgpack can hold: what `AsyncResult.info` gives until the next one, or the result.
            state: PROGRESS, and no other.

        Raises: ConfigError outside of a run, in a batch, within `self.transaction()`, for another state;
            NotEncodable; EngineUnavailable, AppendUnknown: it is kept by one write.
        """
        if state != "PROGRESS":
            raise ConfigError(f"update_state: state {state!r} is not PROGRESS; put more in meta=")
        self._run("update_state").update_state(meta)

    def transaction(self) -> AbstractContextManager[Any]:
        """Begin a transaction of the database that the log is in, which commits with this run's settlement.

        What is done on the connection that the block gets, the run's result and the calls it makes are there
        together, or not at all: exactly once, however often the run is repeated. It commits when the task
        has returned, not at the end of the block; where the task raises, or the run's lease is lost, it is
        undone. One for each run. The connection is psycopg's on PostgreSQL, apsw's on SQLite (which keeps
        all others from writing meanwhile).

        Raises: ConfigError where the engine cannot do that, or the run has had one.

        >>> with self.transaction() as connection:  # doctest: +SKIP
        ...     connection.execute("UPDATE account SET balance = balance - %s WHERE id = %s", (5, 7))
        """
        transaction: AbstractContextManager[Any] = self._run("transaction").transaction()
        return transaction

    def _run(self, what: str) -> Any:
        run = current_run.get()
        if run is None:
            raise ConfigError(f"{self.name}: self.{what} exists only while a worker runs the task")
        return run

    # Sending

    def _meta(
        self,
        due: float | None,
        expires: Any,
        headers: Mapping[str, str] | None,
        priority: int | None,
        key: str | None = None,
    ) -> Meta:
        if expires is None:
            expires = self.expires
        if isinstance(expires, datetime):
            expires = coming_moment(expires, "expires")
        elif expires is not None:
            expires = wall_clock() + duration(expires, "expires")
        if headers is not None:
            headers = checked_headers(headers)
        content_type = None if self.content_type == "msgpack" else self.content_type
        lane = None if priority == MIDDLE else priority
        return Meta(key, headers, due, expires, lane, content_type)

    def _priority(self, given: int | None) -> int | None:
        return self.priority if given is None else checked_priority(given, f"{self.name}: priority")

    def _default_meta(self) -> Meta:
        """`expires` counts from the call; without it one object serves all calls."""
        return self._plain_meta if self.expires is None else self._meta(None, None, None, self.priority)

    def _arguments(self, where: str, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a call's arguments as they were meant, or say how to write them."""
        if type(args) in (tuple, list) and (kwargs is None or type(kwargs) is dict):  # as nearly always
            return tuple(args), dict(kwargs or {})
        if isinstance(args, str | bytes | Mapping) or not isinstance(args, Iterable):
            raise BadArguments(
                f"{self.name}.{where}(): args {brief(args)} is no list or tuple of arguments; one alone is "
                f"written ({brief(args)},)"
            )
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise BadArguments(
                f"{self.name}.{where}(): kwargs {brief(kwargs)} is no dict of arguments by name"
            )
        return tuple(args), dict(kwargs or {})

    def _pair(self, call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not isinstance(call, tuple | list) or len(call) != 2:
            raise BadArguments(
                f"{self.name}.apply_many(): {brief(call)} is no pair (args, kwargs); {_A_PAIR_EACH}"
            )
        try:
            return self._arguments("apply_many", *call)
        except BadArguments as error:
            error.args = (f"{error}; {_A_PAIR_EACH}",)
            raise

    def _iterable(self, where: str, items: Any, of_what: str) -> Iterable[Any]:
        if not isinstance(items, Iterable):
            raise BadArguments(
                f"{self.name}.{where}(): {brief(items)} is no list or other iterable of {of_what}"
            )
        return items

    def _queue_name(self, queue: Any) -> str:
        """Return a queue's name; it may be given as `app.queue()` returned it."""
        if queue is None:
            return self.queue
        return check_name("queue", queue if isinstance(queue, str) else self.app.queue_name(queue))

    def _encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        checked = self.parameters.check(args, kwargs)
        if self.limit_key is not None:
            self.limit_key.of(args, kwargs)  # here, where it can be mended, and not in a worker
        return self.codec.encode(checked, "args")

    def _send(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        meta: Meta | None = None,
        queue: str | Queue | None = None,
        task_id: str | None = None,
    ) -> handles.AsyncResult[R]:
        checked = self.parameters.check(args, kwargs)
        if self.limit_key is not None:
            self.limit_key.of(args, kwargs)  # as in `_encode`, less the call of it
        body = self.codec.encode(checked, "args")
        id = None if task_id is None else parse_id(task_id)
        if meta is None:
            meta = self._plain_meta if self.expires is None else self._default_meta()
        if self.key_of is not None and meta.key is None:
            meta = self._keyed(meta, args, kwargs)
        if self.unique is not None:
            taken = self.unique.key(self.app.name, args, kwargs, checked)
            return self._send_unique(self.unique, taken, body, meta, queue, id)
        to = self.queue if queue is None else self._queue_name(queue)
        return self.app.sender.call(to, self.name, body, meta, id, self.offload_over)

    def _keyed(self, meta: Meta, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Meta:
        assert self.key_of is not None
        return Meta(self.key_of(args, kwargs), meta.headers, meta.due, meta.expires, None, meta.content_type)

    def _send_unique(
        self,
        rule: Unique,
        key: str,
        body: bytes,
        meta: Meta,
        queue: str | Queue | None,
        id: Id | None,
    ) -> handles.AsyncResult[R]:
        """Append a call unless there is one like it."""
        if rule.on_duplicate == "replace":
            due = meta.due
            if due is None and rule.debounce is not None:
                due = wall_clock() + rule.debounce
            meta = msgspec.structs.replace(meta, due=due, latest=key)
        return self.app.sender.unique_call(self._queue_name(queue), rule, key, body, meta, id)

    async def _asend(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> handles.AsyncResult[R]:
        if self.unique is not None:
            sent: handles.AsyncResult[R] = await self.app.sender.in_thread(self._send, args, kwargs)
            return sent
        body, meta = self._encode(args, kwargs), self._default_meta()
        if self.key_of is not None:
            meta = self._keyed(meta, args, kwargs)
        return await self.app.sender.acall(self.queue, self.name, body, meta, None, self.offload_over)

    def _send_many(
        self, calls: Iterator[tuple[tuple[Any, ...], dict[str, Any]]], queue: str | Queue | None
    ) -> ResultSet[R]:
        if self.unique is not None:
            return self._send_each(calls, queue)
        to = self._queue_name(queue)
        if self.key_of is not None:
            meta = self._plain_meta
            each = ((self._encode(args, kwargs), self._keyed(meta, args, kwargs)) for args, kwargs in calls)
            return self.app.sender.keyed_calls(to, self.name, each, self.offload_over, self.expires)
        return self._send_bodies((self._encode(*call) for call in calls), to)

    def _send_each(
        self, calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]], queue: str | Queue | None
    ) -> ResultSet[R]:
        """Append calls one by one: each may be there already."""
        results: ResultSet[R] = ResultSet(self.app)
        for args, kwargs in calls:
            results.add_call(self._send(args, kwargs, queue=queue))
        return results

    def _send_bodies(self, bodies: Iterator[bytes], queue: str) -> ResultSet[R]:
        """Append calls that differ in their bodies only."""
        plain = self._plain_meta
        return self.app.sender.calls(queue, self.name, bodies, plain, self.offload_over, self.expires)


def _max_retries(given: Any, what: str, led_to_it: BaseException | None) -> int:
    try:
        checked: int = OPTIONS["max_retries"].check(given, what)
    except ConfigError as error:
        raise error from led_to_it
    return checked


def _due(countdown: Any, eta: datetime | None) -> float | None:
    if countdown is not None and eta is not None:
        raise ConfigError("countdown and eta: give one of them")
    if eta is not None:
        return coming_moment(eta, "eta")
    return None if countdown is None else wall_clock() + duration(countdown, "countdown")


def _no_unknown(unknown: Mapping[str, Any], name: str) -> None:
    if unknown:
        given, use = next(iter(unknown)), instead(celery_names.CALL_OPTIONS, next(iter(unknown)))
        raise UnknownName("call option", given, _CALL_OPTIONS, f"in {name}.apply_async()", instead=use)
