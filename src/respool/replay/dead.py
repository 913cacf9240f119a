"""Dead letters: finding them, giving them back to the group that failed them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..clock import now as wall_clock
from ..delivery import admin
from ..delivery.model import Parked
from ..engines.base import Engine, Group, ParkedFilter, Reads, Stream
from ..errors import UnknownCall, UnknownName
from ..record import log_of, parse_id
from .find import Source, parked_slices, sides


class DeadFilter(NamedTuple):
    """Which dead letters: of this queue or stream, group, task; with these ids (as text)."""

    queue: str | None = None
    group: str | None = None
    task: str | None = None
    ids: Sequence[str] = ()


ANY = DeadFilter()


class DeadLetter(NamedTuple):
    """A parked record that nothing runs by itself, and where it is."""

    stream: Stream
    group: Group
    parked: Parked


def dead_letters(
    source: Source, chosen: DeadFilter = ANY, limit: int = 100, *, app: str | None = None
) -> list[DeadLetter]:
    """Return the oldest dead letters that match, at most `limit`.

    Parameters:
        source: an App, for its own, or an engine, for those of all apps, or of the one named `app`.

    Raises: UnknownName for a queue or group that does not exist.
    """
    engine, app = sides(source, app)
    groups = {group.id: (stream, group) for stream, group in _groups(engine, app, chosen)}
    positions = _positions(engine, app, chosen)
    if not groups or positions == []:
        return []
    found = engine.parked(ParkedFilter(list(groups), ("dead",), chosen.task, positions or ()), limit)
    return [DeadLetter(*groups[id], parked) for id, parked in found]


def count_dead(source: Source, chosen: DeadFilter = ANY, *, app: str | None = None) -> dict[str, int]:
    """Return how many dead letters match, by task; events without a type by stream and group."""
    engine, app = sides(source, app)
    streams = {stream.id: stream for stream in engine.streams()}
    counts: dict[str, int] = {}
    for group, slice_ in _dead_slices(engine, app, chosen):
        for _pos, task in slice_:
            name = called(streams[group.stream], group, task)
            counts[name] = counts.get(name, 0) + 1
    return counts


def called(stream: Stream, group: Group, task: str) -> str:
    """Return what a dead letter is called: its task, or its event's type; where it has none, whose it is."""
    return task or f"{stream.kind} {stream.name}, group {group.name}"


def redrive(source: Source, chosen: DeadFilter = ANY, *, app: str | None = None) -> int:
    """Give dead letters back to the groups that failed them, due at once; return how many.

    Those that fail again meanwhile are not given back twice.
    """
    engine, app = sides(source, app)
    given = 0
    for group, found in _dead_slices(engine, app, chosen):
        positions = tuple(pos for pos, _ in found)
        given += engine.transact(
            Reads(group.id, parked=positions),
            lambda view, change: admin.redrive(view.due, change, wall_clock()),
            synced=True,
        )
        for log in {log_of(pos) for pos in positions}:
            engine.ring(log, everyone=len(positions) > 1)
    return given


def _dead_slices(
    engine: Engine, app: str | None, chosen: DeadFilter
) -> Iterator[tuple[Group, list[tuple[int, str]]]]:
    positions = _positions(engine, app, chosen)
    if positions == []:
        return
    for _, group in _groups(engine, app, chosen):
        wanted = ParkedFilter((), ("dead",), chosen.task, positions or ())
        yield from ((group, found) for found in parked_slices(engine, group, wanted))


def _positions(engine: Engine, app: str | None, chosen: DeadFilter) -> list[int] | None:
    """Return where the records with the ids given are; None where none were given."""
    if not chosen.ids:
        return None
    spaces = [app] if app else sorted({s.app for s in engine.streams() if s.app})
    spaces += [f"stream:{s.name}" for s in engine.streams() if s.kind == "stream"]
    found = []
    for text in chosen.ids:
        here = {pos for space in spaces if (pos := engine.find(space, parse_id(text))) is not None}
        if not here:
            raise UnknownCall(f"no call {text}: never appended, or past retention")
        found += sorted(here)
    return found


def _groups(engine: Engine, app: str | None, chosen: DeadFilter) -> list[tuple[Stream, Group]]:
    streams = {s.id: s for s in engine.streams()}
    here = [(streams[g.stream], g) for g in engine.groups() if app in (None, g.app)]
    if chosen.queue is not None:
        names = {stream.name for stream, _ in here}
        here = [(stream, group) for stream, group in here if stream.name == chosen.queue]
        if not here:
            raise UnknownName("queue", chosen.queue, names)
    if chosen.group is not None:
        names = {group.name for _, group in here}
        here = [(stream, group) for stream, group in here if group.name == chosen.group]
        if not here:
            raise UnknownName("group", chosen.group, names)
    return here
