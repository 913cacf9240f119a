"""Bells: those who wait for records or results are woken, so that polling is the exception.

A ring is a *hint*. It may be lost and it may come for nothing; with all of them lost everything still
works, at `poll_interval`. So nothing here raises because a bell cannot ring or be heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol


class Waiter(Protocol):
    """What one thread waits on for results. None is used across `fork`.

    To miss no ring: `prepare`, look at the store once more, then `sleep` or `cancel`. A ring for
    something that was committed after that look ends the sleep, also one that came before `sleep`.
    """

    def prepare(self) -> None:
        """Listen from now on, and forget rings that came before. Quick: it is called before each look."""

    def sleep(self, timeout: float) -> bool:
        """Wait for a ring, at most `timeout` seconds (0: take one that has come); say whether there was one.

        Afterwards it does not listen.
        """

    def cancel(self) -> None:
        """Stop listening without having slept. May be called at any time, also twice."""


class AsyncWaiter(Protocol):
    """What one coroutine waits on; else like `Waiter`."""

    def prepare(self) -> None:
        """Listen from now on, and forget rings that came before."""

    async def sleep(self, timeout: float) -> bool:
        """Wait for a ring, at most `timeout` seconds; say whether there was one. Then it does not listen."""

    def cancel(self) -> None:
        """Stop listening without having slept."""


class Sleeper(Waiter, Protocol):
    """What one worker sleeps on. A sleep also ends, and returns False, when a wake_fd is readable."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is a ring, for event loops; -1: there is none.

        The same for as long as the sleeper is open. `sleep(0)` takes the ring.
        """

    def close(self) -> None:
        """Give it up. A ring that no `sleep` took goes to another worker of the service, if it can."""


class Bells(Protocol):
    """Waking others, of all processes that use the store, and being woken.

    Callers ring *after* what they rang for was committed. Nobody asleep is the rule under load: then a ring
    is next to nothing, no round trip. (An engine whose commits notify by themselves does nothing here.)
    """

    def ring(self, log: int, *, everyone: bool = False) -> None:
        """Wake sleeping workers that serve a log: one of each service, or all.

        A lane wakes those that sleep for its stream, though they may know it only from now on.
        """

    def ring_waiters(self, positions: Sequence[int]) -> int:
        """Wake all who wait for one of these records, maybe others too; return how many that were.

        The number is a hint: a worker that rang somebody expects to be asked for more soon. A range of
        millions of positions is no reason to go through them.
        """

    def waiter(self, pos: int | None) -> AbstractContextManager[Waiter]:
        """Give a thread a waiter that is woken when this record, or any (None), may be finished.

        Made for each `get()`: it should be cheap. Hundreds at once take a few descriptors and connections
        together (`waiters.Waiters`), and none once they are over but for those that are kept for the next.
        """

    def async_waiter(self, pos: int | None) -> AbstractContextManager[AsyncWaiter]:
        """Give the same to a coroutine of the event loop that runs."""

    def sleeper(self, logs: Sequence[int], service: int, wake_fds: tuple[int, ...] = ()) -> Sleeper:
        """Return a sleeper for a worker, that is woken when one of these logs has grown.

        Parameters:
            service: 64 bits, the same for workers that do the same work: `ring` wakes one of them.
            wake_fds: descriptors that end a sleep when they are readable; they stay the caller's.
        """
