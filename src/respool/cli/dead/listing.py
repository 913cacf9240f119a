"""`respool dead list | show`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from ..common import document_option, json_option, resolve_option
from .filters import chosen_by, filters, none_told, refuse_unknown_task

if TYPE_CHECKING:
    from ...dead import DeadFilter, DeadLetter
    from ..target import Target


@click.command("list", short_help="List them; --by error counts what they died of.")
@filters
@click.option(
    "--by", type=click.Choice(["error"]), help="Count by cause: errors with like tracebacks are one."
)
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="So many, the oldest first."
)
@json_option
def list_(by: str | None, limit: int, as_json: bool, **given: Any) -> None:
    """List dead letters, the oldest first; --by error counts what they died of.

    \b
    respool -A shop dead list --queue default --task fetch
    respool -A shop dead list --message "no such place" --header tenant=acme
    respool -A shop dead list --by error --since 1d
    """
    from ..target import open_target

    target = open_target()
    chosen = chosen_by(target, given)
    if by == "error":
        _list_causes(target, chosen, limit, as_json)
    else:
        _list_letters(target, chosen, limit, as_json)


def _list_letters(target: Target, chosen: DeadFilter, limit: int, as_json: bool) -> None:
    from ...dead import called, count_dead, dead_letters
    from ..output import Column, Table, error_shown, iso, note, when, zone

    letters = dead_letters(target.source, chosen, limit + 1, app=target.only)
    if not letters:
        refuse_unknown_task(target, chosen)
    table = Table(
        Column("id"),
        Column("queue", least=8, drop=3),
        Column("group", least=6, drop=2),
        Column("task", least=10),
        Column(f"since ({zone()})", drop=1),
        Column("error", least=20, text=True),
    )
    for letter in letters[:limit]:
        data = _data(target, letter)
        name = called(letter.stream, letter.group, letter.parked.task)
        cells = (data["id"], target.shown(letter.stream), letter.group.name, name)
        error = error_shown(data["error"])
        table.add((*cells, when(letter.parked.at), error), {**data, "since": iso(letter.parked.at)})
    table.show(as_json, none_told(chosen))
    if not as_json and len(letters) > limit:
        total = sum(count_dead(target.source, chosen, app=target.only).values())
        note(f"{limit:,} of {total:,}; --limit shows more, --task and --error fewer; --by error counts them")


def _list_causes(target: Target, chosen: DeadFilter, limit: int, as_json: bool) -> None:
    from ...dead import causes
    from ..output import Column, Table, error_shown, iso, note, number, when, zone

    found = causes(target.source, chosen, app=target.only)
    if not found:
        refuse_unknown_task(target, chosen)
    table = Table(
        Column("dead", right=True),
        Column("error", least=14),
        Column("raised in", least=20, drop=1, text=True),
        Column("tasks", least=10, text=True),
        Column(f"first ({zone()})", drop=3),
        Column("last", drop=2),
        Column("last message", least=20, text=True),
    )
    for cause in found[:limit]:
        tasks = ", ".join(f"{name} ({count:,})" for name, count in sorted(cause.tasks.items()))
        example = _id_at(target, cause.position)
        table.add(
            (
                number(cause.count), error_shown(cause.error), cause.where, tasks,
                when(cause.first), when(cause.last), cause.message,
            ),
            {
                "count": cause.count, "error": cause.error, "where": cause.where, "tasks": cause.tasks,
                "groups": sorted(cause.groups), "first": iso(cause.first), "last": iso(cause.last),
                "message": cause.message, "traceback": cause.traceback, "example": example,
            },
        )  # fmt: skip
    table.show(as_json, none_told(chosen))
    if not as_json and found:
        if len(found) > limit:
            note(f"{limit:,} of {len(found):,} causes; --limit shows more")
        last = _id_at(target, found[0].position)
        note(f"The last of the first kind, with its traceback: respool dead show {shlex.quote(last)}")


def _id_at(target: Target, pos: int) -> str:
    from ...engines import public_id
    from ...record import id_text

    found = target.engine.briefs(pos, pos + 1, None, None, None, 0)
    return id_text(public_id(found[0].id)) if found else "(record gone)"


def _data(target: Target, letter: DeadLetter) -> dict[str, Any]:
    from ...reading import one_line

    return {
        "id": _id_at(target, letter.parked.pos),
        "queue": letter.stream.name,
        "app": letter.stream.app,
        "group": letter.group.name,
        "task": letter.parked.task,
        "retries": letter.parked.retries,
        "deliveries": letter.parked.deliveries,
        "redrives": letter.parked.redrives,
        "error": one_line(letter.parked.error),
        "worker": letter.error.worker,
    }


@click.command(short_help="Show one: its input, why and where it died.")
@click.argument("id")
@click.option("--group", metavar="NAME", help="In this group.")
@resolve_option
@document_option
def show(id: str, group: str | None, resolve: bool, as_json: bool) -> None:
    """Show a dead letter: its input, why and where it died, and all its attempts.

    \b
    respool -A shop dead show 0198c1d2-…
    """
    from ...dead import DeadFilter, dead_letters
    from ...errors import UnknownCall
    from ..details import FETCHED, PRINTED, print_record, record_data
    from ..output import document
    from ..target import open_target

    target = open_target()
    letters = dead_letters(
        target.source, DeadFilter(None, group, None, (target.whole_id(id),)), app=target.only
    )
    if not letters:
        raise UnknownCall(f"{id} is no dead letter; see how it stands: respool show {shlex.quote(id)}")
    names = {letter.group.name for letter in letters}
    most = float("inf") if resolve else PRINTED if as_json else FETCHED
    data = record_data(target, letters[0].parked.pos, names, most)
    if as_json:
        document(data)
    else:
        print_record(data)
