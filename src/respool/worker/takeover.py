"""Other workers that died: on this host their lock tells at once, elsewhere their beats do (H4)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..delivery.death import Cause
from ..delivery.liveness import BeatObserver
from ..engines.base import Engine, Worker
from .aftermath import Aftermath, Deliveries
from .page import WorkerFile
from .resting import Apart, Resting
from .rules import LEAST_PATIENCE, deliveries_of, patience
from .telling import leases, named

log = logging.getLogger("respool.worker")

MOST_NAMED = 4  # calls that a dead worker was running
LOOK_EVERY = LEAST_PATIENCE
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
    """Looks for dead workers and clears up after them.

    Each is judged by what its row says; `settings` and `deliveries`, ours, are for one that does not say it.
    """

    def __init__(
        self, engine: Engine, boot: str, settings: Mapping[str, Any], deliveries: Deliveries
    ) -> None:
        self._engine, self._boot = engine, boot
        self._settings, self._deliveries = settings, deliveries
        self._observer = BeatObserver()
        self._every = LOOK_EVERY if engine.capabilities.many_hosts else 1
        self._looks = 0
        self._others: list[Worker] = []
        self._resting = Resting("cannot be taken over")

    def look(self, own: int, *, beaten: bool) -> int:
        """Take over from those who are dead; `beaten` says that our own beat was committed before.

        One that held calls of a queue which is out of reach is taken over later, and holds up nobody.

        Returns: how many workers were taken over from.
        """
        fresh = self._looks % self._every == 0
        self._looks += 1
        if fresh:
            self._others = [worker for worker in self._engine.workers() if worker.id != own]
        silent = []
        if beaten:
            seen = {w.id: (w.beat, patience(w, self._settings)) for w in self._others}
            silent = self._observer.beat_committed(seen)
        if not fresh:
            silent = []  # they may have beaten since
        return sum(self._look_at(worker, worker.id in silent) for worker in self._others)

    def _look_at(self, worker: Worker, silent: bool) -> bool:
        if self._resting and self._resting.left(worker.id) is not None:
            return False
        shown = f"worker {worker.name}"
        taken, _ = self._resting.tried(worker.id, shown, lambda: self._take_over(worker, silent))
        return bool(taken)

    def _take_over(self, worker: Worker, silent: bool) -> bool:
        path = file_of(self._engine, worker.id)
        if worker.boot == self._boot and path.exists():
            return self._seize(worker, path)
        if not silent:
            return False
        left = self._aftermath(worker).of_stranger(_cause(worker))
        log.warning("worker %s was silent for too long: took back %s", worker.name, leases(left))
        self._engine.drop_worker(worker.id)
        self._remove_left(path)
        return True

    def _remove_left(self, path: Path) -> None:
        """Remove what a worker has left on this host; after a reboot, what it says may be old.

        Not where processes of it hold it still, which may be stopped, or of another container.
        """
        try:
            file = self._open(path)
        except FileNotFoundError:
            return  # it was of another host
        file.close(remove=file.seize())

    def _open(self, path: Path) -> WorkerFile:
        return WorkerFile(path, 0, private=self._engine.capabilities.many_hosts)

    def _aftermath(self, worker: Worker) -> Aftermath:
        said = deliveries_of(worker)
        return Aftermath(self._engine, worker.id, self._deliveries if said is None else said)

    def _seize(self, worker: Worker, path: Path) -> bool:
        try:
            file = self._open(path)
        except FileNotFoundError:
            return False  # another worker was faster
        if not file.seize():
            file.close()
            return False
        cleared = False
        try:
            worker = next((each for each in self._engine.workers() if each.id == worker.id), worker)
            aftermath = self._aftermath(worker)
            left, ran, apart = 0, list[str](), Apart()
            for child in range(file.children):
                seen = file.slot(child).last_words()
                if seen is not None and seen.running and len(ran) < MOST_NAMED:
                    ran.append(named(self._engine, seen.running))
                with apart:
                    left += aftermath.of_child(child, seen, _cause(worker), "its worker was killed")
            apart.end()  # before nobody is blamed for what is left
            left += aftermath.of_stranger(Cause.ORDERED)  # claimed, and not begun
            self._engine.drop_worker(worker.id)
            cleared = True
        finally:
            file.close(remove=cleared)  # else what it says is needed when we come again
        running = f"; it was running {', '.join(ran)}" if ran else ""
        log.warning("worker %s is dead: took over %s%s", worker.name, leases(left), running)
        return True


def _cause(worker: Worker) -> Cause:
    return Cause.ORDERED if worker.draining else Cause.WORKER
