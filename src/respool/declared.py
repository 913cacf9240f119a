"""What an app declares of its queues and subscriptions, and that two declarations of one name agree."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .delivery.limits import Limit
from .errors import ConfigError, DeclarationConflict
from .options import OF_CALLS, OPTIONS, flag, out_of_order, text
from .pressure import UNSAID
from .retention import UNSET, shown_age

if TYPE_CHECKING:
    from .app import App
    from .options import TaskOptions
    from .stream import StreamHandle
    from .task import Task

DEFAULT_QUEUE = "default"
KEYED_PARTITIONS = 64
MAX_PARTITIONS = 4096


class Queue:
    """A queue as an app declares it."""

    def __init__(self, app: App, name: str, retention: Any = UNSET) -> None:
        self.app, self.name, self.retention = app, name, retention
        self.ordered, self.partitions = False, 1
        self.declared = False  # as itself, not only by a task's `queue=`, which says nothing of its kind
        self.limit: Limit | None = None  # of all its calls together; not stored: its workers keep it
        self.terms: Any = UNSAID  # how full it may become: Terms, None: as full as can be, or as stored

    def __repr__(self) -> str:
        return f"<Queue {self.name} of {self.app.name}>"

    @property
    def settings(self) -> dict[str, Any]:
        """What is declared: stored at creation, and compared with later declarations."""
        order = {"ordered": self.ordered, "partitions": self.partitions}
        return order if self.retention is UNSET else {"retention": self.retention, **order}

    def take_in(
        self, retention: Any, ordered: bool, partitions: int, limit: Limit | None, terms: Any
    ) -> None:
        """Add what a further declaration says. Raises DeclarationConflict where it says otherwise."""
        if retention is not UNSET and self.retention is not UNSET:
            compare("queue", self.name, self.settings, {"retention": retention})
        if ordered and self.ordered:
            compare("queue", self.name, self.settings, {"partitions": partitions})
        if limit is not None and self.limit not in (None, limit):
            raise DeclarationConflict(
                f"queue {self.name} is declared with two limits: {self.limit} and {limit}"
            )
        if terms is not UNSAID and self.terms not in (UNSAID, terms):
            raise DeclarationConflict(
                f"queue {self.name} is declared with two different max_pending; keep one"
            )
        if (ordered or self.ordered) and (limit or self.limit) is not None:
            raise ConfigError(
                f"queue {self.name}: ordered and limits exclude each other: calls of one key run one by one, "
                "and wait for nothing else; give another queue a limit"
            )
        if retention is not UNSET:
            self.retention = retention
        if ordered:
            self.ordered, self.partitions = True, partitions
        self.limit = limit or self.limit
        self.terms = self.terms if terms is UNSAID else terms


class Subscription:
    """A function that a group of this app calls with each event of a stream."""

    def __init__(
        self, stream: StreamHandle, task: Task[Any, Any], group: str, start: str, *, ordered: bool
    ) -> None:
        self.stream, self.task, self.group, self.start, self.ordered = stream, task, group, start, ordered


def check_subscription(name: str, stream: StreamHandle, options: TaskOptions, *, ordered: bool) -> None:
    """Raise ConfigError for options that a subscription to this stream cannot have."""
    for option in OF_CALLS:
        if options[option] != OPTIONS[option].default:
            raise ConfigError(
                f"subscription {name}: {option}= is of calls, and says nothing of the events of a stream"
            )
    if flag(ordered, f"subscription {name}: ordered") and (excluded := out_of_order(options)) is not None:
        raise ConfigError(
            f"subscription {name}: ordered and {excluded} exclude each other: events of a key come one by one"
        )
    if ordered and stream.key is None and not stream.foreign:
        raise ConfigError(
            f"subscription {name}: ordered=True needs a stream with a key: app.stream({stream.name!r}, key=…)"
        )


def check_task(task: Task[Any, Any], queue: Queue | None) -> None:
    """Raise ConfigError where a task cannot run in the queue that it is declared for."""
    if queue is not None and not queue.ordered and task.options["key"] is not None:
        raise ConfigError(
            f"task {task.name} has key=, and its queue {queue.name} is not ordered, and would run calls of "
            "one key side by side: declare one with app.queue(…, ordered=True), and name it with queue="
        )
    if queue is not None and queue.ordered and (option := out_of_order(task.options)) is not None:
        raise ConfigError(
            f"task {task.name} has {option}=, and its queue {queue.name} is ordered, where calls run one by "
            "one in the order of their keys; declare it for another queue"
        )


def queue_partitions(name: str, ordered: bool, given: int | None) -> int:
    """Return how many partitions a queue is to have. Raises ConfigError."""
    flag(ordered, f"queue {name}: ordered")
    if given is None:
        return KEYED_PARTITIONS if ordered else 1
    if not isinstance(given, int) or isinstance(given, bool) or not 0 < given <= MAX_PARTITIONS:
        raise ConfigError(f"queue {name}: partitions={given!r} is no number from 1 to {MAX_PARTITIONS}")
    if not ordered and given != 1:
        raise ConfigError(f"queue {name}: partitions={given} goes with ordered=True; others need none")
    return given


def stream_partitions(name: str, key: str | None, given: int | None) -> int:
    """Return how many partitions a stream is to have. Raises ConfigError."""
    if key is not None:
        text(key, f"stream {name}: key")
    if given is None:
        return 1 if key is None else KEYED_PARTITIONS
    if not isinstance(given, int) or isinstance(given, bool) or not 0 < given <= MAX_PARTITIONS:
        raise ConfigError(f"stream {name}: partitions={given!r} is not a number from 1 to {MAX_PARTITIONS}")
    return given


def check_foreign(name: str, *, foreign: bool, codec: Any, key: str | None, cloudevents: bool) -> None:
    """Raise ConfigError for options that a stream which others write cannot have, or which only that has."""
    flag(foreign, f"stream {name}: foreign")
    flag(cloudevents, f"stream {name}: cloudevents")
    if codec is not None and not (foreign and callable(getattr(codec, "decode", None))):
        raise ConfigError(f"stream {name}: codec= is for foreign=True, an object with decode(bytes)")
    if foreign and (key is not None or cloudevents):
        raise ConfigError(f"stream {name}: foreign=True is only read here; key= and cloudevents= say nothing")


def task_name(fn: Callable[..., Any], given: Any, where: str) -> str:
    """Return the name under which a function's calls are recorded. Raises ConfigError where it has none."""
    if not callable(fn):
        raise ConfigError(f"{where}: {fn!r} is not a function")
    given = OPTIONS["name"].check(given, f"{where}: name")
    name: str = given or getattr(fn, "__name__", "<nameless>")
    if name.startswith("<") and not given:
        raise ConfigError(
            f"{where}: {fn!r} has no name under which its calls could be recorded; give it one, name='…', or "
            "write it as a function with def"
        )
    return name


