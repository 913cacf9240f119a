"""Other workers that died: on this host their lock tells at once, elsewhere their beats do (H4)."""

from __future__ import annotations

import logging
from pathlib import Path

from ..delivery.death import Cause
from ..delivery.liveness import BeatObserver
from ..engines.base import Engine, Worker
from .aftermath import Aftermath, Deliveries
from .page import WorkerFile
from .telling import named

log = logging.getLogger("respool.worker")

MOST_NAMED = 4  # calls that a dead worker was running
LOOK_EVERY = 3
"""Beats of ours, no more than the least patience, between looks at others' where each is a round trip.

Locks are tried at each.
"""


def file_of(engine: Engine, worker: int) -> Path:
    """Return where a worker of this host keeps its mapped file."""
    return engine.run_folder / f"worker-{worker}"


def new_file(engine: Engine, worker: int, children: int) -> WorkerFile:
    """Make the mapped file of a worker that starts, and hold it."""
    private = engine.capabilities.many_hosts  # else it is beside the database, for all who may use that
    file = WorkerFile(file_of(engine, worker), children, create=True, private=private)
    file.hold()
    return file


class Watch:
    """Looks for dead workers and clears up after them."""

    def __init__(self, engine: Engine, boot: str, patience: int, deliveries: Deliveries) -> None:
        self._engine, self._boot, self._deliveries = engine, boot, deliveries
        self._observer = BeatObserver(patience)
        self._every = LOOK_EVERY if engine.capabilities.many_hosts else 1
        self._looks = 0
        self._others: list[Worker] = []

    def look(self, own: int, *, beaten: bool) -> int:
        """Take over from those who are dead; `beaten` says that our own beat was committed before.

        Returns how many workers were found dead.
        """
        fresh = self._looks % self._every == 0
        self._looks += 1
        if fresh:
            self._others = [worker for worker in self._engine.workers() if worker.id != own]
        silent = self._observer.beat_committed({w.id: w.beat for w in self._others}) if beaten else []
        if not fresh:
            silent = []  # they may have beaten since
        return sum(self._take_over(worker, worker.id in silent) for worker in self._others)

    def _take_over(self, worker: Worker, silent: bool) -> bool:
        path = file_of(self._engine, worker.id)
        if worker.boot == self._boot and path.exists():
            return self._seize(worker, path)
        if not silent:
            return False
        left = Aftermath(self._engine, worker.id, self._deliveries).of_stranger(_cause(worker))
        log.warning("worker %s was silent for too long: %d lease(s) go back", worker.name, left)
        self._engine.drop_worker(worker.id)
        return True

    def _seize(self, worker: Worker, path: Path) -> bool:
        try:
            file = WorkerFile(path, 0)
        except FileNotFoundError:
            return False  # another worker was faster
        if not file.seize():
            file.close()
            return False
        try:
            aftermath = Aftermath(self._engine, worker.id, self._deliveries)
            worker = next((each for each in self._engine.workers() if each.id == worker.id), worker)
            left, ran = 0, list[str]()
            for child in range(file.children):
                seen = file.slot(child).last_words()
                if seen is not None and seen.running and len(ran) < MOST_NAMED:
                    ran.append(named(self._engine, seen.running))
                left += aftermath.of_child(child, seen, _cause(worker), "its worker was killed")
            left += aftermath.of_stranger(Cause.ORDERED)  # claimed, and not begun
            self._engine.drop_worker(worker.id)
        finally:
            file.close(remove=True)
        running = f"; it was running {', '.join(ran)}" if ran else ""
        log.warning("worker %s is dead: took over %d lease(s)%s", worker.name, left, running)
        return True


def _cause(worker: Worker) -> Cause:
    return Cause.ORDERED if worker.draining else Cause.WORKER
