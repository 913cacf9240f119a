"""`respool calls`: the record of what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .common import json_option, suggested
from .moments import between_option, shown_window, since_option, until_option, window

STATES = ("PENDING", "SCHEDULED", "STARTED", "PROGRESS", "RETRY", "SUCCESS", "FAILURE", "REVOKED", "UNKNOWN")


if TYPE_CHECKING:
    from .moments import Spoken

    _Text = click.ParamType[str]
else:
    _Text = click.ParamType  # which older versions of click do not have as a generic class


class State(_Text):
    """A state of calls, in whatever case; the near one is suggested for a misspelt one."""

    name = "state"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the state as it is stored."""
        from ..errors import suggest

        name = str(value).upper()
        if name not in STATES:
            self.fail(f"no state {value!r}{suggest(name, STATES)}", param, ctx)
        return name


@click.command()
@click.option("--queue", metavar="NAME", help="Only calls of this queue.")
@click.option("--task", metavar="NAME", help="Only calls of this task.")
@click.option(
    "--state", type=State(), metavar="STATE", help=f"Only calls in this state: {', '.join(STATES)}."
)
@click.option(
    "--group", default="main", show_default=True, metavar="NAME", help="The group whose states count."
)
@since_option
@until_option
@between_option
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="So many at most.")
@click.option("--oldest", is_flag=True, help="The oldest first, rather than the newest.")
@json_option
def command(
    queue: str | None,
    task: str | None,
    state: str | None,
    group: str,
    since: Spoken | None,
    until: Spoken | None,
    between: tuple[Spoken, Spoken] | None,
    limit: int,
    oldest: bool,
    as_json: bool,
) -> None:
    """List calls on record, the newest first: when, what, and how they stand.

    \b
    respool -A shop calls --since 1h --state FAILURE
    respool -A shop calls --task embed --between 14:00 16:00 --json --limit 10000
    """
    from itertools import islice

    from ..errors import UnknownName
    from .output import Column, Table, iso, line, note, when, width, zone
    from .records import SHORT, Wanted, listed
    from .target import open_target

    low, high = window(since, until, between)
    target = open_target()
    streams = (
        target.named(queue, "queue") if queue else [s for s in target.streams.values() if s.kind == "queue"]
    )
    read = {each.stream for each in target.groups if each.name == group}
    if streams and not any(stream.id in read for stream in streams):
        here = {s.id for s in streams}
        raise UnknownName("group", group, {each.name for each in target.groups if each.stream in here})
    streams = [stream for stream in streams if stream.id in read]
    table = Table(
        Column(f"sent ({zone()})"),
        Column("id"),
        Column("queue", least=6, drop=1),
        Column("state"),
        Column("call", least=16, text=True),
    )
    wanted = Wanted(group, task, state, low, high, oldest)
    found = False
    for call in islice(listed(target, streams, wanted), limit):
        found = True
        if as_json:  # printed as it is found: there may be millions
            line({**call.data(), "time": iso(call.time)})
        else:
            text = call.input.text(call.task, min(width(), SHORT))
            text = f"{text}, {call.edits[-1]}" if call.edits else text
            table.add((when(call.time), call.id, target.shown(call.stream), call.state, text), {})
    if task and not found:
        target.refuse_unknown_task(task, streams)
    if as_json:
        return
    table.show(False, _empty(task, state, queue, low=low, high=high))
    if len(table.rows) == limit:
        note(f"{limit:,} shown; there may be more: --limit, --since, --task")


def _empty(*filters: str | None, low: float | None, high: float | None) -> str:
    if any(each is not None for each in (*filters, low, high)):
        return f"No calls match these options{shown_window(low, high)}. All are listed by: respool calls"
    return f"No calls yet. Send one: {suggested('call TASK ARGS')}"
