"""`respool replay`: run old calls again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .common import MOMENT, document_option

if TYPE_CHECKING:
    from ..app import App
    from ..engines.base import Group
    from ..replay import ReplaySummary

    _Spoken = click.ParamType["Spoken"]
else:
    _Spoken = click.ParamType  # which older versions of click do not have as a generic class

COUNTED = 60.0  # seconds at most between reading a command line and the replay's creation, for the counting


class Spoken(NamedTuple):
    """A moment, and how long ago that is where it was given so."""

    at: float
    ago: float | None


class SpokenMoment(_Spoken):
    """A moment, with the way in which it was named."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Spoken:
        """Return the moment, and how long ago it was said to be."""
        from ..clock import now as wall_clock
        from ..config import duration
        from ..errors import ConfigError

        at = MOMENT.convert(value, param, ctx)
        try:
            ago = 0.0 if value == "now" else duration(value)
        except ConfigError:  # it does not depend on when it is said
            return Spoken(at, None)
        # 20260131 would be a number of seconds too, but is a date.
        return Spoken(at, ago if abs(wall_clock() - ago - at) < 5 else None)


SPOKEN = SpokenMoment()


@click.command()
@click.option("--queue", required=True, metavar="NAME", help="The queue whose calls are run again.")
@click.option("--group", required=True, metavar="NAME", help="A name for the replay, such as v2.")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Run calls of this task; repeatable.")
@click.option("--all-tasks", is_flag=True, help="Run the calls of all tasks.")
@click.option("--since", type=SPOKEN, metavar="WHEN", help="From: 1h, 30d, 14:00, 2026-01-31T14:00.")
@click.option("--until", type=SPOKEN, metavar="WHEN", help="Up to, likewise; itself not included.")
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
    since: Spoken | None,
    until: Spoken | None,
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

    The same command again makes nothing: the replay is there already, with the moments at which it was
    made, also where they were given relative to that, as in --since 30d. With other tasks, another outbox
    or other moments under the same name it is an error.
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
    low, high = _window(app, queue, group, since, until)
    with progress("counting") as tell:
        summary = make(app, queue, group, list(tasks) or None, low, high, outbox, tell)
    if as_json:
        document(_data(summary))
    else:
        _print(summary, dry_run)


def _window(
    app: App, queue: str, group: str, since: Spoken | None, until: Spoken | None
) -> tuple[float | None, float | None]:
    """Return the window meant: that of the replay of this name where the same words were said to make it.

    Raises: ConfigError where it was made with other moments.
    """
    from ..errors import ConfigError
    from ..why import worker_command
    from .output import moment

    given = [None if each is None else each.at for each in (since, until)]
    stored = _stored(app, queue, group)
    if stored is None:
        return given[0], given[1]
    kept = [stored.settings.get("since"), stored.settings.get("until")]
    spoken = [since, until]
    if all(_means(spoken[n], kept[n], stored.created) for n in (0, 1)):
        return kept[0], kept[1]
    bounds = [
        f"{word} {moment(at)}" for word, at in zip(("since", "until"), kept, strict=True) if at is not None
    ]
    raise ConfigError(
        f"replay {group} of queue {queue} exists with other bounds: it runs calls "
        f"{' '.join(bounds) or 'of all times'}. Run that one: {worker_command(stored)}; or drop it: respool "
        f"groups drop {group} --queue {queue}; or choose another name with --group"
    )


def _stored(app: App, queue: str, group: str) -> Group | None:
    if queue not in app.queues:  # said with its near name by what makes replays
        return None
    stream = app.stream_of("queue", queue)
    here = (
        each for each in app.groups() if (each.stream, each.app, each.name) == (stream.id, app.name, group)
    )
    return next((each for each in here if each.kind == "replay"), None)


def _means(spoken: Spoken | None, kept: float | None, created: float) -> bool:
    """Say whether a moment is the stored one, as of now or as of when the group was made."""
    if spoken is None or kept is None:
        return spoken is None and kept is None
    if spoken.ago is None:
        return spoken.at == kept
    return -1.0 <= created - spoken.ago - kept <= COUNTED


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
    from .output import Column, Table, counted, moment, note, number

    since, until = summary.settings["since"], summary.settings["until"]
    window = ("from the beginning" if since is None else f"from {moment(since)}") + (
        " to the end as of now" if until is None else f" to {moment(until)}"
    )
    done = "would run" if dry_run else "is there already and runs" if not summary.created else "runs"
    calls = counted(summary.total, "call")
    click.echo(f"Replay {summary.group} {done} {calls} of queue {summary.queue.name}, {window}.")
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
