"""Moving a group itself, back or forth: going back does the work again, for real (H14).

Steps are one short transaction each, and may be done twice: whoever is killed in the middle leaves a group
that is granted nothing, and that `resume_seek`, or a worker that keeps house, brings to its end.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..clock import now as wall_clock
from ..delivery import seek as core
from ..delivery.model import MAX_LEASE
from ..engines.base import Engine, Group, Reads, Stream
from ..errors import ConfigError
from ..record import first_pos, offset_of
from .selection import offsets, when

SLICE = MAX_LEASE  # positions made history in one transaction, and by one entry of the journal
SCAN = 50_000
ALL = 1_000_000
PATIENCE = 0.2  # seconds between looks at leases that are waited for
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class SeekPlan:
    """Where a group would be moved, and what that means."""

    stream: Stream
    group: Group
    to: dict[int, int]  # by log, the position from which on it reads
    forth: set[int] = field(default_factory=set)  # logs in which it does not go back, whatever is done since
    again: dict[str, int] = field(default_factory=dict)  # by task, records that will be done again
    passed: dict[str, int] = field(
        default_factory=dict
    )  # by task, records that will not be done: ended as REVOKED

    @property
    def moves(self) -> bool:
        """Whether it would be moved at all."""
        return bool(self.again or self.passed)


def plan_seek(engine: Engine, stream: Stream, group: Group, to: str | float) -> SeekPlan:
    """Return where a seek would move a group, and what would be done again.

    Parameters:
        to: seconds since 1970 as a float; else "earliest", "latest", or an offset: "1000" of each partition,
            "2:1000" of partition 2 alone.

    Raises: ConfigError for a place past retention, beyond the end, or outside the group's bounds.
    """
    wanted = _targets(engine, stream, to)
    plan = SeekPlan(stream, group, {})
    for at in engine.group_bounds(group):
        if at.log not in wanted:
            continue
        _refuse_outside(group, at, wanted[at.log])
        plan.to[at.log] = wanted[at.log]
        if wanted[at.log] >= at.cursor and to != "earliest":
            plan.forth.add(at.log)
        for counts, lo, hi in (
            (plan.again, wanted[at.log], at.cursor),
            (plan.passed, at.cursor, wanted[at.log]),
        ):
            for start in range(lo, hi, SCAN):
                for task, number in engine.task_counts(start, min(start + SCAN, hi), None, None).items():
                    counts[task] = counts.get(task, 0) + number
    return plan


def _targets(engine: Engine, stream: Stream, to: str | float) -> dict[int, int]:
    bounds = {log: (first, end) for log, first, end in engine.bounds(stream)}
    if to == "earliest":
        return {log: first for log, (first, _) in bounds.items()}
    if to == "latest":
        return {log: end for log, (_, end) in bounds.items()}
    if isinstance(to, str):
        found = offsets(to, stream, "to")
        for log, pos in found.items():
            first, end = bounds[log]
            if pos < first:
                raise _past_retention(engine, stream, f"offset {offset_of(pos):,}", log, first)
            if pos > end:
                raise ConfigError(
                    f"offset {offset_of(pos):,} is beyond the end of {stream.kind} {stream.name}: the next "
                    f"one is {offset_of(end):,}"
                )
        return found
    for log, (first, _) in bounds.items():
        if first > first_pos(log):  # it was cut: what lay before may have been of that time
            oldest = [record.time for record in engine.records(first, first + 1, 1)]
            if oldest and to < oldest[0]:
                raise _past_retention(engine, stream, when(to), log, first)
    return {log: lo for log, lo, _ in engine.window(stream, to, None)}


def _past_retention(engine: Engine, stream: Stream, what: str, log: int, first: int) -> ConfigError:
    times = [f", of {when(record.time)}" for record in engine.records(first, first + 1, 1)]
    partition = f"{stream.logs.index(log)}:" if len(stream.logs) > 1 else ""
    return ConfigError(
        f"{what} is past the retention of {stream.kind} {stream.name}: the earliest there is, is offset "
        f"{partition}{offset_of(first)}{times[0] if times else ''}; --to earliest moves there"
    )


def _refuse_outside(group: Group, at: Any, target: int) -> None:
    """A replay keeps to its bounds; a group that has no end may be moved below where it began."""
    if at.stop is None:
        return
    if not at.start <= target <= at.stop:
        raise ConfigError(
            f"offset {offset_of(target):,} is outside the bounds of {group.kind} {group.name}: it reads from "
            f"{offset_of(at.start):,} to {offset_of(at.stop):,}; make another replay for more"
        )


def seek(
    engine: Engine,
    group: Group,
    to: SeekPlan | Mapping[int, int],
    grace: float = 30.0,
    progress: Progress | None = None,
) -> Mapping[int, int]:
    """Move a group: from now on it reads from these positions on, by log.

    Workers take nothing of it meanwhile. What they hold past a target they may finish within `grace` seconds;
    after that it is taken from them, and what they say of it later is refused. The group's generation rises,
    so that calls which records make again are others than those they made before (H8).

    Parameters:
        to: a plan, or positions by log. Where a plan leads forth, the group is never moved back, though
            workers have come past the target since; with positions, what is done by now decides.

    Returns: where it was moved.

    Raises: ConfigError where it is being moved elsewhere, or is not there yet: open transactions left
        too many gaps on its way.
    """
    now = wall_clock()
    wanted, forth = (to.to, to.forth) if isinstance(to, SeekPlan) else (to, set())
    begun = engine.transact(
        Reads(group.id, positions=bool(forth), settings=True),
        lambda view, change: core.begin(view, change, wanted, now, forth),
        synced=True,
    )
    if begun is None:
        raise ConfigError(
            f"group {group.name} is being moved elsewhere; bring that to its end first: respool seek "
            f"{shlex.quote(group.name)} --resume"
        )
    _go_on(engine, group, begun, grace, progress)
    return begun


def resume_seek(engine: Engine, group: Group, grace: float = 30.0, progress: Progress | None = None) -> bool:
    """Bring a seek to its end that was left in the middle; False where there is none."""
    to = moved_to(engine, group)
    if to is None:
        return False
    _go_on(engine, group, to, grace, progress)
    return True


def moved_to(engine: Engine, group: Group) -> dict[int, int] | None:
    """Return where a group is being moved as of now, None where it is not."""
    now = next((each for each in engine.groups() if each.id == group.id), None)
    return None if now is None else core.under_way(now.settings)


def _go_on(
    engine: Engine, group: Group, to: Mapping[int, int], grace: float, progress: Progress | None
) -> None:
    until = time.monotonic() + grace
    with engine.waiter(None) as waiter:
        while True:
            waiter.prepare()
            left = end_leases(engine, group, to, take=time.monotonic() >= until)
            if not left:
                waiter.cancel()
                break
            waiter.sleep(PATIENCE)
    while rewind_slice(engine, group, to, progress):
        pass
    if finish(engine, group, to) is None:
        raise ConfigError(
            f"group {group.name} cannot be moved past more than a thousand gaps, which open transactions may "
            f"still fill: end those, then: respool seek {shlex.quote(group.name)} --resume"
        )


def end_leases(engine: Engine, group: Group, to: Mapping[int, int], *, take: bool) -> int:
    """Take what lies past the targets out of leases; return how many records workers still hold of it.

    `take`: from workers too, not only what was given back.
    """
    ids, now = tuple(lease.id for lease in engine.leases(group)), wall_clock()
    return engine.transact(
        Reads(group.id, ids, settings=True),
        lambda view, change: core.end_leases(view, change, to, now, owned=take),
        synced=True,
    )


def rewind_slice(
    engine: Engine, group: Group, to: Mapping[int, int], progress: Progress | None = None
) -> bool:
    """Make history of the next slice; False where there is none left, or the seek is over."""
    ends = {at.log: at.cursor for at in engine.group_bounds(group)}
    now = wall_clock()

    def decide(view: Any, change: Any) -> tuple[int, int] | None:
        through = core.through(view.settings)
        for log, target in to.items():
            lo = max(through.get(log, target), target)
            if lo < ends[log]:
                core.rewind(view, change, to, lo, min(lo + SLICE, ends[log]), now)
                return lo - target, sum(max(ends[each] - to[each], 0) for each in to)
        return None

    done = engine.transact(Reads(group.id, settings=True), decide, synced=True)
    if done is not None and progress is not None:
        progress(*done)
    return done is not None


def finish(engine: Engine, group: Group, to: Mapping[int, int]) -> bool | None:
    """Move the cursors; False where somebody else has, None where that must wait: there are too many gaps."""
    now = wall_clock()
    moved: bool | None = None
    goes_on = True
    while moved is None and goes_on:
        moved, goes_on = engine.transact(
            Reads(group.id, positions=True, returned=ALL, settings=True),
            lambda view, change: (core.finish(view, change, to, now), bool(change.cursors)),
            synced=True,
        )
    for log in to:
        engine.ring(log, everyone=True)
        engine.ring_waiters(range(to[log], to[log] + 100))
    return moved
