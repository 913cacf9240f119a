"""`respool groups`: who reads what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from .common import RATE, RespoolGroup, confirm, document_option, json_option, yes_option
from .moments import one_moment
from .replay import selecting

if TYPE_CHECKING:
    from ..engines.base import Group
    from .target import Target


@click.group(cls=RespoolGroup)
def command() -> None:
    """List, create and drop consumer groups.

    A group reads a queue or stream at its own pace: `main` runs a queue's calls; subscriptions and replays
    are groups too.

    \b
    respool -A shop groups list
    respool -A shop groups create audit --stream inference --start earliest
    """


@command.command("list", short_help="List the groups and how far they are.")
@click.option("--queue", metavar="NAME", help="Only groups of this queue or stream.")
@json_option
def list_(queue: str | None, as_json: bool) -> None:
    """List the groups: their bounds, how far they are, what they left out.

    \b
    done     run to their end, dead letters not among them
    left     still to be run
    skipped  passed over by a replay: of other tasks, or outside its window
    dropped  calls and events that a replay's runs made, and that were not sent

    What was refused besides is told below the table, where there is any.

    \b
    respool -A shop groups list --queue default
    """
    from ..why import served_as
    from .output import UNREAD, Column, Table, note, number, say_unread
    from .target import open_target

    target = open_target()
    chosen = {s.id for s in target.named(queue, "queue", "stream")} if queue else set(target.streams)
    notes: list[str] = []
    table = Table(
        Column("group", least=8),
        Column("reads", least=10),
        Column("kind", drop=4),
        Column("done", right=True),
        Column("left", right=True),
        Column("dead", right=True),
        Column("skipped", right=True, drop=2),
        Column("dropped", right=True, drop=3),
        Column("bounds", least=30, drop=1),
    )
    for group in target.groups:
        if group.stream in chosen:
            data = _data(target, group)
            cells = [group.name, f"{data['reads']} {target.shown(target.streams[group.stream])}", group.kind]
            counted = [data[name] for name in ("done", "left", "dead", "skipped", "calls_dropped")]
            cells += [UNREAD if each is None else number(each) for each in counted]
            table.add((*cells, _bounds(group)), data)
            served = served_as(target.streams[group.stream], group)
            notes += [f"{served}: {told}" for told in _told(data["counters"])]
    table.show(
        as_json, "No groups. A queue's first call makes its main; a replay is one: respool replay --help"
    )
    for text in [] if as_json else notes:
        note(text)
    say_unread([(f"{data['reads']} {data['name']}", data["error"]) for data in table.data], as_json)


_COUNTED = {
    "refused settlements": "settlement{s} refused: the worker had lost its lease; what it ran is run again",
    "calls refused: id taken": "call{s} of runs not sent: the id is that of another call",
    "dead letters dropped": "dead letter{s} dropped, by hand or by dead_letter_ttl",
}


def _told(counters: Mapping[str, int]) -> list[str]:
    """Say what a group has refused or dropped besides that which has a column (P10)."""
    counted = ((counters.get(name, 0), text) for name, text in _COUNTED.items())
    return [f"{many:,} {text.format(s='' if many == 1 else 's')}" for many, text in counted if many]


def _data(target: Target, group: Group) -> dict[str, Any]:
    from ..errors import OF_ONE_STREAM
    from .output import iso

    stream, counters = target.streams[group.stream], target.engine.counters(group.id)
    kept = group.settings
    error: str | None = None
    progress: dict[str, int | None] = dict.fromkeys(("done", "left", "dead"))
    try:
        progress = _progress(target, group, counters.get("skipped", 0))
    except OF_ONE_STREAM as unread:
        error = str(unread)
    return {
        "group": group.name,
        "reads": stream.kind,
        "name": stream.name,
        "app": group.app,
        "kind": group.kind,
        **progress,
        "skipped": counters.get("skipped", 0),
        "calls_dropped": counters.get("calls dropped", 0),
        "refused": counters.get("refused settlements", 0),
        "counters": counters,
        "tasks": kept.get("tasks"),
        "since": iso(kept.get("since")),
        "until": iso(kept.get("until")),
        "outbox": kept.get("outbox"),
        **{name: kept.get(name) for name in ("key", "headers", "where", "share", "state", "rate")},
        "paused": bool(kept.get("paused")),
        "generation": group.generation,
        "created": iso(group.created),
        "workers": [worker.name for worker in target.serving(group)],
        "error": error,
    }


def _progress(target: Target, group: Group, skipped: int) -> dict[str, int | None]:
    stream, counts = target.streams[group.stream], target.engine.counts(group)
    left = counts.pending + counts.leased + counts.returned + sum(counts.parked.values())
    ends = {log: end for log, _, end in target.engine.bounds(stream)}
    total = sum(
        max((ends[at.log] if at.stop is None else min(at.stop, ends[at.log])) - at.start, 0)
        for at in target.engine.group_bounds(group)
    )
    dead = counts.parked.get("dead", 0)
    return {"done": max(total - left - skipped, 0), "left": left - dead, "dead": dead}


_WINDOW = {"since": "from", "until": "up to"}


def _bounds(group: Group) -> str:
    from ..why import rate_shown
    from .output import when

    kept = group.settings
    parts = [",".join(kept["tasks"])] if kept.get("tasks") else ["all tasks"] if "tasks" in kept else []
    if kept.get("paused"):
        parts.insert(0, "paused")
    if kept.get("seek"):
        parts.insert(0, "being moved")
    if kept.get("share"):
        parts.append(f"{100 * kept['share']:g} %")
    parts += [f"{n} {kept[n]}" for n in ("state", "key", "where") if kept.get(n) is not None]
    if kept.get("rate") is not None:
        parts.append(f"rate {rate_shown(kept['rate'])}")
    parts += [f"{name}={value}" for name, value in (kept.get("headers") or {}).items()]
    window = [f"{word} {when(kept[n])}" for n, word in _WINDOW.items() if kept.get(n) is not None]
    if window:
        parts.append(" ".join(window))
    return ", ".join(parts)


@command.command(short_help="Make a group that reads from a place on.")
@click.argument("name")
@click.option("--queue", metavar="NAME", help="Of this queue.")
@click.option("--stream", metavar="NAME", help="Of this stream.")
@click.option(
    "--start",
    default="latest",
    show_default=True,
    metavar="WHERE",
    help="now (or latest), earliest, or a moment: 1h, 14:00.",
)
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Only calls of this task; repeatable.")
@selecting
@click.option("--rate", type=RATE, metavar="N/s", help="So many a second, over all workers: 50/s, 600/m.")
@click.option(
    "--outbox",
    type=click.Choice(["drop", "send"]),
    default="drop",
    show_default=True,
    help="What becomes of the calls and events that its runs send.",
)
@document_option
def create(
    name: str,
    queue: str | None,
    stream: str | None,
    start: str,
    tasks: tuple[str, ...],
    rate: float | None,
    outbox: str,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Make a group that reads a queue or stream from a place on, without end.

    A second group of a queue runs another version on the same live calls, beside main: a share of them,
    some tasks, from now on or from the past. Calls and events that its runs send are dropped and counted,
    unless --outbox send. How the two differ: respool compare main NAME.

    Who serves it: of a queue, a worker --group NAME. Of a stream, a worker of an app that has a
    subscription of that name, @stream.subscribe(group="NAME"). Made here before that is deployed, it
    begins where --start says.

    \b
    respool -A shop groups create v2 --queue default --task embed --share 10%
    respool -A shop_v2 worker --group v2
    respool -A shop groups create audit --stream inference --start 7d
    """
    if (queue is None) == (stream is None):
        raise click.UsageError("say what it reads: --queue NAME or --stream NAME")
    from ..replay import Selection, beside
    from ..replay.selection import rate_of
    from ..why import variable, worker_command
    from .output import counted, document
    from .target import open_target

    target = open_target(code=True, writes=True)
    assert target.app is not None
    (read,) = target.named(queue or stream or "", "queue" if queue else "stream")
    start = "latest" if start == "now" else start
    named = start in ("earliest", "latest")
    moment = None if named else float(one_moment(start, "--start", "earliest, latest"))
    chosen |= {"headers": dict(chosen["headers"]), "state": chosen["state"] and chosen["state"].upper()}
    if queue:
        beside.refuse_unknown(target.app, tasks)
    settings = beside.kept(target.app, read, Selection(tasks=tasks or None, since=moment, **chosen))
    if queue:
        settings["outbox"] = outbox
    if rate is not None:
        settings["rate"] = rate_of(rate)
    place: Any = start if moment is None else moment
    made = beside.create(target.app, read, name, place, settings)
    left = target.engine.counts(made).pending
    if as_json:
        document({"group": name, "reads": read.kind, "name": read.name, "start": start, "left": left})
        return
    click.echo(
        f"Group {name} reads {read.kind} {read.name} from {start} on: {counted(left, 'record')} so far."
    )
    if read.kind == "queue":
        click.echo(f"Run it:  {worker_command(made)}")
    else:  # a subscription of that name would have made the group when the app's log was opened
        click.echo(
            f"No worker can serve it yet: app {target.app.name} has no subscription of that name. Write one "
            f"on its stream {read.name!r}:\n    @{variable(read.name)}.subscribe(group={name!r})"
        )


