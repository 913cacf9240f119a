"""One server for all the processes of a test run.

The first process that asks starts a keeper, which runs the server and counts the connections made to it:
one for each process that uses the server, closed by the system however that process ends. When the last is
closed, or the run's controller is gone, the keeper stops the server and ends. Who asks then starts another.

A lock file decides who starts one, and that nobody joins a keeper that is about to leave.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tests.services.install import require
from tests.services.kafka import KafkaServer
from tests.services.pgbouncer import PgBouncer
from tests.services.postgres import PostgresAddress, PostgresServer
from tests.services.process import Server, ServiceError, memory_folder
from tests.services.versions import OTHERS

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 100.0  # seconds for a server to start or stop; it has shorter limits of its own

_SHORT: dict[str, str | int | bool] = {"autovacuum_naptime": "5min", "max_wal_size": "256MB"}
"""PostgreSQL's settings for a run of minutes: autovacuum takes a tenth of its processor time otherwise."""


def make(service: str, given: dict[str, Any]) -> Server:
    """Return a service's server, not started.

    PostgreSQL doesn't wait for the disk: a shared server's databases are gone with the run.

    Parameters:
        given: To PgBouncer, the server behind it; to others `in_memory`, whether their files may be there.
    """
    require(service)
    if service == "pgbouncer":
        return PgBouncer(PostgresAddress(**given))
    parent = memory_folder() if given.get("in_memory") else None
    if service == "kafka":
        return KafkaServer(parent=parent)
    programs = OTHERS[service].programs() if service in OTHERS else None
    settings = _SHORT if given.get("in_memory") else {}
    return PostgresServer(programs, fsync=False, settings=settings, parent=parent)


def address(server: Server) -> dict[str, object]:
    """Return what a user of a server must know."""
    if isinstance(server, KafkaServer):
        return {"bootstrap": server.address}
    assert isinstance(server, PostgresServer | PgBouncer)
    return server.address.to_json()


@contextmanager
def joined(
    run: Path, service: str, controller: int, given: dict[str, object] | None = None
) -> Iterator[dict[str, Any]]:
    """Use a run's server, starting it if need be; yield its address.

    Parameters:
        run: The folder of the run, the same for all its processes.
        service: postgres, newest, oldest, pgbouncer or kafka.
        controller: The process with whose end the run ends.
        given: What the server is told: see `make`.
    """
    with _locked(run / f"{service}.lock"):
        connection = _connect(run, service)
        if connection is None:
            _launch(run, service, controller, given or {})
            connection = _connect(run, service)
            if connection is None:
                raise ServiceError(f"The keeper of {service} is gone: {_told(run, service)}")
    with connection:
        connection.settimeout(_PATIENCE)
        told = b""
        while not told.endswith(b"\n"):
            more = connection.recv(65536)
            if not more:
                raise ServiceError(f"The keeper of {service} is gone: {_told(run, service)}")
            told += more
        try:
            yield json.loads(told)
        finally:
            # Said, not only closed: a fork of this process may hold the connection open. The answer is its
            # end, which comes at once where others go on, and after the server's where this was the last.
            try:
                connection.sendall(b".")
                while connection.recv(1):
                    continue
            except (
                BrokenPipeError,
                ConnectionResetError,
            ):  # the keeper is gone already, and the server with it
                pass


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _short(run: Path, service: str) -> Iterator[str]:
    """Yield the path of the keeper's socket, short: 107 bytes at most, and a folder's may have more."""
    handle = os.open(run, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{service}.socket"
    finally:
        os.close(handle)


def _connect(run: Path, service: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        with _short(run, service) as path:
            connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):  # there is none, or it was killed
        connection.close()
        return None
    return connection


def _launch(run: Path, service: str, controller: int, given: dict[str, object]) -> None:
    """Start a keeper; return when its server answers."""
    command = [
        sys.executable,
        "-m",
        "tests.services.keeper",
        str(run),
        service,
        str(controller),
        json.dumps(given),
    ]
    with (run / f"{service}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # it outlives this process; Ctrl-C is for the controller
        )
    with process:  # ends as soon as the keeper, its child, is there
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], _PATIENCE)[0]:
            raise ServiceError(f"{service} did not start within {_PATIENCE:g} s: {_told(run, service)}")
        word = process.stdout.readline()
    if word != b"ready\n":
        raise ServiceError(
            f"{service} did not start: {(word.decode() and json.loads(word)) or _told(run, service)}"
        )


def _told(run: Path, service: str) -> str:
    """Return the end of what a keeper wrote."""
    return (run / f"{service}.log").read_text(errors="replace")[-4000:] or "it said nothing"


def _keep(run: Path, service: str, controller: int, given: dict[str, Any]) -> None:
    """Run a server for as long as anybody uses it."""
    try:
        server = make(service, given)
        server.__enter__()
    except ServiceError as error:
        os.write(1, json.dumps(str(error)).encode() + b"\n")
        return
    with server, socket.socket(socket.AF_UNIX) as listener:
        (run / f"{service}.socket").unlink(missing_ok=True)
        with _short(run, service) as path:
            listener.bind(path)
        listener.listen(64)
        listener.setblocking(False)
        os.write(1, b"ready\n")
        os.dup2(2, 1)  # who waits for more reads the end
        last = _serve(run, service, listener, controller, json.dumps(address(server)).encode() + b"\n")
        server.close()
        for connection in last:
            connection.close()


def _serve(
    run: Path, service: str, listener: socket.socket, controller: int, told: bytes
) -> list[socket.socket]:
    """Wait until the last user has left or the controller is gone; return whom to answer at the end."""
    users: dict[int, socket.socket] = {}
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    try:
        poll.register(os.pidfd_open(controller), select.POLLIN)
    except ProcessLookupError:
        return []
    while True:
        last: list[socket.socket] = []
        for handle, _ in poll.poll():
            if handle == listener.fileno():
                _welcome(listener, users, poll, told)
            elif handle in users:
                poll.unregister(handle)
                last.append(users.pop(handle))
            else:
                return [*users.values(), *last]  # the controller
        if last and not users:
            with _locked(run / f"{service}.lock"):
                _welcome(listener, users, poll, told)
                if not users:
                    (run / f"{service}.socket").unlink()
                    return last
        for connection in last:
            connection.close()


def _welcome(
    listener: socket.socket, users: dict[int, socket.socket], poll: select.poll, told: bytes
) -> None:
    """Accept all who wait, and tell them the address."""
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        try:
            connection.sendall(told)
        except BrokenPipeError:  # it has ended already; the poll says so too
            pass
        users[connection.fileno()] = connection
        poll.register(connection, select.POLLIN)


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> None:
    """Go to the background and keep a server."""
    run, service, controller, given = sys.argv[1:]
    if os.fork() != 0:
        os._exit(0)
    signal.signal(signal.SIGTERM, _terminated)
    _keep(Path(run), service, int(controller), json.loads(given))


if __name__ == "__main__":
    main()
