"""When processes that have ended are replaced: the sooner the longer they lived."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from .options import EXIT_LOST, EXIT_RECYCLED
from .process import ChildProcess

log = logging.getLogger("respool.worker")

BACKOFF = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before a child that died early is replaced
SHORT = 60.0  # seconds: a worker that has to start anew sooner than that waits before it does
EARLY = 5.0  # seconds: a child that dies sooner than that after its start died "early"


class Restarts:
    """How long a worker waits before it starts anew as another: the longer the sooner it has to, again."""

    def __init__(self) -> None:
        self._soon = 0  # restarts in a row after less than SHORT
        self._began = time.monotonic()

    def pause(self) -> float:
        """Return the seconds to wait before the next start."""
        lived = time.monotonic() - self._began
        wait = BACKOFF[self._soon] if lived < SHORT else 0.0
        self._soon = min(self._soon + 1, len(BACKOFF) - 1) if lived < SHORT else 1
        return wait

    def started(self) -> None:
        """Note that it starts now."""
        self._began = time.monotonic()


class Replacements:
    """The children to be started again, each at its time: no storm where each dies at import."""

    def __init__(self) -> None:
        self._early_deaths = 0
        self._at: dict[int, float] = {}  # by the child's index

    def plan(self, child: ChildProcess, status: int) -> None:
        """Plan the next start for a child that has ended."""
        early = status != EXIT_RECYCLED and time.monotonic() - child.started < EARLY and not child.over_limit
        if not child.ready or (early and status == EXIT_LOST):
            wait = self._longer()
            how = "right after its start" if child.ready or not child.late else "before it had the app"
            log.error("child %d ended %s; the next starts in %g s", child.index, how, wait)
        else:
            wait = 0.0
        self._at[child.index] = time.monotonic() + wait

    def plan_again(self, index: int, error: OSError) -> None:
        """Plan another start where the system had no process to give: those that run are to go on."""
        wait = self._longer()
        log.error("child %d cannot be started: %s; the next try is in %g s", index, error, wait)
        self._at[index] = time.monotonic() + wait

    def _longer(self) -> float:
        """Return how long to wait this time."""
        self._early_deaths = min(self._early_deaths + 1, len(BACKOFF) - 1)
        return BACKOFF[self._early_deaths]

    def came_up(self) -> None:
        """Note that a child has come up."""
        self._early_deaths = 0

    def clear(self) -> None:
        """Plan nothing any more."""
        self._at.clear()

    def times(self) -> list[float]:
        """Return when there is something to start."""
        return list(self._at.values())

    def due(self, now: float) -> Iterator[int]:
        """Yield the indexes of those to be started now; each is planned no more."""
        for index, at in list(self._at.items()):
            if now >= at:
                del self._at[index]
                yield index
