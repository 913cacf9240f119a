"""`respool capture`: past calls as a test of the present code."""

from __future__ import annotations

from pathlib import Path

import click

from .common import common, document_option
from .moments import Spoken, since_option, until_option, window


@click.command()
@click.option("--task", required=True, metavar="NAME", help="The task whose calls are captured.")
@click.option(
    "--sample", type=click.IntRange(1), default=200, show_default=True, help="So many, from all over."
)
@click.option("--group", default="main", show_default=True, metavar="NAME", help="Whose outcomes count.")
@since_option
@until_option
@click.option("--output", "-o", default=".", show_default=True, metavar="FOLDER", help="Where the files go.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same calls.")
@click.option("--force", is_flag=True, help="Write files anew that are there.")
@document_option
def command(
    task: str,
    sample: int,
    group: str,
    since: Spoken | None,
    until: Spoken | None,
    output: str,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Write inputs and outcomes of past calls as a test that runs the present code against them.

    Two files: test_captured_TASK.py for pytest, yours to change, and captured_TASK.jsonl with the calls.
    Running the test changes nothing: calls that the task sends are not sent.

    \b
    respool -A shop capture --task embed --sample 200 --since 30d -o tests
    pytest tests/test_captured_embed.py
    """
    from ..replay.capture import capture
    from .output import counted, document
    from .target import open_target

    low, high = window(since, until)
    target = open_target(code=True)
    assert target.app is not None
    made = capture(
        target.app, task, sample, Path(output), spec=common().require_app(), group=group,
        since=low, until=high, seed=seed, force=force,
    )  # fmt: skip
    if as_json:
        document({"test": str(made.test), "data": str(made.data), "calls": made.calls})
        return
    click.echo(f"Wrote {counted(made.calls, 'call')} of {task} to {made.data}.")
    click.echo(f"Run them:  pytest {made.test}")
