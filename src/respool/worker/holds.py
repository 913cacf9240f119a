"""Groups that a worker serves and that are granted nothing: paused, being moved, or gone. It says so."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..delivery.seek import held
from ..engines.base import Engine, Group
from ..errors import RespoolError
from ..why import how_held, served_as

log = logging.getLogger("respool.worker")


def held_back(engine: Engine, groups: Sequence[Group]) -> list[str]:
    """Return what holds those of the groups that are held as of now, in words, and what ends that."""
    ids, streams = {group.id for group in groups}, {stream.id: stream for stream in engine.streams()}
    found = (how_held(streams[group.stream], group) for group in engine.groups() if group.id in ids)
    return [said for said in found if said is not None]


def say_lost(engine: Engine, group: Group, runs: int) -> None:
    """Say that runs of a lease changed nothing: another worker has it by now, or the group is gone."""
    try:
        is_gone = all(each.id != group.id for each in engine.groups())
    except RespoolError:  # the engine is out of reach, which is said elsewhere
        is_gone = False
    if not is_gone:
        log.warning("a lease was lost: %d run(s) are not counted, and repeated", runs)
    else:
        log.warning("group %s was dropped: %d run(s) of it are not counted", group.name, runs)


class Holds:
    """Tells when a group begins or ceases to be held while it is served, and when it is dropped.

    Parameters:
        groups: those that the worker serves, as they were when it said so in its banner.
    """

    def __init__(self, engine: Any, groups: Sequence[Group]) -> None:
        self._engine, self._groups = engine, list(groups)
        self._held = {group.id: held(group.settings) for group in groups}

    def look(self) -> None:
        """Look once, and tell what is otherwise than before."""
        if not self._groups:
            return
        now = {group.id: group for group in self._engine.groups()}
        changed = [
            group
            for group in self._groups
            if group.id not in now or held(now[group.id].settings) != self._held[group.id]
        ]
        if not changed:
            return
        streams = {stream.id: stream for stream in self._engine.streams()}
        for group in changed:
            stream, as_of_now = streams.get(group.stream), now.get(group.id)
            if as_of_now is None or stream is None:
                self._groups.remove(group)
                served = f"group {group.name}" if stream is None else served_as(stream, group)
                log.warning("%s was dropped; to serve one made anew, start this worker again", served)
                continue
            self._held[group.id] = held(as_of_now.settings)
            said = how_held(stream, as_of_now)
            if said is None:
                log.info("%s goes on", served_as(stream, group))
            else:
                log.warning("%s", said)
