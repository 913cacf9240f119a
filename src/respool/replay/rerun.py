"""One past call executed here, in this process, with its exact input: nothing is changed or sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from ..app import App
from ..clock import now as wall_clock
from ..delivery.model import NewCall
from ..encoding.codec import codec_for
from ..encoding.refusals import brief
from ..engines import public_id
from ..engines.base import Group, Record, Stream
from ..errors import BadArguments, ConfigError, CorruptBody, RespoolError, UnknownCall, UnknownName
from ..record import NO_META, Id, Meta, first_pos, id_text, new_head, offset_of, parse_id, unpack_meta
from ..reference import is_reference
from ..running import current_run
from ..worker.run import Request
from ..worker.services import Runner
from .edits import edits_of

Call = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Calls a function with arguments: a debugger's, say. The task's own is the function's `__wrapped__`."""


@dataclass(slots=True)
class Sent:
    """A call or event that a run made, and that was not sent."""

    kind: str  # call or event
    name: str  # the queue's or the stream's
    task: str  # or the event's type
    input: Any  # decoded: [args, kwargs] of a call


@dataclass(slots=True)
class Rerun:
    """What came of it."""

    id: str
    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any = None
    error: BaseException | None = None
    sent: list[Sent] = field(default_factory=list)
    progress: list[Any] = field(default_factory=list)  # what it said by update_state
    batch: bool = False  # of a task that takes batches: it was run as a batch of one
    edits: list[str] = field(
        default_factory=list
    )  # with which it was redriven since, and which are not in it

    @property
    def ok(self) -> bool:
        """Whether it returned."""
        return self.error is None


def rerun(app: App, id: str, *, group: str | None = None, call: Call | None = None) -> Rerun:
    """Execute one past call here and now, with its exact input; nothing is changed, and nothing is sent.

    The input is what it was sent with, also where it was redriven with another: `Rerun.edits` says so. The
    log, states and outcomes stay as they are. Calls and events that the task sends are collected. What it
    does to files or other services, it does. A task that takes batches gets a batch of one.

    Parameters:
        id: the call's id, or an event's, then with the `group` of the subscription that runs it.
        call: calls the function; a debugger's `runcall`, say.

    Raises: UnknownCall, UnknownName for a task that the code does not have, CorruptBody, BadArguments.

    >>> rerun(app, "order-7").value  # doctest: +SKIP
    """
    record, stream, found, runner = _found(app, id, group)
    body: Any = app.payloads.load(record.body) if is_reference(record.body) else record.body
    done = _run(runner, _Dry(app, stream, found, record), body, call)
    done.edits = edits_of(app.engine, found, record.pos)
    return done


def run_dry(app: App, task: str, args: list[Any], kwargs: dict[str, Any]) -> Rerun:
    """Execute a call that is on no record, as `rerun` would. Raises UnknownName, BadArguments."""
    if task not in app.tasks:
        raise UnknownName("task", task, app.tasks)
    runner = Runner(app.tasks[task], event=False)
    body = codec_for("msgpack").encode((tuple(args), kwargs), "args")
    now, queue = wall_clock(), app.tasks[task].queue
    record = Record(first_pos(1), new_head(now), now, task, b"", NO_META)
    stream, main = Stream(0, "queue", app.name, queue, (1,)), Group(0, 0, app.name, "main", "main")
    return _run(runner, _Dry(app, stream, main, record), body, None)


def _run(runner: Runner, run: _Dry, body: bytes, call: Call | None) -> Rerun:
    meta = run.record.meta
    args, kwargs = runner.arguments(body, meta)
    done = Rerun(
        id_text(public_id(run.record.id)), runner.name, tuple(args), kwargs, batch=bool(runner.batch)
    )
    batch = [runner.item(body, meta)] if runner.batch else None
    token = current_run.set(run)
    try:
        if batch is None:
            done.value = _called(runner, done.args, kwargs, call)
        else:
            done.value = _one_of(runner, _called(runner, (batch,), {}, call))
        if not runner.ignores:
            codec_for("msgpack").encode(done.value, "the result")  # else it would be a failure
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a task raises is its outcome
        done.error = error.with_traceback(_in_task(error.__traceback__, runner.task.fn))
    finally:
        current_run.reset(token)
    done.sent, done.progress = run.sent(), run.said
    return done


def _called(runner: Runner, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call | None) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        value = runner.fn(*args, **kwargs)
        if runner.coroutine:
            import asyncio

            return asyncio.run(value)
        return value

    function.__wrapped__ = runner.task.fn  # type: ignore[attr-defined]
    return function(*args, **kwargs) if call is None else call(function, args, kwargs)


def _in_task(trace: TracebackType | None, fn: Any) -> TracebackType | None:
    """Return a traceback from the task's function on: less a debugger's frames, or an event loop's."""
    code, found = getattr(fn, "__code__", None), trace
    while found is not None and found.tb_frame.f_code is not code:
        found = found.tb_next
    return found or trace


def _one_of(runner: Runner, values: Any) -> Any:
    """Return what a batch of one gave. Raises what stands in its place, BadArguments for another number."""
    if values is None:
        return None
    if not isinstance(values, list | tuple) or len(values) != 1:
        raise BadArguments(f"{runner.name}() got a batch of one, and returned {brief(values)}")
    if isinstance(values[0], BaseException):
        raise values[0]
    return values[0]


