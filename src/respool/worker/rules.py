"""What a worker's row says for whoever finds it dead: how long it may be silent, and what its tasks allow.

Who finds it may be of another app, serve other queues or have other settings. So each worker is judged and
cleared up after by what it has said itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..engines.base import Worker
from .aftermath import ANY_TASK, DEFAULT, Deliveries

LEAST_PATIENCE = 3  # beats of ours that another's counter has to stand still, at least


def told(settings: Mapping[str, Any], deliveries: Deliveries) -> dict[str, Any]:
    """Return what a worker says of itself in its row. It goes with each beat, and is short."""
    rules = {group: _short(tasks) for group, tasks in deliveries.items()}
    usual = {ANY_TASK: DEFAULT}
    return {
        "worker_ttl": settings["worker_ttl"],
        "deliveries": [[group, tasks] for group, tasks in rules.items() if tasks != usual],
    }


def _short(tasks: Mapping[str, tuple[int, bool]]) -> dict[str, tuple[int, bool]]:
    """Return the rules of one group, the commonest but once: as that of any task."""
    common = tasks.get(ANY_TASK)
    if common is None:
        common = Counter(tasks.values()).most_common(1)[0][0] if tasks else DEFAULT
    return {ANY_TASK: common, **{name: rule for name, rule in tasks.items() if rule != common}}


def deliveries_of(worker: Worker) -> Deliveries | None:
    """Return what a dead worker's tasks allow; None where it did not say so."""
    said = worker.info.get("deliveries")
    if said is None:
        return None
    return {
        group: {task: (most, holds) for task, (most, holds) in tasks.items()}  # as JSON has it, lists
        for group, tasks in said
    }


def patience(worker: Worker, settings: Mapping[str, Any]) -> int:
    """Return how many beats of ours a worker may be silent: its own time to live, counted in our beats.

    Parameters:
        settings: ours; a worker that does not say its time to live has this one.
    """
    seconds: float = worker.info.get("worker_ttl", settings["worker_ttl"])
    beat: float = settings["beat"]
    return max(LEAST_PATIENCE, math.ceil(seconds / beat - 1e-9))
