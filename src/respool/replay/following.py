"""How far a group is, and waiting for its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from ..delivery.seek import held
from ..engines.base import Engine, Group
from ..errors import UnknownName

LOOK = 0.5  # seconds between looks, where no bell rings


class HowFar(NamedTuple):
    """How far a group is within its bounds, by positions."""

    done: int
    total: int
    dead: int
    skipped: int
    held: str | None  # paused, or moved by a seek

    @property
    def run(self) -> int:
        """How many it has run: what it has passed over is not among them, what failed is."""
        return max(self.done - self.skipped, 0)

    @property
    def over(self) -> bool:
        """Whether nothing is left to run, dead letters not among it."""
        return self.done >= self.total


def how_far(engine: Engine, group: Group) -> HowFar:
    """Return how far a group is, as of now. Raises UnknownName where it is gone."""
    now = next((each for each in engine.groups() if each.id == group.id), None)
    if now is None:
        raise UnknownName("group", group.name, {g.name for g in engine.groups() if g.stream == group.stream})
    counts, counters = engine.counts(group), engine.counters(group.id)
    ends = {at.log: at.end for at in engine.positions(group)}
    total = sum(
        max((ends[at.log] if at.stop is None else min(at.stop, ends[at.log])) - at.start, 0)
        for at in engine.group_bounds(group)
    )
    dead = counts.parked.get("dead", 0)
    left = counts.pending + counts.leased + counts.returned + sum(counts.parked.values()) - dead
    return HowFar(max(total - left, 0), total, dead, counters.get("skipped", 0), held(now.settings))


def follow(
    engine: Engine, group: Group, tell: Callable[[HowFar], None], timeout: float | None = None
) -> HowFar:
    """Wait until a group has nothing left to run; return how far it is then, or after `timeout` seconds."""
    until = None if timeout is None else time.monotonic() + timeout
    with engine.waiter(None) as waiter:
        while True:
            waiter.prepare()
            now = how_far(engine, group)
            tell(now)
            left = LOOK if until is None else min(until - time.monotonic(), LOOK)
            if now.over or left <= 0:
                waiter.cancel()
                return now
            waiter.sleep(left)
