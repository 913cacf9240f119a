"""`respool purge`: end what a queue has not started."""

from __future__ import annotations

import click

from .common import confirm, document_option, yes_option


@click.command()
@click.option("--queue", required=True, metavar="NAME", help="The queue to purge.")
@yes_option
@document_option
def command(queue: str, yes: bool, as_json: bool) -> None:
    """End what a queue's own group has not started: those calls are REVOKED.

    Waiting, scheduled and retrying calls are ended. Running ones finish, dead letters stay, and so do all
    records: a replay can still run them.

    \b
    respool -A shop purge --queue default
    """
    from ..replay import purge, purgeable
    from .output import counted, document
    from .target import open_target

    target = open_target(writes=True)
    waiting = purgeable(target.source, queue, app=target.only)
    if waiting:
        confirm(f"End {counted(waiting, 'call')} of queue {queue} not started yet?", yes)
    ended = purge(target.source, queue, app=target.only) if waiting else 0
    if as_json:
        document({"queue": queue, "purged": ended})
    elif ended:
        click.echo(f"Ended {counted(ended, 'call')} of queue {queue}; the records stay.")
    else:
        click.echo(
            f"Nothing waits in queue {queue}. What runs: respool workers; dead letters: respool dead list"
        )
