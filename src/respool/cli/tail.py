"""`respool tail`: calls and events as they come."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import click

from .common import DURATION, json_option

if TYPE_CHECKING:
    from ..engines.base import Record, Stream
    from .target import Target

LOOK = 0.5  # seconds between looks


@click.command()
@click.option("--queue", metavar="NAME", help="Only calls of this queue.")
@click.option("--stream", metavar="NAME", help="Only events of this stream.")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Only calls of this task; repeatable.")
@click.option(
    "-n", "--lines", type=click.IntRange(0, 10_000), default=10, show_default=True,
    help="Begin with so many of the newest.",
)  # fmt: skip
@click.option("--timeout", type=DURATION, metavar="TIME", help="End after so long; default: never.")
@json_option
def command(
    queue: str | None,
    stream: str | None,
    tasks: tuple[str, ...],
    lines: int,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Show calls and events as they are sent, until Ctrl-C: when, where to, and with what.

    Of all queues and streams, unless one is named. How calls end is not said: respool calls, respool show.

    \b
    respool -A shop tail
    respool -A shop tail --stream inference -n 0 --json
    """
    from ..aliases import with_aliases
    from ..replay.tailing import Tail
    from .target import open_target

    target = open_target()
    streams = _chosen(target, queue, stream)
    tails = [Tail(target.engine, each) for each in streams]
    for task in tasks:
        target.refuse_unknown_task(task, streams)
    names = with_aliases(target.source, tasks)
    newest = [(tail.stream, record) for tail in tails for record in tail.last(lines)]
    chosen = [each for each in newest if not names or each[1].task in names]
    _print(target, sorted(chosen, key=_time)[-lines:] if lines else [], as_json)
    until = None if timeout is None else time.monotonic() + timeout
    try:
        while (left := LOOK if until is None else min(until - time.monotonic(), LOOK)) > 0:
            threading.Event().wait(left)
            found = [(tail.stream, record) for tail in tails for record in tail.look()]
            chosen = [each for each in found if not names or each[1].task in names]
            _print(target, sorted(chosen, key=_time), as_json)
    except KeyboardInterrupt:  # as it is meant to end
        return


def _chosen(target: Target, queue: str | None, stream: str | None) -> list[Stream]:
    if queue is None and stream is None:
        return list(target.streams.values())
    named = target.named(queue, "queue") if queue is not None else []
    return [*named, *(target.named(stream, "stream") if stream is not None else [])]


def _time(found: tuple[Stream, Record]) -> float:
    return found[1].time


def _print(target: Target, found: list[tuple[Stream, Record]], as_json: bool) -> None:
    from ..reading import read_input
    from .output import line, when, width
    from .records import SHORT

    for stream, record in found:
        size, load = record.meta.offloaded or len(record.body), target.loader(SHORT)
        given = read_input(stream.kind, record.body, size, record.meta, target.pickle_key, load)
        if as_json:
            line(_data(stream, record, given))
        else:
            text = given.text(record.task, min(width(), SHORT))
            click.echo(f"{when(record.time)}  {_id(record)}  {target.shown(stream)}  {text}")


def _id(record: Record) -> str:
    from ..engines import public_id
    from ..record import id_text

    return id_text(public_id(record.id))


def _data(stream: Stream, record: Record, given: Any) -> dict[str, Any]:
    from ..record import offset_of
    from .output import iso

    return {
        "id": _id(record),
        "time": iso(record.time),
        stream.kind: stream.name,
        "app": stream.app,
        "partition": stream.place(record.pos >> 40)[0],
        "offset": offset_of(record.pos),
        "task": record.task,
        "key": record.meta.key,
        "headers": record.meta.headers or {},
        "input": given.data(),
    }
