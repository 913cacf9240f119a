"""Replays: groups of their own over old records, the original group and its outcomes untouched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

from ..app import App
from ..engines.base import Engine, Group, Stream
from ..errors import ConfigError, UnknownName
from ..stream import check_name
from .find import queue_of

SCAN = 50_000  # positions counted in one statement

Outbox = Literal["drop", "send"]
Progress = Callable[[int, int], None]
"""Called with how many positions are done, and how many there are."""


@dataclass(slots=True)
class ReplaySummary:
    """What a replay will run, and what it leaves out."""

    queue: Stream
    group: str
    settings: dict[str, Any]
    bounds: list[tuple[int, int, int]]  # log, first, one past the last position
    run: dict[str, int] = field(default_factory=dict)  # records by task
    left_out: dict[str, int] = field(default_factory=dict)  # in the window, of other tasks
    outside: int = 0  # in the range of positions that the window needs, but of another time (H19)
    created: bool = False  # False: planned only, or it was there before with the same settings
    id: int | None = None  # of the group, where it exists

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
) -> ReplaySummary:
    """Make a group that runs old calls of a queue again, beside `main`.

    Parameters:
        queue: the queue whose records are run. group: the new group's name.
        tasks: names of tasks; None for all. Others are left out, and counted.
        since, until: seconds since 1970, since <= time < until; None: no bound.
        outbox: "send" the calls that replayed tasks make, or "drop" and count them.
        progress: told how far the records are counted.

    Returns: what it will run. The same replay asked for again is the one that is there.
    Raises: UnknownName for a queue or task that does not exist; ConfigError where nothing is to be run,
        or the group exists with other settings.

    >>> create_replay(app, "default", "v2", ["embed"], since=time() - 86400)  # doctest: +SKIP
    """
    summary = plan_replay(app, queue, group, tasks, since, until, outbox, progress)
    if summary.id is None:
        bounds: list[tuple[int, int, int | None]] = list(summary.bounds)
        made = app.engine.create_group(
            summary.queue, app.name, summary.group, "replay", summary.settings, bounds
        )
        if made is None:  # somebody else made it since
            return plan_replay(app, queue, group, tasks, since, until, outbox, progress)
        summary.id, summary.created = made.id, True
        for log, _, _ in bounds:
            app.engine.ring(log, everyone=True)
    return summary


def plan_replay(
    app: App,
    queue: str,
    group: str,
    tasks: Sequence[str] | None,
    since: float | None = None,
    until: float | None = None,
    outbox: Outbox = "drop",
    progress: Progress | None = None,
) -> ReplaySummary:
    """Return what `create_replay` would make, without making it; else like it."""
    stream = queue_of(app, queue)
    check_name("group", group)
    if group == "main":
        raise ConfigError("main is the group that ran these calls; give the replay a name of its own")
    _refuse_name_of_subscription(app, group)
    if since is not None and until is not None and since >= until:
        raise ConfigError(f"since {_when(since)} must be before until {_when(until)}")
    names = None if tasks is None else _with_aliases(app, tasks)
    settings = {"tasks": names, "since": since, "until": until, "outbox": outbox}
    stored = _stored(app, stream, group, settings)
    if stored is None:
        bounds = app.engine.window(stream, since, until)
    else:
        found = app.engine.group_bounds(stored)  # a replay has a stop in each log
        bounds = cast("list[tuple[int, int, int]]", [(at.log, at.start, at.stop) for at in found])
    summary = ReplaySummary(stream, group, settings, bounds, id=stored.id if stored else None)
    _count(app.engine, summary, names, progress)
    if stored is None:
        _refuse_misspelt(app, summary, tasks)
        _refuse_nothing(app.engine, summary)
    return summary


def _refuse_name_of_subscription(app: App, name: str) -> None:
    """A worker started with --group and this name would serve both."""
    streams = {stream.id: stream.name for stream in app.engine.streams() if stream.kind == "stream"}
    read = {g.name: streams[g.stream] for g in app.groups() if g.app == app.name and g.stream in streams}
    read |= {group: each.stream.name for group, each in app.subscriptions.items()}
    if name in read:
        raise ConfigError(
            f"{name} is a group of app {app.name} already, which reads stream {read[name]}; give the "
            "replay a name of its own"
        )


def _with_aliases(app: App, tasks: Sequence[str]) -> list[str]:
    """A task's former names are its calls too."""
    names = set(tasks)
    for name in tasks:
        task = app.tasks.get(name)
        if task is not None and task.name == name:
            names.update(task.options["aliases"])
    return sorted(names)


def _stored(app: App, stream: Stream, group: str, settings: dict[str, Any]) -> Group | None:
    here = [g for g in app.engine.groups() if (g.stream, g.app, g.name) == (stream.id, app.name, group)]
    if not here:
        return None
    found: Group = here[0]
    if found.kind != "replay":
        raise ConfigError(
            f"group {group} of queue {stream.name} is a {found.kind}, not a replay; take another name"
        )
    differ = [key for key in settings if found.settings.get(key) != settings[key]]
    if differ:
        differences = (
            f"{k} {_shown(k, found.settings.get(k))}, now {_shown(k, settings[k])}" for k in differ
        )
        raise ConfigError(
            f"replay {group} of queue {stream.name} exists with other bounds: {'; '.join(differences)}. "
            f"Take another name, or drop it: respool groups drop {group} --queue {stream.name}"
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
        raise ConfigError(f"nothing to run: queue {queue} has no such calls{window}; it has {there}")
    held = [time for _, lo, hi in engine.bounds(summary.queue) if hi > lo for time in _ends(engine, lo, hi)]
    holds = f"its calls are from {_when(min(held))} to {_when(max(held))}" if held else "it holds none at all"
    raise ConfigError(f"nothing to run: queue {queue} has no calls{window}; {holds}")


def _ends(engine: Engine, lo: int, hi: int) -> list[float]:
    return [r.time for at in (lo, hi - 1) for r in engine.records(at, hi, 1)]


def _window(since: float | None, until: float | None) -> str:
    low = "" if since is None else f" since {_when(since)}"
    return low + ("" if until is None else f" until {_when(until)}")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")


def _shown(key: str, value: Any) -> str:
    if key in ("since", "until"):
        return "open" if value is None else _when(value)
    if key == "tasks":
        return "all" if value is None else ",".join(value)
    return str(value)
