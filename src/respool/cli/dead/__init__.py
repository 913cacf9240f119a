"""`respool dead`: calls that failed for good, with their input and the reason."""

from __future__ import annotations

import click

from ..common import RespoolGroup
from .acting import drop, redrive
from .listing import list_, show


@click.group(cls=RespoolGroup)
def command() -> None:
    """List, show, give back and drop dead letters.

    A dead letter is a call that failed for good: its input and the error are kept, and nothing runs it by
    itself.

    \b
    respool -A shop dead list --by error
    respool -A shop dead list --task fetch --error TimeoutError --since 1d
    respool -A shop dead redrive --task fetch --rate 50/s
    """


for each in (list_, show, redrive, drop):
    command.add_command(each)
