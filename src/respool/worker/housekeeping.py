"""What a worker does beside its tasks, in small steps: what nobody waits for, and nobody else does."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..clock import now as wall_clock
from ..dead import drop_old
from ..delivery.seek import under_way
from ..errors import LogMoved
from ..replay import moving
from .holds import Holds
from .page import WorkerFile
from .retaining import Retainer
from .sweeping import Sweeper

HOUSEKEEPING = 5.0  # seconds between two rounds of housekeeping, unless there was more to do than …
QUIET_HOUSEKEEPING = 10.0  # seconds, where nothing was written meanwhile
IDLE_HOUSEKEEPING = 60.0  # seconds, where each look is a round trip, too
HOUSEKEEPING_SHARE = 0.1  # … a round may take
ABANDONED = 60.0  # seconds after which a seek that is not over is finished by a worker
SWEPT_AFTER = 60.0  # seconds that a bucket was not used, and is full
STEP = 5000  # records or values in one transaction


class House:
    """What a supervisor keeps in order, at its beats."""

    def __init__(
        self,
        engine: Any,
        groups: Sequence[Any],
        dead_ttls: Mapping[int, Mapping[str, float]],
        file: WorkerFile,
        sweeper: Sweeper | None,
    ) -> None:
        self._engine, self._groups, self._ttls = engine, groups, dead_ttls
        self._file, self._sweeper, self._retainer = file, sweeper, Retainer()
        self._next, self._wait = 0.0, HOUSEKEEPING
        self._holds = Holds(engine, groups)

    def tidy(self, *, worked: bool) -> bool:
        """Keep the store fast; return whether it is time for a round (`go_round`).

        Parameters:
            worked: something was written since the last beat.
        """
        now, can = time.monotonic(), self._engine.capabilities
        rests = can.many_hosts and not worked  # each look is a round trip
        quiet = HOUSEKEEPING if worked else QUIET_HOUSEKEEPING
        self._wait = IDLE_HOUSEKEEPING if rests else quiet
        self._next = min(self._next, now + self._wait)
        if not rests or now >= self._next or not can.one_transaction:  # who relays calls may have died (K4)
            self._engine.tidy()
        if not rests or now >= self._next:
            self._holds.look()
        return now >= self._next

    def go_round(self) -> None:
        """Do the rest: each thing for a short while."""
        now = time.monotonic()
        self._next = now + self._wait  # also where the log is away, and has beats wait for it
        self._file.keep()
        if self._sweeper is not None:
            self._sweeper.start(self._engine)
        if keep_house(self._engine, self._groups, self._ttls, self._retainer):
            self._next = now


def keep_house(
    engine: Any, groups: Sequence[Any], dead_ttls: Mapping[int, Mapping[str, float]], retainer: Retainer
) -> bool:
    """Do, in small steps and for a short while, what nobody waits for: drop what is old.

    Parameters:
        dead_ttls: by group and task, the seconds that dead letters are kept.
        retainer: one for as long as the worker lives.

    Returns: whether there is more to do, so that the next round should not wait.
    """
    try:
        return _do_some_of_each(engine, groups, dead_ttls, retainer)
    except LogMoved:
        return False  # a transfer has closed the log: until it is given up, all stays as it is


def _do_some_of_each(
    engine: Any, groups: Sequence[Any], dead_ttls: Mapping[int, Mapping[str, float]], retainer: Retainer
) -> bool:
    now, more = wall_clock(), False
    engine.sweep_limits(now - SWEPT_AFTER, STEP)
    engine.sweep_locks(now, STEP)
    duties: tuple[Callable[[float], bool], ...] = (
        lambda until: _expire(engine, now, until),
        lambda until: _drop_dead(engine, groups, dead_ttls, until),
        lambda until: _forget_dropped(engine, until),
        lambda until: _finish_seeks(engine, {group.id for group in groups}, now, until),
        lambda until: retainer.keep(engine, {group.stream for group in groups}, now, until),
    )
    for duty in duties:  # each has time of its own: much to do for one holds up no other
        more |= duty(time.monotonic() + HOUSEKEEPING_SHARE / len(duties))
    return more


def _expire(engine: Any, now: float, until: float) -> bool:
    """Forget results that were kept long enough; return whether there are more, as the others here do."""
    while engine.expire_outcomes(now, STEP) == STEP:
        if _is_over(until):
            return True
    return False


def _forget_dropped(engine: Any, until: float) -> bool:
    """Remove what is left of groups whose `drop` was killed in the midst."""
    while engine.forget_dropped(STEP):
        if _is_over(until):
            return True
    return False


def _drop_dead(
    engine: Any, groups: Sequence[Any], dead_ttls: Mapping[int, Mapping[str, float]], until: float
) -> bool:
    """Drop dead letters that were kept long enough."""
    for group in groups:
        for task, ttl in dead_ttls.get(group.id, {}).items():
            if drop_old(engine, group, task, ttl, lambda: not _is_over(until)) and _is_over(until):
                return True
    return False


def _is_over(until: float) -> bool:
    return time.monotonic() >= until


def _finish_seeks(engine: Any, served: Collection[int], now: float, until: float) -> bool:
    """Bring seeks to their end whose command was killed in the middle."""
    for group in engine.groups():
        to = under_way(group.settings) if group.id in served else None
        if to is None or now - group.settings["seek"]["at"] < ABANDONED:
            continue
        if moving.end_leases(engine, group, to, take=True):
            return True
        while moving.rewind_slice(engine, group, to):
            if _is_over(until):
                return True
        moving.finish(engine, group, to)
    return False
