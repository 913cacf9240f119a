"""`respool seek`: move a group itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from .common import DURATION, confirm, document_option, yes_option
from .moments import one_moment

if TYPE_CHECKING:
    from ..replay import SeekPlan
    from .target import Target


@click.command()
@click.argument("group")
@click.option("--queue", metavar="NAME", help="Of this queue or stream, where several have such a group.")
@click.option(
    "--to",
    metavar="WHERE",
    help="earliest, latest, an offset (1000, 2:1000), or a moment: 1h, 14:00, 2026-01-31.",
)
@click.option(
    "--grace", type=DURATION, default="30s", show_default=True, metavar="TIME",
    help="How long workers may finish what they hold past it, before it is taken from them.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Bring a seek to its end that was left in the middle.")
@click.option("--dry-run", is_flag=True, help="Say what would be done again, and move nothing.")
@yes_option
@document_option
def command(
    group: str,
    queue: str | None,
    to: str | None,
    grace: float,
    resume: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Move a group itself, back or forth: going back does the work again, for real.

    It says how many calls of which tasks will be done again, and asks. Their outcomes in this group are
    forgotten, their history is kept, and calls that they make are sent again. Moved forth, what it has not
    done is ended as REVOKED. To run old calls beside what they gave, without doing anything again for real:
    respool replay.

    \b
    respool -A shop seek audit --to 2026-01-31T14:00
    respool -A shop seek main --queue default --to 1h --dry-run
    respool -A shop seek audit --to 2:1000 --yes

    2:1000 is offset 1000 of partition 2, and 14:00 a time of day; offset 0 of partition 14 is 14:0.
    """
    if resume == (to is not None):
        raise click.UsageError("say where: --to WHERE; or --resume" + (", not both" if resume else ""))
    from ..replay import plan_seek, resume_seek
    from ..replay import seek as move
    from .output import document, progress
    from .target import open_target

    target = open_target(writes=not dry_run)
    found = target.one_group(group, queue)
    stream = target.streams[found.stream]
    if resume:
        with progress("moving") as tell:
            over = resume_seek(target.engine, found, grace, tell)
        if as_json:
            document({"group": group, "moved": over})
        else:
            click.echo(f"Moved group {group}." if over else f"Group {group} is not being moved.")
        return
    assert to is not None
    plan = plan_seek(target.engine, stream, found, _place(to))
    if dry_run or not plan.moves:
        _say(target, plan, as_json, moved=False)
        return
    if not as_json:
        click.echo(_summary(target, plan))
    confirm(f"Move group {group} of {stream.kind} {stream.name}?", yes)
    with progress("moving") as tell:
        plan.to = dict(move(target.engine, found, plan, grace, tell))
    _say(target, plan, as_json, moved=True)


def _place(to: str) -> str | float:
    """Return an offset or a name as it is, a moment in seconds. 1000 is an offset, 14:00 a time of day."""
    is_time = re.fullmatch(r"\d\d:\d\d(:\d\d)?", to)
    if to in ("earliest", "latest") or (not is_time and re.fullmatch(r"(\d+:)?[\d_]+(,(\d+:)?[\d_]+)*", to)):
        return to
    return one_moment(to, "--to", "earliest, latest, an offset")


def _summary(target: Target, plan: SeekPlan) -> str:
    reads = f"{plan.stream.kind} {target.shown(plan.stream)}"
    kind = "call" if plan.stream.kind == "queue" else "event"
    parts = []
    if plan.again:
        parts.append(f"{_counted(plan.again, kind)} will be done again: {_by_task(plan.again, kind)}")
    if plan.passed:
        passed = f"{_counted(plan.passed, kind)} not done yet will not be, and end as REVOKED"
        parts.append(f"{passed}: {_by_task(plan.passed, kind)}")
    what = "; ".join(parts) or "it is there already"
    return f"Group {plan.group.name} of {reads}: {what}."


def _counted(counts: dict[str, int], kind: str) -> str:
    from .output import counted

    return counted(sum(counts.values()), kind)


def _by_task(counts: dict[str, int], kind: str) -> str:
    return ", ".join(f"{name or kind} ({number:,})" for name, number in sorted(counts.items()))


def _say(target: Target, plan: SeekPlan, as_json: bool, *, moved: bool) -> None:
    from ..record import offset_of
    from .output import document

    if as_json:
        data: dict[str, Any] = {
            "group": plan.group.name,
            plan.stream.kind: plan.stream.name,
            "moved": moved,
            "to": {plan.stream.logs.index(log): offset_of(pos) for log, pos in plan.to.items()},
            "again": plan.again,
            "passed": plan.passed,
        }
        document(data)
    elif moved:
        click.echo(f"Moved group {plan.group.name}; see: respool lag")
    else:
        click.echo(_summary(target, plan))
