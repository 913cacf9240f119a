"""Old calls run again: redrives, replays, and looks at what is on record."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.cases.common import Sizes, check_ran, timed_drain, use, worker
from bench.peers import common

TIMEOUT = 120.0


def redrive(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Dead letters given back to their group, all of them by one command's function."""
    use(folder)
    from bench.apps.noop import app, fails

    fails.delay_many(range(sizes.dead))
    letters = app.dead_letters(task="fails")
    until = time.monotonic() + TIMEOUT
    with worker(folder) as running:
        while (died := letters.count()) < sizes.dead:
            running.check()
            if time.monotonic() > until:
                raise common.PeerError(f"{sizes.dead} calls were to fail, {died} did in {TIMEOUT:g} s")
            time.sleep(0.1)
    start = time.perf_counter()
    causes = letters.by_error()
    counted = time.perf_counter()
    given = letters.redrive()
    took = time.perf_counter() - counted
    app.close()
    if given != sizes.dead or len(causes) != 1:
        raise common.PeerError(f"{given} of {sizes.dead} were given back, {len(causes)} causes")
    return {"seconds": took, "by_error_seconds": counted - start}


def replay(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Calls drained by main, then run again by a replay of the task, and by one that looks into each call."""
    marks = use(folder)
    from bench.apps.noop import app, mark

    from respool.replay import Selection, create_replay

    mark.delay_many(range(sizes.again))
    with worker(folder) as running:
        drained = timed_drain(marks, sizes.again, running)
    rates: dict[str, float] = {"drain_rate": drained.second_half_rate}
    runs = {"rate": Selection(), "where_rate": Selection(where="args[0] >= 0 and task == 'mark'")}
    for times, (name, selection) in enumerate(runs.items(), 1):
        create_replay(app, "default", name, ["mark"], selection=selection)
        with worker(folder, options=("--group", name)) as running:
            again = timed_drain(marks, sizes.again, running, before=times * sizes.again)
        rates[name] = again.second_half_rate
    check_ran(marks, 3 * sizes.again)
    app.close()
    return rates


def between(folder: Path, sizes: Sizes) -> dict[str, float]:
    """`respool calls --between` over all that is on record, its process's start included."""
    use(folder)
    from bench.apps.noop import app, mark

    for _ in range(sizes.records // sizes.many):
        mark.delay_many(range(sizes.many))
    app.close()
    command = [sys.executable, "-m", "respool", "-A", "bench.apps.noop", "calls", "--between", "30d", "now"]
    found: dict[str, Any] = {}
    for name, options in (("newest_ms", ()), ("oldest_ms", ("--oldest",))):
        took = []
        for _ in range(3):
            start = time.perf_counter()
            done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=TIMEOUT)
            took.append((time.perf_counter() - start) * 1e3)
            if done.returncode or "20 shown" not in done.stdout:
                raise common.PeerError(f"calls --between: {done.stdout}{done.stderr}")
        found[name] = sorted(took)[1]
    return found
