"""Waking others through LISTEN and NOTIFY, which costs only while somebody sleeps (G7).

NOTIFY takes a lock that all commits of a database pass through, so it is sent only if somebody waits. Who
sleeps holds an advisory lock, a *flag*, on a connection of its own that listens; who rings tries to share the
flags, in memory and without a row, and notifies where one is held.

A notification reaches all who listen, but a single record is for one: the ring names a flag that is up. The
others stand aside for a moment, then look whether it was taken: whoever has the flag may be at work, or serve
other queues. Flags are few; whoever finds none free is always among the others.

A ring follows what it is about in one round trip, in the same pipeline but after its commit. Only a single
append rings before it, in its own statement: who raises a flag between the two would not hear it, so the
first sleep under a new flag is short. A worker's flag stays up while it is woken for single calls, and comes
down when it is busy.

A transaction of the caller's may be open for long: what it shared it would keep, nobody could raise a flag,
and who sleeps at its commit may be another than who slept before. It notifies in any case, with its commit.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any

import psycopg

from ...delivery.model import Change
from ...errors import RespoolError
from ..waiters import LoopWaiter, ThreadWaiter, Waiters
from .batch import Executes
from .connection import Bounded, connect
from .part import Part

FLAGS = 4
BUSY = 3  # claims in a row
FIRST_SLEEP = 0.1  # seconds: longer than it takes to commit
ASIDE = 0.005  # seconds: longer than it takes to claim
_WORKERS, _WAITERS = 0x5266, 0x5267  # kinds of flags: in the first half of their locks, with the schema
MAX_SLEEP = 3600.0
_ALL = (1 << 64) - 1

RING = (
    "SELECT pg_notify(%s, %s) WHERE NOT (SELECT bool_and(pg_try_advisory_xact_lock_shared(%s, flag)) "
    f"FROM generate_series(0, {FLAGS - 1}) AS flag)"
).encode()
RING_ONE = (
    "SELECT pg_notify(%s, %s || flag) "
    f"FROM generate_series(0, {FLAGS - 1}) AS flag "
    "WHERE NOT pg_try_advisory_xact_lock_shared(%s, flag) LIMIT 1"
).encode()
RAISE = (
    f"SELECT flag FROM generate_series(0, {FLAGS - 1}) AS flag WHERE pg_try_advisory_lock(%s, flag) LIMIT 1"
).encode()
TRIES = 3  # who looks whether a flag is up holds all that are down for a moment, and they seem to be taken
IS_UP = (
    "SELECT NOT bool_and(pg_try_advisory_xact_lock_shared(%s, flag)) "
    f"FROM generate_series(0, {FLAGS - 1}) AS flag"
).encode()
NOTIFY = b"SELECT pg_notify(%s, %s)"
UNLOCK = b"SELECT pg_advisory_unlock(%s, %s)"
RINGING = (
    ", CASE "
    + " ".join(
        f"WHEN NOT pg_try_advisory_xact_lock_shared({{flags}}, {flag}) "
        f"THEN pg_notify({{channel}}, %(said)s || '{flag}')"
        for flag in range(FLAGS)
    )
    + " END"
)
"""What a statement returns besides that appends a single record: it does what RING_ONE does, for less."""
DOWN = "a flag is down"
FOR = " for "  # in what is said, before the number of a flag


def _mask(ranges: Sequence[tuple[int, int]]) -> int:
    mask = 0
    for lo, hi in ranges:
        if hi - lo >= 64:
            return _ALL
        for pos in range(lo, hi):
            mask |= 1 << pos % 64
    return mask


class PostgresBells(Part):
    """Rings on the connections that append and settle; sleepers have one connection each."""

    _writer: Any
    _state: Any

    def __init__(self) -> None:
        self.rings: dict[int, int] = {}  # as which log a lane rings
        self._sleepers: set[PostgresSleeper] = set()
        self._waiters = Waiters(self._ear)
        self._bells = threading.Lock()
        self._woken: int | None = None  # by the last settlement, until somebody asks
        self._claims = 0  # since a worker of this process last lay down to sleep

    @cached_property
    def channel(self) -> str:
        """What is listened to."""
        return f"respool {self.options.schema}"

    @cached_property
    def ringing(self) -> dict[str, bytes]:
        """The statements that append a single record, and ring for it."""
        ringing = RINGING.format(flags=self.flags(_WORKERS), channel=f"'{self.channel}'").encode()
        return {name: self._sql[name] + ringing for name in ("append_fresh", "append_row")}

    def flags(self, kind: int) -> int:
        """Return the first half of the locks of a kind: those of other schemas in the database are others."""
        return (zlib.crc32(self.options.schema.encode()) & 0x7FFF) << 16 | kind

    def ring(self, log: int, *, everyone: bool = False) -> None:
        """Wake sleeping workers that serve a log."""
        try:
            self._writer.read(partial(self._ring, log=log, everyone=everyone))
        except RespoolError:
            return  # a hint: those who sleep find out by polling

    def _ring(self, db: Bounded, log: int, everyone: bool) -> None:
        with db.batch as batch:
            self.ring_log(batch, log, everyone=everyone)

    def ring_waiters(self, positions: Sequence[int]) -> int:
        """Wake those who wait for one of these records. What was settled just now has rung by itself."""
        woken, self._woken = self._woken, None
        if woken is not None or not positions:
            return woken or 0
        step = range(len(positions)) if len(positions) <= 64 else ()
        ranges = [(positions[n], positions[n] + 1) for n in step] or [(0, 64)]
        try:
            return int(self._state.read(lambda db: self.ring_done(db, ranges)).rowcount)
        except RespoolError:
            return 0  # a hint, as above

    def note_rung(self, woken: int) -> None:
        """Take note how many a settlement has woken by itself."""
        self._woken = woken

    def ring_log(self, db: Executes, log: int, *, everyone: bool) -> None:
        """Ring for workers; in a pipeline, after the commit of what it is about."""
        if everyone:
            db.execute(RING, (self.channel, self._said(log), self.flags(_WORKERS)))
        else:
            db.execute(RING_ONE, (self.channel, self.said_of_one(log), self.flags(_WORKERS)))

    def ring_at_commit(self, db: Executes, log: int, *, everyone: bool) -> None:
        """Ring for workers with the commit of the caller's transaction, and take no lock until then.

        Flags are raised from the first on: for a single record whoever has that one is named.
        """
        db.execute(NOTIFY, (self.channel, self._said(log) + ("" if everyone else f"{FOR}0")))

    def _said(self, log: int) -> str:
        return f"log {self.rings.get(log, log)}"

    def said_of_one(self, log: int) -> str:
        """Return what is said, but for the flag, by a statement that appends a single record and rings."""
        return self._said(log) + FOR

    def ring_written(self, db: Executes, change: Change) -> Any:
        """Ring, after the commit of a change, for all who wait for what it has settled, or freed.

        Returns: the answer to what was rung for what it has settled; None: nothing.
        """
        for log in change.freed_logs():
            self.ring_log(db, log, everyone=True)
        buckets = change.freed_buckets()
        if buckets:
            self.ring_limits(db, buckets)
        settled = [(entry.lo, entry.hi) for entry in change.journal]
        return self.ring_done(db, settled) if settled else None

    def ring_limits(self, db: Executes, buckets: Sequence[int]) -> None:
        """Ring for workers of groups of which records wait for one of these buckets."""
        db.execute(self._sql["ring_waiting"], (self.channel, list(buckets), self.flags(_WORKERS), FLAGS - 1))

    def ring_done(self, db: Executes, ranges: Sequence[tuple[int, int]]) -> Any:
        """Ring for those who wait for one of these positions, or for one that shares a bit of 64 with it."""
        return db.execute(RING, (self.channel, f"done {_mask(ranges):x}", self.flags(_WAITERS)))

    def note_claim(self) -> None:
        """Take note that there was something to do: who is busy needs no bell."""
        self._claims += 1
        if self._claims == BUSY:
            for sleeper in list(self._sleepers):
                if sleeper.kind == _WORKERS:
                    sleeper.lower()

    def waiter(self, pos: int | None) -> AbstractContextManager[ThreadWaiter]:
        """Give a thread a waiter that is woken when the record, or any (None), may be finished."""
        return self._waiters.waiter(pos)

    def async_waiter(self, pos: int | None) -> AbstractContextManager[LoopWaiter]:
        """Give a coroutine a waiter that is woken when the record, or any (None), may be finished."""
        return self._waiters.async_waiter(pos)

    def _ear(self) -> PostgresSleeper:
        sleeper = self._sleeper(_WAITERS, lambda said: False, ())
        sleeper.concerns = sleeper.collects
        return sleeper

    def sleeper(self, logs: Sequence[int], service: int, wake_fds: tuple[int, ...] = ()) -> PostgresSleeper:
        """Return a sleeper that is woken when one of these logs has grown."""
        wanted = {f"log {log}" for log in logs}
        return self._sleeper(_WORKERS, wanted.__contains__, wake_fds)

    def _sleeper(
        self, kind: int, concerns: Callable[[str], bool], wake_fds: tuple[int, ...]
    ) -> PostgresSleeper:
        sleeper = PostgresSleeper(self, kind, concerns, wake_fds)
        with self._bells:
            self._sleepers.add(sleeper)
        return sleeper

    def close_bells(self) -> None:
        """Close all sleepers."""
        with self._bells:
            sleepers = list(self._sleepers)
            self._sleepers.clear()
        self._waiters.close()
        for sleeper in sleepers:
            sleeper.close()


class PostgresSleeper:
    """One who listens. Without a connection it only polls, and tries to connect again at each sleep."""

    def __init__(
        self,
        bells: PostgresBells,
        kind: int,
        concerns: Callable[[str], bool],
        wake_fds: tuple[int, ...],
    ) -> None:
        self._bells, self.kind = bells, kind
        self.concerns, self._wake_fds = concerns, wake_fds
        self._db: Bounded | None = None
        self._flag: int | None = None
        self._fresh = False  # the flag has just been raised, or none was found free for the first time
        self.stood_aside = False  # the last sleep ended since somebody else was rung for
        self._aside: float | None = None  # until when another is given the time to take what was rung for
        self._flagless = False
        self._others = False  # with no flag up here, others' are: they are rung for, and that is heard here
        self._silent_until = 0.0
        self._said = 0  # a mask: what was said to be done in this take
        self._spare = os.pipe()  # never readable: what `fileno` gives while there is no connection
        self._closed = False

    def prepare(self) -> None:
        """Listen from now on, with a flag up; forget what was said before."""
        self._bells._claims = 0
        db = self._listening()
        if db is None:
            return
        try:
            if self._flag is None:
                self._flag = self._raise_flag(db)
                self._fresh = self._flag is not None or not self._flagless
                self._flagless = self._flag is None
            self._heard(db)
            self._aside = None
        except psycopg.Error:
            self._lose()

    def sleep(self, timeout: float) -> bool:
        """Wait for a ring, at most so long. The flag stays up."""
        self.stood_aside = False
        if self._fresh:
            timeout, self._fresh = min(timeout, FIRST_SLEEP), False
        return self._sleep(time.monotonic() + min(max(timeout, 0.0), MAX_SLEEP))

    def take(self, timeout: float) -> int:
        """Wait for a ring and listen on; return for which positions modulo 64 it was, if known, else all.

        With no flag up, who settles may ring for nobody: then it is not for long, and another try.
        """
        if self._db is None:
            self.prepare()
            if self._db is not None:
                return _ALL
        self._said, heard, flagless = 0, self._db is not None, self._flag is None
        self._sleep(time.monotonic() + min(max(timeout, 0.0), self.patience))
        if not heard:
            return 0
        if flagless and self._db is not None:
            try:
                self._flag = self._raise_flag(self._db)
            except psycopg.Error:
                self._lose()
        return _ALL if self._db is None or (flagless and self._flag is not None) else self._said

    @property
    def patience(self) -> float:
        """After how many seconds a take is due that tries to listen, or to raise a flag."""
        if self._db is None:
            return (
                MAX_SLEEP
                if self._silent_until == math.inf
                else max(self._silent_until - time.monotonic(), 0.1)
            )
        return FIRST_SLEEP if self._flag is None else MAX_SLEEP

    def collects(self, said: str) -> bool:
        """Take in which positions were said to be done."""
        if not said.startswith("done "):
            return False
        self._said |= int(said.removeprefix("done "), 16)
        return True

    def set_mask(self, mask: int) -> None:
        """Nothing: what is said names the positions."""

    def _sleep(self, deadline: float) -> bool:
        while True:
            db = self._db
            try:
                if db is not None and self._heard(db):
                    return True
                if self._aside is not None:
                    deadline = min(deadline, self._aside)
                left = max(deadline - time.monotonic(), 0.0)
                readable = self._wait(db, left)
                if db is not None and db.fileno() in readable and time.monotonic() < deadline:
                    continue
                if db is not None and db.fileno() in readable and self._heard(db):
                    return True
                self.stood_aside = self._aside is not None and not readable
                return False
            except psycopg.Error:
                self._lose()
                return False  # who cannot hear should look, and listen anew

    @property
    def hears(self) -> bool:
        """Whether it listens, and somebody has a flag up: who does needs few looks of its own."""
        return self._db is not None and (self._flag is not None or self._others)

    def _wait(self, db: Bounded | None, seconds: float) -> set[int]:
        poll = select.poll()
        for fd in (*self._wake_fds, *([db.fileno()] if db is not None else [])):
            poll.register(fd, select.POLLIN)
        return {fd for fd, _ in poll.poll(int(seconds * 1000 + 0.999))}

    def _heard(self, db: Bounded) -> bool:
        """Take all that was said; say whether any of it is for us now."""
        now = False
        for notify in db.notifies(timeout=0):
            said, _, flag = notify.payload.partition(FOR)
            if said == DOWN and self.kind == _WORKERS and self._flag is None and self._aside is None:
                self._aside = time.monotonic() + ASIDE
            if self.concerns(said):
                if not flag or flag == str(self._flag):
                    now = True
                elif self._aside is None:
                    self._aside = time.monotonic() + ASIDE
        return now

    def cancel(self) -> None:
        """Take a waiter's flag down; a worker's comes down when it is busy."""
        if self.kind == _WAITERS:
            self.lower()

    def lower(self) -> None:
        """Take the flag down: who appends need not notify any more."""
        flag, self._flag = self._flag, None
        if flag is None or self._db is None:
            return
        try:
            if self.kind == _WAITERS:  # whoever was woken wants its result, and waits for nothing else
                self._db.batch.post(UNLOCK, (self._bells.flags(self.kind), flag))
                return
            with self._db.batch as batch:
                batch.execute(UNLOCK, (self._bells.flags(self.kind), flag))
                # Who found no flag free is to raise this one, or nobody would ring.
                batch.execute(NOTIFY, (self._bells.channel, DOWN))
        except psycopg.Error:
            self._lose()

    def fileno(self) -> int:
        """Return the connection's descriptor, or one that is never readable."""
        db = self._db
        return self._spare[0] if db is None else db.fileno()

    def close(self) -> None:
        """Close the connection, and take the flag down with it."""
        if self._closed:
            return
        self._closed = True
        self._lose()
        for fd in self._spare:
            os.close(fd)

    def _listening(self) -> Bounded | None:
        if self._db is None and time.monotonic() >= self._silent_until:
            try:
                db = connect(self._bells.options, "sleeper")
                if db.pooled:  # nothing that lasts for longer than a transaction works: polling does
                    db.close()
                    self._silent_until = math.inf
                    return None
                db.execute(f'LISTEN "{self._bells.channel}"'.encode())
                self._db = db
            except (RespoolError, psycopg.Error):
                self._silent_until = time.monotonic() + 1.0  # polling does until then
        return self._db

    def _raise_flag(self, db: Bounded) -> int | None:
        mine = self._bells.flags(self.kind)
        for _ in range(TRIES):
            row = db.batch.run(RAISE, (mine,)).fetchone()
            if row is not None:
                return int(row[0])
        if self.kind == _WORKERS:  # or somebody just shares them all, and nobody is rung for meanwhile
            (self._others,) = db.batch.run(IS_UP, (mine,)).fetchone() or (False,)
        return None

    def _lose(self) -> None:
        self._flag = None
        if self._db is not None:
            self._db.close()
            self._db = None
