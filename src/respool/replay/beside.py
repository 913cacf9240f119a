"""Groups beside `main`: another version on the same live calls, from now on or from the past."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ..app import App
from ..engines.base import Engine, Group, Stream
from ..errors import ConfigError, UnknownName
from ..stream import check_name
from .find import queue_of
from .selection import Selection, rate_of

Start = Literal["latest", "earliest"] | float


def group_of(app: App, queue: str, name: str) -> tuple[Stream, Group]:
    """Return a queue and a group that reads it. Raises UnknownName, which suggests the near one."""
    stream = queue_of(app, queue)
    here = {group.name: group for group in app.groups() if group.stream == stream.id}
    if name not in here:
        raise UnknownName("group", name, here, f"on queue {queue}")
    return stream, here[name]


def create_group(
    app: App,
    queue: str,
    name: str,
    *,
    start: Start = "latest",
    selection: Selection | None = None,
    rate: Any = None,
    outbox: Literal["drop", "send"] = "drop",
) -> Group:
    """Make a group that reads a queue without end, beside `main`: a second version on the same live calls.

    A worker serves it with `--group`. Calls and events that its runs send are dropped and counted, unless
    told to send.

    Parameters:
        start: "latest": what is sent from now on; "earliest", or a moment in seconds since 1970.
        selection: which calls: of some tasks, a share, by key, header or expression.
        rate: how many a second, over all workers: a number, or text like "50/s".

    Raises: UnknownName for a queue or task that does not exist; ConfigError where the queue has a group of
        this name, or a subscription of the app has.

    >>> chosen = Selection(tasks=["embed"], share="10%")
    >>> create_group(app, "default", "v2", selection=chosen)  # doctest: +SKIP
    """
    stream = queue_of(app, queue)
    chosen = (selection or Selection())._replace(since=None if isinstance(start, str) else start)
    refuse_unknown(app, chosen.tasks or ())
    settings = kept(app, stream, chosen) | {"outbox": outbox}
    if rate is not None:
        settings["rate"] = rate_of(rate)
    return create(app, stream, name, start, settings)


def refuse_unknown(app: App, tasks: Sequence[str]) -> None:
    """Raise UnknownName for a task that the app does not have: none of its calls can come yet."""
    for task in tasks:
        if task not in app.tasks:
            raise UnknownName("task", task, app.tasks)


def kept(app: App, stream: Stream, chosen: Selection) -> dict[str, Any]:
    """Return what a group chooses by, as settings; {} where it runs all that it reads."""
    return {name: each for name, each in chosen.settings(app, stream).items() if each is not None}


def create(app: App, stream: Stream, name: str, start: Start, settings: dict[str, Any]) -> Group:
    """Make a group of a queue or stream that reads from a place on. Raises ConfigError."""
    check_name("group", name)
    if stream.kind == "queue" and name in app.subscriptions:
        raise ConfigError(
            f"{name} is the group of a subscription of app {app.name}, to stream "
            f"{app.subscriptions[name].stream.name}; take another name"
        )
    bounds = _bounds(app.engine, stream, start)
    made = app.engine.create_group(stream, app.name, name, "group", settings, bounds)
    if made is None:
        raise ConfigError(f"{stream.kind} {stream.name} has a group {name} already; see: respool groups list")
    return made


def _bounds(engine: Engine, stream: Stream, start: Start) -> list[tuple[int, int, int | None]]:
    if isinstance(start, str):
        if start not in ("latest", "earliest"):
            raise ConfigError(f"start: {start!r} is neither latest, earliest nor a moment")
        return [(log, end if start == "latest" else first, None) for log, first, end in engine.bounds(stream)]
    return [(log, lo, None) for log, lo, _ in engine.window(stream, start, None)]
