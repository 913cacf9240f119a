"""Retention: what is older, larger or more than a stream keeps goes, in small steps beside the work.

Nothing that `main` has yet to do goes. Other groups hold records up to twice the limits (`retention.HOLD`),
are warned before, and then lose them, which is counted.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Collection, Mapping
from functools import partial

from ..delivery.lapse import lapse
from ..delivery.seek import under_way
from ..engines.base import Engine, Group, Reads, Stream
from ..retention import HOLD, Retained, retained
from ..why import served_as
from .resting import Resting

log = logging.getLogger("respool.worker")

STEP = 5000  # records in one transaction
BLOCK = 5000  # positions whose bytes are counted together
WARN = 1 + (HOLD - 1) / 2
"""Times the limits, from which on a group that holds records is warned."""
LOOKS_A_LIFE = 1000  # looks while a record is kept, …
SELDOM, OFTEN = 3600.0, 10.0  # … no less than once in so many seconds; where a size or a count is a limit
RETURNED = 1000  # leases that a group may lose records of in one transaction


class Retainer:
    """Keeps the streams that a worker serves to their limits."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Sizes] = {}  # by log
        self._look_at: dict[int, float] = {}  # by stream
        self._warned: set[tuple[int, int]] = set()
        self._resting = Resting("is not trimmed")

    def keep(self, engine: Engine, streams: Collection[int], now: float, until: float) -> bool:
        """Do what is to be done, until then (monotonic); return whether there is more.

        Parameters:
            streams: numbers of those that are served.
        """
        for stream in engine.streams():
            limits = retained(stream.settings) if stream.id in streams else None
            if limits is None or time.monotonic() < self._look_at.get(stream.id, 0.0):
                continue
            more, error = self._resting.tried(
                stream.id,
                f"{stream.kind} {stream.name}",
                partial(self._keep_one, engine, stream, limits, now, until),
            )
            if error is not None:
                self._look_at[stream.id] = time.monotonic() + (self._resting.left(stream.id) or 0.0)
                continue
            self._resting.over(stream.id, f"{stream.kind} {stream.name}")
            if more:
                return True
            self._look_at[stream.id] = time.monotonic() + _pause(limits)
        return False

    def _keep_one(self, engine: Engine, stream: Stream, limits: Retained, now: float, until: float) -> bool:
        if limits.size is not None and not self._count_bytes(engine, stream, until):
            return True
        foreign = stream.settings.get("foreign")  # what another program writes, it also removes
        if not foreign and self._take_from_others(engine, stream, limits, now, until):
            return True
        before = 0.0 if limits.age is None else now - limits.age
        upto = self._beyond(engine, stream, Retained(None, limits.size, limits.count), now)
        while engine.trim(stream, before, STEP, upto):
            if time.monotonic() >= until:
                return True
        return False

    # Groups that hold records

    def _take_from_others(
        self, engine: Engine, stream: Stream, limits: Retained, now: float, until: float
    ) -> bool:
        """Let no group but `main` hold more than it may; warn those that come near to that.

        Returns: whether time was up before all was done.
        """
        others = [
            group
            for group in engine.groups()
            if group.stream == stream.id and group.kind != "main" and under_way(group.settings) is None
        ]
        if not others:
            return False
        near = self._beyond(engine, stream, limits.times(WARN), now)
        for group in others:
            if not _is_behind(engine, group, near):
                self._warned.discard((group.id, 0))
                continue
            if (group.id, 0) not in self._warned:
                self._warned.add((group.id, 0))
                log.warning(
                    "%s holds records longer than they are kept: at %d times that it loses them. Start a "
                    "worker for it, or drop it: respool groups drop %s",
                    served_as(stream, group), HOLD, shlex.quote(group.name),
                )  # fmt: skip
            cap = self._beyond(engine, stream, limits.times(HOLD), now)
            lost = _lose(engine, group, cap, now, until)
            if lost:
                log.error(
                    "%s has lost %d record(s): trimmed before they were done", served_as(stream, group), lost
                )
                if time.monotonic() >= until:
                    return True
        return False

    # Where the limits are

    def _beyond(self, engine: Engine, stream: Stream, limits: Retained, now: float) -> dict[int, int]:
        """Return the first position of each log that is within the limits."""
        upto = {}
        bounds = engine.bounds(stream)
        if limits.age is not None:
            upto = {log: lo for log, lo, _ in engine.window(stream, now - limits.age, None)}
        if limits.count is not None:
            held = sum(end - first for _, first, end in bounds)
            for log_, first, end in bounds:
                if held > limits.count:  # each log as much of it as it has of all
                    kept = int((end - first) * limits.count / held)
                    upto[log_] = max(upto.get(log_, 0), end - kept)
        if limits.size is not None:
            sizes = {log_: self._sizes[log_].total(first) for log_, first, _ in bounds if log_ in self._sizes}
            held = sum(sizes.values())
            for log_ in sizes:
                if held > limits.size:
                    room = sizes[log_] * limits.size / held
                    upto[log_] = max(upto.get(log_, 0), self._sizes[log_].first_within(room))
        return upto

    def _count_bytes(self, engine: Engine, stream: Stream, until: float) -> bool:
        """Count the bytes of what came since the last time; False where there is more to be counted.

        Each record is looked at once: what is known of those before is kept, by the block.
        """
        for log_, first, end in engine.bounds(stream):
            sizes = self._sizes.setdefault(log_, _Sizes(first))
            sizes.forget(first)
            while sizes.end < end:
                hi = min(sizes.end + BLOCK, end)
                sizes.add(hi, engine.byte_count(sizes.end, hi))
                if time.monotonic() >= until and sizes.end < end:
                    return False
        return True


