"""Starting a worker of either pool, with its banner."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TextIO

from ..app import App
from ..engines.base import Group, Stream
from ..errors import OF_ONE_STREAM, ConfigError
from ..loading import load_app
from ..why import how_held, served_as
from .host import is_gone
from .options import Hello, WorkerOptions
from .services import services
from .solo import Solo
from .supervisor import Supervisor
from .telling import Logging, print_by_lines

POOLS = ("processes", "solo")


def start(options: WorkerOptions, out: TextIO | None = None) -> int:
    """Run a worker until it is told to stop; return the exit status.

    Raises: ConfigError, and with the solo pool whatever the app raises at import.
    """
    out = sys.stderr if out is None else out
    logs = Logging(out, "worker")
    if options.pool == "solo":
        print_by_lines()
        with load_app(options.app, options.url) as app:  # it is closed: one in memory leaves no folder
            logs.hand_over()
            return _work_alone(app, options, out)
    if options.pool != "processes":
        raise ConfigError(f"no pool {options.pool!r}; there are: {', '.join(POOLS)}")
    logs.hand_over()  # its children have the app
    supervisor = Supervisor(options)
    supervisor.on_started = _on_started(out, options, supervisor)
    return supervisor.run()


def _work_alone(app: App, options: WorkerOptions, out: TextIO) -> int:
    served = services(app, options.queues, options.group)
    tasks = sorted({name for service in served for name in service.runners})
    place = _Place(app.engine, app.name, app.location.shown)
    _banner(out, options, place, [(service.stream, service.group) for service in served], tasks, 1)
    if any(runner.hard for service in served for runner in service.runners.values()):
        logging.getLogger("respool.worker").warning(
            "the solo pool cannot keep time_limit: only soft limits work"
        )
    return Solo(app, served, options).run()


def _on_started(out: TextIO, options: WorkerOptions, supervisor: Supervisor) -> Callable[[Hello], None]:
    def show(hello: Hello) -> None:
        streams = {stream.id: stream for stream in supervisor.engine.streams()}
        served = [(streams[group.stream], group) for group in supervisor.groups]
        place = _Place(supervisor.engine, hello.app, hello.shown_url)
        _banner(out, options, place, served, sorted(hello.tasks), supervisor.count)

    return show


class _Place(NamedTuple):
    """Which app a worker is of, and where its log is."""

    engine: Any
    app: str
    url: str


def _banner(
    out: TextIO,
    options: WorkerOptions,
    place: _Place,
    served: Sequence[tuple[Stream, Group]],
    tasks: list[str],
    count: int,
) -> None:
    """Say what a person who runs a worker wants to know: which app, where, what it serves, how to stop."""
    processes = (
        f"{count} process{'es' if count != 1 else ''}" if options.pool == "processes" else "this process"
    )
    lines = [
        f"respool worker of app {place.app} (pid {os.getpid()})",
        f"  log     {place.url}",
        f"  pool    {options.pool}: {processes}{', until nothing is due' if options.burst else ''}",
        f"  serves  {', '.join(served_as(stream, group) for stream, group in served)}",
        f"  tasks   {_shown_tasks(tasks)}",
    ]
    stopped = (how_held(stream, group) for stream, group in served)
    lines += [f"  note    {said}" for said in stopped if said is not None]
    others = _of_other_apps(place.engine, place.app)
    if others:
        lines.append(f"  note    of other apps, and served by no worker: {', '.join(others)}")
    lines.append("  Ctrl-C ends it when the running tasks have finished; twice ends it at once.")
    print("\n".join(lines), file=out, flush=True)


def _shown_tasks(names: list[str]) -> str:
    if not names:
        return "none: what -A names has to import the modules that have them"
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _of_other_apps(engine: Any, app: str) -> list[str]:
    """Return the queues of other apps in which calls wait that nobody runs: was the wrong app named?"""
    streams = {stream.id: stream for stream in engine.streams()}
    taken = {id for worker in engine.workers() if not is_gone(worker) for id in worker.info.get("groups", ())}
    found = []
    for group in engine.groups():
        stream = streams[group.stream]
        if group.kind == "main" and stream.app != app and group.id not in taken:
            try:
                counts = engine.counts(group)
            except OF_ONE_STREAM:  # no affair of this worker's
                continue
            waiting = counts.pending + counts.leased + counts.returned + sum(counts.parked.values())
            waiting -= counts.parked.get("dead", 0)
            if waiting:
                verb = "call waits" if waiting == 1 else "calls wait"
                found.append(f"{served_as(stream, group)} ({waiting:,} {verb})")
    return found
