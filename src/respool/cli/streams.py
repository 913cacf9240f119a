"""`respool streams`."""

from __future__ import annotations

import click

from .altering import alter_command
from .common import RespoolGroup, json_option


@click.group(cls=RespoolGroup, invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the streams: their settings, what they hold, and who reads them.

    \b
    respool -A shop streams
    respool -A shop streams alter inference --age 90d
    """
    if context.invoked_subcommand is None:
        _list(as_json)


def _list(as_json: bool) -> None:
    from .holdings import show_holdings
    from .target import open_target

    show_holdings(
        open_target(), "stream", as_json, 'No streams yet. An app declares one: app.stream("events")'
    )


command.add_command(alter_command("stream"), "alter")