class _Sizes:
    """How many bytes lie where in a log, by the block."""

    def __init__(self, first: int) -> None:
        self._blocks: list[tuple[int, int]] = []  # where it begins, how many bytes
        self.end = first

    def add(self, hi: int, size: int) -> None:
        """Take in what lies from the end up to `hi`."""
        if self._blocks and hi - self._blocks[-1][0] <= BLOCK:  # few came: the last block grows
            lo, known = self._blocks[-1]
            self._blocks[-1] = (lo, known + size)
        else:
            self._blocks.append((self.end, size))
        self.end = hi

    def forget(self, first: int) -> None:
        """Forget what was cut."""
        while len(self._blocks) > 1 and self._blocks[1][0] <= first:
            del self._blocks[0]
        if self.end < first:
            self._blocks, self.end = [], first

    def total(self, first: int) -> int:
        """Return how many bytes there are from a position on; of the block it lies in, its share."""
        self.forget(first)
        return sum(size for _, size in self._blocks[1:]) + self._rest(first)

    def _rest(self, first: int) -> int:
        if not self._blocks:
            return 0
        lo, size = self._blocks[0]
        hi = self._blocks[1][0] if len(self._blocks) > 1 else self.end
        return size if first <= lo or hi <= lo else int(size * max(hi - first, 0) / (hi - lo))

    def first_within(self, room: float) -> int:
        """Return the position from which on there are no more than so many bytes."""
        at = self.end
        for lo, size in reversed(self._blocks):
            if size > room:
                return at - int((at - lo) * room / size)
            room -= size
            at = lo
        return at


def _lose(engine: Engine, group: Group, cap: Mapping[int, int], now: float, until: float) -> int:
    """Have a group lose what lies below some positions, step by step; return how many records."""
    lost = 0
    while more := engine.transact(
        Reads(group.id, positions=True, returned=RETURNED),
        lambda view, change: lapse(view, change, cap, now),
    ):
        lost += more
        if time.monotonic() >= until:
            break
    return lost


def _is_behind(engine: Engine, group: Group, near: Mapping[int, int]) -> bool:
    """Say whether a group has records to do that lie below these positions."""
    if any(
        at.cursor < (limit if at.stop is None else min(limit, at.stop))
        for at in engine.positions(group)
        if (limit := min(near.get(at.log, 0), at.end))
    ):
        return True
    return any(
        span.lo < near.get(span.lo >> 40, 0)
        for lease in engine.leases(group)
        if not lease.owner
        for span in lease.spans
    )


def _pause(limits: Retained) -> float:
    """Return how long nothing need be looked at where all is within its limits."""
    age = SELDOM if limits.age is None else min(limits.age / LOOKS_A_LIFE, SELDOM)
    return age if limits.size is None and limits.count is None else min(age, OFTEN)
