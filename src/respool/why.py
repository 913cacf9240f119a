"""Why a call is not finished yet, in words."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from .clock import now as wall_clock
from .engines.base import Group, Stream


def explain_waiting(engine: Any, stream: Stream, group: Group, pos: int, reason: str | None) -> str:
    """Say what an unfinished record waits for: no worker, so many before it, running since, due when."""
    workers = [w for w in engine.workers() if group.id in w.info.get("groups", ())]
    served = f"{stream.kind} {stream.name}" + ("" if group.name == "main" else f" for group {group.name}")
    status = engine.status(group, pos)
    if status.parked is not None:
        return _parked(status.parked, served, bool(workers))
    if not workers:
        return f"no worker serves {served}; start one: respool -A … worker"
    for worker in workers:
        for running_pos, _task, since in worker.info.get("running", ()):
            if running_pos == pos:
                return f"running for {max(wall_clock() - since, 0):.1f} s in worker {worker.name}"
    if status.place == "pending":
        before = sum(pos - at.cursor for at in engine.positions(group) if at.log == pos >> 40)
        return f"{before:,} calls are before it in {served}, {len(workers)} worker(s) serve it"
    return f"a worker of {served} has taken it and not begun it yet"


def _parked(parked: Any, served: str, workers: bool) -> str:
    nobody = "" if workers else f"; no worker serves {served}"
    if parked.reason == "unknown":
        return f"no worker that serves {served} knows the task {parked.task!r}"
    if parked.due is not None:
        due = datetime.fromtimestamp(parked.due).astimezone()
        return f"it is parked ({parked.reason}) until {due.isoformat(sep=' ', timespec='seconds')}{nobody}"
    return f"it is parked ({parked.reason}){nobody}"
