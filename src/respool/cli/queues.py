"""`respool queues`."""

from __future__ import annotations

import click

from .altering import alter_command
from .common import RespoolGroup, json_option


@click.group(cls=RespoolGroup, invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the queues: what they hold, since when, and who reads them.

    \b
    respool -A shop queues
    respool -A shop queues alter mails --age 90d
    """
    if context.invoked_subcommand is None:
        _list(as_json)


def _list(as_json: bool) -> None:
    from .holdings import show_holdings
    from .target import open_target

    show_holdings(
        open_target(), "queue", as_json, "No queues yet: an app makes its own when it first sends a call."
    )


command.add_command(alter_command("queue"), "alter")
