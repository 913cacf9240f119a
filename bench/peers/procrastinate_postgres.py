"""Procrastinate with PostgreSQL: two worker processes, on a server of the run's own.

It keeps no results, so there is no call and get. The server's URL is in `$BENCH_DATABASE`.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from typing import Any

from bench.peers import common

NAME = "procrastinate_postgres"
PROCESSES = 2
CONCURRENCY = 10  # jobs at once in a process: one at a time is slower


def make_app(sync: bool) -> tuple[Any, Any]:
    """An app, and its no-op task."""
    import procrastinate  # type: ignore[import-not-found,import-untyped,unused-ignore]

    kind = procrastinate.SyncPsycopgConnector if sync else procrastinate.PsycopgConnector
    app = procrastinate.App(connector=kind(conninfo=os.environ[common.DATABASE]))

    @app.task(name="plain", pass_context=False)
    def plain() -> None:
        common.mark()

    return app, plain


def work(arguments: str) -> None:
    """Be the worker: two processes, until SIGTERM."""
    if os.fork() == 0:
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # ends with the first
    app, _ = make_app(sync=False)
    app.run_worker(concurrency=CONCURRENCY, delete_jobs="always", listen_notify=True)


def has_schema() -> bool:
    """Whether its tables are there."""
    import psycopg

    with psycopg.connect(os.environ[common.DATABASE]) as db:
        return db.execute("SELECT to_regclass('procrastinate_jobs')").fetchone() != (None,)


def run(n: int = 5000, calls: int = 500) -> dict[str, Any]:
    """Measure with the interpreter that runs this."""
    versions = {"procrastinate": importlib.metadata.version("procrastinate")}
    app, plain = make_app(sync=True)
    with common.temp_folder() as folder, app.open():
        if not has_schema():  # from an earlier round
            app.schema_manager.apply_schema()
        marks = folder / "marks"
        marks.touch()
        start = time.perf_counter()
        for _ in range(n):
            plain.defer()
        enqueue = n / (time.perf_counter() - start)
        worker = [sys.executable, "-m", f"bench.peers.{NAME}", "--worker", "-"]
        with common.process(worker, folder, {common.MARKS: str(marks)}) as running:
            first = common.wait_for_size(marks, 1, running)
            start = time.perf_counter()
            last = common.wait_for_size(marks, n, running)
            drain = (last - first) / (time.perf_counter() - start)
    return {
        "peer": NAME,
        "versions": versions,
        "n": n,
        "drain_per_s": round(drain, 1),
        "enqueue_per_s": round(enqueue, 1),
    }


if __name__ == "__main__":
    common.main(NAME, run, work)
