"""`respool streams`."""

from __future__ import annotations

import click

from .common import json_option


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the streams: their settings, what they hold, and who reads them.

    \b
    respool -A shop streams
    """
    from .holdings import show_holdings
    from .target import open_target

    show_holdings(
        open_target(), "stream", as_json, 'No streams yet. An app declares one: app.stream("events")'
    )
