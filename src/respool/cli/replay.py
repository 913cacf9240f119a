"""`respool replay`: run old calls again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .common import DURATION, HEADER, RATE, SHARE, NotInTime, document_option
from .moments import Spoken, since_option, until_option, window

if TYPE_CHECKING:
    from ..engines.base import Group
    from ..replay import HowFar, ReplaySummary
    from .target import Target


SELECTION = (
    click.option("--key", metavar="KEY", help="Calls with this key."),
    click.option(
        "--header",
        "headers",
        multiple=True,
        type=HEADER,
        metavar="NAME=VALUE",
        help="Calls with this header.",
    ),
    click.option(
        "--where",
        metavar="EXPRESSION",
        help='Calls for which this holds: \'kwargs.amount > 100 and headers["tenant"] == "acme"\'.',
    ),
    click.option(
        "--state", metavar="STATE", help="Calls in this state in main: FAILURE, SUCCESS, REVOKED, …"
    ),
    click.option("--share", type=SHARE, metavar="N%", help="So much of them, by a hash of the id: 5%."),
)


def selecting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose records by what is in them."""
    for option in reversed(SELECTION):
        function = option(function)
    return function


@click.command()
@click.option("--queue", required=True, metavar="NAME", help="The queue whose calls are run again.")
@click.option("--group", required=True, metavar="NAME", help="A name for the replay, such as v2.")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Run calls of this task; repeatable.")
@click.option("--all-tasks", is_flag=True, help="Run the calls of all tasks.")
@since_option
@until_option
@click.option("--from-offset", metavar="N", help="From this offset of each partition; 2:N: of partition 2.")
@click.option("--to-offset", metavar="N", help="Up to, likewise; itself not included.")
@click.option("--id", "ids", multiple=True, metavar="ID", help="These calls and no others; repeatable.")
@selecting
@click.option("--rate", type=RATE, metavar="N/s", help="So many a second, over all workers: 50/s, 600/m.")
@click.option(
    "--outbox",
    type=click.Choice(["drop", "send"]),
    default="drop",
    show_default=True,
    help="What becomes of the calls and events that replayed tasks send.",
)
@click.option("--dry-run", is_flag=True, help="Count what would be run, and make nothing.")
@click.option("--wait", "--follow", "wait", is_flag=True, help="Show how far it is, until it is over.")
@click.option(
    "--timeout", type=DURATION, metavar="TIME", help="With --wait: no longer than this; exit code 3."
)
@document_option
def command(
    queue: str,
    group: str,
    tasks: tuple[str, ...],
    all_tasks: bool,
    since: Spoken | None,
    until: Spoken | None,
    rate: float | None,
    outbox: Any,
    dry_run: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Make a group that runs old calls of a queue again.

    The original calls and their outcomes stay as they are; the group has outcomes of its own. Tasks are
    named, so that replaying a month does not send that month's mails once more.

    \b
    respool -A shop replay --queue default --group v2 --task embed --since 30d
    respool -A shop replay --queue default --group noon --all-tasks --dry-run \\
        --since 11:00 --until 13:00
    respool -A shop replay --queue default --group again --task fetch \\
        --state FAILURE --rate 50/s
    respool -A shop replay --queue default --group big --task fetch \\
        --where "kwargs.size > 1000" --share 5%

    Then start a worker for it: respool -A shop worker --group v2. It goes on where it was when its worker
    ended; respool groups pause v2 stops it whoever serves it, groups resume has it go on.

    An expression can name args, kwargs, headers, key, task, time and id, with attributes and indices into
    them (args[0].url), constants, comparisons, in, and, or, not, len(). What is not there matches nothing.
    kwargs has the arguments of the app's tasks by their names, also where they were sent by position.

    The same command again makes nothing: the replay is there already, with the moments at which it was
    made, also where they were given relative to that, as in --since 30d; with another --rate it goes on at
    that. With other tasks, filters, moments or another outbox under the same name it is an error.
    """
    if not chosen["ids"] and bool(tasks) == all_tasks:
        raise click.UsageError(
            "name the tasks with --task NAME, or give --all-tasks" + (", not both" if tasks else "")
        )
    if dry_run and wait:
        raise click.UsageError("--dry-run makes nothing to --wait for")
    from ..replay import Selection, create_replay, plan_replay
    from ..why import worker_command
    from .output import document, progress
    from .target import open_target

    target = open_target(code=True, writes=not dry_run)
    assert target.app is not None
    chosen["headers"] = dict(chosen["headers"])
    chosen["ids"] = tuple(map(target.whole_id, chosen["ids"]))
    chosen["state"] = chosen["state"] and chosen["state"].upper()
    selection, (low, high) = Selection(**chosen), window(since, until)
    spoken = {"since": since and since.ago, "until": until and until.ago}
    names = list(tasks) or None
    with progress("counting") as tell:
        if dry_run:
            summary = plan_replay(
                target.app, queue, group, names, low, high, outbox, tell, selection=selection, spoken=spoken
            )
        else:
            summary = create_replay(
                target.app, queue, group, names, low, high, outbox, tell,
                selection=selection, rate=rate, spoken=spoken,
            )  # fmt: skip
    if not as_json:
        made = next((each for each in target.engine.groups() if each.id == summary.id), None)
        _print(summary, None if dry_run or made is None else worker_command(made))
    far = _wait(target, summary, timeout, quiet=as_json) if wait else None
    if as_json:
        document(_data(summary, far))
    if far is not None and not far.over:
        raise NotInTime(f"replay {group} was not over in time: {far.run:,} of {summary.total:,}")
    if far is not None and not as_json:
        click.echo(f"Replay {group} is over: {far.run - far.dead:,} done, {far.dead:,} failed.")


def _wait(target: Target, summary: ReplaySummary, timeout: float | None, *, quiet: bool) -> HowFar:
    """Show how far a replay is, until it is over."""
    from ..replay import follow, how_far
    from ..why import worker_command
    from .output import progress

    group: Group = next(g for g in target.engine.groups() if g.id == summary.id)
    if not target.serving(group) and not how_far(target.engine, group).over:
        click.echo(f"No worker serves it yet; start one: {worker_command(group)}", err=True)
    with progress("running", piped=not quiet) as tell:
        return follow(
            target.engine, group, lambda far: None if tell is None else tell(far.run, summary.total), timeout
        )


def _data(summary: ReplaySummary, far: HowFar | None) -> dict[str, Any]:
    from .output import iso

    kept = summary.settings
    names = ("tasks", "key", "headers", "where", "share", "state")
    ended = {}
    if far is not None:
        ended = {"over": far.over, "done": far.run, "dead": far.dead, "skipped": far.skipped}
    return {
        "queue": summary.queue.name,
        "group": summary.group,
        "created": summary.created,
        "since": iso(kept["since"]),
        "until": iso(kept["until"]),
        "outbox": kept["outbox"],
        **{name: kept.get(name) for name in names},
        "runs": summary.total,
        "at_most": summary.at_most,
        "run": summary.run,
        "left_out": summary.left_out,
        "outside_window": summary.outside,
        **ended,
    }


def _print(summary: ReplaySummary, command: str | None) -> None:
    """Print it for people, with the command that runs it; None: it is only planned."""
    from ..clock import now as wall_clock
    from .output import Column, Table, counted, moment, note, number

    since, until = summary.settings["since"], summary.settings["until"]
    begin = "from the beginning" if since is None else f"from {moment(since)}"
    if until is not None:
        end = f"to {moment(until)}"
    elif summary.made is None or summary.created:
        end = f"to the end as of now, {moment(wall_clock())}"
    else:
        end = f"to the end as of {moment(summary.made)}, when it was made"
    done = "would run" if command is None else "is there already and runs" if not summary.created else "runs"
    calls = ("at most " if summary.at_most else "") + counted(summary.total, "call")
    click.echo(f"Replay {summary.group} {done} {calls} of queue {summary.queue.name}, {begin} {end}.")
    table = Table(Column("task", least=20), Column("runs", right=True), Column("left out", right=True))
    for task in sorted({*summary.run, *summary.left_out}):
        run, left_out = summary.run.get(task, 0), summary.left_out.get(task, 0)
        table.add((task, number(run), number(left_out)), {})
    table.show(False, "")
    if summary.at_most:
        note("Its worker looks into each and leaves out what does not match; --dry-run counts them now.")
    if summary.hint:
        note(f"Beware: {summary.hint}.")
    if summary.settings["outbox"] == "drop":
        note("Calls and events that these runs send are dropped and counted; --outbox send would send them.")
    if command is not None:
        click.echo(f"Run it:  {command}")