def _found(app: App, id: str, group: str | None) -> tuple[Record, Stream, Group, Runner]:
    spaces = [app.name, *(f"stream:{name}" for name in app.stream_handles)]
    parsed = parse_id(id)
    pos = next((at for space in spaces if (at := app.engine.find(space, parsed)) is not None), None)
    if pos is None:
        raise UnknownCall(f"no call {id} in app {app.name}: never appended, or past retention")
    for record in app.engine.records(pos, pos + 1, 1):
        stream = app.opened.stream_at(pos)
        if stream.kind == "queue":
            if record.task not in app.tasks:
                raise UnknownName("task", record.task, app.tasks)
            return (
                record,
                stream,
                app.opened.group_at(pos, group or "main"),
                Runner(app.tasks[record.task], event=False),
            )
        return record, stream, *_subscribed(app, stream, pos, group)
    raise UnknownCall(f"the record of call {id} is past retention")


def _subscribed(app: App, stream: Stream, pos: int, group: str | None) -> tuple[Group, Runner]:
    names = [name for name, each in app.subscriptions.items() if each.stream.name == stream.name]
    if group is None and len(names) != 1:
        raise ConfigError(
            f"say which subscription of stream {stream.name} runs it, with group: {', '.join(names) or '-'}"
        )
    name = group or names[0]
    if name not in names:
        raise UnknownName("subscription", name, names)
    return app.opened.group_at(pos, name), Runner(app.subscriptions[name].task, event=True)


class _Dry:
    """The run that the code is part of: it has a request, and sends nothing."""

    sends = False
    excludes = False
    enlisted = None

    def __init__(self, app: App, stream: Stream, group: Group, record: Record) -> None:
        self._app, self._stream, self._group, self.record = app, stream, group, record
        self._made: list[tuple[int, str, Any, Any]] = []
        self.said: list[Any] = []

    def shield(self) -> AbstractContextManager[None]:
        """Return nothing: there is no limit."""
        return nullcontext()

    def serves(self, engine: Any) -> bool:
        """Say yes, whatever the engine: nothing is to be sent anywhere."""
        return True

    def send(self, log: int, task: str, body: bytes, meta: Meta, id: Id | None, namespace: str) -> Id:
        """Note a call."""
        self._made.append((log, task, body, meta))
        return new_head(wall_clock()) if id is None else id

    def take(self, events: Sequence[NewCall]) -> None:
        """Note events."""
        for row in events:
            meta = NO_META if row.meta is None else unpack_meta(row.meta)
            self._made.append((row.log, row.task, row.body, meta))

    def call_now(
        self, log: int, task: str, body: bytes, meta: Meta, id: Id | None, namespace: str
    ) -> tuple[Any, tuple[int, int]]:
        """Raise: nothing is sent, at once least of all."""
        raise ConfigError("in a rerun calls are not sent")

    def step(self, name: str) -> bytes | None:
        """Return what a step of the call gave when it ran for real."""
        return self._app.engine.step_done(self.record.pos, name) if self.record.task else None

    def keep_step(self, name: str, value: bytes) -> None:
        """Keep nothing: a rerun changes nothing."""

    def flush(self) -> None:
        """Raise: what was not sent has no state."""
        raise ConfigError("in a rerun calls are not sent, so that they have no state to ask for")

    def request(self) -> Request:
        """Return what is known of the call."""
        meta, record = self.record.meta, self.record

        def shown(id: Any) -> str | None:
            return None if id is None else id_text(public_id(id))

        given = {
            "id": id_text(public_id(record.id)), "task": record.task, "retries": 0, "deliveries": 0,
            "consumer_group": self._group.name, "replay": True, "headers": meta.headers or {},
            "queue": self._stream.name, "partition": self._stream.place(record.pos >> 40)[0],
            "priority": self._stream.place(record.pos >> 40)[1],
            "offset": offset_of(record.pos), "key": meta.key, "time": record.time,
            "root_id": shown(meta.root), "parent_id": shown(meta.parent),
        }  # fmt: skip
        names = Request.__dataclass_fields__
        return Request(**{name: given.get(name) for name in names})  # type: ignore[arg-type]

    def requests(self) -> list[Request]:
        """Return the same for a batch of one."""
        return [self.request()]

    def update_state(self, meta: Any) -> None:
        """Note what it says of itself."""
        codec_for("msgpack").encode(meta, "meta")
        self.said.append(meta)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Raise: it would change the database."""
        raise ConfigError("self.transaction() would change the database, and a rerun changes nothing")
        yield

    def sent(self) -> list[Sent]:
        """Return what was not sent, decoded."""
        return [self._sent(*made) for made in self._made]

    def _sent(self, log: int, task: str, body: Any, meta: Meta) -> Sent:
        streams = {each: stream for stream in self._app.engine.streams() for each in stream.logs}
        stream = streams.get(log)
        is_call = stream is None or stream.kind == "queue"
        try:
            codec = codec_for(
                meta.content_type or ("msgpack" if is_call else "json"), self._app.settings["pickle_key"]
            )
            value: Any = f"({meta.offloaded:,} bytes)" if is_reference(body) else codec.decode(body)
        except (RespoolError, CorruptBody, BadArguments) as error:
            value = f"(cannot be read: {error})"
        return Sent("call" if is_call else "event", "?" if stream is None else stream.name, task, value)
