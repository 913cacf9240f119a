"""`respool replay`: run old calls again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .common import document_option, since_option, until_option

if TYPE_CHECKING:
    from ..replay import ReplaySummary


@click.command()
@click.option("--queue", required=True, metavar="NAME", help="The queue whose calls are run again.")
@click.option("--group", required=True, metavar="NAME", help="A name for the replay, such as v2.")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Run calls of this task; repeatable.")
@click.option("--all-tasks", is_flag=True, help="Run the calls of all tasks.")
@since_option
@until_option
@click.option(
    "--outbox",
    type=click.Choice(["drop", "send"]),
    default="drop",
    show_default=True,
    help="What becomes of the calls that replayed tasks make.",
)
@click.option("--dry-run", is_flag=True, help="Count what would be run, and make nothing.")
@document_option
def command(
    queue: str,
    group: str,
    tasks: tuple[str, ...],
    all_tasks: bool,
    since: float | None,
    until: float | None,
    outbox: Any,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a group that runs old calls of a queue again.

    The original calls and their outcomes stay as they are; the group has outcomes of its own. Tasks are
    named, so that replaying a month does not send that month's mails once more.

    \b
    respool -A shop replay --queue default --group v2 --task embed --since 30d
    respool -A shop replay --queue default --group tuesday --all-tasks --since 14:00 --until 16:00 --dry-run

    Then start a worker for it: respool -A shop worker --group v2
    """
    if bool(tasks) == all_tasks:
        raise click.UsageError(
            "name the tasks with --task NAME, or give --all-tasks" + (", not both" if tasks else "")
        )
    from ..replay import create_replay, plan_replay
    from .output import document, progress
    from .target import open_target

    app = open_target(code=True).app
    assert app is not None
    make = plan_replay if dry_run else create_replay
    with progress("counting") as tell:
        summary = make(app, queue, group, list(tasks) or None, since, until, outbox, tell)
    if as_json:
        document(_data(summary))
    else:
        _print(summary, dry_run)


def _data(summary: ReplaySummary) -> dict[str, Any]:
    from .output import iso

    return {
        "queue": summary.queue.name,
        "group": summary.group,
        "created": summary.created,
        "since": iso(summary.settings["since"]),
        "until": iso(summary.settings["until"]),
        "outbox": summary.settings["outbox"],
        "runs": summary.total,
        "run": summary.run,
        "left_out": summary.left_out,
        "outside_window": summary.outside,
    }


def _print(summary: ReplaySummary, dry_run: bool) -> None:
    from .output import Column, Table, moment, note, number

    since, until = summary.settings["since"], summary.settings["until"]
    window = ("from the beginning" if since is None else f"from {moment(since)}") + (
        " to the end as of now" if until is None else f" to {moment(until)}"
    )
    done = "would run" if dry_run else "is there already and runs" if not summary.created else "runs"
    click.echo(
        f"Replay {summary.group} {done} {summary.total:,} calls of queue {summary.queue.name}, {window}."
    )
    table = Table(Column("task", least=20), Column("runs", right=True), Column("left out", right=True))
    for task in sorted({*summary.run, *summary.left_out}):
        run, left_out = summary.run.get(task, 0), summary.left_out.get(task, 0)
        table.add((task, number(run), number(left_out)), {})
    table.show(False, "")
    if summary.settings["outbox"] == "drop":
        note("Calls that these runs make are dropped and counted; --outbox send would send them.")
    if not dry_run:
        from .common import common

        app = common().app
        click.echo(f"Run it:  respool{f' -A {app}' if app else ''} worker --group {summary.group}")
