"""`respool dead redrive | drop`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from ..common import RATE, confirm, document_option, yes_option
from .editing import edited
from .filters import chosen_by, filters, none_told, refuse_unknown_task

if TYPE_CHECKING:
    from ...dead import DeadFilter, Edit
    from ..target import Target

SHOWN = 10  # edits that a dry run shows


@click.command(short_help="Give dead letters back to their groups, due at once.")
@filters
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
    respool -A shop dead redrive --task fetch --set url=https://x.org --dry-run
    """
    from ...dead import redrive as give_back
    from ..output import document
    from ..target import open_target

    target = open_target(writes=not dry_run)
    chosen = chosen_by(target, given)
    counts = _counted(target, chosen)
    total = sum(counts.values())
    change = edited(target, total, changes, edit)
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
        click.echo(none_told(chosen))
    else:
        click.echo(
            f"Gave back {given_back:,} dead letter{'s' if given_back > 1 else ''}"
            f"{_lasting(given_back, rate)}; see: respool lag"
        )


@click.command(short_help="End dead letters for good; their state stays FAILURE.")
@filters
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
    from ...dead import drop as end
    from ..output import document
    from ..target import open_target

    target = open_target(writes=not dry_run)
    chosen = chosen_by(target, given)
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
        click.echo(none_told(chosen))
    else:
        click.echo(f"Dropped {dropped:,} dead letter{'s' if dropped > 1 else ''}; their records stay.")


def _counted(target: Target, chosen: DeadFilter) -> dict[str, int]:
    from ...dead import count_dead

    counts = count_dead(target.source, chosen, app=target.only)
    if not counts:
        refuse_unknown_task(target, chosen)
    return counts


def _by_task(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({number:,})" for name, number in sorted(counts.items()))


def _lasting(total: int, rate: float | None) -> str:
    from ..output import age

    return "" if rate is None or total < 2 else f" within {age((total - 1) / rate)}"


def _with_progress(what: str, total: int, run: Callable[[Callable[[int], None] | None], int]) -> int:
    from ..output import progress

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
    from ...dead import notes_of_edits
    from ..output import document

    total = sum(counts.values())
    notes = iter(()) if change is None else notes_of_edits(target.source, chosen, change, app=target.only)
    if as_json:
        document({"dry_run": True, "total": total, "tasks": counts, "edits": list(notes)})
        return
    first = list(islice(notes, SHOWN))
    more = sum(1 for _ in notes)  # all are tried
    if not total:
        click.echo(none_told(chosen))
        return
    click.echo(f"It {would} {total:,}: {_by_task(counts)}{_lasting(total, rate)}.")
    for note in first:
        click.echo(f"  {note.removeprefix('redriven: ')}")
    if more:
        click.echo(f"  and {more:,} more edits; --json has all")
