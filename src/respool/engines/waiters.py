"""Many who wait in one process share a few sleepers (P10).

A sleeper has descriptors, a slot or a connection: one for each waiter is too much where hundreds wait.
Threads share an *ear* among them, and so do the coroutines of an event loop: one sleeper, and a set of those
who listen with it. An event loop watches its descriptor. Of threads one *leads*: it sleeps on the bell for
all and tells those concerned; when it leaves, another one leads. One alone leads at once: it costs no more.

No ring is lost: the sleeper listens from the first `prepare` on for as long as anybody does, and goes on
listening before anybody is told. (And a ring is a hint: each sleep has its timeout.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from ..errors import EngineUnavailable
from .turns import NotMyTurn, Turn, left

ALL: Final = (1 << 64) - 1
IDLE: Final = 4
"""How many sleepers are kept to be used again: making one takes a tenth of a millisecond, or connects."""
MAX_SLEEP: Final = 3600.0


class Listens(Protocol):
    """What an engine gives for an ear: a sleeper that goes on listening after a ring."""

    @property
    def patience(self) -> float:
        """After how many seconds a take is due though there was no ring; at least MAX_SLEEP: never."""

    def set_mask(self, mask: int, /) -> None:
        """Say which positions are waited for: those whose bit, position % 64, is set."""

    def prepare(self) -> None:
        """Listen from now on, and forget rings that came before."""

    def take(self, timeout: float) -> int:
        """Wait for a ring at most so many seconds, and listen on; return its mask, 0: none came."""

    def cancel(self) -> None:
        """Stop listening."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is a ring; -1: none. It may change with a take."""

    def close(self) -> None:
        """Give it up."""


class Waiters:
    """All waiters of a process on one engine.

    Parameters:
        make: gives a sleeper. Where it raises OSError (no descriptors are left) those who wait poll.
        shards: over how many sleepers waiters are spread by position, where a ring does not say for whom it
            is: else all would look at each. A divisor of 64.
    """

    def __init__(self, make: Callable[[], Listens], shards: int = 1) -> None:
        self._make, self._shards = make, shards
        self._lock = threading.Lock()
        self._ears: dict[Hashable, _Ear] = {}
        self._idle: list[Listens] = []

    @contextmanager
    def waiter(self, pos: int | None) -> Iterator[ThreadWaiter]:
        """Give a thread's waiter."""
        with self._listening(None, pos) as (ear, mask):
            waiter = ThreadWaiter(ear, mask)
            try:
                yield waiter
            finally:
                waiter.cancel()

    @contextmanager
    def async_waiter(self, pos: int | None) -> Iterator[LoopWaiter]:
        """Give a waiter for a coroutine, on the event loop that runs."""
        import asyncio  # takes long to import: only where it is used

        loop = asyncio.get_running_loop()
        with self._listening(loop, pos) as (ear, mask):
            waiter = LoopWaiter(ear, mask, loop)
            try:
                yield waiter
            finally:
                waiter.cancel()
                if ear.users == 1:
                    ear.rest()

    @contextmanager
    def _listening(self, loop: Any, pos: int | None) -> Iterator[tuple[_Ear, int]]:
        shard = None if pos is None or self._shards == 1 else pos % self._shards
        key = (loop, shard)
        with self._lock:
            ear = self._ears.get(key)
            if ear is None:
                ear = self._ears[key] = _Ear(self._sleeper())
                ear.sleeper.set_mask(
                    ALL if shard is None else sum(1 << bit for bit in range(shard, 64, self._shards))
                )
            ear.users += 1
        try:
            yield ear, ALL if pos is None else 1 << pos % 64
        finally:
            with self._lock:
                ear.users -= 1
                over = None
                if not ear.users:
                    known = self._ears.get(key) is ear  # else the engine was closed meanwhile
                    if known:
                        del self._ears[key]
                    if known and len(self._idle) < IDLE and not isinstance(ear.sleeper, _Deaf):
                        self._idle.append(ear.sleeper)
                    else:
                        over = ear.sleeper
            if over is not None:
                over.close()

    def _sleeper(self) -> Listens:
        if self._idle:
            return self._idle.pop()
        try:
            return self._make()
        except OSError:
            return _Deaf()

    def close(self) -> None:
        """Close those that nobody uses; the others when they are left."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._ears.clear()
        for sleeper in idle:
            sleeper.close()


class _Ear:
    """One sleeper, and those who listen with it."""

    def __init__(self, sleeper: Listens) -> None:
        self.sleeper = sleeper
        self.lock = threading.Lock()
        self.users = 0
        self.listeners: set[Any] = set()
        self.leader: ThreadWaiter | None = None
        self._loop: Any = None
        self._watched = -1
        self._timer: Any = None

    def join(self, one: Any) -> None:
        seconds = left(MAX_SLEEP)
        try:
            with Turn(self.lock.acquire, True, seconds) as mine:  # another may be connecting for all
                if not mine:
                    raise NotMyTurn
                one.rung = False
                if not self.listeners - {one}:  # else it listens already, and another thread may sleep on it
                    self.sleeper.prepare()
                self.listeners.add(one)
        except NotMyTurn:
            raise EngineUnavailable(f"nobody could listen within {seconds:.3g} s; nothing was sent") from None

    def leave(self, one: Any) -> None:
        if one not in self.listeners:
            return
        with self.lock:
            if one not in self.listeners:
                return
            self.listeners.discard(one)
            if not self.listeners:
                self.sleeper.cancel()
            elif self.leader is None:
                for other in self.listeners:
                    if other.asleep:
                        other.wake()
                        break

    def tell(self, mask: int) -> None:
        with self.lock:
            for each in self.listeners if mask else ():
                if each.mask & mask:
                    each.rung = True
                    each.wake()

    # On an event loop

    def watch(self, loop: Any) -> None:
        """Watch the sleeper's descriptor, which is another one after it has connected again."""
        descriptor = self.sleeper.fileno()
        if descriptor != self._watched:
            self.unwatch()
            if descriptor >= 0:
                loop.add_reader(descriptor, self.take)
            self._watched = descriptor
        self._loop = loop
        patience = self.sleeper.patience
        if self._timer is None and patience < MAX_SLEEP:
            self._timer = loop.call_later(patience, self._due)

    def _due(self) -> None:
        self._timer = None
        self.take()

    def rest(self) -> None:
        self.unwatch()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def unwatch(self) -> None:
        descriptor, self._watched = self._watched, -1
        if descriptor >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(descriptor)

    def take(self) -> None:
        if self.listeners:
            mask = self.sleeper.take(0)
            self.watch(self._loop)
            self.tell(mask)


