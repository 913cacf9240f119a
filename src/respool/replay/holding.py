"""Pausing groups, and having them go on."""

from __future__ import annotations

from ..clock import now as wall_clock
from ..delivery import seek
from ..engines.base import Engine, Group, Reads


def pause(engine: Engine, group: Group) -> None:
    """Have a group granted nothing more, until `resume`: what runs is finished, what waits waits."""
    now = wall_clock()
    engine.transact(Reads(group.id), lambda view, change: seek.pause(change, now), synced=True)


def resume(engine: Engine, group: Group) -> None:
    """Have a paused group go on where it was."""
    engine.transact(Reads(group.id), lambda view, change: seek.pause(change, None), synced=True)
    for at in engine.group_bounds(group):
        engine.ring(at.log, everyone=True)
