"""Waking others through LISTEN and NOTIFY, which costs only while somebody sleeps (G7).

NOTIFY takes a lock that all commits of a database pass through, so it is sent only if somebody waits. Who
sleeps holds an advisory lock, a *flag*, on a connection of its own that listens; who rings tries to share the
flags, in memory and without a row, and notifies where one is held. Flags are few: whoever finds none free is
woken with the others, since a notification reaches all who listen.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from ...errors import RespoolError
from .connection import PostgresOptions, connect

FLAGS = 8
_WORKERS, _WAITERS = 0x5266, 0x5267  # first halves of the flags' locks
MAX_SLEEP = 3600.0
_ALL = (1 << 64) - 1

Db = psycopg.Connection[Any]

RING = (
    "SELECT pg_notify(%s, %s) WHERE NOT (SELECT bool_and(pg_try_advisory_xact_lock_shared(%s, flag)) "
    f"FROM generate_series(0, {FLAGS - 1}) AS flag)"
)


def _mask(positions: Sequence[int]) -> int:
    mask = 0
    for pos in positions:
        mask |= 1 << pos % 64
    return mask


class PostgresBells:
    """Rings on the connections that append and settle; sleepers have one connection each."""

    options: PostgresOptions
    _writer: Any
    _state: Any

    def __init__(self) -> None:
        self._sleepers: set[PostgresSleeper] = set()
        self._idle: list[PostgresSleeper] = []  # to be used again by the next who waits
        self._bells = threading.Lock()

    @property
    def channel(self) -> str:
        """What is listened to."""
        return f"respool {self.options.schema}"

    def ring(self, log: int, *, everyone: bool = False) -> None:
        """Wake sleeping workers that serve a log."""
        self._ring(_WORKERS, f"log {log}", self._writer)

    def ring_waiters(self, positions: Sequence[int]) -> int:
        """Wake all who wait for one of these records, or for one that shares a bit of 64 with it."""
        if not positions:
            return 0
        mask = _ALL if len(positions) > 64 else _mask(positions)
        return self._ring(_WAITERS, f"done {mask:x}", self._state)

    def _ring(self, kind: int, what: str, connection: Any) -> int:
        """A hint: where it cannot be given, those who sleep find out by polling."""
        try:
            return int(connection.read(lambda db: db.execute(RING, (self.channel, what, kind)).rowcount))
        except RespoolError:
            return 0

    @contextmanager
    def waiter(self, pos: int | None) -> Iterator[PostgresSleeper]:
        """Give a sleeper that is woken when the record, or any (None), may be finished."""
        with self._bells:
            sleeper = self._idle.pop() if self._idle else None
        mine = _ALL if pos is None else 1 << pos % 64

        def concerns(said: str) -> bool:
            return bool(int(said.removeprefix("done "), 16) & mine) if said.startswith("done ") else False

        if sleeper is None:
            sleeper = self._sleeper(_WAITERS, concerns, ())
        sleeper.concerns = concerns
        try:
            yield sleeper
        finally:
            sleeper.cancel()
            with self._bells:
                self._idle.append(sleeper)

    def sleeper(self, logs: Sequence[int], service: int, wake_fds: tuple[int, ...] = ()) -> PostgresSleeper:
        """Return a sleeper that is woken when one of these logs has grown."""
        wanted = {f"log {log}" for log in logs}
        return self._sleeper(_WORKERS, wanted.__contains__, wake_fds)

    def _sleeper(
        self, kind: int, concerns: Callable[[str], bool], wake_fds: tuple[int, ...]
    ) -> PostgresSleeper:
        sleeper = PostgresSleeper(self.options, self.channel, kind, concerns, wake_fds)
        with self._bells:
            self._sleepers.add(sleeper)
        return sleeper

    def close_bells(self) -> None:
        """Close all sleepers."""
        with self._bells:
            sleepers = list(self._sleepers)
            self._sleepers.clear()
            self._idle.clear()
        for sleeper in sleepers:
            sleeper.close()


class PostgresSleeper:
    """One who listens. Without a connection it only polls, and tries to connect again at each sleep."""

    def __init__(
        self,
        options: PostgresOptions,
        channel: str,
        kind: int,
        concerns: Callable[[str], bool],
        wake_fds: tuple[int, ...],
    ) -> None:
        self._options, self._channel, self._kind = options, channel, kind
        self.concerns, self._wake_fds = concerns, wake_fds
        self._db: Db | None = None
        self._flag: int | None = None
        self._silent_until = 0.0
        self._spare = os.pipe()  # never readable: what `fileno` gives while there is no connection
        self._closed = False

    def prepare(self) -> None:
        """Listen from now on, with a flag up; forget what was said before."""
        db = self._listening()
        if db is None:
            return
        try:
            if self._flag is None:
                self._flag = self._raise_flag(db)
            self._heard(db)
        except psycopg.Error:
            self._lose()

    def sleep(self, timeout: float) -> bool:
        """Wait for a ring, at most so long; the flag is down afterwards."""
        try:
            return self._sleep(time.monotonic() + min(max(timeout, 0.0), MAX_SLEEP))
        finally:
            self.cancel()

    def _sleep(self, deadline: float) -> bool:
        while True:
            db = self._db
            try:
                if db is not None and self._heard(db):
                    return True
                left = max(deadline - time.monotonic(), 0.0)
                readable = self._wait(db, left)
                if db is not None and db.fileno() in readable:
                    if self._heard(db):
                        return True
                    if time.monotonic() < deadline:
                        continue
                return False
            except psycopg.Error:
                self._lose()

    def _wait(self, db: Db | None, seconds: float) -> set[int]:
        poll = select.poll()
        for fd in (*self._wake_fds, *([db.fileno()] if db is not None else [])):
            poll.register(fd, select.POLLIN)
        return {fd for fd, _ in poll.poll(int(seconds * 1000 + 0.999))}

    def _heard(self, db: Db) -> bool:
        """Take all that was said; say whether any of it concerns us."""
        said = [notify.payload for notify in db.notifies(timeout=0)]
        return any(map(self.concerns, said))

    def cancel(self) -> None:
        """Take the flag down: who appends need not notify any more."""
        flag, self._flag = self._flag, None
        if flag is None or self._db is None:
            return
        try:
            self._db.execute("SELECT pg_advisory_unlock(%s, %s)", (self._kind, flag))
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

    def _listening(self) -> Db | None:
        if self._db is None and time.monotonic() >= self._silent_until:
            try:
                db = connect(self._options, "sleeper")
                db.execute(f'LISTEN "{self._channel}"'.encode())
                self._db = db
            except (RespoolError, psycopg.Error):
                self._silent_until = time.monotonic() + 1.0  # polling does until then
        return self._db

    def _raise_flag(self, db: Db) -> int | None:
        for flag in range(FLAGS):
            row = db.execute("SELECT pg_try_advisory_lock(%s, %s)", (self._kind, flag)).fetchone()
            if row is not None and row[0]:
                return flag
        return None

    def _lose(self) -> None:
        self._flag = None
        if self._db is not None:
            self._db.close()
            self._db = None
