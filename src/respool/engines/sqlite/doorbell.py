"""Processes that share one SQLite file wake each other.

SQLite cannot tell a process that another one has committed, so whoever waits has to poll. The doorbell
makes the usual wait short: a folder beside the database holds

    bell              a page that every process maps: who is asleep, and for what
    bell-<slot>       one FIFO per sleeper; a byte in it is a ring
    bell-<slot>.lock  held (flock) by the process that owns the slot, as long as it lives

A ring is a **hint**. It may be lost (the ringer dies in the middle, the folder is deleted), and it may
come for nothing; with every ring lost all still works, at the polling interval. Hence nothing here
raises because a ring did not get through, and every sleep has a timeout.

Why no ring is lost in the normal course of things:

    sleeper                              ringer
    1  empty the FIFO                    1  commit to the database
    2  set the asleep flag               2  read the flag
    3  look at the database once more    3  clear the flag
    4  poll the FIFO                     4  write a byte to the FIFO

Either the ringer's step 2 sees the flag, or the sleeper's step 3 sees the commit. (Both sides pass
through SQLite's file locks in between, which keeps the processor from reordering the two.) The FIFO is
emptied *before* the flag is set, and the flag is cleared *before* the byte is written: in any other order
a sleeper could be left with its flag clear and its FIFO empty, where no later ring looks for it.

There is no lock around the ringer's steps 2 and 3. Two ringers within the same fraction of a microsecond
may ring one sleeper twice where two were meant; the one left out finds its work when it polls next.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import select
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from .bell_page import (
    ALL,
    ASLEEP,
    ENTRIES,
    ENTRY,
    FIFOS,
    SIZE,
    WAITERS,
    WORKERS,
    Kind,
    claim_slot,
    flagged,
    open_page,
)

__all__ = ["MAX_SLEEP", "Doorbell", "Sleeper"]

MAX_SLEEP: Final = 3600.0
"""The longest single sleep, in seconds. Longer ones (infinity included) are cut to this."""

_DRAIN: Final = 4096
_HELD: Final = 16  # FIFOs that a ringer keeps open


class Doorbell:
    """The bells of one database, as seen by one process.

    Opening takes well under a millisecond, and any number of processes may do it at once. Where the folder
    or the page cannot be created or used (read-only, a file system without FIFOs, another version's page),
    the doorbell is *degraded*: every ring returns 0 and every sleep lasts its timeout, unless a wake_fd ends
    it. The same holds for those who keep a doorbell open whose folder was deleted: they poll until they open
    it again. Shortening the page while it is mapped would kill the processes that use it, so nothing does.

    Rings may come from any thread. A doorbell is not usable across `fork()`: in the child all but `close()`
    raise RuntimeError, and the child opens its own.

    Parameters:
        folder: made if absent, with the rights of the folder it is in, less the umask. That one must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._pid = os.getpid()
        self._sleepers: set[Sleeper] = set()
        self._held: dict[int, int] = {}  # FIFOs open for ringing, by slot; popped by whoever uses one
        self._degraded = ""
        try:
            self._folder_fd, self._page = open_page(self.folder)
        except OSError as error:
            self._degraded = f"the doorbell in {self.folder} is off, waits last a polling interval: {error}"
            self._folder_fd, self._page = -1, mmap.mmap(-1, SIZE)

    def __enter__(self) -> Doorbell:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def degraded(self) -> str:
        """Why this process can neither ring nor be rung; empty if it can."""
        return self._degraded

    def sleeper(
        self, kind: Kind, streams: int = ALL, service: int = 0, wake_fds: tuple[int, ...] = ()
    ) -> Sleeper:
        """Claim a slot for one thread (or event loop) that will sleep.

        Takes over the slot of a process that died. If there is no free slot, the sleeper only polls
        (`Sleeper.slot` is None).

        Parameters:
            kind: what it waits for.
            streams: 64-bit mask of what it waits for; see `mask_of`.
            service: workers that can stand in for each other give the same number (any 64 bits): of those
                that match, an append wakes only one.
            wake_fds: further descriptors that end a sleep when they are readable. They stay the caller's.

        Raises:
            RuntimeError: after a fork.
            OSError: the process has no descriptors left.
        """
        if os.getpid() != self._pid:
            _forked("Doorbell")
        sleeper = Sleeper(self, kind, streams, service, wake_fds)
        self._sleepers.add(sleeper)
        return sleeper

    def _claim(self, entry: tuple[int, int]) -> tuple[int, tuple[int, ...]] | None:
        mine = {sleeper.slot for sleeper in tuple(self._sleepers)}
        return claim_slot(self.folder, self._folder_fd, self._page, mine, entry)

    def ring_workers(self, streams: int, everyone: bool = False) -> int:
        """Wake, after an append, one sleeping worker of each service that matches; return how many were rung.

        With nobody asleep, which is the rule under load, this is a look at memory and nothing else.

        Parameters:
            streams: mask of the streams appended to.
            everyone: wake all that match (for shutdown, new settings, a large append).
        """
        if os.getpid() != self._pid:
            _forked("Doorbell")
        if self._page.find(ASLEEP, WORKERS, WAITERS) < 0:
            return 0
        return self._ring(Kind.WORKER, streams, everyone)

    def ring_waiters(self, mask: int) -> int:
        """Wake, after a settlement, every sleeping waiter whose mask has a bit of `mask`; return how many."""
        if os.getpid() != self._pid:
            _forked("Doorbell")
        if self._page.find(ASLEEP, WAITERS, ENTRIES) < 0:
            return 0
        return self._ring(Kind.WAITER, mask, everyone=True)

    def waiters_present(self, mask: int = ALL) -> bool:
        """Return whether a waiter that matches is asleep (or died so). As cheap as a ring."""
        if os.getpid() != self._pid:
            _forked("Doorbell")
        if self._page.find(ASLEEP, WAITERS, ENTRIES) < 0:
            return False
        return any(True for _ in flagged(self._page, Kind.WAITER, mask))

    def asleep(self, kind: Kind, mask: int = ALL) -> int:
        """Return how many that match have their flag set: those asleep, and those that died so."""
        if os.getpid() != self._pid:
            _forked("Doorbell")
        return sum(1 for _ in flagged(self._page, kind, mask))

    def close(self) -> None:
        """Close the sleepers too, and let go of the page. Rings after that return 0. May be called twice."""
        for sleeper in list(self._sleepers):
            sleeper.close()
        # The page is let go of, not closed: another thread may be in the middle of a ring.
        self._page = mmap.mmap(-1, SIZE)
        self._degraded = self._degraded or "closed"
        for slot in list(self._held):
            self._close_held(slot)
        folder_fd, self._folder_fd = self._folder_fd, -1
        if folder_fd >= 0:
            os.close(folder_fd)

    def _ring(self, kind: Kind, mask: int, everyone: bool, only: int | None = None) -> int:
        """Ring the sleepers that match, and with `only` are of this service."""
        page = self._page
        rung = 0
        served: set[int] = set()
        for slot, service in flagged(page, kind, mask):
            if service in served or (only is not None and service != only):
                continue
            # One that does not answer is no reason to leave the next one of its service asleep.
            if self._ring_slot(page, kind.value + slot, slot):
                rung += 1
                if not everyone:
                    served.add(service)
        return rung

    def _ring_slot(self, page: mmap.mmap, flag: int, slot: int) -> bool:
        if not page[flag]:
            return False  # another ringer was faster, or it woke by itself and will look
        page[flag] = 0
        held = self._held.pop(slot, -1)
        try:
            # Fails with ENXIO when nobody has the FIFO open for reading: the sleeper is dead.
            fd = held if held >= 0 else self._open_fifo(slot)
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.ENOENT):
                # Our trouble (no descriptors, no rights) and not the sleeper's: others may ring it.
                page[flag] = 1
            return False
        try:
            os.write(fd, b"!")
        except OSError:
            os.close(fd)
            return False  # full, and it has more than enough to wake from; or it died just now
        self._hold(slot, fd)
        return True

    def _open_fifo(self, slot: int) -> int:
        return os.open(FIFOS[slot], os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=self._folder_fd)

    def _hold(self, slot: int, fd: int) -> None:
        """Keep a FIFO open for the next ring: opening costs as much as all the rest of one."""
        other = self._held.setdefault(slot, fd)  # another thread has rung it meanwhile, with its own
        if other != fd or self._folder_fd < 0:
            self._held.pop(slot, None) if other == fd else None
            os.close(fd)
        elif len(self._held) > _HELD:
            self._close_held(next(iter(tuple(self._held)), slot))

    def _close_held(self, slot: int) -> None:
        fd = self._held.pop(slot, -1)
        if fd >= 0:
            os.close(fd)


