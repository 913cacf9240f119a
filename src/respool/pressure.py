"""Backpressure: a queue that has `max_pending` calls takes no more, until workers have come on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .delivery.model import Change, View
from .delivery.spans import count
from .engines.base import Engine, Group, Reads
from .errors import ConfigError, QueueFull, UnknownName
from .units import duration

FRESH = 0.25  # seconds that a look at a queue is good for …
SHARE = 16  # … and of the room that it found, this part: others send meanwhile too
MOST = 1_000_000  # records over their limits that are counted
LOOKS = 4  # at most, until what is pending and what is leased are of one moment
AGAIN = 5.0  # seconds after which the terms are read again
STORED = "max_pending"  # their name among the settings of a queue's `main`
ANY = 1 << 62  # calls: no bound
LOOK = 0.1  # seconds between looks of who waits for room and is not woken


class _Unsaid:
    def __repr__(self) -> str:
        return "as stored"


UNSAID: Any = _Unsaid()
"""Stands for a `max_pending` that is not said: what is stored holds."""


class Terms(NamedTuple):
    """How a queue is kept from growing without bounds; stored with its `main`, for whoever sends to it."""

    most: int
    raises: bool = False
    wait: float | None = None  # seconds to wait for room at most; None: the sender's `append_timeout`

    def stored(self) -> list[Any]:
        """Return them as they are stored."""
        return [*self] if self.wait is not None else [*self[:2]]


def declared_terms(queue: str, most: Any, when_full: Any, wait: Any) -> Any:
    """Return what a queue's declaration says of how much is full: Terms, None, or UNSAID for nothing.

    Raises: ConfigError, UnknownName for what cannot be.
    """
    if most is None or most is UNSAID:
        if when_full is not None or wait is not None:
            raise ConfigError(f"queue {queue}: say how much is full: max_pending=")
        return most
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ConfigError(f"queue {queue}: max_pending={most!r} is not a whole number above 0")
    if when_full not in (None, "wait", "raise"):
        raise UnknownName("when_full", str(when_full), ("wait", "raise"), f"of queue {queue}")
    seconds = None if wait is None else duration(wait, "max_pending_wait")
    return Terms(most, when_full == "raise", seconds)


def terms_of(group: Group) -> Terms | None:
    """Return the terms that are stored with a queue; None where it may grow."""
    said = group.settings.get(STORED)
    return None if said is None else Terms(*said)


def store_terms(engine: Engine, group: Group, terms: Terms | None) -> None:
    """Store the terms of a queue (None: it may grow); who sends to it reads them when it opens, or soon."""
    stored = None if terms is None else terms.stored()

    def decide(view: View, change: Change) -> None:
        change.settings[STORED] = stored

    engine.transact(Reads(group.id), decide, synced=True)


def lag(engine: Engine, group: Group, *, exact: bool = True) -> int:
    """Return how many records of a group are to be done as soon as may be.

    What runs counts, what is given back, and what is over a limit or stopped; not what is scheduled, to be
    retried, or dead.

    Parameters:
        exact: look again where something was claimed between two looks; else it is counted twice.
    """
    positions = engine.positions(group)
    leased = sum(count(lease.spans) for lease in engine.leases(group))
    for _ in range(LOOKS if exact else 0):
        before, positions = positions, engine.positions(group)
        if [at.cursor for at in before] == [at.cursor for at in positions]:
            break
        leased = sum(count(lease.spans) for lease in engine.leases(group))
    pending = 0
    for at in positions:
        end = at.end if at.stop is None else min(at.end, at.stop)
        pending += max(end - at.cursor, 0)
    return pending + leased + engine.limited(group.id, MOST)


class Gate:
    """Lets calls into one queue while there is room; asks how much there is only now and then.

    Parameters:
        timeout: seconds to wait for room at most, where the terms do not say.
    """

    def __init__(self, queue: str, terms: Terms, timeout: float) -> None:
        self.queue, self.terms, self._timeout = queue, terms, timeout
        self._read_at = time.monotonic()
        self._lock = threading.Lock()
        self._left = 0  # calls that may be sent without another look
        self._until = 0.0

    def enter(self, engine: Engine, group: Group, calls: int = 1) -> None:
        """Wait until there is room for so many calls. Raises QueueFull; nothing was sent."""
        if self._has_room(calls):
            return
        deadline = time.monotonic() + self._patience
        while not self._look(engine, group, calls):
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._full(engine, group)
            with engine.waiter(None) as waiter:
                waiter.prepare()
                if self._look(engine, group, calls):
                    return
                waiter.sleep(min(left, LOOK))

    async def aenter(self, engine: Engine, group: Group, calls: int = 1) -> None:
        """Do the same without holding up the event loop."""
        if self._has_room(calls):
            return
        import asyncio  # see producer.py

        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + self._patience
        look: Callable[[], bool] = lambda: self._look(engine, group, calls)  # noqa: E731
        while not await loop.run_in_executor(None, look):
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._full(engine, group)
            await asyncio.sleep(min(left, LOOK))

    @property
    def _patience(self) -> float:
        """How many seconds to wait for room."""
        if self.terms.raises:
            return 0.0
        return self._timeout if self.terms.wait is None else self.terms.wait

    def _read_again(self, engine: Engine, group: Group) -> None:
        """Now and then see what the terms are: another process may have declared others."""
        now = time.monotonic()
        if now - self._read_at < AGAIN:
            return
        self._read_at = now
        stored = next((terms_of(each) for each in engine.groups() if each.id == group.id), None)
        self.terms = Terms(ANY) if stored is None else stored

    def _has_room(self, calls: int) -> bool:
        with self._lock:
            if self._left < calls or time.monotonic() >= self._until:
                return False
            self._left -= calls
            return True

    def _look(self, engine: Engine, group: Group, calls: int) -> bool:
        """Look how full the queue is. More calls than fit in at all go in when it is empty."""
        self._read_again(engine, group)
        room = self.terms.most - lag(engine, group, exact=False)
        if room < min(calls, self.terms.most):
            return False
        with self._lock:
            self._left, self._until = max(room - calls, 0) // SHARE, time.monotonic() + FRESH
        return True

    def _full(self, engine: Engine, group: Group) -> QueueFull:
        waited = "" if self.terms.raises else f" and there was no room within {self._patience:g} s"
        return QueueFull(
            f"queue {self.queue} has {lag(engine, group):,} calls to do, its max_pending is "
            f"{self.terms.most:,}{waited}; nothing was sent. Send it later, or start more workers"
        )
