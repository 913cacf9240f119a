"""`respool dead`: calls that failed for good, with their input and the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .common import (
    HEADER,
    RATE,
    RespoolGroup,
    confirm,
    document_option,
    json_option,
    resolve_option,
    yes_option,
)
from .moments import MOMENT, window

if TYPE_CHECKING:
    from ..dead import DeadFilter, DeadLetter, Edit
    from .target import Target

_FILTERS = (
    click.option("--queue", metavar="NAME", help="Of this queue or stream."),
    click.option("--group", metavar="NAME", help="Of this group."),
    click.option("--task", metavar="NAME", help="Of this task."),
    click.option("--id", "ids", multiple=True, metavar="ID", help="With this id; repeatable."),
    click.option(
        "--error", metavar="TYPE", help="Of errors of this type: KeyError, shop.OutOfStock, *Timeout."
    ),
    click.option("--message", metavar="REGEX", help="Whose error's message has this in it."),
    click.option("--since", type=MOMENT, metavar="WHEN", help="Died from: 1h, 30d, 14:00, 2026-01-31T14:00."),
    click.option("--until", type=MOMENT, metavar="WHEN", help="Up to, likewise; itself not included."),
    click.option("--key", metavar="KEY", help="With this key."),
    click.option(
        "--header", "headers", multiple=True, type=HEADER, metavar="NAME=VALUE", help="With this header."
    ),
)


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_FILTERS):
        function = option(function)
    return function


def _chosen(given: dict[str, Any]) -> DeadFilter:
    from ..dead import DeadFilter

    since, until = window(given["since"], given["until"])
    return DeadFilter(**{**given, "since": since, "until": until, "headers": dict(given["headers"]) or None})


@click.group(cls=RespoolGroup)
def command() -> None:
    """List, show, give back and drop dead letters.

    A dead letter is a call that failed for good: its input and the error are kept, and nothing runs it by
    itself.

    \b
    respool -A shop dead list --by error
    respool -A shop dead list --task fetch --error TimeoutError --since 1d
    respool -A shop dead redrive --task fetch --rate 50/s
    """


@command.command("list", short_help="List them; --by error counts what they died of.")
@_filters
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
    from .target import open_target

    target, chosen = open_target(), _chosen(given)
    if by == "error":
        _list_causes(target, chosen, limit, as_json)
    else:
        _list_letters(target, chosen, limit, as_json)


def _list_letters(target: Target, chosen: DeadFilter, limit: int, as_json: bool) -> None:
    from ..dead import called, count_dead, dead_letters
    from .output import Column, Table, iso, note, when, zone

    letters = dead_letters(target.source, chosen, limit + 1, app=target.only)
    if not letters:
        _refuse_unknown_task(target, chosen)
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
        table.add((*cells, when(letter.parked.at), data["error"]), {**data, "since": iso(letter.parked.at)})
    table.show(as_json, _none(chosen))
    if not as_json and len(letters) > limit:
        total = sum(count_dead(target.source, chosen, app=target.only).values())
        note(f"{limit:,} of {total:,}; --limit shows more, --task and --error fewer; --by error counts them")


def _list_causes(target: Target, chosen: DeadFilter, limit: int, as_json: bool) -> None:
    from ..dead import causes
    from .output import Column, Table, iso, note, number, when, zone

    found = causes(target.source, chosen, app=target.only)
    if not found:
        _refuse_unknown_task(target, chosen)
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
                number(cause.count), cause.error, cause.where, tasks,
                when(cause.first), when(cause.last), cause.message,
            ),
            {
                "count": cause.count, "error": cause.error, "where": cause.where, "tasks": cause.tasks,
                "groups": sorted(cause.groups), "first": iso(cause.first), "last": iso(cause.last),
                "message": cause.message, "traceback": cause.traceback, "example": example,
            },
        )  # fmt: skip
    table.show(as_json, _none(chosen))
    if not as_json and found:
        if len(found) > limit:
            note(f"{limit:,} of {len(found):,} causes; --limit shows more")
        last = _id_at(target, found[0].position)
        note(f"The last of the first kind, with its traceback: respool dead show {last}")


def _refuse_unknown_task(target: Target, chosen: DeadFilter) -> None:
    if chosen.task:
        streams = target.streams.values()
        target.refuse_unknown_task(chosen.task, [s for s in streams if chosen.queue in (None, s.name)])


def _none(chosen: DeadFilter) -> str:
    if any(chosen):
        return "No dead letters match. All of them: respool dead list"
    return "No dead letters. What failed without one (throws=): respool calls --state FAILURE"


def _id_at(target: Target, pos: int) -> str:
    from ..engines import public_id
    from ..record import id_text

    found = target.engine.briefs(pos, pos + 1, None, None, None, 0)
    return id_text(public_id(found[0].id)) if found else "(record gone)"


def _data(target: Target, letter: DeadLetter) -> dict[str, Any]:
    from ..reading import one_line

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


@command.command(short_help="Show one: its input, why and where it died.")
@click.argument("id")
@click.option("--group", metavar="NAME", help="In this group.")
@resolve_option
@document_option
def show(id: str, group: str | None, resolve: bool, as_json: bool) -> None:
    """Show a dead letter: its input, why and where it died, and all its attempts.

    \b
    respool -A shop dead show 0198c1d2-…
    """
    from ..dead import DeadFilter, dead_letters
    from ..errors import UnknownCall
    from .details import FETCHED, PRINTED, print_record, record_data
    from .output import document
    from .target import open_target

    target = open_target()
    letters = dead_letters(target.source, DeadFilter(None, group, None, (id,)), app=target.only)
    if not letters:
        raise UnknownCall(f"{id} is no dead letter; see how it stands: respool show {id}")
    names = {letter.group.name for letter in letters}
    most = float("inf") if resolve else PRINTED if as_json else FETCHED
    data = record_data(target, letters[0].parked.pos, names, most)
    if as_json:
        document(data)
    else:
        print_record(data)


@command.command(short_help="Give dead letters back to their groups, due at once.")
@_filters
@click.option(
    "--rate", type=RATE, metavar="N/s", help="So many a second rather than all at once: 50/s, 600/m."
)
@click.option(
    "--set", "changes", multiple=True, metavar="PATH=VALUE",
    help="Change an argument: kwargs.url=…, args[0]=…, with -A by its parameter's name too. JSON, else text.",
)  # fmt: skip
@click.option("--edit", is_flag=True, help="Change the arguments of one in $EDITOR.")
@click.option("--dry-run", is_flag=True, help="Say what would be given back, and change nothing.")
@yes_option
@document_option
def redrive(
    rate: float | None,
    changes: tuple[str, ...],
    edit: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Give dead letters back to the groups that failed them, due at once or at a rate.

    Asks where there is more than one. Those that fail again are dead letters again, with all their history.
    What is edited must fit the task's signature, where -A names the app; the history keeps what it was.

    \b
    respool -A shop dead redrive --task fetch --error TimeoutError --rate 50/s
    respool -A shop dead redrive --id 0198c1d2-… --edit
    respool -A shop dead redrive --task fetch --set url=https://example.org --dry-run
    """
    from ..dead import redrive as give_back
    from .output import document
    from .target import open_target

    target, chosen = open_target(), _chosen(given)
    counts = _counted(target, chosen)
    total = sum(counts.values())
    change = _edit(target, chosen, total, changes, edit)
    if dry_run:
        _say_dry_run("would give back", target, chosen, counts, change, rate, as_json)
        return
    if total > 1:
        confirm(f"Run {total:,} dead letters again: {_by_task(counts)}?{_lasting(total, rate)}", yes)
    given_back = _with_progress(
        "giving back",
        total,
        lambda tell: give_back(target.source, chosen, app=target.only, rate=rate, edit=change, progress=tell),
    )
    if as_json:
        document({"redriven": given_back})
    elif not given_back:
        click.echo(_none(chosen))
    else:
        click.echo(
            f"Gave back {given_back:,} dead letter{'s' if given_back > 1 else ''}"
            f"{_lasting(given_back, rate)}; see: respool lag"
        )


@command.command(short_help="End dead letters for good; their state stays FAILURE.")
@_filters
@click.option("--dry-run", is_flag=True, help="Say what would be dropped, and change nothing.")
@yes_option
@document_option
def drop(dry_run: bool, yes: bool, as_json: bool, **given: Any) -> None:
    """End dead letters for good: they are listed and given back no more.

    Their state stays FAILURE, their history says that they were dropped, and their records stay for as long
    as the queue's retention has it.

    \b
    respool -A shop dead drop --task fetch --until 30d
    respool -A shop dead drop --id 0198c1d2-… --yes
    """
    from ..dead import drop as end
    from .output import document
    from .target import open_target

    target, chosen = open_target(), _chosen(given)
    counts = _counted(target, chosen)
    total = sum(counts.values())
    if dry_run:
        _say_dry_run("would drop", target, chosen, counts, None, None, as_json)
        return
    if total:
        confirm(f"Drop {total:,} dead letter{'s' if total > 1 else ''} for good: {_by_task(counts)}?", yes)
    dropped = _with_progress(
        "dropping", total, lambda tell: end(target.source, chosen, app=target.only, progress=tell)
    )
    if as_json:
        document({"dropped": dropped})
    elif not dropped:
        click.echo(_none(chosen))
    else:
        click.echo(f"Dropped {dropped:,} dead letter{'s' if dropped > 1 else ''}; their records stay.")


def _counted(target: Target, chosen: DeadFilter) -> dict[str, int]:
    from ..dead import count_dead

    counts = count_dead(target.source, chosen, app=target.only)
    if not counts:
        _refuse_unknown_task(target, chosen)
    return counts


def _by_task(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({number:,})" for name, number in sorted(counts.items()))


def _lasting(total: int, rate: float | None) -> str:
    from .output import age

    return "" if rate is None or total < 2 else f" within {age((total - 1) / rate)}"


def _with_progress(what: str, total: int, run: Callable[[Callable[[int], None] | None], int]) -> int:
    from .output import progress

    if not total:
        return 0
    with progress(what) as tell:
        return run(None if tell is None else lambda done: tell(done, total))


def _say_dry_run(
    would: str,
    target: Target,
    chosen: DeadFilter,
    counts: dict[str, int],
    change: Edit | None,
    rate: float | None,
    as_json: bool,
) -> None:
    from .output import document

    total = sum(counts.values())
    edits = [] if change is None else _notes(target, chosen, change)
    if as_json:
        document({"dry_run": True, "total": total, "tasks": counts, "edits": edits})
        return
    if not total:
        click.echo(_none(chosen))
        return
    click.echo(f"It {would} {total:,}: {_by_task(counts)}{_lasting(total, rate)}.")
    for note in edits[:10]:
        click.echo(f"  {note.removeprefix('redriven: ')}")
    if len(edits) > 10:
        click.echo(f"  and {len(edits) - 10:,} more edits; --json has all")


def _notes(target: Target, chosen: DeadFilter, change: Edit) -> list[str]:
    from ..dead import dead_letters

    notes = []
    for letter in dead_letters(target.source, chosen, 1_000_000, app=target.only):
        notes += [note for _, note in change.bodies(target.engine, letter.stream, [letter.parked]).values()]
    return notes


def _edit(
    target: Target, chosen: DeadFilter, total: int, changes: tuple[str, ...], edit: bool
) -> Edit | None:
    """Return the change asked for. Raises UsageError where it cannot be."""
    from ..dead import changed_by, changed_with

    if edit and changes:
        raise click.UsageError("--edit or --set, not both")
    tasks = target.app.tasks if target.app else None
    if changes:
        return changed_with(dict(map(_change, changes)), tasks, target.pickle_key, target.blobs_if_any)
    if not edit:
        return None
    if total != 1:
        raise click.UsageError(
            f"--edit changes one dead letter, and {total:,} match; name it with --id, or use --set"
        )
    made: dict[str, Any] = {}

    def once(task: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if not made:  # the editor is opened once, whatever is tried with it
            made["now"] = _in_editor(task, arguments)
        return dict(made["now"])

    return changed_by(once, tasks, target.pickle_key, target.blobs_if_any)


def _change(text: str) -> tuple[str, Any]:
    import json

    from ..tagged import from_tagged

    path, found, value = text.partition("=")
    if not found:
        raise click.UsageError(
            f"--set {text!r}: it looks like PATH=VALUE, as in kwargs.url=https://example.org"
        )
    try:
        return path.strip(), from_tagged(json.loads(value))
    except ValueError:
        return path.strip(), value


def _in_editor(task: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Have the arguments changed in $EDITOR, as JSON. Raises Failure where nothing was changed."""
    import json

    from ..tagged import from_tagged, to_tagged
    from .common import Failure

    before = json.dumps(to_tagged(arguments), ensure_ascii=False, indent=2) + "\n"
    after = click.edit(before, extension=".json")
    if after is None or after == before:
        raise Failure("nothing was changed in the editor; nothing was given back")
    try:
        changed = from_tagged(json.loads(after))
    except ValueError as error:
        raise Failure(f"what the editor left is no JSON: {error}; nothing was given back") from error
    if not isinstance(changed, dict):
        raise Failure(f"what the editor left are no arguments of {task}; nothing was given back")
    return changed
