"""What people and housekeeping do with dead letters: give them back, or drop them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import TypeVar

from ..clock import now as wall_clock
from ..delivery import admin
from ..delivery.model import Change as ChangeOfState
from ..delivery.model import Parked, View
from ..delivery.seek import SeekUnderWay
from ..engines.base import Engine, Group, Reads
from ..errors import ConfigError
from .edit import Edit
from .find import ANY, SLICE, DeadFilter, Source, asked, dead_pages, logs_of

T = TypeVar("T")
Progress = Callable[[int], None]
"""Called with how many have been changed so far."""


def notes_of_edits(
    source: Source, chosen: DeadFilter, edit: Edit, *, app: str | None = None
) -> Iterator[str]:
    """Yield what the history of each that an edit changes would say; change nothing.

    Raises: as `Edit.bodies`.
    """
    engine, app, chosen = asked(source, app, chosen)
    for stream, _, page in dead_pages(engine, app, chosen):
        for _, note in edit.bodies(engine, stream, page).values():
            yield note


def redrive(
    source: Source,
    chosen: DeadFilter = ANY,
    *,
    app: str | None = None,
    rate: float | None = None,
    edit: Edit | None = None,
    progress: Progress | None = None,
) -> int:
    """Give dead letters back to the groups that failed them; return how many.

    Due at once, or one after the other at a `rate`. Those that fail again meanwhile are not given back twice.
    Killed in the middle, it has given back some and not the others.

    Parameters:
        rate: how many a second, over all of them.
        edit: what changes their arguments. All edits are tried before anything is changed.
        progress: told how many have been given back.

    Raises: BadArguments where an edited call does not fit its task; nothing was given back.
    """
    if rate is not None and rate <= 0:
        raise ConfigError(f"rate: {rate!r} is not more than 0 a second")
    engine, app, chosen = asked(source, app, chosen)
    if edit is not None:
        for _ in notes_of_edits(engine, chosen, edit, app=app):
            continue
    given, began, interval = 0, wall_clock(), 0.0 if rate is None else 1 / rate
    for stream, group, page in dead_pages(engine, app, chosen):
        edits = {} if edit is None else edit.bodies(engine, stream, page)
        expected = {parked.pos: parked.body for parked in page} if edit is not None else None
        first = max(began + given * interval, wall_clock()) if given else began
        reads = Reads(group.id, parked=tuple(parked.pos for parked in page), settings=True)
        given += transact(
            engine,
            group,
            reads,
            lambda view, change, first=first, edits=edits, expected=expected: admin.redrive(  # type: ignore[misc]
                view, _unchanged(view.due, expected), change, first, interval, edits
            ),
        )
        for log in logs_of([parked.pos for parked in page]):
            engine.ring(log, everyone=len(page) > 1)
        if progress is not None:
            progress(given)
    return given


def transact(engine: Engine, group: Group, reads: Reads, decide: Callable[[View, ChangeOfState], T]) -> T:
    """Change parked records, synced. Raises ConfigError where a seek moves their group."""
    try:
        return engine.transact(reads, decide, synced=True)
    except SeekUnderWay:
        raise moved(group) from None


def moved(group: Group) -> ConfigError:
    """Return what to say where a group is being moved by a seek."""
    return ConfigError(
        f"group {group.name} is being moved; wait for that, or bring it to its end: respool seek "
        f"{shlex.quote(group.name)} --resume"
    )


def _unchanged(found: list[Parked], expected: dict[int, bytes | None] | None) -> list[Parked]:
    """Leave out what somebody else has edited since the edit was made."""
    return found if expected is None else [each for each in found if each.body == expected[each.pos]]


def drop(
    source: Source, chosen: DeadFilter = ANY, *, app: str | None = None, progress: Progress | None = None
) -> int:
    """End dead letters for good; return how many. Their state stays FAILURE, and their records stay."""
    engine, app, chosen = asked(source, app, chosen)
    gone = 0
    for _, group, page in dead_pages(engine, app, chosen):
        gone += _drop(engine, group, [parked.pos for parked in page], None, None)
        if progress is not None:
            progress(gone)
    return gone


def drop_old(engine: Engine, group: Group, task: str, ttl: float, more: Callable[[], bool]) -> int:
    """Drop a group's dead letters of a task that are older than `ttl` seconds; return how many.

    Parameters:
        task: its name; "": whatever the event's type. more: says whether there is time for another slice,
            after the first.
    """
    until, gone = wall_clock() - ttl, 0
    while page := engine.dead_before(group.id, task or None, until, SLICE):
        dropped = _drop(engine, group, page, until, f"dropped: dead for {ttl:g} s")
        gone += dropped
        if not dropped or not more():  # none: somebody else is at them
            break
    return gone


def _drop(engine: Engine, group: Group, positions: list[int], until: float | None, note: str | None) -> int:
    return engine.transact(
        Reads(group.id, parked=tuple(positions)),
        lambda view, change: admin.drop(view, change, wall_clock(), note, until),
        synced=True,
    )
