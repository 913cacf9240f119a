"""Tasks that a breaker has stopped: which they are, and letting them run again by hand."""

from __future__ import annotations

from typing import NamedTuple

from ..delivery import storms
from ..delivery.model import Change, View
from ..delivery.storms import Gauge
from ..engines.base import Group, Reads, Stream
from ..errors import ConfigError, UnknownName
from .find import Source, sides


class Stopped(NamedTuple):
    """A task that a breaker has stopped in a group."""

    task: str
    stream: Stream
    group: Group
    gauge: Gauge


def stopped_tasks(source: Source, *, app: str | None = None) -> list[Stopped]:
    """Return the tasks that are stopped, of an app or of all apps on an engine."""
    engine, app = sides(source, app)
    streams = {stream.id: stream for stream in engine.streams()}
    return [
        Stopped(task, streams[group.stream], group, gauge)
        for group in engine.groups()
        if app in (None, group.app)
        for task, gauge in storms.gauges(group.settings).items()
        if gauge.state != "closed"
    ]


def release(source: Source, task: str, *, app: str | None = None) -> int:
    """Let a stopped task run again at once, in each group where it is stopped; return in how many.

    Raises: ConfigError where no task is stopped, UnknownName where this one is not.
    """
    engine, app = sides(source, app)
    found = stopped_tasks(source, app=app)
    chosen = [each for each in found if each.task == task]
    if not found:
        raise ConfigError(f"no task is stopped, so {task!r} needs no release")
    if not chosen:
        raise UnknownName("stopped task", task, {each.task for each in found}, "see: respool tasks")

    def decide(view: View, change: Change) -> None:
        gauge = storms.read(view, task)
        storms.close(gauge)
        storms.write(change, task, gauge)
        change.released = True

    for each in chosen:
        engine.transact(Reads(each.group.id, settings=True), decide, synced=True)
        for log in each.stream.logs:
            engine.ring(log, everyone=True)
    return len(chosen)
