"""One child process as its supervisor sees it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import msgspec

from . import page as p
from .host import LogFile
from .options import Hello, Refusal, Welcome, WorkerOptions, encode


class ChildProcess:
    """A process of the pool: starting it, talking to it, ending it.

    `log_file`: the one that the worker has open already. The process opens no other, and makes none.
    """

    def __init__(self, index: int, options: WorkerOptions, log_file: LogFile | None = None) -> None:
        self.index = index
        self.started = time.monotonic()
        self.ready = False
        self.late = False  # that it takes long to have the app was said
        self.slot: p.Slot | None = None
        self.over_limit: tuple[list[int], float] | None = None  # positions and seconds: why we killed it
        self.suspended = (0, 0)  # a run's beginning; for how long the machine had been suspended, seen then
        self.ordered = False  # we ended it
        self.settled: tuple[int, int] = (0, 0)  # lease, records of it that we settled
        self.given_back = 0  # lease whose rest we gave back
        self.noticed = False  # that it is dead was said
        self.limit_kept = False  # the record that it was killed for has failed
        self._received = b""
        ours, theirs = socket.socketpair()
        try:
            life_read, self._life = os.pipe()
        except OSError:
            ours.close()
            theirs.close()
            raise
        try:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
                    "-m",
                    "respool.worker.child",
                    str(theirs.fileno()),
                    str(life_read),
                    str(os.getpid()),
                    *(log_file or ()),
                ],
                pass_fds=(theirs.fileno(), life_read),
                stdin=subprocess.DEVNULL,
            )
        except BaseException:
            os.close(self._life)
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(life_read)
        self.control = ours
        self._send(options)  # not as arguments, which all users of this machine see: the URL has a password
        ours.setblocking(False)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def busy(self) -> bool:
        """Whether it has work."""
        return self.slot is not None and bool(self.slot.words[p.BUSY])

    def receive(self) -> Hello | Refusal | None:
        """Read what it sent; return the first message if that came in whole."""
        try:
            data = self.control.recv(65536)
        except (BlockingIOError, ConnectionResetError):
            return None
        if self.ready or not data:
            return None  # a poke: what it wants stands in its slot
        self._received += data
        line, newline, _ = self._received.partition(b"\n")
        if not newline:
            return None
        fields: Any = msgspec.json.decode(line)
        return msgspec.convert(fields, Refusal) if "error" in fields else msgspec.convert(fields, Hello)

    def welcome(self, welcome: Welcome, slot: p.Slot, deadline: int) -> None:
        """Give it its slot; from now on it works."""
        slot.clear()
        slot.words[p.DEADLINE] = deadline
        self.slot = slot
        self.ready = True
        self._send(welcome)

    def _send(self, message: msgspec.Struct) -> None:
        try:
            self.control.sendall(encode(message) + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            return  # it is dead already, which is seen to next

    def wake(self) -> None:
        """End its sleep, so that it looks at its slot."""
        try:
            self.control.send(b"\n")
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return  # it is awake, or dead

    def stop(self) -> None:
        """Ask it to end after the record that it runs."""
        self.ordered = True
        if self.slot is not None:
            self.slot.words[p.STOP] = 1
            self.slot.words[p.BOUND] = 0
            self.wake()
        else:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close what connects us; it is dead."""
        self.control.close()
        os.close(self._life)
