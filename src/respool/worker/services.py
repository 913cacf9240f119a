"""What a worker serves: its groups, and how each record of theirs is run."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..app import App
from ..choice import Choice, choice_of
from ..delivery.lanes import Turns
from ..delivery.seek import came_past, generation_at
from ..encoding.codec import Codec, codec_for
from ..engines.base import Group, Stream
from ..engines.things import is_ordered
from ..errors import BadArguments, CorruptBody, RespoolError, UnknownName
from ..options import out_of_order
from ..record import NO_META, Meta
from ..task import Task
from .limiting import Limiter, Rule

Arguments = tuple[Sequence[Any], dict[str, Any]]


class Runner:
    """A task, compiled for running: what it needs is looked up once, what it does not use is left out."""

    __slots__ = (
        "batch",
        "batch_key",
        "batch_wait",
        "content_type",
        "convert",
        "coroutine",
        "decode",
        "event",
        "fn",
        "hard",
        "holds",
        "ignores",
        "max_deliveries",
        "misplaced",
        "name",
        "options",
        "over",
        "plain",
        "retry",
        "soft",
        "stormy",
        "task",
        "ttl",
        "tuples",
        "unpack",
    )  # fmt: skip

    def __init__(self, task: Task[Any, Any], *, event: bool, ordered: bool = False) -> None:
        options = task.options
        self.task, self.name, self.options, self.event = task, task.name, options, event
        self.coroutine = inspect.iscoroutinefunction(task.fn)
        self.fn: Callable[..., Any] = (lambda *a, **k: task.fn(task, *a, **k)) if options["bind"] else task.fn
        self.retry = options.retry
        self.over = sys.maxsize if task.app.payloads.store is None else task.offload_over
        """Bytes of a result beyond which it goes to the blob store."""
        self.ttl, self.ignores = options["result_ttl"], options["ignore_result"]
        self.soft, self.hard = options["soft_time_limit"], options["time_limit"]
        self.max_deliveries: int = options["max_deliveries"]
        self.holds = options["on_dead"] == "block"
        self.convert = task.parameters.convert if task.parameters.needs_convert else None
        self.content_type = "json" if event else "msgpack"
        self.decode = codec_for(self.content_type).decode
        self.unpack: Callable[[bytes], Arguments] = self._one_event if event else self._one_call
        """Return the arguments that a body of the usual content type holds."""
        self.misplaced = out_of_order(options) if ordered else None
        """The option for which it does not run in this, an ordered, group."""
        self.batch: int | None = None if self.misplaced else options["batch"]
        self.stormy = options["breaker"] is not None or options["retry_budget"] is not None
        self.tuples = task.parameters.tuples
        self.batch_key: Any = options["batch_key"]
        self.batch_wait: float = options["batch_wait"] or 0.0
        special = self.coroutine or self.soft or self.hard or self.batch or self.stormy or self.misplaced
        self.plain = not (special or self.max_deliveries == 1)
        """Whether nothing but the function is to be called."""

    def _one_event(self, body: bytes) -> Arguments:
        return (self.decode(body),), {}

    def _one_call(self, body: bytes) -> Arguments:
        call = self.decode(body)  # and as `_call`, without its cost: on the hot path
        if type(call) is list and len(call) == 2 and type(call[0]) is list and type(call[1]) is dict:
            return call  # type: ignore[return-value]
        return _call(call)

    def arguments(self, body: bytes, meta: Meta) -> Arguments:
        """Return a record's arguments. Raises CorruptBody, BadArguments."""
        if meta.damaged is not None:
            raise CorruptBody(f"its attributes cannot be read: {meta.damaged}")
        if meta.version != 1:
            raise CorruptBody(f"the record is of version {meta.version}, this Respool reads version 1")
        if meta.content_type is None or meta.content_type == self.content_type:
            args, kwargs = self.unpack(body)
        else:
            value = self._codec(meta.content_type).decode(body)
            args, kwargs = ((value,), {}) if self.event else _call(value)
        return self.convert(list(args), kwargs) if self.convert else (args, kwargs)

    def item(self, body: bytes, meta: Meta) -> Any:
        """Return what a record is in its batch's list: its argument, or several as a tuple.

        Raises: as `arguments`.
        """
        if meta is NO_META:  # as nearly always
            args, kwargs = self.unpack(body)
            if self.convert is not None:
                args, kwargs = self.convert(list(args), kwargs)
        else:
            args, kwargs = self.arguments(body, meta)
        if len(args) == 1 and not kwargs and not self.tuples:
            return args[0]
        if self.convert is None:  # nothing has looked yet at how many there are
            args, kwargs = self.task.parameters.convert(list(args), kwargs)
        if kwargs:
            raise BadArguments(
                f"{self.name}() takes batches, and so no argument {next(iter(kwargs))!r} by name"
            )
        return tuple(args)

    def _codec(self, content_type: str) -> Codec:
        try:
            return codec_for(content_type, self.task.app.settings["pickle_key"])
        except RespoolError as error:
            raise CorruptBody(f"the body cannot be read: {error}") from error


def _call(value: Any) -> Arguments:
    if type(value) is list and len(value) == 2 and type(value[0]) is list and type(value[1]) is dict:
        return value  # type: ignore[return-value]
    raise CorruptBody(f"the body is not a call: {value!r:.80}")