class ThreadWaiter:
    """Waits for one record, or for any, in a thread: see `bells.Waiter`."""

    def __init__(self, ear: _Ear, mask: int) -> None:
        self._ear, self.mask = ear, mask
        self.rung = self.asleep = False
        self._woken = threading.Event()
        self.wake = self._woken.set

    def prepare(self) -> None:
        """Listen from now on, and forget rings that came before."""
        self._ear.join(self)

    def cancel(self) -> None:
        """Stop listening without having slept."""
        self._ear.leave(self)

    def sleep(self, timeout: float) -> bool:
        """Wait for a ring, at most so many seconds; say whether there was one."""
        deadline = time.monotonic() + min(max(timeout, 0.0), MAX_SLEEP)
        try:
            while not self.rung:
                left = max(deadline - time.monotonic(), 0.0)
                if self._lead():
                    mask = 0
                    try:
                        mask = self._ear.sleeper.take(left)
                    finally:
                        self._ear.leader = None
                        self._ear.tell(mask)
                    if not mask or not left:
                        break
                elif not self._woken.wait(left):
                    break
            return self.rung
        finally:
            self.asleep = False
            self.cancel()

    def _lead(self) -> bool:
        ear = self._ear
        with ear.lock:
            self.asleep = True
            self._woken.clear()
            if self.rung or ear.leader is not None:
                if self.rung:
                    self._woken.set()
                return False
            ear.leader = self
            return True


class LoopWaiter:
    """Waits for one record, or for any, in a coroutine: see `bells.AsyncWaiter`."""

    asleep = False

    def __init__(self, ear: _Ear, mask: int, loop: Any) -> None:
        import asyncio

        self._ear, self.mask, self._loop = ear, mask, loop
        self.rung = False
        self._woken = asyncio.Event()
        self.wake = self._woken.set

    def prepare(self) -> None:
        """Listen from now on, and forget rings that came before."""
        self._woken.clear()
        self._ear.join(self)
        self._ear.watch(self._loop)

    def cancel(self) -> None:
        """Stop listening without having slept."""
        self._ear.leave(self)

    async def sleep(self, timeout: float) -> bool:
        """Wait for a ring, at most so many seconds; say whether there was one."""
        import asyncio

        try:
            await asyncio.wait_for(self._woken.wait(), timeout)
        except TimeoutError:
            pass  # the caller sees that it was not rung
        finally:
            self.cancel()
        return self.rung


class _Deaf:
    """Hears nothing: no descriptors are left."""

    patience = MAX_SLEEP

    def set_mask(self, mask: int, /) -> None:
        pass

    def prepare(self) -> None:
        pass

    def take(self, timeout: float) -> int:
        threading.Event().wait(min(timeout, MAX_SLEEP))
        return 0

    def cancel(self) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass
