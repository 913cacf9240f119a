"""Huey with SQLite: a consumer with 4 threads.

Variants:
- "unsynced": `fsync=False`, no results kept, and both ends poll every millisecond, for the best latency
  that Huey's own options give;
- "results": the same, every result kept;
- "default": `SqliteHuey(filename=...)` and the consumer's own polling. Whether this syncs is SQLite's
  choice, not Huey's (`fsync=None` sets no pragma); the report says what it was under "synchronous".
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sqlite3
import sys
from pathlib import Path
from typing import Any

from bench.peers import common

NAME = "huey_sqlite"
POLL = 0.001


def make_huey(file: str, options: dict[str, Any]) -> Any:
    from huey import SqliteHuey  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return SqliteHuey(filename=file, **options)


def plain() -> None:
    """Huey keeps no result of a task that returns None."""
    common.mark()


def result() -> int:
    common.mark()
    return 1


def work(arguments: str) -> None:
    """Be the consumer, until SIGTERM."""
    file, options, polling = json.loads(arguments)
    logging.basicConfig(level=logging.WARNING)
    huey = make_huey(file, options)
    huey.task(name="plain")(plain)
    huey.task(name="result")(result)
    huey.create_consumer(workers=4, worker_type="thread", **polling).run()


def measure(folder: Path, variant: str, n: int, calls: int) -> tuple[common.Figures, int]:
    """The figures, and the `PRAGMA synchronous` that Huey's connections had."""
    default = variant == "default"
    options = {} if default else {"fsync": False}
    polling = {} if default else {"initial_delay": POLL, "max_delay": POLL}
    waiting = {} if default else {"max_delay": POLL}
    file = str(folder / f"{variant}.db")
    huey = make_huey(file, options)
    without, with_result = huey.task(name="plain")(plain), huey.task(name="result")(result)
    synchronous = huey.storage.sql("pragma synchronous", results=True)[0][0]
    worker = [sys.executable, "-m", f"bench.peers.{NAME}", "--worker", json.dumps([file, options, polling])]
    figures = common.measure(
        folder,
        worker,
        with_result if variant == "results" else without,
        lambda: with_result().get(blocking=True, timeout=common.READY, **waiting),
        n,
        calls,
    )
    huey.storage.close()
    return figures, synchronous


def run(n: int = 5000, calls: int = 500) -> dict[str, Any]:
    """Measure with the interpreter that runs this."""
    versions = {"huey": importlib.metadata.version("huey"), "sqlite": sqlite3.sqlite_version}
    variants: dict[str, common.Figures] = {}
    synchronous: dict[str, int] = {}
    with common.temp_folder() as folder:
        for name in ("unsynced", "results", "default"):
            few = min(calls, 50) if name == "default" else calls  # it polls every 0.05 to 0.1 s
            variants[name], synchronous[name] = measure(folder, name, n, few)
    return {**common.report(NAME, versions, n, variants), "synchronous": synchronous}


if __name__ == "__main__":
    common.main(NAME, run, work)