def defined_at(fn: Any) -> str:
    """Say where a function's code stands."""
    code = getattr(fn, "__code__", None)
    return f"{fn.__module__}.{fn.__qualname__}" + (
        f" ({os.path.basename(code.co_filename)}:{code.co_firstlineno})" if code else ""
    )


def compare(
    kind: str, name: str, stored: Mapping[str, Any], declared: Mapping[str, Any], *, alters: bool = False
) -> None:
    """Raise DeclarationConflict where something was declared otherwise.

    Parameters:
        alters: it is stored so, and a command changes what can be changed.
    """
    differ = [key for key in declared if stored.get(key) != declared[key]]
    if differ:
        raise DeclarationConflict(
            f"{kind} {name} was declared with "
            + ", ".join(f"{key}={_shown(key, stored.get(key))}" for key in differ)
            + ", now with "
            + ", ".join(f"{key}={_shown(key, declared[key])}" for key in differ)
            + (
                f"; declare it as it was, or change that: respool {kind}s alter {shlex.quote(name)} "
                + _alteration(declared["retention"])
                if alters and differ == ["retention"]
                else "; declare it as it was, or under another name"
            )
        )


def _alteration(retention: Any) -> str:
    """Return the options of `alter` that say the same as a stored retention."""
    if retention is None:
        return "--forever"
    if not isinstance(retention, Mapping):
        return f"--age {shown_age(retention)}"
    shown = {name: shown_age(value) if name == "age" else value for name, value in retention.items()}
    return " ".join(f"--{name} {value}" for name, value in shown.items())


def _shown(key: str, value: Any) -> str:
    """Write a setting as it may be declared: a retention as "30d", not as its seconds."""
    if key != "retention" or value is None or isinstance(value, Mapping):
        return repr(value)
    return shown_age(value)
