"""What is measured on a server only: many connections, old transactions, queries of idle workers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.cases.common import Sizes, timed_drain, use, worker
from bench.peers import common

CONNECTIONS = 16
IDLE_WORKERS = 10
SETTLED = 15.0  # seconds, until workers have found out that there is nothing to do
BARE = "INSERT INTO bare (name, body, id) VALUES (%s, %s, %s)"


def enqueue_16(folder: Path, sizes: Sizes) -> dict[str, float]:
    """16 processes that call `delay()` one by one, and 16 that insert bare rows with a unique id."""
    use(folder)
    from bench.apps.noop import app, plain

    plain.delay()  # makes the queue
    app.close()
    rates = {kind: _together(kind, sizes.crowd_seconds / 2) for kind in ("bare", "delay")}
    return {"rate": rates["delay"], "bare_rate": rates["bare"]}


def _together(kind: str, seconds: float) -> float:
    begin = time.time() + 6.0
    command = [sys.executable, "-m", __name__, kind, str(begin), str(seconds)]
    clients = [
        subprocess.Popen(command, stdout=subprocess.PIPE, cwd=common.ROOT, text=True)
        for _ in range(CONNECTIONS)
    ]
    made = [int(client.communicate(timeout=seconds + common.READY)[0] or 0) for client in clients]
    if not all(made):
        raise common.PeerError(f"{kind}: {made.count(0)} of {CONNECTIONS} clients made nothing")
    return sum(made) / seconds


def _client(kind: str, begin: float, seconds: float) -> int:
    """Send as fast as can be from `begin` on; return how many that were."""
    if kind == "delay":
        from bench.apps.noop import app, plain

        _ = app.engine
        send: Any = plain.delay
    else:
        import psycopg

        db = psycopg.connect(os.environ[common.DATABASE], autocommit=True)

        def send() -> None:
            db.execute(BARE, ("plain", b"\x92\x90\x80", os.urandom(16)))

    time.sleep(max(begin - time.time(), 0.0))
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        send()
        done += 1
    return done


def old_transaction(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Drain while another transaction, which has written, stays open; and without."""
    import psycopg

    marks = use(folder)
    from bench.apps.noop import app, mark

    rates = {}
    for kind in ("without", "with"):
        before = marks.stat().st_size
        with psycopg.connect(os.environ[common.DATABASE]) as other:
            if kind == "with":
                other.execute("CREATE TABLE IF NOT EXISTS open_for_long (a int)")
                other.execute("INSERT INTO open_for_long VALUES (1)")
            mark.delay_many(range(sizes.many))
            with worker(folder) as running:
                rates[kind] = timed_drain(marks, sizes.many, running, before).rate
            other.rollback()
    app.close()
    return {
        "rate": rates["with"],
        "without_rate": rates["without"],
        "ratio": rates["with"] / rates["without"],
    }


def idle_queries(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Transactions a second on the server while ten workers with two processes each have nothing to do."""
    import psycopg

    use(folder)
    from bench.apps.noop import app, plain

    plain.delay()
    app.close()
    with ExitStack() as stack:
        for n in range(IDLE_WORKERS):
            stack.enter_context(worker(folder, options=("-n", f"idle-{n}")))
        with psycopg.connect(os.environ[common.DATABASE], autocommit=True) as db:
            while _asleep(db) < 2 * IDLE_WORKERS:
                time.sleep(0.2)
            time.sleep(SETTLED)
            before, start = _committed(db), time.perf_counter()
            time.sleep(sizes.idle_seconds)
            each = (_committed(db) - before) / (time.perf_counter() - start)
            row = db.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
            ).fetchone()
    return {"queries_per_s": each, "open_transactions": row[0] if row else 0}


def _asleep(db: Any) -> int:
    """Children that have found nothing to do: each has a connection of its own to be woken by."""
    row = db.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'respool sleeper'"
    ).fetchone()
    return int(row[0])


def _committed(db: Any) -> int:
    """Transactions of this database so far, once the server's counters have had time to settle."""
    time.sleep(1.5)
    row = db.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()").fetchone()
    return int(row[0])


if __name__ == "__main__":
    print(_client(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
