"""A server as a child process: an unprivileged user, a folder of its own, free ports, a sure end."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tests.services.guard import Guard, end, family

POLL = 0.01  # seconds between two looks at something that has no way to tell

_ROOM = 4 << 30  # bytes; a run of all tests takes less than 3 GiB: a schema of ours 1.2 MB, with its logs

_guard = Guard()
_given: set[int] = set()  # ports given out in this process: a server that is down keeps its


class ServiceError(Exception):
    """A service is missing, does not start, or does not stop; the text says what to do or what it logged."""


def unprivileged() -> pwd.struct_passwd | None:
    """Return the user whom servers run as where this is root; None where this is an ordinary user already.

    PostgreSQL and PgBouncer refuse to run as root.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServiceError(
        "Servers don't run as root, and there is neither a user `postgres` nor a user `nobody`."
    )


def reachable(path: Path) -> bool:
    """Return whether the user whom servers run as may read a folder: by its mode and those above it."""
    user = unprivileged()
    if user is None:
        return os.access(path, os.R_OK | os.X_OK)
    for folder in (path, *path.parents):
        try:
            stat = folder.stat()
        except FileNotFoundError:  # it is still to be made, open to all
            continue
        shift = 6 if stat.st_uid == user.pw_uid else 3 if stat.st_gid == user.pw_gid else 0
        if not stat.st_mode >> shift & 0o1:
            return False
    return True


def memory_folder() -> Path | None:
    """Return a folder of files in memory, None where the machine has too little of it for servers' data.

    There, files cost a third of the processor time: a disk's file system looks for a free inode among all
    those that were deleted lately, and tests delete many.
    """
    folder = Path("/dev/shm")
    try:
        known = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        room = shutil.disk_usage(folder).free
    except FileNotFoundError:  # not Linux
        return None
    available = int(known["MemAvailable"].split()[0]) << 10
    return folder if os.path.ismount(folder) and room >= _ROOM and available >= 2 * _ROOM else None


def free_port() -> int:
    """Return a port on 127.0.0.1 that nothing listens on.

    From below the range that the system takes for outgoing connections: one of those could otherwise take a
    server's port while it restarts, and a client's connection to a server that is down could meet itself.
    """
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except FileNotFoundError:
        low = 32768
    for port in random.SystemRandom().sample(range(10240, max(low, 20480)), 100):
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise ServiceError("None of a hundred ports on 127.0.0.1 is free.")


def answers(port: int) -> bool:
    """Return whether something on 127.0.0.1 accepts connections at a port."""
    with socket.socket() as client:
        client.settimeout(1.0)
        return client.connect_ex(("127.0.0.1", port)) == 0


