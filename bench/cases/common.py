"""What the cases share: their sizes, the app, a worker, and how a drain is timed."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench.peers import common


@dataclass(frozen=True)
class Sizes:
    """How much of everything a round does."""

    drain: int = 200_000
    many: int = 100_000
    events: int = 200_000
    singles: int = 5_000
    gets: int = 500
    crowd_seconds: float = 10.0
    idle_seconds: float = 10.0
    starts: int = 7
    backlog: int = 1_000_000
    urgent: int = 40
    dead: int = 100_000
    again: int = 1_000_000
    records: int = 10_000_000
    peer_n: int = 5_000


FULL = Sizes()
QUICK = Sizes(
    drain=50_000,
    many=50_000,
    events=50_000,
    singles=2_000,
    gets=200,
    crowd_seconds=3.0,
    idle_seconds=5.0,
    starts=3,
    backlog=300_000,
    urgent=20,
    dead=20_000,
    again=100_000,
    records=500_000,
    peer_n=2_000,
)


def use(folder: Path, *, durability: str | None = None) -> Path:
    """Point the apps, in this process and in those it starts, to a log of their own; return the marks' file.

    The log is in `folder`, or in a schema of the server in `$BENCH_DATABASE`.

    To be called before one of `bench.apps` is imported.
    """
    marks = folder / "marks"
    marks.touch()
    os.environ[common.MARKS] = str(marks)
    options = {"durability": durability} if durability else {}
    url = f"sqlite:///{folder / 'bench.db'}"
    if server := os.environ.get(common.DATABASE):
        url, options["schema"] = server, f"b{time.time_ns()}"
    if broker := os.environ.get(common.BROKER):
        state = quote(f"{url}?schema={options.pop('schema')}", safe="")
        url, options = broker, {"state": state, "prefix": f"b{time.time_ns()}-"}
    os.environ["RESPOOL_URL"] = url + "?" * bool(options) + "&".join(f"{k}={v}" for k, v in options.items())
    return marks


def on_a_file() -> bool:
    """Say whether the log is a file, and no server's."""
    return not {common.DATABASE, common.BROKER} & os.environ.keys()


@contextlib.contextmanager
def worker(
    folder: Path, app: str = "bench.apps.noop", *, processes: int = 2, options: tuple[str, ...] = ()
) -> Iterator[common.Process]:
    """A worker with default settings, until the block ends."""
    command = [sys.executable, "-m", "respool", "-A", app, "worker", "-c", str(processes), *options]
    with common.process(command, folder) as running:
        yield running


@dataclass(frozen=True)
class Drain:
    """Rates of one drain: from the first byte seen to the last, and of its second half.

    In the first half the worker's second process may still be starting.
    """

    rate: float
    second_half_rate: float


def timed_drain(marks: Path, n: int, running: common.Process, before: int = 0) -> Drain:
    """Time `n` runs, where the file of marks has `before` of others."""
    first = common.wait_for_size(marks, before + 1, running)
    start = time.perf_counter()
    half = common.wait_for_size(marks, max(before + n // 2, first + 1), running)
    middle = time.perf_counter()
    last = common.wait_for_size(marks, before + n, running)
    end = time.perf_counter()
    return Drain((last - first) / (end - start), (last - half) / max(end - middle, 1e-9))


def check_ran(marks: Path, expected: int) -> None:
    """Raise unless exactly `expected` calls ran. For after the worker's end."""
    ran = marks.stat().st_size
    if ran != expected:
        raise common.PeerError(f"{expected} calls were made, {ran} ran")
