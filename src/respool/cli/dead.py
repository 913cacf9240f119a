"""`respool dead`: calls that failed for good, with their input and the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .common import RespoolGroup, confirm, document_option, json_option, yes_option

if TYPE_CHECKING:
    from ..replay import DeadFilter, DeadLetter
    from .target import Target

_FILTERS = (
    click.option("--queue", metavar="NAME", help="Of this queue or stream."),
    click.option("--group", metavar="NAME", help="Of this group."),
    click.option("--task", metavar="NAME", help="Of this task."),
    click.option("--id", "ids", multiple=True, metavar="ID", help="With this id; repeatable."),
)


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_FILTERS):
        function = option(function)
    return function


@click.group(cls=RespoolGroup)
def command() -> None:
    """List, show and give back dead letters.

    A dead letter is a call that failed for good: its input and the error are kept, and nothing runs it by
    itself.

    \b
    respool -A shop dead list --task fetch
    respool -A shop dead redrive --task fetch
    """


@command.command("list")
@_filters
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="So many, the oldest first."
)
@json_option
def list_(
    queue: str | None, group: str | None, task: str | None, ids: tuple[str, ...], limit: int, as_json: bool
) -> None:
    """List dead letters, the oldest first.

    \b
    respool -A shop dead list --queue default --task fetch
    """
    from ..replay import DeadFilter, count_dead, dead_letters
    from ..replay.dead import called
    from .output import Column, Table, iso, note, when, zone
    from .target import open_target

    target = open_target()
    chosen = DeadFilter(queue, group, task, ids)
    letters = dead_letters(target.source, chosen, limit + 1, app=target.only)
    if not letters:
        _refuse_unknown_task(target, chosen)
    table = Table(
        Column("id"),
        Column("queue", least=8, drop=3),
        Column("group", least=6, drop=2),
        Column("task", least=10),
        Column(f"since ({zone()})", drop=1),
        Column("error", least=20),
    )
    for letter in letters[:limit]:
        data = _data(target, letter)
        name = called(letter.stream, letter.group, letter.parked.task)
        cells = (data["id"], target.shown(letter.stream), letter.group.name, name)
        table.add((*cells, when(letter.parked.at), data["error"]), {**data, "since": iso(letter.parked.at)})
    table.show(as_json, _none(chosen))
    if not as_json and len(letters) > limit:
        total = sum(count_dead(target.source, chosen, app=target.only).values())
        note(f"{limit:,} of {total:,}; --limit shows more, --task and --queue fewer")


def _refuse_unknown_task(target: Target, chosen: DeadFilter) -> None:
    if chosen.task:
        streams = target.streams.values()
        target.refuse_unknown_task(chosen.task, [s for s in streams if chosen.queue in (None, s.name)])


def _none(chosen: DeadFilter) -> str:
    if any(chosen):
        return "No dead letters match. All of them: respool dead list"
    return "No dead letters. What failed without one (throws=): respool calls --state FAILURE"


def _data(target: Target, letter: DeadLetter) -> dict[str, Any]:
    from ..engines import public_id
    from ..record import id_text
    from .values import one_line

    found = target.engine.briefs(letter.parked.pos, letter.parked.pos + 1, None, None, None, 0)
    return {
        "id": id_text(public_id(found[0].id)) if found else "(record gone)",
        "queue": letter.stream.name,
        "app": letter.stream.app,
        "group": letter.group.name,
        "task": letter.parked.task,
        "retries": letter.parked.retries,
        "deliveries": letter.parked.deliveries,
        "redrives": letter.parked.redrives,
        "error": one_line(letter.parked.error),
    }


@command.command()
@click.argument("id")
@click.option("--group", metavar="NAME", help="In this group.")
@document_option
def show(id: str, group: str | None, as_json: bool) -> None:
    """Show a dead letter: its input, and why it died.

    \b
    respool -A shop dead show 0198c1d2-…
    """
    from ..errors import UnknownCall
    from ..replay import DeadFilter, dead_letters
    from .details import print_record, record_data
    from .output import document
    from .target import open_target

    target = open_target()
    letters = dead_letters(target.source, DeadFilter(None, group, None, (id,)), app=target.only)
    if not letters:
        raise UnknownCall(f"{id} is no dead letter; see how it stands: respool show {id}")
    names = {letter.group.name for letter in letters}
    data = record_data(target, letters[0].parked.pos, names)
    if as_json:
        document(data)
    else:
        print_record(data)


@command.command(short_help="Give dead letters back to their groups, due at once.")
@_filters
@yes_option
@document_option
def redrive(
    queue: str | None, group: str | None, task: str | None, ids: tuple[str, ...], yes: bool, as_json: bool
) -> None:
    """Give dead letters back to the groups that failed them, due at once.

    Asks where there is more than one. Those that fail again are dead letters again.

    \b
    respool -A shop dead redrive --task fetch
    respool -A shop dead redrive --id 0198c1d2-…
    """
    from ..replay import DeadFilter, count_dead
    from ..replay import redrive as give_back
    from .output import document
    from .target import open_target

    target = open_target()
    chosen = DeadFilter(queue, group, task, ids)
    counts = count_dead(target.source, chosen, app=target.only)
    total = sum(counts.values())
    if not total:
        _refuse_unknown_task(target, chosen)
    if total > 1:
        tasks = ", ".join(f"{name} ({number:,})" for name, number in sorted(counts.items()))
        confirm(f"Run {total:,} dead letters again: {tasks}?", yes)
    given = give_back(target.source, chosen, app=target.only) if total else 0
    if as_json:
        document({"redriven": given})
    elif not given:
        click.echo(_none(chosen))
    else:
        click.echo(f"Gave back {given:,} dead letter{'s' if given > 1 else ''}; see: respool lag")