class Sleeper:
    """One slot of a `Doorbell`, for one thread at a time. Made by `Doorbell.sleeper`.

    To wait without missing a ring:

        sleeper.prepare()
        if work_in_database():      # once more, now that ringers can see the flag
            sleeper.cancel()
        else:
            sleeper.sleep(polling_interval)

    In asyncio, give `fileno()` to `loop.add_reader`; the callback calls `take(0)`, or `sleep(0)`.
    """

    patience = MAX_SLEEP  # a take is due when there is a ring, and at no other time

    def __init__(
        self, bell: Doorbell, kind: Kind, streams: int, service: int, wake_fds: tuple[int, ...]
    ) -> None:
        self._bell = bell
        self._pid = os.getpid()
        self._kind, self._streams, self._service = kind, streams & ALL, service & ALL
        self._fds: tuple[int, ...] = ()
        self._poll = select.poll()
        for fd in wake_fds:
            self._poll.register(fd, select.POLLIN)
        claimed = None if bell.degraded else bell._claim((self._streams, self._service))
        self._page: mmap.mmap | bytearray
        if claimed is None:
            # A pipe and a flag that nobody knows of: the same code then simply waits.
            self.slot: int | None = None
            self._page, self._flag = bytearray(1), 0
            self._fds = os.pipe()
            os.set_blocking(self._fds[0], False)
        else:
            self.slot, self._fds = claimed
            self._page, self._flag = bell._page, kind.value + self.slot
        self._read_fd = self._fds[0]
        self._poll.register(self._read_fd, select.POLLIN)
        _live.add(self)

    def __enter__(self) -> Sleeper:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Set the asleep flag. The caller now looks at the database once more, then sleeps or cancels."""
        self._check()
        self._drain()
        self._page[self._flag] = 1

    def sleep(self, timeout: float) -> bool:
        """Wait for a ring and return whether there was one. The flag is clear afterwards, whatever happened.

        Returns False after `timeout` seconds (negative: 0; at most `MAX_SLEEP`) or when one of the wake_fds
        became readable. A signal does not end the wait, unless its handler raises.

        Raises:
            OSError: (EBADF) one of the wake_fds was closed.
        """
        self._check()
        # In this order NaN gives 0. Rounded up, or a wait below a millisecond would be none, in a busy loop.
        milliseconds = math.ceil(min(max(0.0, timeout), MAX_SLEEP) * 1000)
        try:
            events = self._poll.poll(milliseconds)
        finally:
            self._page[self._flag] = 0
        for fd, event in events:
            if event & select.POLLNVAL:
                raise OSError(errno.EBADF, f"descriptor {fd} of wake_fds is closed")
        # The FIFO is asked, not `events`: a ring may have come between the timeout and the flag's clearing.
        return self._drain()

    def take(self, timeout: float) -> int:
        """Wait as `sleep` does, and go on listening; return its mask if there was a ring, else 0.

        The flag is set again after the FIFO was emptied, and before the caller looks: the order of `prepare`.
        """
        self._check()
        self._poll.poll(math.ceil(min(max(0.0, timeout), MAX_SLEEP) * 1000))
        if not self._drain():
            return 0
        self._page[self._flag] = 1
        return self._streams

    def cancel(self) -> None:
        """Clear the flag without sleeping."""
        self._check()
        self._page[self._flag] = 0

    def set_mask(self, streams: int) -> None:
        """Change what it waits for. To be sure of the next ring, do it before `prepare()`."""
        self._check()
        self._streams = streams & ALL
        if self.slot is not None:
            ENTRY.pack_into(self._page, ENTRIES + self.slot * ENTRY.size, self._streams, self._service)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is a ring (never, in degraded mode)."""
        self._check()
        return self._read_fd

    def close(self) -> None:
        """Give the slot back. A ring that came and was not taken goes to another worker of the service."""
        if not self._fds:
            return
        self._page[self._flag] = 0
        if self._drain() and self._kind is Kind.WORKER:
            self._bell._ring(Kind.WORKER, self._streams, everyone=False, only=self._service)
        self._release()
        self._bell._sleepers.discard(self)

    def _drain(self) -> bool:
        """Empty the FIFO; return whether there was anything in it."""
        rung = False
        try:
            while True:
                size = len(os.read(self._read_fd, _DRAIN))
                rung = True
                if size < _DRAIN:
                    return rung
        except BlockingIOError:
            return rung

    def _check(self) -> None:
        if os.getpid() != self._pid:
            _forked("Sleeper")
        if not self._fds:
            raise RuntimeError("this Sleeper is closed")

    def _release(self) -> None:
        # In order: the lock last, or the next owner of the slot would meet the reader of the one before.
        fds, self._fds, self._read_fd = self._fds, (), -1
        self._page, self._flag = bytearray(1), 0  # lets go of the mapping, which has a descriptor too
        for fd in fds:
            with suppress(OSError):
                os.close(fd)


_live: weakref.WeakSet[Sleeper] = weakref.WeakSet()


def _release_in_child() -> None:
    """Close what a forked child has inherited.

    Through the copies, a sleeper whose process was killed would look alive for as long as the child lives,
    and swallow the rings of its service. (A child that calls exec keeps none: they are not inheritable.)
    """
    for sleeper in list(_live):
        sleeper._release()


os.register_at_fork(after_in_child=_release_in_child)


def _forked(what: str) -> NoReturn:
    raise RuntimeError(f"a {what} cannot be used across fork(): open a new Doorbell in the child process")
