"""`respool export`: the exact inputs and outcomes of a window, as a file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from .calls import State
from .common import Failure
from .moments import Spoken, between_option, since_option, until_option, window

FORMATS = ("jsonl", "csv", "parquet")


@click.command()
@click.option("--queue", metavar="NAME", help="The queue whose calls are exported.")
@click.option("--stream", metavar="NAME", help="The stream whose events are.")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Only calls of this task; repeatable.")
@click.option("--state", type=State(), metavar="STATE", help="Only calls in this state.")
@click.option(
    "--group",
    metavar="NAME",
    help="The group whose outcomes count. Default: main; of a stream none, so that events come without.",
)
@since_option
@until_option
@between_option
@click.option(
    "--format", "form", type=click.Choice(FORMATS), help="Default: as the file is called, else jsonl."
)
@click.option(
    "--output", "-o", default="-", show_default=True, metavar="FILE", help="Where to; -: to standard output."
)
def command(
    queue: str | None,
    stream: str | None,
    tasks: tuple[str, ...],
    state: str | None,
    group: str | None,
    since: Spoken | None,
    until: Spoken | None,
    between: tuple[Spoken, Spoken] | None,
    form: str | None,
    output: str,
) -> None:
    """Write the exact inputs and outcomes of a window to a file, the oldest first: the audit file.

    \b
    respool -A shop export --queue default --between 14:00 16:00 -o tuesday.jsonl
    respool -A shop export --queue default --task embed --format csv | gzip > e.gz
    respool -A shop export --queue default --since 30d -o month.parquet
    respool -A shop export --stream inference --group audit -o events.jsonl

    A line has the call's id, time, task, key, headers, args and kwargs (an event's value), its state in the
    group, and its result or its error; as edits, what was changed of the arguments where it was redriven with
    others, which the result is of. JSON lines have values as they were, with what JSON has no form for
    tagged: {"$bytes": "…"}. CSV and Parquet have such values as JSON. A file is complete or not there: it is
    written under another name first. Parquet needs pyarrow.
    """
    if (queue is None) == (stream is None):
        raise click.UsageError("say what is exported: --queue NAME or --stream NAME")
    from ..replay.export import WRITERS, Wanted, exported, pyarrow
    from .output import counted
    from .target import open_target

    low, high = window(since, until, between)
    form = form or (Path(output).suffix[1:] if Path(output).suffix[1:] in FORMATS else "jsonl")
    if form == "parquet":
        pyarrow()  # said before anything is read
        if output == "-" and sys.stdout.isatty():
            raise click.UsageError("Parquet is not for a terminal: name a file with --output")
    target = open_target()
    name = queue or stream or ""
    (read,) = target.named(name, *(("queue", "stream") if queue else ("stream",)))
    group = group or (None if read.kind == "stream" else "main")
    if group is None and state is not None:
        raise click.UsageError("--state is that in a group: say which, with --group NAME")
    found = None if group is None else target.one_group(group, name)
    for task in tasks:
        target.refuse_unknown_task(task, [read])
    wanted = Wanted(low, high, tasks or None, state)
    load = target.app.payloads.load if target.app else None
    rows = exported(target.source, read, found, wanted, target.pickle_key, load)
    with _written(output, binary=form == "parquet") as out:
        number = WRITERS[form](rows, out)
    if output != "-":
        click.echo(
            f"Wrote {counted(number, 'call' if read.kind == 'queue' else 'event')} to {output}.", err=True
        )


@contextlib.contextmanager
def _written(output: str, *, binary: bool) -> Iterator[Any]:
    """Give a file that is put in its place when all of it is written."""
    if output == "-":
        yield sys.stdout.buffer if binary else sys.stdout
        return
    path = Path(output)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") if binary else part.open("w", encoding="utf-8", newline="") as out:
            yield out
        part.replace(path)
    except OSError as error:
        raise Failure(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
