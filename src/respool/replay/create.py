"""Replays: groups of their own over old records, the original group and its outcomes untouched."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from ..app import App
from ..choice import FILTERS, choice_of
from ..delivery.spans import Span
from ..engines.base import Engine, Group, Reads, Stream
from ..errors import ConfigError, UnknownName
from ..stream import check_name
from ..why import worker_command
from .find import queue_of
from .selection import Bounds, Selection, arguments_nobody_has, rate_of, when

SCAN = 50_000  # positions counted in one statement
LOOK = 2_000  # records looked at one by one together

Outbox = Literal["drop", "send"]
Progress = Callable[[int, int], None]
"""Called with how many positions are done, and how many there are."""
Spoken = Mapping[str, float | None]
"""By `since` and `until`: how many seconds ago that was said to be, None where it was a date or a time."""


@dataclass(slots=True)
class ReplaySummary:
    """What a replay will run, and what it leaves out."""

    queue: Stream
    group: str
    settings: dict[str, Any]
    bounds: Bounds
    run: dict[str, int] = field(default_factory=dict)  # records by task
    left_out: dict[str, int] = field(default_factory=dict)  # in the window, and not chosen
    outside: int = 0  # in the range of positions that the window needs, but of another time (H19)
    at_most: bool = False  # `run` is what is left before the worker looks into each record
    created: bool = False  # False: planned only, or it was there before with the same settings
    id: int | None = None  # of the group, where it exists
    made: float | None = None  # when that was
    hint: str = ""  # what may be wrong with the expression

    @property
    def total(self) -> int:
        """Return how many records will be run."""
        return sum(self.run.values())

    @property
    def skipped(self) -> int:
        """Return how many records the worker will pass over, and count as `skipped`."""
        return sum(self.left_out.values()) + self.outside


def create_replay(
    app: App,
    queue: str,
    group: str,
    tasks: Sequence[str] | None,
    since: float | None = None,
    until: float | None = None,
    outbox: Outbox = "drop",
    progress: Progress | None = None,
    *,
    selection: Selection | None = None,
    rate: Any = None,
    spoken: Spoken | None = None,
) -> ReplaySummary:
    """Make a group that runs old calls of a queue again, beside `main`.

    Parameters:
        queue: the queue whose records are run. group: the new group's name.
        tasks: names of tasks; None for all. Others are left out, and counted.
        since, until: seconds since 1970, since <= time < until; None: no bound.
        outbox: "send" the calls and events that replayed tasks send, or "drop" and count them.
        progress: told how far the records are counted.
        selection: which records besides: by key, header, expression, state, share, id, offset.
        rate: how many a second, over all workers: a number, or text like "50/s".
        spoken: the moments as they were said, so that "a day ago" said again means the same replay.

    Returns: what it will run. The same replay asked for again is the one that is there; with another rate it
        goes on at that.
    Raises: UnknownName for a queue or task that does not exist; ConfigError where nothing is to be run,
        or the group exists with other settings.

    >>> create_replay(app, "default", "v2", ["embed"], since=time() - 86400)  # doctest: +SKIP
    """
    chosen = (selection or Selection())._replace(tasks=tasks, since=since, until=until)
    summary = _plan(app, queue, group, chosen, outbox, progress, spoken, exact=False)
    per_second = rate_of(rate)
    if summary.id is None:
        settings = summary.settings | ({} if spoken is None else {"spoken": dict(spoken)})
        if per_second is not None:
            settings["rate"] = per_second
        bounds: list[tuple[int, int, int | None]] = list(summary.bounds)
        made = app.engine.create_group(summary.queue, app.name, summary.group, "replay", settings, bounds)
        if made is None:  # somebody else made it since
            return _plan(app, queue, group, chosen, outbox, progress, spoken, exact=False)
        summary.id, summary.created = made.id, True
        for log, _, _ in bounds:
            app.engine.ring(log, everyone=True)
    elif rate is not None:
        set_rate(app.engine, summary.id, per_second)
    return summary


def set_rate(engine: Engine, group: int, rate: float | None) -> None:
    """Have a group be granted so many records a second from now on; None: as many as there are."""
    engine.transact(
        Reads(group), lambda view, change: change.settings.update(rate=rate, pace=None), synced=True
    )


def plan_replay(
    app: App,
    queue: str,
    group: str,
    tasks: Sequence[str] | None,
    since: float | None = None,
    until: float | None = None,
    outbox: Outbox = "drop",
    progress: Progress | None = None,
    *,
    selection: Selection | None = None,
    spoken: Spoken | None = None,
) -> ReplaySummary:
    """Return what `create_replay` would make, without making it, every record counted; else like it."""
    chosen = (selection or Selection())._replace(tasks=tasks, since=since, until=until)
    return _plan(app, queue, group, chosen, outbox, progress, spoken, exact=True)


def _plan(
    app: App,
    queue: str,
    group: str,
    chosen: Selection,
    outbox: Outbox,
    progress: Progress | None,
    spoken: Spoken | None,
    *,
    exact: bool,
) -> ReplaySummary:
    stream = queue_of(app, queue)
    check_name("group", group)
    if group == "main":
        raise ConfigError("main is the group that ran these calls; give the replay a name of its own")
    refuse_name_of_subscription(app, group)
    settings = {**chosen.settings(app, stream), "outbox": outbox}
    stored = _stored(app, stream, group, settings, spoken)
    if stored is None:
        bounds = chosen.bounds(app.engine, stream, settings)
    else:
        settings |= {name: stored.settings.get(name) for name in ("since", "until")}
        found = app.engine.group_bounds(stored)  # a replay has a stop in each log
        bounds = cast("Bounds", [(at.log, at.start, at.stop) for at in found])
    summary = ReplaySummary(stream, group, settings, bounds, id=stored.id if stored else None)
    summary.made = stored.created if stored else None
    summary.hint = arguments_nobody_has(app, chosen)
    if chosen.looks_inside and exact:
        _look(app, summary, progress)
    else:
        _count(app.engine, summary, settings["tasks"], progress)
        summary.at_most = chosen.looks_inside
    if stored is None:
        _refuse_misspelt(app, summary, chosen.tasks)
        _refuse_nothing(app.engine, summary)
    return summary


def refuse_name_of_subscription(app: App, name: str) -> None:
    """Raise ConfigError for the name of a group of a stream: a worker started with it would serve both."""
    streams = {stream.id: stream.name for stream in app.engine.streams() if stream.kind == "stream"}
    read = {g.name: streams[g.stream] for g in app.groups() if g.app == app.name and g.stream in streams}
    read |= {group: each.stream.name for group, each in app.subscriptions.items()}
    if name in read:
        raise ConfigError(
            f"{name} is a group of app {app.name} already, which reads stream {read[name]}; give the "
            "replay a name of its own"
        )


def _stored(
    app: App, stream: Stream, group: str, settings: dict[str, Any], spoken: Spoken | None
) -> Group | None:
    here = [g for g in app.engine.groups() if (g.stream, g.app, g.name) == (stream.id, app.name, group)]
    if not here:
        return None
    found: Group = here[0]
    if found.kind != "replay":
        raise ConfigError(
            f"group {group} of queue {stream.name} is a {found.kind}, not a replay; take another name"
        )
    names = [
        name for name in (*FILTERS, "from", "to", "outbox") if name in settings or name in found.settings
    ]
    said = found.settings.get("spoken") or {}
    same = {
        n for n in ("since", "until") if spoken and spoken.get(n) is not None and spoken[n] == said.get(n)
    }
    differ = [n for n in names if n not in same and found.settings.get(n) != settings.get(n)]
    if differ:
        differences = (
            f"{k} {_shown(k, found.settings.get(k))}, now {_shown(k, settings.get(k))}" for k in differ
        )
        raise ConfigError(
            f"replay {group} of queue {stream.name} exists with other bounds: {'; '.join(differences)}. "
            f"Run that one: {worker_command(found)}; or drop it: respool groups drop "
            f"{shlex.quote(group)} --queue {shlex.quote(stream.name)}; or choose another name with --group"
        )
    return found


def _count(
    engine: Engine, summary: ReplaySummary, names: list[str] | None, progress: Progress | None
) -> None:
    since, until = summary.settings["since"], summary.settings["until"]
    total = sum(hi - lo for _, lo, hi in summary.bounds)
    done = 0
    for _, first, end in summary.bounds:
        for lo in range(first, end, SCAN):
            hi = min(lo + SCAN, end)
            inside = 0
            for task, number in engine.task_counts(lo, hi, since, until).items():
                chosen = summary.run if names is None or task in names else summary.left_out
                chosen[task] = chosen.get(task, 0) + number
                inside += number
            summary.outside += engine.record_count(lo, hi) - inside
            done += hi - lo
            if progress is not None:
                progress(done, total)


def _look(app: App, summary: ReplaySummary, progress: Progress | None) -> None:
    """Count as the worker will choose, record by record."""
    engine = app.engine
    group = Group(0, summary.queue.id, app.name, summary.group, "replay", summary.settings)
    choice = choice_of(summary.queue, group, engine.groups(), app.settings["pickle_key"], app.payloads.load)
    assert choice is not None
    total = sum(hi - lo for _, lo, hi in summary.bounds)
    done = 0
    for _, first, end in summary.bounds:
        for lo in range(first, end, LOOK):
            span = Span(lo, min(lo + LOOK, end))
            rows = engine.rows([span])
            out = choice.left_out(engine, [span], rows)
            for row in rows:
                counts = summary.left_out if row[0] in out else summary.run
                counts[row[1]] = counts.get(row[1], 0) + 1
            done += span.hi - span.lo
            if progress is not None:
                progress(done, total)


def _refuse_misspelt(app: App, summary: ReplaySummary, tasks: Sequence[str] | None) -> None:
    known = {*app.tasks, *summary.run, *summary.left_out}
    for name in tasks or ():
        if name not in known:
            hint = f"neither app {app.name} nor the window of queue {summary.queue.name} has it"
            raise UnknownName("task", name, known, hint)


def _refuse_nothing(engine: Engine, summary: ReplaySummary) -> None:
    if summary.total:
        return
    queue, since, until = summary.queue.name, summary.settings["since"], summary.settings["until"]
    window = _window(since, until)
    if summary.left_out:
        there = ", ".join(f"{name} ({number:,})" for name, number in sorted(summary.left_out.items()))
        hint = f"; {summary.hint}" if summary.hint else ""
        raise ConfigError(f"nothing to run: queue {queue} has no such calls{window}; it has {there}{hint}")
    held = [time for _, lo, hi in engine.bounds(summary.queue) if hi > lo for time in _ends(engine, lo, hi)]
    holds = f"its calls are from {when(min(held))} to {when(max(held))}" if held else "it holds none at all"
    raise ConfigError(f"nothing to run: queue {queue} has no calls{window}; {holds}")


def _ends(engine: Engine, lo: int, hi: int) -> list[float]:
    return [r.time for at in (lo, hi - 1) for r in engine.records(at, hi, 1)]


def _window(since: float | None, until: float | None) -> str:
    low = "" if since is None else f" since {when(since)}"
    return low + ("" if until is None else f" until {when(until)}")


def _shown(key: str, value: Any) -> str:
    if key in ("since", "until"):
        return "open" if value is None else when(value)
    if key == "tasks":
        return "all" if value is None else ",".join(value)
    if key == "share" and value is not None:
        return f"{value:.4%}".rstrip("0%").rstrip(".") + "%"
    if key == "positions":
        return "any" if value is None else f"{len(value)} calls"
    return "any" if value is None else str(value)