@dataclass
class Service:
    """One group that a worker serves."""

    group: Group
    stream: Stream
    runners: dict[str, Runner]
    only: Runner | None = None  # a subscription runs one function for whatever type of event
    sends: bool = True  # the calls its runs make are sent
    choice: Choice | None = None  # which records it runs; None: all within its bounds
    rate: float | None = None  # records a second that it may be granted, as of the last claim; None: all
    rewinds: Sequence[Any] = ()  # as of the last claim: from where on its records are of which generation
    batch: int = 0  # the largest batch that its tasks take, 0: none does
    stormy: dict[str, Runner] = field(default_factory=dict)  # tasks with a breaker or a retry budget
    turn: int = 0  # claims so far
    claimant: tuple[int, int] | None = None  # of an ordered group: the worker and the child that claim
    lanes: Turns = field(default_factory=Turns)  # whose turn it is, of the priorities in use
    offered: float = 0.0  # when calls of unknown tasks were asked for last
    limiter: Limiter | None = None

    def __post_init__(self) -> None:
        """Find out whether there are batches to form."""
        runners = (*self.runners.values(), *([self.only] if self.only else []))
        self.batch = max((runner.batch or 0 for runner in runners), default=0)
        self.stormy = {runner.name: runner for runner in runners if runner.stormy}

    def generation_at(self, pos: int) -> int:
        """Return which generation of the group runs a record (H8)."""
        return generation_at(self.rewinds, pos) if self.rewinds else 0

    def does_again(self, pos: int) -> bool:
        """Say whether the group was moved back over a record, which it had come past before."""
        return bool(self.rewinds) and came_past(self.rewinds, pos)

    @property
    def shown(self) -> str:
        """The service in words."""
        name = f"{self.stream.kind} {self.stream.name}"
        return name if self.group.name == "main" else f"{name}, group {self.group.name}"

    @property
    def deliveries(self) -> dict[str, tuple[int, bool]]:
        """How many runs may end with the death of their process, by task ("": whatever the type).

        And whether a dead letter holds up its key.
        """
        if self.only is not None:
            return {"": (self.only.max_deliveries, self.only.holds)}
        return {name: (runner.max_deliveries, runner.holds) for name, runner in self.runners.items()}

    @property
    def ordered(self) -> bool:
        """Whether the records of one key run one by one (P8)."""
        return is_ordered(self.stream, self.group)

    @property
    def dead_ttls(self) -> dict[str, float]:
        """How many seconds dead letters are kept, by task ("": whatever the type), of those that say so."""
        runners = {"": self.only} if self.only is not None else self.runners
        ttls = {name: runner.options["dead_letter_ttl"] for name, runner in runners.items()}
        return {name: ttl for name, ttl in ttls.items() if ttl is not None}

    def runner(self, task: str) -> Runner | None:
        """Return how to run a record of this task or type."""
        return self.only if self.only is not None else self.runners.get(task)


def services(app: App, queues: Sequence[str] | None, group: str | None) -> list[Service]:
    """Return what a worker of this app serves.

    Without a group: `main` of the queues, and the app's subscriptions unless queues are named.
    Raises: UnknownName for a queue or group that does not exist.
    """
    names = list(app.queues) if queues is None else list(queues)
    for name in names:
        if name not in app.queues:
            raise UnknownName("queue", name, app.queues, otherwise=f"declare it: app.queue({name!r})")
    runners = {name: Runner(task, event=False) for name, task in app.tasks.items()}
    in_order = {name: Runner(task, event=False, ordered=True) for name, task in app.tasks.items()}
    known = app.groups()
    wanted = group or "main"
    found = []
    for name in names:
        stream = app.stream_of("queue", name)
        groups = [g for g in known if g.stream == stream.id and g.name == wanted]
        limit = app.queues[name].limit
        rule = None if limit is None else Rule(f"{app.name}/queue {name}", limit)
        for each in groups:
            here = in_order if is_ordered(stream, each) else runners
            service = _service(each, stream, here, known, app)
            if here is runners:
                service.limiter = _limiter(app, runners.values(), "task", rule)
            found.append(service)
    if queues is None:
        for subscription in app.subscriptions.values():
            if group not in (None, subscription.group):
                continue
            stream = app.stream_of("stream", subscription.stream.name)
            only = Runner(subscription.task, event=True)
            if subscription.stream.foreign:
                only.decode = subscription.stream.codec.decode
            for g in known:
                if (g.stream, g.app, g.name) == (stream.id, app.name, subscription.group):
                    limiter = _limiter(app, [only], "subscription", None)
                    found.append(Service(g, stream, {}, only, limiter=limiter))
    if not found:
        raise UnknownName(
            "group", wanted, sorted({g.name for g in known if g.app == app.name}), "see: respool groups list"
        )
    return found


def _limiter(app: App, runners: Iterable[Runner], kind: str, queue: Rule | None) -> Limiter | None:
    """Return what keeps the limits of a service; None where it has none, and so costs nothing."""
    rules = {
        runner.name: Rule(f"{app.name}/{kind} {runner.name}", runner.options.limit, runner.task.limit_key)
        for runner in runners
        if runner.options.limit is not None
    }
    return Limiter(app.engine, rules, queue, app.settings["max_limited"]) if rules or queue else None


def _service(
    group: Group,
    stream: Stream,
    runners: dict[str, Runner],
    known: Sequence[Group],
    app: App,
) -> Service:
    return Service(
        group,
        stream,
        runners,
        sends=group.kind == "main" or group.settings.get("outbox") == "send",
        choice=choice_of(stream, group, known, app.settings["pickle_key"], app.payloads.load),
        rate=group.settings.get("rate"),
    )