@command.command()
@click.argument("name")
@click.option("--queue", metavar="NAME", help="Of this queue or stream.")
@yes_option
@document_option
def drop(name: str, queue: str | None, yes: bool, as_json: bool) -> None:
    """Forget a group: its position, outcomes, dead letters and history. The records stay.

    \b
    respool -A shop groups drop v2 --queue default
    """
    from ..errors import ConfigError
    from .output import document
    from .target import open_target

    target = open_target(writes=True)
    group = target.one_group(name, queue) if name != "main" else None
    if group is None:
        raise ConfigError(
            "main is the queue's own group; it cannot be dropped. To end what waits: respool purge"
        )
    serving = ", ".join(worker.name for worker in target.serving(group))
    served = f" Worker {serving} serves it now." if serving else ""
    reads = target.shown(target.streams[group.stream])
    confirm(f"Forget group {name} of {reads}, its outcomes included?{served}", yes)
    target.engine.drop_group(group)
    if as_json:
        document({"dropped": name, "name": target.streams[group.stream].name})
    else:
        click.echo(f"Dropped group {name}; the records of {reads} stay.")


@command.command(short_help="Have a group run nothing more, until it is resumed.")
@click.argument("name")
@click.option("--queue", metavar="NAME", help="Of this queue or stream.")
@document_option
def pause(name: str, queue: str | None, as_json: bool) -> None:
    """Have a group run nothing more, until it is resumed: what runs is finished, what waits waits.

    \b
    respool -A shop groups pause v2
    """
    _hold(name, queue, as_json, paused=True)


@command.command(short_help="Have a paused group go on where it was.")
@click.argument("name")
@click.option("--queue", metavar="NAME", help="Of this queue or stream.")
@document_option
def resume(name: str, queue: str | None, as_json: bool) -> None:
    """Have a paused group go on where it was.

    \b
    respool -A shop groups resume v2
    """
    _hold(name, queue, as_json, paused=False)


def _hold(name: str, queue: str | None, as_json: bool, *, paused: bool) -> None:
    from ..replay import pause, resume
    from .output import document
    from .target import open_target

    target = open_target(writes=True)
    group = target.one_group(name, queue)
    (pause if paused else resume)(target.engine, group)
    if as_json:
        document({"group": name, "name": target.streams[group.stream].name, "paused": paused})
    else:
        reads = target.shown(target.streams[group.stream])
        click.echo(f"Group {name} of {reads} {'is paused' if paused else 'goes on'}.")
