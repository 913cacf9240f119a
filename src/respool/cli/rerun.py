"""`respool rerun`: one past call, here and now."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .common import document_option

if TYPE_CHECKING:
    from ..replay.rerun import Rerun
    from .debugger import Debugger

LAST = 5  # that it said of its progress


@click.command()
@click.argument("id")
@click.option("--group", metavar="NAME", help="Of an event: the subscription that is to run it.")
@click.option(
    "--pdb", "post_mortem", is_flag=True, help="Where it raises, look around there in the debugger."
)
@click.option("--trace", is_flag=True, help="Stop in the debugger at the task's first line.")
@document_option
def command(id: str, group: str | None, post_mortem: bool, trace: bool, as_json: bool) -> int:
    """Execute one past call here, in this process, with its exact input. Nothing is changed.

    The input is what the call was sent with; where it was redriven with another, that is said. States,
    outcomes and dead letters stay as they are. Calls and events that the task sends are shown
    rather than sent. What it does elsewhere, to files or other services, it does. A call of a task that
    takes batches is run as a batch of one, whatever it was together with.

    \b
    respool -A shop rerun 0198c1d2-4a
    respool -A shop rerun order-17 --pdb

    Exit code 1 where the task raises.
    """
    from ..replay.rerun import rerun
    from .common import Failure
    from .output import document
    from .target import open_target

    target = open_target(code=True)
    assert target.app is not None
    debugger = _debugger() if trace else None
    call = None if debugger is None else debugger.run_task
    done = rerun(target.app, target.whole_id(id), group=group, call=call)
    if debugger is not None and debugger.left:
        raise Failure("the debugger was left before the task came to its end, so that nothing came of it")
    if as_json:
        document(_data(done))
    else:
        _print(done)
    if post_mortem and done.error is not None and done.error.__traceback__ is not None:
        import pdb

        from ..encoding.remote import from_own_code

        pdb.post_mortem(from_own_code(done.error.__traceback__))
    return int(not done.ok)


def _debugger() -> Debugger:
    from .debugger import Debugger

    return Debugger()


def _data(done: Rerun) -> dict[str, Any]:
    from ..encoding.remote import own_traceback
    from .output import raised

    error = done.error
    return {
        "id": done.id,
        "task": done.task,
        "batch_of_one": done.batch,
        "redriven_with": done.edits,
        "args": list(done.args),
        "kwargs": done.kwargs,
        "ok": done.ok,
        "value": done.value,
        "error": None if error is None else raised(error),
        "traceback": None if error is None else own_traceback(error),
        "progress": done.progress,
        "not_sent": [
            {"kind": each.kind, "name": each.name, "task": each.task, "input": each.input}
            for each in done.sent
        ],
    }


def _print(done: Rerun) -> None:
    import textwrap

    from ..encoding.remote import own_traceback
    from ..reading import Input
    from .output import counted, note, raised

    click.secho(Input(list(done.args), done.kwargs).text(done.task, 2000), bold=True)
    if done.batch:
        click.echo("  as a batch of one: its task takes batches, and this call alone is run")
    for edit in done.edits:
        note(f"  as it was sent; it was redriven since with other arguments: {edit}")
    if len(done.progress) > LAST:
        note(f"  (said how far it was {len(done.progress):,} times; the last of them; --json has all)")
    for each in done.progress[-LAST:]:
        click.echo(f"  progress {each!r}")
    if done.error is None:
        click.echo(f"  returned {done.value!r}")
    else:
        click.secho(f"  raised {raised(done.error)}", fg="red")
        sys.stdout.flush()
        click.echo(textwrap.indent(own_traceback(done.error), "    "))
    for sent in done.sent[:20]:
        given: Any = sent.input
        is_call = sent.kind == "call" and isinstance(given, list) and len(given) == 2
        text = Input(given[0], given[1]).text(sent.task, 200) if is_call else repr(given)[:200]
        click.echo(f"  not sent to {'queue' if sent.kind == 'call' else 'stream'} {sent.name}: {text}")
    if len(done.sent) > 20:
        note(f"  and {counted(len(done.sent) - 20, 'other')}, not sent either; --json has all")