class Server(ABC):
    """One server process and its folder.

    `start` and `stop` may follow each other any number of times; `close` ends it at once and removes the
    folder. As a context manager it is started on entry and closed on exit. Whatever ends this process, the
    server ends and the folder goes (see guard.py).

    Parameters:
        parent: Where its folder is to be; else where temporary files are.
    """

    name: ClassVar[str]
    quit: ClassVar[signal.Signals]  # ends it at once, leaving nothing outside its folder
    start_timeout: ClassVar[float] = 60.0

    def __init__(self, parent: Path | None = None) -> None:
        user = unprivileged()
        self._folder = Path(tempfile.mkdtemp(prefix=f"respool-{self.name}-", dir=parent))
        _guard.hold(self._folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        if user is not None:
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            if not reachable(self._folder):
                self.close()
                raise ServiceError(
                    f"The user {user.pw_name}, whom servers run as, can't reach {self._folder.parent}: "
                    "set TMPDIR to a folder open to all."
                )

    def __enter__(self) -> Self:
        try:
            if not self.running:
                self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where everything of it is; removed by `close`."""
        return self._folder

    @property
    def log(self) -> Path:
        """What it wrote to its channels."""
        return self._folder / "log"

    @property
    def pid(self) -> int:
        """The process started here; it may have others below it."""
        if self._process is None:
            raise ServiceError(f"{self.name} is not running.")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; return when it answers."""
        if self.running:
            raise ServiceError(f"{self.name} is already running.")
        self.prepare()
        self._spawn(self.command())
        self.wait_for(self.ready, "it did not answer", self.start_timeout)

    def stop(self) -> None:
        """Ask it to end, as its administrator would; return when it has."""
        self._stop(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it and all its processes. What they wrote is written, even what was not synced."""
        if self._process is not None:
            self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start it, at the same address."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Hold all its processes: connections stay open and nothing answers."""
        self._paused = True
        os.kill(self.pid, signal.SIGSTOP)  # first, so that no children come after the list
        self._signal_children(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._signal_children(signal.SIGCONT)
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def close(self) -> None:
        """End it at once and remove its folder. May be called again."""
        if self._process is not None:
            self._end(self.quit)
        if self._folder.exists():
            shutil.rmtree(self._folder)
        _guard.release(self._folder)

    def tail(self, lines: int = 25) -> str:
        """Return the end of its log."""
        try:
            text = self.log.read_text(errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"

    def wait_for(self, ready: Callable[[], bool], failure: str, timeout: float = 30.0) -> None:
        """Wait until something holds of the running server.

        Raises:
            ServiceError: It ended, or the time is over; with the end of its log.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.running:
                code = None if self._process is None else self._process.returncode
                raise ServiceError(f"{self.name} ended with code {code}. Its log ends:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{self.name}: {failure} within {timeout:g} s. Its log ends:\n{self.tail()}"
                )
            time.sleep(POLL)

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """Return the command that runs it in the foreground."""

    @abstractmethod
    def ready(self) -> bool:
        """Return whether it does its work already."""

    def prepare(self) -> None:
        """Do what must be done before its first start."""
        return

    def write(self, name: str, text: str) -> Path:
        """Write a file in its folder that only its user may read."""
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        user = unprivileged()
        if user is not None:
            os.chown(path, user.pw_uid, user.pw_gid)
        return path

    def run(self, command: Sequence[str | Path]) -> None:
        """Run a helper as the server's user, to its end."""
        user, group, groups = _identity()
        with self.log.open("ab") as log:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=120,
                cwd=self._folder,
                env=self._environment(),
                user=user,
                group=group,
                extra_groups=groups,
            )
        if done.returncode != 0:
            raise ServiceError(
                f"{Path(command[0]).name} ended with code {done.returncode}. Its log ends:\n{self.tail()}"
            )

    def _spawn(self, command: Sequence[str | Path]) -> None:
        user, group, groups = _identity()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C is for the one who started it, who then stops it
                user=user,
                group=group,
                extra_groups=groups,
            )
        _guard.hold(self._folder, self._process.pid, self.quit)

    def _stop(self, number: signal.Signals, timeout: float = 60.0) -> None:
        if self._process is None:
            return
        if self._paused:
            self.resume()
        self._process.send_signal(number)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ServiceError(
                f"{self.name} did not stop within {timeout:g} s. Its log ends:\n{self.tail()}"
            ) from None
        self._ended()

    def _end(self, number: signal.Signals) -> None:
        """End it by a signal and, what is left of it then, by killing."""
        assert self._process is not None
        end(self._process.pid, number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            raise ServiceError(f"{self.name} (process {self._process.pid}) can't be killed.") from None
        self._ended()

    def _ended(self) -> None:
        self._process, self._paused = None, False
        _guard.hold(self._folder)

    def _signal_children(self, number: signal.Signals) -> None:
        for pid in family(self.pid)[1:]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:  # it ended between the list and now
                continue

    def _environment(self) -> Mapping[str, str]:
        """Return little: the caller's settings (PGPORT, JAVA_TOOL_OPTIONS ...) must not reach it."""
        return {"PATH": os.defpath, "HOME": str(self._folder), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _identity() -> tuple[int | None, int | None, list[int] | None]:
    """Return what subprocess takes as user, group and further groups; None leaves this one's."""
    user = unprivileged()
    return (None, None, None) if user is None else (user.pw_uid, user.pw_gid, [])
