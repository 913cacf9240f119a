"""Which dead letters: the options that all commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..common import HEADER
from ..moments import MOMENT, window

if TYPE_CHECKING:
    from ...dead import DeadFilter
    from ..target import Target

FILTERS = (
    click.option("--queue", metavar="NAME", help="Of this queue or stream."),
    click.option("--group", metavar="NAME", help="Of this group."),
    click.option("--task", metavar="NAME", help="Of this task."),
    click.option("--id", "ids", multiple=True, metavar="ID", help="With this id; repeatable."),
    click.option(
        "--error", metavar="TYPE", help="Of errors of this type: KeyError, shop.OutOfStock, *Timeout."
    ),
    click.option("--message", metavar="REGEX", help="Whose error's message has this in it."),
    click.option("--since", type=MOMENT, metavar="WHEN", help="Died from: 1h, 30d, 14:00, 2026-01-31T14:00."),
    click.option("--until", type=MOMENT, metavar="WHEN", help="Up to, likewise; itself not included."),
    click.option("--key", metavar="KEY", help="With this key."),
    click.option(
        "--header", "headers", multiple=True, type=HEADER, metavar="NAME=VALUE", help="With this header."
    ),
)


def filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose dead letters."""
    for option in reversed(FILTERS):
        function = option(function)
    return function


def chosen_by(target: Target, given: dict[str, Any]) -> DeadFilter:
    """Return the filter that a command line gives."""
    from ...dead import DeadFilter

    since, until = window(given["since"], given["until"])
    exact = {"headers": dict(given["headers"]) or None, "ids": tuple(map(target.whole_id, given["ids"]))}
    return DeadFilter(**{**given, **exact, "since": since, "until": until})


def refuse_unknown_task(target: Target, chosen: DeadFilter) -> None:
    """Raise UnknownName where there is no such task: for where nothing was found."""
    if chosen.task:
        streams = target.streams.values()
        target.refuse_unknown_task(chosen.task, [s for s in streams if chosen.queue in (None, s.name)])


def none_told(chosen: DeadFilter) -> str:
    """Return what to say where nothing was found."""
    if any(chosen):
        return "No dead letters match. All of them: respool dead list"
    return "No dead letters. What failed without one (throws=): respool calls --state FAILURE"
