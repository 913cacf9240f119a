"""Staying on a partition: one consumer that goes from one to another is dear (K6).

Where partitions have much to be read, a worker is offered one of them for a while, then all of them once, so
that what has little to be read is not forgotten, then the next. Each process begins elsewhere.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence, Set

from ...delivery.model import Position

MUCH = 2000  # records before a group in a partition that are worth to stay for
STAY = 0.2  # seconds
LONGER = 1.0  # where some of it was read, and not claimed so far
NEAR = 2  # partitions ahead in which nobody else is to be


class Stays:
    """Where this process reads, for each group and lane."""

    def __init__(self) -> None:
        self._now: dict[tuple[int, int], tuple[int, float]] = {}  # (group, priority): log, until when
        self._on: dict[int, tuple[int, float]] = {}  # ordered group: log, since when

    def among(self, group: int, positions: Sequence[Position]) -> list[Position]:
        """Return a group's positions as they are offered to a claim now; the others with nothing to be read.

        What is due, was given back or waits may be of any of them, and a claim asks for its lane.
        """
        lanes: dict[int, list[Position]] = {}
        for at in positions:
            lanes.setdefault(at.priority, []).append(at)
        if len(lanes) == len(positions):
            return list(positions)
        now = time.monotonic()
        return [at for each, lane in lanes.items() for at in self._of_lane((group, each), lane, now)]

    def in_order(
        self, group: int, unread: Mapping[int, int], held: Set[int], at_hand: Callable[[int], bool]
    ) -> list[int]:
        """Return the logs of an ordered group, those first where this process reads on; []: any will do.

        Where there is much to be read that is the same for a while, and for longer as long as some is at hand
        of what was read of it; then the next. Close behind others it would meet them at each step, and read
        what they claim: so it goes on from the other side.

        Parameters:
            unread: by log what the group has before it, as far as is known. held: logs that others read.
            at_hand: whether something is at hand of a log.
        """
        if sum(unread.values()) < MUCH:
            self._on.pop(group, None)
            return []
        now, logs = time.monotonic(), sorted(unread)
        log, since = self._on.get(group) or (logs[os.getpid() % len(logs)], now)
        place = bisect_left(logs, log) % len(logs)
        here: list[int] = []
        after = logs[place:] + logs[:place]
        if after[0] == log:
            staying = now - since < (LONGER if at_hand(log) else STAY)
            here, after = ([log], after[1:]) if staying else ([], [*after[1:], log])
        if not held.isdisjoint(after[:NEAR]):
            half = len(after) // 2
            after = after[half:] + after[:half]
        found = here + after
        self._on[group] = found[0], since if here else now
        return found

    def took(self, group: int, log: int) -> None:
        """Take note of where a claim of an ordered group has read last."""
        on = self._on.get(group)
        if on is not None and on[0] != log:
            self._on[group] = log, time.monotonic()

    def _of_lane(self, key: tuple[int, int], lane: list[Position], now: float) -> list[Position]:
        much = [at for at in lane if _unread(at) >= MUCH]
        if not much:
            self._now.pop(key, None)
            return lane
        log, until = self._now.get(key, (None, 0.0))
        if now < until and any(at.log == log for at in much):
            return [at if at.log == log else at._replace(end=at.cursor) for at in lane]
        logs = [at.log for at in much]
        place = logs.index(log) + 1 if log in logs else os.getpid()
        self._now[key] = logs[place % len(logs)], now + STAY
        return lane


def _unread(at: Position) -> int:
    return (at.end if at.stop is None else min(at.end, at.stop)) - at.cursor
