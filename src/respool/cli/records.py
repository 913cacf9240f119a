"""Going through a queue's records page by page, with the state of each in a group."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from ..aliases import with_aliases
from ..engines import public_id
from ..places import Places
from ..reading import Input, read_input
from ..record import id_text, offset_of
from ..replay.edits import edits_in
from ..replay.windows import Window, windows

if TYPE_CHECKING:
    from ..engines.base import Group, Stream
    from .target import Target

PAGE = 1000  # positions
SHORT = 2000  # bytes of a body that a list still decodes


class Wanted(NamedTuple):
    """Which records are listed, and in which order."""

    group: str
    task: str | None = None
    state: str | None = None
    since: float | None = None
    until: float | None = None
    oldest: bool = False


class Call(NamedTuple):
    """A line of the list."""

    id: str
    time: float
    stream: Stream
    pos: int
    task: str
    state: str
    group: str
    size: int
    input: Input
    edits: list[str]  # with which it was redriven: its state is of those

    def data(self) -> dict[str, Any]:
        """Return it for JSON; `time` is the caller's to write."""
        return {
            "id": self.id,
            "time": self.time,
            "queue": self.stream.name,
            "app": self.stream.app,
            "partition": self.stream.place(self.pos >> 40)[0],
            "priority": self.stream.place(self.pos >> 40)[1],
            "offset": offset_of(self.pos),
            "task": self.task,
            "group": self.group,
            "state": self.state,
            "size": self.size,
            "input": self.input.data(),
            "edits": self.edits,
        }


def listed(target: Target, streams: Sequence[Stream], wanted: Wanted) -> Iterator[Call]:
    """Yield the calls wanted, in the order of time as far as the logs keep it."""
    sign = 1 if wanted.oldest else -1
    chosen = [(s, group) for s in streams if (group := target.group(wanted.group, s)) is not None]
    pieces = [
        windows(target.engine, stream, wanted.since, wanted.until, oldest=wanted.oldest)
        for stream, _ in chosen
    ]
    for together in zip_longest(*pieces, fillvalue=()):
        logs = [
            _in_log(target, stream, group, piece, wanted)
            for (stream, group), found in zip(chosen, together, strict=True)
            for piece in found
        ]
        yield from heapq.merge(*logs, key=lambda call: sign * call.time)


def _in_log(target: Target, stream: Stream, group: Group, piece: Window, wanted: Wanted) -> Iterator[Call]:
    first, end = piece.lo, piece.hi
    starts = range(first, end, PAGE) if wanted.oldest else range(end - PAGE, first - PAGE, -PAGE)
    for start in starts:
        lo, hi = max(start, first), min(start + PAGE, end)
        places = Places(target.engine.group_page(group, lo, hi))
        if not places.may_hold(wanted.state):
            continue
        names: list[Any] = [None] if wanted.task is None else with_aliases(target.source, [wanted.task])
        found = sorted(
            (
                brief
                for name in names
                for brief in target.engine.briefs(lo, hi, name, piece.since, piece.until, SHORT)
            ),
            key=lambda brief: brief.pos,
        )
        for brief in found if wanted.oldest else reversed(found):
            state = target.state(places.status(brief.pos), brief.pos, group).state
            if state == "STARTED":  # whether it has said how far it is, a page does not tell
                state = target.state(target.engine.status(group, brief.pos), brief.pos, group).state
            if wanted.state in (None, state):
                given = read_input(stream.kind, brief.body, brief.size, brief.meta, target.pickle_key)
                id = id_text(public_id(brief.id))
                yield Call(
                    id,
                    brief.time,
                    stream,
                    brief.pos,
                    brief.task,
                    state,
                    group.name,
                    brief.meta.offloaded or brief.size,
                    given,
                    edits_in(target.engine, group, places, brief.pos),
                )
