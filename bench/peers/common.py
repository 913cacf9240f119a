"""What the peers share: processes of their own, bounded waits, and the one way that all are measured.

A peer's module runs in an interpreter that has the peer installed. `run_peer` starts it from any other one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"
BROKER = "BENCH_BROKER"  # of a cluster, where there is one
DATABASE = "BENCH_DATABASE"  # of a server, where there is one
MARKS = "BENCH_MARKS"  # the environment variable that tells a worker which file its tasks append to
WARM_UP = 20  # calls made before a clock starts
READY = 30.0  # seconds that a server or worker has to come up, and a drain may stand still
STOP = 15.0  # seconds from SIGTERM to SIGKILL


class PeerError(Exception):
    """The peer could not be measured; the message says why and what to do."""


@dataclass(frozen=True)
class Figures:
    """One pass. `drain_per_s` counts from the first byte that was seen, so start-up is left out."""

    enqueue_per_s: float
    drain_per_s: float
    call_get_p50_ms: float
    call_get_p99_ms: float


def percentile(values: Sequence[float], p: float) -> float:
    """The nearest-rank percentile, `p` in 0..100."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind((LOOPBACK, 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def temp_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder that goes away. Refuses a memory file system, where an fsync costs nothing."""
    with tempfile.TemporaryDirectory(prefix="respool-bench-", dir=parent) as name:
        fs = filesystem(Path(name))
        if fs in ("tmpfs", "ramfs"):
            raise PeerError(f"{name} is on {fs}, which syncs nothing: set TMPDIR to a folder on a disk")
        yield Path(name)


def filesystem(path: Path) -> str:
    """The type of the file system that holds `path` (Linux; "unknown" elsewhere)."""
    best, kind = "", "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            mount, fs = line.split()[1:3]
            if path.is_relative_to(mount) and len(mount) >= len(best):
                best, kind = mount, fs
    return kind


def busy_cores(seconds: float = 1.0) -> float:
    """How many cores were at work in the next `seconds`, this process asleep (Linux; nan elsewhere)."""

    def ticks() -> int:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(
            int, Path("/proc/stat").read_text().split()[1:9]
        )
        return user + nice + system + irq + softirq + steal

    try:
        before = ticks()
        time.sleep(seconds)
        return (ticks() - before) / (os.sysconf("SC_CLK_TCK") * seconds)
    except OSError:
        return math.nan


class Process:
    """A child process with its output in a file, so that its end can be explained."""

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        self.command = command
        self.log = folder / f"{Path(command[0]).name}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for the driver, which stops its children itself
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def fail(self, why: str) -> NoReturn:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise PeerError(f"{shlex.join(self.command)}: {why}\n{tail}")

    def check(self) -> None:
        code = self._popen.poll()
        if code is not None:
            self.fail(f"ended with code {code}")

    def stop(self) -> None:
        if self._popen.poll() is not None:
            return
        self._popen.terminate()
        try:
            self._popen.wait(STOP)
        except subprocess.TimeoutExpired:
            os.killpg(self._popen.pid, signal.SIGKILL)  # its own group: it and its children
            self._popen.wait()


