"""`respool compare`: what two groups made of the same calls."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from .common import SHARE, document_option
from .moments import Spoken, since_option, until_option, window

if TYPE_CHECKING:
    from ..replay.comparing import Comparator, Comparison, Tolerance

_TITLES = {
    "same": "same",
    "different": "different",
    "failed_a": "failed in {a} only",
    "failed_b": "failed in {b} only",
    "failed_both": "failed in both",
    "only_a": "only in {a}",
    "only_b": "only in {b}",
    "unfinished": "not finished in both",
}


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--queue", metavar="NAME", help="Of this queue, where several have such groups.")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Only calls of this task; repeatable.")
@since_option
@until_option
@click.option(
    "--tolerance", "tolerances", multiple=True, metavar="N|N%",
    help="Numbers this near are the same: 0.01, or 1% of the larger one; both may be given.",
)  # fmt: skip
@click.option("--comparator", metavar="MODULE:FUNCTION", help="Says of two values whether they are the same.")
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Show so many differences, new failures first.",
)
@click.option(
    "--max-diff", type=SHARE, metavar="N%", help="Exit code 1 where more than this differs: for gates."
)
@document_option
def command(
    a: str,
    b: str,
    queue: str | None,
    tasks: tuple[str, ...],
    since: Spoken | None,
    until: Spoken | None,
    tolerances: tuple[str, ...],
    comparator: str | None,
    sample: int,
    max_diff: float | None,
    as_json: bool,
) -> int:
    """Compare what two groups made of the same calls, call by call, while they run too.

    \b
    respool -A shop compare main v2 --queue default
    respool -A shop compare main v2 --queue default --task embed \\
        --tolerance 0.001 --tolerance 1%
    respool -A shop compare main v2 --queue default \\
        --comparator checks:close_enough --max-diff 1% --json

    A call differs where its values do, or where it failed in one group only. What one of the groups left
    out, or has not run yet, is counted apart. --max-diff is of those finished in both.

    Exit codes: 1 where more differs than --max-diff allows, or nothing could be compared; else 0.
    """
    from ..replay.comparing import compare
    from .output import document, progress
    from .target import open_target

    low, high = window(since, until)
    target = open_target()
    both = {group.stream for group in target.groups if group.name == a}
    both &= {group.stream for group in target.groups if group.name == b}
    if queue is None and len(both) == 1:  # others may have a `main`, too
        queue = target.streams[both.pop()].name
    groups = [target.one_group(name, queue) for name in (a, b)]
    if groups[0].stream != groups[1].stream:
        raise click.UsageError(f"{a} and {b} read different queues; say which with --queue")
    stream = target.streams[groups[0].stream]
    for task in tasks:
        target.refuse_unknown_task(task, [stream])
    with progress("comparing") as tell:
        found = compare(
            target.source, stream, groups[0], groups[1], tasks=tasks or None, since=low, until=high,
            tolerance=_tolerance(tolerances), comparator=_loaded(comparator), sample=sample, progress=tell,
        )  # fmt: skip
    failed = not found.compared or (max_diff is not None and found.share > max_diff)
    if as_json:
        document(_data(found, max_diff, failed))
    else:
        _print(found, max_diff, failed)
    return int(failed)


def _tolerance(given: tuple[str, ...]) -> Tolerance:
    from ..replay.comparing import Tolerance

    found = Tolerance()
    for text in given:
        try:
            value = float(text.strip().removesuffix("%"))
            if not 0 <= value < float("inf"):
                raise ValueError
        except ValueError:
            raise click.BadParameter(
                f"{text!r} is no tolerance: give a number, as 0.01, or a part, as 1%",
                param_hint="--tolerance",
            ) from None
        percent = text.strip().endswith("%")
        found = found._replace(relative=value / 100) if percent else found._replace(absolute=value)
    return found


def _loaded(comparator: str | None) -> Comparator | None:
    """Return the function that is named. Raises UsageError where it is none."""
    if comparator is None:
        return None
    module, _, name = comparator.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise click.UsageError(
            f"--comparator {comparator!r}: {error}; one looks like checks:close_enough"
        ) from None
    if not callable(found):
        raise click.UsageError(f"--comparator {comparator!r} is no function")
    return found  # type: ignore[no-any-return]


def _data(found: Comparison, max_diff: float | None, failed: bool) -> dict[str, Any]:
    names = found.a.name, found.b.name
    return {
        "queue": found.stream.name,
        "a": found.a.name,
        "b": found.b.name,
        "compared": found.compared,
        "share": found.share,
        "max_diff": max_diff,
        "passed": None if max_diff is None else not failed,
        **{name: found.counts.get(name, 0) for name in _TITLES},  # type: ignore[call-overload]
        "tasks": found.tasks,
        "differences": [
            {"id": each.id, "task": each.task, "verdict": each.verdict, "a": each.a, "b": each.b,
             "diff": each.diff(names)}
            for each in found.sample
        ],
    }  # fmt: skip


def _print(found: Comparison, max_diff: float | None, failed: bool) -> None:
    from .output import Column, Table, counted, note, number

    names = {"a": found.a.name, "b": found.b.name}
    calls = {task: sum(counts.values()) for task, counts in found.tasks.items()}
    tasks = sorted(calls, key=lambda task: (-calls[task], task))
    table = Table(
        Column(f"{names['a']} and {names['b']}", least=16),
        Column("calls", right=True),
        *((Column(task, right=True, drop=1 + n) for n, task in enumerate(tasks)) if len(tasks) > 1 else ()),
    )
    for verdict, title in _TITLES.items():
        counts = [found.tasks[task].get(verdict, 0) for task in tasks] if len(tasks) > 1 else []  # type: ignore[call-overload]
        total = found.counts.get(verdict, 0)  # type: ignore[call-overload]
        if total or verdict in ("same", "different"):
            table.add((title.format(**names), number(total), *map(number, counts)), {})
    table.show(False, "")
    for each in found.sample:
        click.echo(f"\n{each.id}  {each.task}: {_TITLES[each.verdict].format(**names)}")
        for n, text in enumerate(each.diff((names["a"], names["b"]))[:40]):
            mark, rest = text[:1], text[1:]
            apart = " " if n > 1 and mark != "@" else ""  # else a mark reads like the sign of a number
            click.secho(f"  {mark}{apart}{rest}", fg={"+": "green", "-": "red"}.get(mark))
    if found.differences > len(found.sample):
        note(f"\n{len(found.sample)} of {found.differences:,} differences; --sample shows more")
    if not found.compared:
        click.echo("No call is finished in both groups yet.")
        return
    verdict = (
        "" if max_diff is None else f": {'more than' if failed else 'no more than'} {100 * max_diff:g} %"
    )
    differ = "differs" if found.compared == 1 else "differ"
    click.echo(f"\n{100 * found.share:.4g} % of {counted(found.compared, 'call')} {differ}{verdict}.")
