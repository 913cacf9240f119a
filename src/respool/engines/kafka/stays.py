"""Staying on a partition: one consumer that goes from one to another is dear (K6).

Where partitions have much to be read, a worker is offered one of them for a while, then all of them once, so
that what has little to be read is not forgotten, then the next. Each process begins elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from ...delivery.model import Position

MUCH = 2000  # records before a group in a partition that are worth to stay for
STAY = 0.2  # seconds


class Stays:
    """Where this process reads, for each group and lane."""

    def __init__(self) -> None:
        self._now: dict[tuple[int, int], tuple[int, float]] = {}  # (group, priority): log, until when

    def among(self, group: int, positions: Sequence[Position]) -> list[Position]:
        """Return those of a group's positions that are offered to a claim now."""
        lanes: dict[int, list[Position]] = {}
        for at in positions:
            lanes.setdefault(at.priority, []).append(at)
        if len(lanes) == len(positions):
            return list(positions)
        now = time.monotonic()
        return [at for each, lane in lanes.items() for at in self._of_lane((group, each), lane, now)]

    def turn(self, turn: int, unread: int) -> int:
        """Return whose turn it is in an ordered group: where much is to be read, the same for a while."""
        if unread < MUCH:
            return turn
        return os.getpid() + int(time.monotonic() / STAY)

    def _of_lane(self, key: tuple[int, int], lane: list[Position], now: float) -> list[Position]:
        much = [at for at in lane if _unread(at) >= MUCH]
        if not much:
            self._now.pop(key, None)
            return lane
        log, until = self._now.get(key, (None, 0.0))
        if now < until:
            for at in much:
                if at.log == log:
                    return [at]
        logs = [at.log for at in much]
        place = logs.index(log) + 1 if log in logs else os.getpid()
        self._now[key] = logs[place % len(logs)], now + STAY
        return lane


def _unread(at: Position) -> int:
    return (at.end if at.stop is None else min(at.end, at.stop)) - at.cursor