@contextlib.contextmanager
def process(command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> Iterator[Process]:
    running = Process(command, folder, env or {})
    try:
        yield running
    finally:
        running.stop()


def wait_for_port(port: int, server: Process, timeout: float = READY) -> None:
    deadline = time.monotonic() + timeout
    while True:
        server.check()
        try:
            socket.create_connection((LOOPBACK, port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                server.fail(f"nothing listens on port {port} after {timeout:.0f} s")
            time.sleep(0.02)


_marks: int | None = None


def mark() -> None:
    """The body of every no-op task: append one byte to the file in `$BENCH_MARKS`."""
    global _marks
    if _marks is None:
        _marks = os.open(os.environ[MARKS], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_marks, b".")


def wait_for_size(path: Path, size: int, worker: Process) -> int:
    """Wait until `path` has at least `size` bytes; give up when it stands still. Its size then."""
    seen, moved = -1, time.monotonic()
    while True:
        now = path.stat().st_size
        if now >= size:
            return now
        if now > seen:
            seen, moved = now, time.monotonic()
        elif time.monotonic() - moved > READY:
            worker.fail(f"no task ended in {READY:.0f} s; {now} of {size} have run")
        worker.check()
        time.sleep(0.001)


def measure(
    folder: Path,
    worker: Sequence[str],
    send: Callable[[], object],
    call_and_get: Callable[[], object],
    n: int,
    calls: int,
) -> Figures:
    """Enqueue `n` calls with no worker, start `worker` and time the drain, then time call and get.

    Every call has to append exactly one byte: a lost or repeated one is an error, not a figure.
    """
    marks = folder / f"marks-{time.monotonic_ns()}"
    marks.touch()
    for _ in range(WARM_UP):
        send()
    start = time.perf_counter()
    for _ in range(n):
        send()
    enqueue = n / (time.perf_counter() - start)

    with process(worker, folder, {MARKS: str(marks)}) as running:
        backlog = n + WARM_UP
        first = wait_for_size(marks, 1, running)
        start = time.perf_counter()
        last = wait_for_size(marks, backlog, running)
        drain = (last - first) / (time.perf_counter() - start)

        latencies: list[float] = []
        for i in range(WARM_UP + calls):
            start = time.perf_counter()
            call_and_get()
            if i >= WARM_UP:
                latencies.append((time.perf_counter() - start) * 1e3)
    expected, ran = backlog + WARM_UP + calls, marks.stat().st_size
    if ran != expected:
        raise PeerError(f"{expected} calls were made, {ran} ran")
    return Figures(
        enqueue_per_s=round(enqueue, 1),
        drain_per_s=round(drain, 1),
        call_get_p50_ms=round(percentile(latencies, 50), 3),
        call_get_p99_ms=round(percentile(latencies, 99), 3),
    )


def report(peer: str, versions: Mapping[str, str], n: int, variants: Mapping[str, Figures]) -> dict[str, Any]:
    """The JSON object of a peer: the first variant's figures on top, the others by name."""
    head, *others = variants.items()
    return {
        "peer": peer,
        "versions": {"python": ".".join(map(str, sys.version_info[:3])), **versions},
        "n": n,
        "variant": head[0],
        **asdict(head[1]),
        "variants": {name: asdict(figures) for name, figures in others},
    }


def run_peer(
    module: str, python: Path, n: int = 5000, calls: int = 500, timeout: float = 300
) -> dict[str, Any]:
    """Measure `bench.peers.<module>` in the interpreter `python`, which has the peer installed."""
    return run_json(
        [str(python), "-m", f"bench.peers.{module}", "--n", str(n), "--calls", str(calls)], timeout
    )


def run_json(command: Sequence[str], timeout: float = 300) -> dict[str, Any]:
    """Run a command that prints one JSON object, and return that."""
    try:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    except OSError as e:
        raise PeerError(f"{command[0]} cannot be run ({e.strerror}); `make bench` makes it") from e
    try:
        out, err = child.communicate(timeout=timeout)
    except BaseException as e:
        child.terminate()  # it stops its server and worker, and removes its files
        try:
            child.communicate(timeout=3 * STOP)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
        if isinstance(e, subprocess.TimeoutExpired):
            raise PeerError(f"{shlex.join(command)}: not done after {timeout:.0f} s") from e
        raise
    if child.returncode != 0:
        raise PeerError(err.strip() or f"{shlex.join(command)}: ended with code {child.returncode}")
    result: dict[str, Any] = json.loads(out)
    return result


def leave_on_sigterm() -> None:
    """From now on a SIGTERM leaves through every `finally`."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: object) -> NoReturn:
    """Leave through every `finally`, once: a second SIGTERM must not interrupt the first one's cleaning."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main(module: str, run: Callable[[int, int], dict[str, Any]], worker: Callable[[str], None]) -> None:
    """The command line of a peer: `[--python P] [--n N] [--calls N]`; `--worker` is for itself."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.peers.{module}")
    parser.add_argument("--python", type=Path, help="interpreter that has the peer installed (default: this)")
    parser.add_argument("--n", type=int, default=5000, help="calls in the backlog (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=500, help="call+get repetitions (default: %(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.n, args.calls) < 1:
        parser.error("--n and --calls must be at least 1")
    if args.worker is not None:
        worker(args.worker)
        return
    leave_on_sigterm()
    try:
        if args.python:
            done = run_peer(module, args.python, args.n, args.calls)
        else:
            others = round(busy_cores(), 2)
            done = {**run(args.n, args.calls), "busy_cores_before": others}
    except PeerError as e:
        sys.exit(str(e))
    except ModuleNotFoundError as e:
        sys.exit(f"{module}: {sys.executable} has no {e.name!r}; pass --python bench/.venv/bin/python")
    print(json.dumps(done, indent=2))
