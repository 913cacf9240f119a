"""What is measured on a server only: many connections, old transactions, queries of idle workers."""

from __future__ import annotations

import json
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
KINDS = ("bare", "delay")
TURNS = ("bare", "delay", "delay", "bare") * 2
PAUSE = 0.2  # seconds between turns: longer than a call takes
READY = "ready"  # what a client says that is
BARE = "INSERT INTO bare (name, body, id) VALUES (%s, %s, %s)"


def enqueue_16(folder: Path, sizes: Sizes) -> dict[str, float]:
    """16 processes that call `delay()` one by one, and 16 that insert bare rows with a unique id, by turns.

    Both are there all the time, and half of them sleep: whatever else the machine does meets both alike.
    """
    use(folder)
    from bench.apps.noop import app, plain

    plain.delay()  # makes the queue
    app.close()
    turn = sizes.crowd_seconds / len(TURNS)
    with ExitStack() as stack:
        crowds = {kind: [stack.enter_context(_client(kind)) for _ in range(CONNECTIONS)] for kind in KINDS}
        for kind, clients in crowds.items():
            for client in clients:
                if _line(client) != READY:
                    raise common.PeerError(f"{kind}: a client did not come up")
        begin = time.time() + 0.5
        for kind, clients in crowds.items():
            turns = [begin + n * (turn + PAUSE) for n, whose in enumerate(TURNS) if whose == kind]
            for client in clients:
                assert client.stdin is not None
                client.stdin.write(json.dumps([turns, turn]) + "\n")
                client.stdin.flush()
        made = {kind: [int(_line(client) or 0) for client in clients] for kind, clients in crowds.items()}
    for kind, each in made.items():
        if not all(each):
            raise common.PeerError(f"{kind}: {each.count(0)} of {CONNECTIONS} clients made nothing")
    bare, delay = (sum(made[kind]) / turn / TURNS.count(kind) for kind in KINDS)
    return {"rate": delay, "bare_rate": bare}


def _client(kind: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=common.ROOT,
        text=True,
    )


def _line(client: subprocess.Popen[str]) -> str:
    """Return the next line that a client says; nothing where it is gone."""
    assert client.stdout is not None
    return client.stdout.readline().strip()


def _send_by_turns(kind: str) -> None:
    """Send as fast as can be whenever it is this crowd's turn; say how many that were."""
    if kind == "delay":
        from bench.apps.noop import app, plain

        _ = app.engine
        send: Any = plain.delay
    else:
        import psycopg

        db = psycopg.connect(os.environ[common.DATABASE], autocommit=True)

        def send() -> None:
            db.execute(BARE, ("plain", b"\x92\x90\x80", os.urandom(16)))

    for _ in range(common.WARM_UP):
        send()
    print(READY, flush=True)
    turns, seconds = json.loads(sys.stdin.readline())
    done = 0
    for begin in turns:
        time.sleep(max(begin - time.time(), 0.0))
        while time.time() < begin + seconds:
            send()
            done += 1
    print(done, flush=True)


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
    _send_by_turns(sys.argv[1])
