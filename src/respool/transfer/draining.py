"""Waiting until nothing is run on a store any more: workers finish what they run, the dead are taken over."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from ..clock import now as wall_clock
from ..delivery.spans import count
from ..engines.base import Engine, Registration
from ..errors import EngineUnavailable
from ..worker import rules
from ..worker.host import boot_id, pid_space
from ..worker.takeover import Watch
from .copying import Tell

SETTINGS = {"beat": 1.0, "worker_ttl": 10.0}  # seconds
LOOK = 0.2  # seconds between looks where nobody rings


class StillRunning(EngineUnavailable):
    """Workers have not finished what they run within the time allowed."""


def drain(engine: Engine, wait: float, tell: Tell) -> None:
    """Return when no worker has a lease. The store must be marked as draining.

    Parameters:
        wait: seconds, at most.
        tell: told how many records are still being run.

    Raises: StillRunning, which says who runs what.
    """
    held = _held(engine)
    if not held:
        return
    deadline = time.monotonic() + wait
    watch = Watch(engine, boot_id(), SETTINGS, {})
    worker, beat_at = _register(engine), 0.0
    try:
        with engine.waiter(None) as sleeper:
            while True:
                sleeper.prepare()
                now = time.monotonic()
                if now >= beat_at:
                    beat_at = now + SETTINGS["beat"]
                    if engine.beat(worker, False, _info(), synced=False) is None:
                        worker = _register(engine)
                    watch.look(worker, beaten=True)
                held = _held(engine)
                if not held:
                    return
                tell("still running", sum(held.values()), 0)
                if time.monotonic() >= deadline:
                    raise StillRunning(_who(engine, held, wait))
                sleeper.sleep(LOOK)
    finally:
        engine.drop_worker(worker)


def _register(engine: Engine) -> int:
    name = f"transfer-{os.getpid()}"
    return engine.register(
        Registration("", name, socket.gethostname(), boot_id(), os.getpid(), wall_clock(), _info())
    )


def _info() -> dict[str, Any]:
    return {"groups": [], "pids": pid_space(), "pool": "transfer", **rules.told(SETTINGS, {})}


def _held(engine: Engine) -> dict[int, int]:
    """Return how many records each worker has leased."""
    held: dict[int, int] = {}
    for group in engine.groups():
        for lease in engine.leases(group):
            if lease.owner:
                held[lease.owner] = held.get(lease.owner, 0) + count(lease.spans)
    return held


def _who(engine: Engine, held: dict[int, int], wait: float) -> str:
    workers = {worker.id: worker for worker in engine.workers()}
    told = []
    for owner, records in sorted(held.items()):
        worker = workers.get(owner)
        name = worker.name if worker else f"worker {owner}"
        some = worker.running[:3] if worker else []
        runs = [f"{_task(engine, pos)} for {wall_clock() - since:.0f} s" for pos, since, _ in some]
        what = f" ({', '.join(runs)})" if runs else ""
        told.append(f"{name} has {records:,}{what}")
    return (
        f"workers have not finished what they run within {wait:g} s: {'; '.join(told)}. Nothing was moved, "
        "and they go on. Give them longer (--wait), or stop them"
    )


def _task(engine: Engine, pos: int) -> str:
    found = engine.briefs(pos, pos + 1, None, None, None, 0)
    return found[0].task if found else "a call"
