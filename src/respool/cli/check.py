"""`respool check`: P2 by counting, and the log's integrity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .common import document_option

if TYPE_CHECKING:
    from ..engines.base import Stream
    from ..replay import Report
    from ..replay.checking import GroupReport
    from .target import Target


@click.command()
@document_option
def command(as_json: bool) -> None:
    """Prove by counting that every record is in exactly one place in every group, and the log is whole.

    All apps on the log are checked, and large payloads are looked up in their store. It can be run beside
    workers. Exit code 1 where anything is wrong.

    \b
    pending   not handed to a worker yet
    returned  given back by a worker; `respool lag` counts it as due
    leased    taken by a worker
    parked    waits by itself: scheduled, to be retried, of a task that no
              worker has, or a dead letter
    done      has come to its end

    \b
    respool -A shop check
    respool --url sqlite:///shop.db check --json
    """
    from ..replay import check
    from .output import document, progress
    from .target import open_target

    target = open_target()
    with progress("checking") as tell:
        report = check(target.engine, tell, target.store)
    returned = {each.group.id: _returned(target, each) for each in report.groups}
    if as_json:
        document(_data(report, returned))
    else:
        _print(target, report, returned)
    if not report.ok:
        click.get_current_context().exit(1)


def _returned(target: Target, report: GroupReport) -> int:
    """Return how many of the leased have no owner. Counted later than they were, so never more than these."""
    from ..errors import OF_ONE_STREAM

    try:
        return min(target.engine.counts(report.group).returned, report.leased) if report.leased else 0
    except OF_ONE_STREAM:  # which stands in the report
        return 0


def _data(report: Report, returned: dict[int, int]) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "records": report.records,
        "problems": report.problems,
        "notes": report.notes,
        "groups": [
            {
                each.stream.kind: each.stream.name,
                "app": each.group.app,
                "group": each.group.name,
                "records": each.records,
                "pending": each.pending,
                "returned": returned[each.group.id],
                "leased": each.leased - returned[each.group.id],
                "parked": each.parked,
                "done": each.done,
                "problems": each.problems,
                "warnings": each.warnings,
            }
            for each in report.groups
        ],
    }


def _print(target: Target, report: Report, returned: dict[int, int]) -> None:
    from .output import Column, Table, counted, number

    several = len({each.stream.app for each in report.groups if each.stream.app}) > 1

    def shown(stream: Stream) -> str:  # of all apps, whichever is named
        return f"{stream.app}/{stream.name}" if stream.app and several else stream.name

    some = any(returned.values())
    names = ("records", "pending", *(("returned",) if some else ()), "leased", "parked", "done")
    table = Table(
        Column("queue", least=8),
        Column("group", least=6),
        *(Column(name, right=True) for name in names),
        Column(""),
    )
    for each in report.groups:
        back = returned[each.group.id]
        figures = (
            *(each.records, each.pending, *((back,) if some else ()), each.leased - back),
            *(sum(each.parked.values()), each.done),
        )
        verdict = "WRONG" if each.problems else "ok"
        table.add((shown(each.stream), each.group.name, *map(number, figures), verdict), {})
    table.show(False, "No groups.")
    for each in report.groups:
        where = f"{each.stream.kind} {shown(each.stream)}, group {each.group.name}"
        for text in each.problems:
            click.secho(f"Wrong in {where}: {text}", fg="red")
        for text in each.warnings:
            click.secho(f"Note on {where}: {text}", fg="yellow")
    for text in report.problems:
        click.secho(f"Wrong: {text}", fg="red")
    for text in report.notes:
        click.secho(f"Note: {text}", fg="yellow")
    if report.ok:
        records = counted(report.records, "record")
        click.echo(f"{records} in {target.location.shown}: each is in one place in every group.")
