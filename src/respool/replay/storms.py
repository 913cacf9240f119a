"""Tasks that a breaker has stopped: which they are, and letting them run again by hand."""

from __future__ import annotations

from typing import NamedTuple

from ..clock import now as wall_clock
from ..delivery import storms
from ..delivery.model import Change, View
from ..delivery.storms import Gauge
from ..engines.base import Engine, Group, ParkedFilter, Reads, Stream
from ..errors import ConfigError, UnknownName
from .find import Source, sides

SLICE = 1000  # parked records looked at, or changed, in one transaction


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

    def decide(view: View, change: Change) -> float:
        gauge = storms.read(view, task)
        until = gauge.until
        storms.close(gauge)
        storms.write(change, task, gauge)
        change.released = True
        return until

    for each in chosen:
        until = engine.transact(Reads(each.group.id, settings=True), decide, synced=True)
        _let_go(engine, each.group, until)
        for log in each.stream.logs:
            engine.ring(log, everyone=True)
    return len(chosen)


def _let_go(engine: Engine, group: Group, until: float) -> None:
    """Have run at once what was parked one by one: what processes had taken when the task was stopped."""
    after, now = -1, wall_clock()
    while page := engine.parked_page(ParkedFilter((), ("limited",)), group.id, after, SLICE):
        after = page[-1].pos
        positions = [parked.pos for parked in page if storms.waits_until(parked, until)]
        if positions:
            engine.transact(
                Reads(group.id, parked=positions),
                lambda view, change: storms.let_go(view, change, until, now),
                synced=True,
            )
