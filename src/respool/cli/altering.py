"""`alter` of `respool queues` and `respool streams`: how long records stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .common import confirm, document_option, yes_option

if TYPE_CHECKING:
    from ..engines.base import StreamKind


def alter_command(kind: StreamKind) -> click.Command:
    """Return the command for one kind."""

    @click.command(short_help="Change how long records stay.", help=_help(kind))
    @click.argument("name")
    @click.option("--age", metavar="TIME", help="Records no older than this: 7d, 90d.")
    @click.option("--size", metavar="BYTES", help="No more bytes of bodies and attributes: 10GiB.")
    @click.option("--count", type=click.IntRange(1), metavar="N", help="No more records.")
    @click.option("--forever", is_flag=True, help="All of them.")
    @yes_option
    @document_option
    def alter(
        name: str,
        age: str | None,
        size: str | None,
        count: int | None,
        forever: bool,
        yes: bool,
        as_json: bool,
    ) -> None:
        given = {name: value for name, value in (("age", age), ("size", size), ("count", count)) if value}
        if forever == bool(given):
            raise click.UsageError("say what stays: --age, --size, --count, any of them; or --forever")
        _alter(kind, name, given or None, yes, as_json)

    return alter


def _help(kind: str) -> str:
    what, key = ("calls", "mails") if kind == "queue" else ("events", "inference")
    return f"""Change how long the {what} of a {kind} stay, which is stored when it is made.

    What is given takes the place of all that was. What is beyond it is removed by the workers that serve the
    {kind}, within an hour; what a queue's main has yet to do stays. An app that declares another retention
    is refused when it starts: declare this one, or none.

    \b
    respool -A shop {kind}s alter {key} --age 90d
    respool -A shop {kind}s alter {key} --age 7d --count 1000000
    """


def _alter(kind: StreamKind, name: str, given: dict[str, Any] | None, yes: bool, as_json: bool) -> None:
    from ..errors import ConfigError
    from ..retention import shown_retention, stored_retention
    from .output import document
    from .target import open_stored

    target = open_stored()  # an app that declares what is to be is refused until it is
    (stream,) = target.named(name, kind)
    if stream.settings.get("foreign"):
        raise ConfigError(f"stream {name} is another program's topic: what stays of it is set there")
    before, after = stream.settings.get("retention"), stored_retention(given)
    if before != after:
        was, now = shown_retention(before), shown_retention(after)
        confirm(f"Keep {now} of {kind} {name}, and no more {was}? What is beyond it will be removed.", yes)
        target.engine.set_retention(stream, after)
    if as_json:
        document({kind: name, "retention": after, "before": before})
    else:
        click.echo(f"{kind.capitalize()} {name} keeps {shown_retention(after)}.")
