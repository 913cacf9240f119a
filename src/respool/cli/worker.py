"""`respool worker`: run calls."""

from __future__ import annotations

import click

from ..worker.options import WorkerOptions
from .common import DURATION, CelerysOptions, common


@click.command(name="worker", cls=CelerysOptions)
@click.option(
    "-c", "--concurrency", type=click.IntRange(1, 255), metavar="N", help="Default: one process a processor."
)
@click.option(
    "-P", "--pool", type=click.Choice(["processes", "solo"]), default="processes", show_default=True,
    help="solo runs the tasks in this process, for debuggers.",
)  # fmt: skip
@click.option("-Q", "--queues", metavar="NAMES", help="With commas between; default: all, and subscriptions.")
@click.option("--group", metavar="NAME", help="Serve this consumer group instead of main: a replay, say.")
@click.option("--burst", is_flag=True, help="End when nothing is due and no retry is waiting.")
@click.option(
    "--grace",
    type=DURATION,
    metavar="TIME",
    help="How long running tasks may go on after Ctrl-C; default: for ever.",
)
@click.option(
    "--max-tasks-per-child",
    type=click.IntRange(min=1),
    metavar="N",
    help="Replace a process after so many calls.",
)
@click.option(
    "-n", "--name", default="", metavar="NAME", help="A name for this worker; default: host and pid."
)
def command(
    concurrency: int | None,
    pool: str,
    queues: str | None,
    group: str | None,
    burst: bool,
    grace: float | None,
    max_tasks_per_child: int | None,
    name: str,
) -> int:
    """Run calls of the app's queues and subscriptions.

    \b
    respool -A shop worker              all queues, one process a processor
    respool -A shop worker -c 4 -Q ml   four processes for one queue
    respool -A shop worker --group v2   the calls of a replay
    respool -A shop worker --burst      until the backlog is done
    """
    from ..worker.start import start

    named = None if queues is None else [each.strip() for each in queues.split(",") if each.strip()]
    if named == []:
        raise click.UsageError("--queues names none; leave it out for all, and subscriptions")
    if pool == "solo" and concurrency not in (None, 1):
        raise click.UsageError(
            f"-P solo runs one call at a time, in this process: leave out -c {concurrency}"
        )
    options = WorkerOptions(
        app=common().require_app(),
        url=common().url,
        queues=named,
        group=group,
        concurrency=concurrency or 0,
        pool=pool,
        burst=burst,
        grace=grace,
        max_tasks_per_child=max_tasks_per_child,
        name=name,
    )
    return start(options)
