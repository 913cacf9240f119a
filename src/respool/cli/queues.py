"""`respool queues`."""

from __future__ import annotations

import click

from .common import json_option


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the queues: what they hold, since when, and who reads them.

    \b
    respool -A shop queues
    """
    from .holdings import show_holdings
    from .target import open_target

    show_holdings(
        open_target(), "queue", as_json, "No queues yet: an app makes its own when it first sends a call."
    )
