"""Starting a worker of either pool, with its banner."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import TextIO

from ..errors import ConfigError
from ..loading import load_app
from .options import Hello, WorkerOptions
from .services import services
from .solo import Solo
from .supervisor import Supervisor

POOLS = ("processes", "solo")


def start(options: WorkerOptions, out: TextIO | None = None) -> int:
    """Run a worker until it is told to stop; return the exit status.

    Raises: ConfigError, and with the solo pool whatever the app raises at import.
    """
    out = sys.stderr if out is None else out
    _log_to(out)
    if options.pool == "solo":
        app = load_app(options.app, options.url)
        served = services(app, options.queues, options.group)
        tasks = sorted({name for service in served for name in service.runners})
        _banner(out, options, app.name, app.location.shown, [service.shown for service in served], tasks, 1)
        if any(runner.hard for service in served for runner in service.runners.values()):
            logging.getLogger("respool.worker").warning(
                "the solo pool cannot keep time_limit: only soft limits work"
            )
        return Solo(app, served, options).run()
    if options.pool != "processes":
        raise ConfigError(f"no pool {options.pool!r}; there are: {', '.join(POOLS)}")
    supervisor = Supervisor(options)
    supervisor.on_started = _on_started(out, options, supervisor.count)
    return supervisor.run()


def _on_started(out: TextIO, options: WorkerOptions, count: int) -> Callable[[Hello], None]:
    def show(hello: Hello) -> None:
        shown = [service[1] for service in hello.services]
        _banner(out, options, hello.app, hello.shown_url, shown, sorted(hello.tasks), count)

    return show


def _banner(
    out: TextIO, options: WorkerOptions, app: str, url: str, served: list[str], tasks: list[str], count: int
) -> None:
    """Say what a person who runs a worker wants to know: which app, where, what it serves, how to stop."""
    processes = (
        f"{count} process{'es' if count != 1 else ''}" if options.pool == "processes" else "this process"
    )
    lines = [
        f"respool worker of app {app} (pid {os.getpid()})",
        f"  log     {url}",
        f"  pool    {options.pool}: {processes}{', until nothing is due' if options.burst else ''}",
        f"  serves  {', '.join(served)}",
        f"  tasks   {', '.join(tasks[:12])}{f' and {len(tasks) - 12} more' if len(tasks) > 12 else ''}",
        "  Ctrl-C ends it when the running tasks have finished; twice ends it at once.",
    ]
    print("\n".join(lines), file=out, flush=True)


def _log_to(out: TextIO) -> None:
    logging.basicConfig(
        level=logging.INFO,
        stream=out,
        format="%(asctime)s %(levelname).1s worker: %(message)s",
        datefmt="%H:%M:%S",
    )
