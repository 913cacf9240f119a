"""Removing large payloads that nobody refers to any more: beside the worker's work, in small steps (H18).

In a thread with an engine of its own: a store may take its time to answer, and neither a beat nor a run is to
wait for that. It holds no lock while it talks to the store.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ..blobs import Store
from ..clock import now as wall_clock
from ..engines.base import Engine
from ..engines.blobs import PATIENCE, BlobKey, ReferenceKey
from ..errors import RespoolError
from ..reference import Reference, payload_of

log = logging.getLogger("respool.worker")

EVERY = 60.0  # seconds between two rounds
STEP = 1000  # references or blobs in one step
STEPS = 20  # of each in a round, at most: the next one goes on from there
REMOVED_TOGETHER = 50
LEFT_OVER_EVERY = 86_400.0  # seconds between two looks through a folder of ours


@dataclass(slots=True)
class Progress:
    """Where the last round ended."""

    reference: ReferenceKey | None = None
    blob: BlobKey | None = None


def sweep(engine: Engine, store: Store, progress: Progress, before: float) -> int:
    """Do one round; return how many blobs were removed.

    Parameters:
        before: what was touched since this moment is left alone.
    """
    for _ in range(STEPS):
        _, progress.reference = engine.drop_references(progress.reference, before, STEP)
        if progress.reference is None:
            break
    for _ in range(STEPS):
        _, progress.blob = engine.doom_blobs(progress.blob, before, STEP)
        if progress.blob is None:
            break
    removed = 0
    while doomed := engine.doomed_blobs(REMOVED_TOGETHER):
        for digest, stamp in doomed:
            store.remove(Reference(digest, 0, stamp).name)
        engine.forget_blobs(doomed)  # only now: what is forgotten is never looked for again
        removed += len(doomed)
    return removed


def remove_left_over(engine: Engine, store: Store, before: float) -> int:
    """Remove what is in a folder of this engine's alone, and not known to it; return how many files.

    That is what an upload left that was interrupted, or what was stored for a transaction that was rolled
    back.
    """
    removed = 0
    for names in store.files(before):
        known = {key: name for name in names if (key := payload_of(name)) is not None}
        unknown = {known[key] for key in engine.unknown_blobs([BlobKey(*each) for each in known])}
        for name in names:
            if name in unknown or payload_of(name) is None:
                store.remove_file(name)
                removed += 1
    return removed


class Sweeper:
    """Sweeps once a minute, in a thread, as long as there are blobs."""

    def __init__(self, opened: Callable[[], AbstractContextManager[Engine]], store: Store) -> None:
        self._opened, self._store = opened, store
        self._progress = Progress()
        self._thread: threading.Thread | None = None
        self._next = self._left_over_next = time.monotonic()

    def start(self, engine: Engine) -> None:
        """Begin a round in a thread, if it is time, and there is anything to look at."""
        now = time.monotonic()
        if now < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = now + EVERY
        if engine.has_blobs() or self._may_hold_unknown(now):
            self._thread = threading.Thread(target=self._round, name="respool-sweep", daemon=True)
            self._thread.start()

    def _may_hold_unknown(self, now: float) -> bool:
        """Say whether files may be there alone: of what was entered in a transaction that was rolled back."""
        return self._store.own and now >= self._left_over_next and self._store.has_files()

    def join(self, timeout: float) -> None:
        """Wait for a round that goes on."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _round(self) -> None:
        try:
            with self._opened() as engine:
                before = wall_clock() - PATIENCE
                removed = sweep(engine, self._store, self._progress, before)
                if self._store.own and time.monotonic() >= self._left_over_next:
                    self._left_over_next = time.monotonic() + LEFT_OVER_EVERY
                    removed += remove_left_over(engine, self._store, before)
        except RespoolError as error:
            log.warning("large payloads that nobody needs are not removed, which is tried again: %s", error)
        else:
            if removed:
                log.info("%d large payload(s) that nobody needs were removed", removed)
