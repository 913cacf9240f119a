"""What the tests of real workers share: an app in a folder, workers as processes, an outside record.

The outside record is a file that every run appends one line to when it begins and one when it ends, in a
single write each. It is not kept by Respool, so it can be held against what Respool says.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from tests.warm import WarmPopen, is_server

import respool
from respool import App
from respool.engines.base import Counts, Group, Worker
from respool.replay import check
from respool.worker.options import WorkerOptions, encode

LINE = 64  # bytes of a line in the outside record
PATIENCE = 20.0  # seconds that a test waits for anything
SOURCES = str(Path(respool.__file__).parents[1])
_names = itertools.count()

FILE_URL = "f\"sqlite:///{HERE / 'log.db'}\""
HEADER = """
import asyncio, os, signal, sys, threading, time
from pathlib import Path

from respool import App

HERE = Path(__file__).parent
IN_WORKER = "IN_WORKER" in os.environ
app = App("t", url={url}, **{settings!r})


def note(what, name, key=""):
    line = f"{{what}} {{name}} {{key}} {{os.getpid()}} {{time.monotonic():.6f}}"
    out = os.open(HERE / "record", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(out, line.ljust(63).encode() + b"\\n")
    os.close(out)


class noted:
    def __init__(self, name, key=""):
        self.name, self.key = name, key

    def __enter__(self):
        note("start", self.name, self.key)

    def __exit__(self, *error):
        note("end", self.name, self.key)


def wait_for(name, seconds=20.0):
    until = time.monotonic() + seconds
    while not (HERE / name).exists():
        if time.monotonic() > until:
            raise TimeoutError(name)
        time.sleep(0.002)


def once(name):
    # True for the first who asks, in whatever process, where the test has made the file.
    try:
        os.unlink(HERE / name)
    except FileNotFoundError:
        return False
    return True


def die():
    os.kill(os.getpid(), signal.SIGKILL)


"""

FINE_AND_SLOW = """
@app.task
def fine(n):
    note("start", "fine", n)
    return n


@app.task
def slow(n):
    with noted("slow", n):
        wait_for(f"go-{n}")
        return n
"""

_RUN = """
import sys, msgspec
from respool.worker.options import WorkerOptions
from respool.worker.start import start
sys.exit(start(msgspec.json.decode(sys.argv[1], type=WorkerOptions)))
"""


def eventually(condition: Callable[[], Any], what: str = "", timeout: float = PATIENCE) -> Any:
    """Return what the condition gives soon after it is true; fail after `timeout`.

    It is asked less often the longer it takes: most conditions ask a server something.
    """
    began = time.monotonic()
    until = began + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        now = time.monotonic()
        assert now < until, f"not within {timeout:g} s: {what or condition}"
        time.sleep(min(max((now - began) / 10, 0.005), 0.05))


class Mark(NamedTuple):
    """One line of the outside record."""

    what: str
    name: str
    key: str
    pid: int
    at: float


class WorkerProcess:
    """A worker that runs as a process of its own, with its log in a file."""

    def __init__(self, place: Place, options: WorkerOptions, before: str, env: dict[str, str]) -> None:
        self.log_path = place.folder / f"worker-{next(_names)}.log"
        path = os.pathsep.join([SOURCES, *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log_path.open("wb") as out:
            self.process = WarmPopen(
                [sys.executable, "-c", textwrap.dedent(before) + _RUN, encode(options).decode()],
                cwd=place.folder,
                env={**os.environ, "PYTHONPATH": path, "IN_WORKER": "1", "TMPDIR": str(place.folder), **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8", "replace")

    def said(self, text: str, timeout: float = PATIENCE) -> None:
        """Wait for a text in its log."""
        try:
            eventually(lambda: text in self.log, f"{text!r} in the worker's log", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.log}") from None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end; return its exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end within {timeout:g} s:\n{self.log}") from None

    def stop(self, timeout: float = PATIENCE) -> int:
        """End it warmly; return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """End the supervisor, and nothing else, as the system would for want of memory."""
        self.process.kill()
        self.process.wait()

    def kill_group(self) -> None:
        """End the supervisor and all that it started, at once."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Place:
    """A folder with an app, its log, its outside record and its workers."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.url = url  # of a server; None: the log is a file here
        self.workers: list[WorkerProcess] = []
        self._apps: list[App] = []
        sys.path.insert(0, str(folder))
        self.record_path = folder / "record"

    def module(self, *code: str, **settings: Any) -> Any:
        """Write a module with an app and the code given, and import it here as the workers do."""
        name = f"app_{os.getpid()}_{next(_names)}"
        chosen = {"beat": 0.2, "worker_ttl": 2.0, "poll_interval": 0.5, **settings}
        self.path = self.folder / f"{name}.py"
        header = HEADER.format(settings=chosen, url=repr(self.url) if self.url else FILE_URL)
        self.path.write_text(header + "\n\n".join(map(textwrap.dedent, code)))
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        self._apps.append(module.app)
        self.app: App = module.app
        return module

    def worker(
        self, concurrency: int = 1, *, before: str = "", env: dict[str, str] | None = None, **options: Any
    ) -> WorkerProcess:
        """Start a worker of the module written last; it is ended with the test.

        `before` is code that its supervisor runs first.
        """
        given = {"app": str(self.path), "concurrency": concurrency, **options}
        worker = WorkerProcess(self, WorkerOptions(**given), before, env or {})
        self.workers.append(worker)
        return worker

    def burst(self, concurrency: int = 1, timeout: float = PATIENCE, **options: Any) -> WorkerProcess:
        """Run a worker until nothing is left to do."""
        worker = self.worker(concurrency, burst=True, **options)
        assert worker.wait(timeout) == 0, worker.log
        return worker

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.signal(signal.SIGCONT)
            worker.kill_group()
        for app in self._apps:
            app.close()
        sys.path.remove(str(self.folder))

    # Files that a task and its test use as signals

    def touch(self, name: str) -> None:
        (self.folder / name).touch()

    def await_file(self, name: str, timeout: float = PATIENCE) -> str:
        path = self.folder / name
        eventually(path.exists, name, timeout)
        return path.read_text()

    # The outside record

    def marks(self, what: str | None = None, name: str | None = None) -> list[Mark]:
        """Return the lines of the outside record."""
        if not self.record_path.exists():
            return []
        data = self.record_path.read_bytes()
        lines = [data[at : at + LINE] for at in range(0, len(data) - LINE + 1, LINE)]
        marks = [_mark(line.decode()) for line in lines]
        return [m for m in marks if what in (None, m.what) and name in (None, m.name)]

    def runs(self, name: str | None = None) -> Counter[str]:
        """Return how often each key was started."""
        return Counter(mark.key for mark in self.marks("start", name))

    def await_start(self, name: str, key: str = "", timeout: float = PATIENCE) -> Mark:
        """Wait until a run has begun."""

        def begun() -> Mark | None:
            return next((m for m in self.marks("start", name) if m.key == key), None)

        return eventually(begun, f"start of {name} {key}", timeout)  # type: ignore[no-any-return]

    # The engine

    def group(self, name: str = "main", queue: str = "default") -> Group:
        streams = {s.id: s.name for s in self.app.engine.streams()}
        groups: list[Group] = self.app.engine.groups()
        return next(g for g in groups if g.name == name and streams[g.stream] == queue)

    def counts(self, name: str = "main", queue: str = "default") -> Counts:
        return self.app.engine.counts(self.group(name, queue))  # type: ignore[no-any-return]

    def counters(self, name: str = "main") -> dict[str, int]:
        return self.app.engine.counters(self.group(name).id)  # type: ignore[no-any-return]

    def registered(self) -> list[Worker]:
        return self.app.engine.workers()  # type: ignore[no-any-return]

    def children(self, at_least: int = 1) -> list[int]:
        """Return the process ids of the workers' children, once so many are known."""

        def known() -> list[int]:
            found = [
                child["pid"] for worker in self.registered() for child in worker.info.get("children", ())
            ]
            return found if len(found) >= at_least else []

        return eventually(known, f"{at_least} children")  # type: ignore[no-any-return]

    def idle(self, name: str = "main") -> bool:
        """Say whether nothing is pending, taken, given back or due."""
        return self.idle_in("default", name)

    def idle_in(self, queue: str, name: str = "main") -> bool:
        """Say whether nothing is pending, taken, given back or due in a queue, nor on its way there."""
        return all(
            self._rests(name, queue) and not self._on_its_way()
            for _ in range(2)  # what runs may send more
        )

    def _rests(self, name: str, queue: str) -> bool:
        counts = self.counts(name, queue)
        waits = {reason: number for reason, number in counts.parked.items() if reason != "dead"}
        return not (counts.pending or counts.leased or counts.returned or waits)

    def _on_its_way(self) -> bool:
        """Say whether calls of runs are kept in the state, to be sent to Kafka."""
        engine: Any = self.app.engine
        if engine.capabilities.one_transaction:
            return False
        kept = [engine.inner.counts(box.group) for box in engine.outbox.boxes]
        return any(
            counts.pending or counts.leased or counts.returned or any(counts.parked.values())
            for counts in kept
        )

    def check(self) -> None:
        """Fail unless every record is in one place (P2) and log and state are whole."""
        report = check(self.app)
        assert report.ok, [report.problems, [g.problems for g in report.groups]]


def _mark(line: str) -> Mark:
    what, name, *key, pid, at = line.split()
    return Mark(what, name, key[0] if key else "", int(pid), float(at))


def dump(value: Any) -> str:
    """Show a value in an assertion's message."""
    return json.dumps(value, indent=1, default=str)


def tree(pid: int) -> list[int]:
    """Return the processes that a process has started and that live."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [child for child in map(int, text.split()) if not is_server(child)]


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, its living children aside."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


ENGINES = ("sqlite", "postgres")
_DATABASES = {
    "postgres": "session_database", "postgres-newest": "session_newest", "postgres-oldest": "session_oldest",
    "postgres-pooled": "session_pooled",
}  # fmt: skip
on_each_engine = pytest.mark.parametrize("place", ENGINES, indirect=True)
"""Marks a test that is about no file: its place is one on a file and on a server in turn."""
on_every_engine = pytest.mark.parametrize("place", [*ENGINES, "kafka"], indirect=True)
"""Marks one whose place is on Kafka, too."""


def fresh_url(request: pytest.FixtureRequest, engine: str) -> str | None:
    """Return the URL of an empty store on a server of this run; None: a file, where the place is."""
    if engine == "kafka":
        state = quote(str(fresh_url(request, "postgres")), safe="")
        broker = request.getfixturevalue("kafka").url()
        return f"{broker}?prefix=t{uuid.uuid4().hex[:12]}-&state={state}"
    if engine in _DATABASES:
        return f"{request.getfixturevalue(_DATABASES[engine])}?schema=s{uuid.uuid4().hex[:12]}"
    return None


def _place(request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    made = Place(folder, fresh_url(request, getattr(request, "param", "sqlite")))
    yield made
    made.close()


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from _place(request, tmp_path)


@pytest.fixture(scope="module", params=ENGINES)
def shared_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from _place(request, tmp_path_factory.mktemp("place"))


__all__ = [
    "ENGINES",
    "Mark",
    "Place",
    "WorkerProcess",
    "cpu_seconds",
    "dump",
    "eventually",
    "fresh_url",
    "on_each_engine",
    "on_every_engine",
    "place",
    "shared_place",
    "tree",
]
