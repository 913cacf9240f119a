"""Runs that do work of their own in the log's database: it commits with their settlement, or not (P4)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from ..clock import now as wall_clock
from ..delivery.model import Change, Lease, Settlement, Verdict, View
from ..delivery.settle import settle
from ..delivery.spans import Span, find, ranges_of
from ..engines.base import Engine, Reads
from ..errors import AppendUnknown, EngineUnavailable
from ..record import Row
from . import page as p
from .calling import Caller
from .run import CurrentRun
from .services import Service

log = logging.getLogger("respool.worker")

Kept = tuple[list[Verdict], list[tuple[int, bytes]]]
"""Verdicts and results that are not settled yet."""


class Finished(NamedTuple):
    """What is finished of a lease and not settled: the run with work of its own is the last of it."""

    rows: Sequence[Row]
    kept: Kept
    since: float
    all: bool  # nothing of the lease is left to run


class Did(Enum):
    """What became of a run that is not one of its verdict."""

    COMMIT = "its work was committed, and all that is finished is settled with it"
    NOTHING = "its work was undone for no fault of its own: it is to be run again"


class OwnWork:
    """Ends the transactions that runs have begun by `self.transaction()`."""

    def __init__(
        self,
        engine: Engine,
        worker: int,
        child: int,
        run: CurrentRun,
        caller: Caller,
        transact: Callable[[Reads, Callable[[View, Change], Any]], Any],
    ) -> None:
        self._engine, self._worker, self._child = engine, worker, child
        self._run, self._caller, self._transact = run, caller, transact
        self.settlement: Settlement | None = None
        """What was committed last."""

    def commit(
        self, service: Service, lease: Lease, row: Row, span: Span, verdict: Verdict, finished: Finished
    ) -> Verdict | Did:
        """Commit a run's work with its settlement; undo it where the run did not succeed.

        Returns: the verdict where the work was undone, another one where that was for an error at its end.
        """
        if verdict.ending != "success":
            verdict.calls = self._run.undo() + verdict.calls
            return verdict
        now, pos = wall_clock(), row[0]
        rows, (verdicts, results) = finished.rows, finished.kept
        done = [(each.lo, each.hi) for each in lease.spans] if finished.all else ranges(lease, rows)
        settlement = Settlement(
            lease.id,
            self._worker,
            done,
            [*verdicts, verdict],
            results,
            finished.since,
            now,
            records=len(rows),
        )
        reads = Reads(service.group.id, (lease.id,))

        def decide(view: View, change: Change) -> bool:
            held = view.leases.get(lease.id)
            ours = held is not None and held.owner == self._worker and find(held.spans, pos) is not None
            return ours and settle(view, change, settlement)

        try:
            committed = self._run.settle_work(reads, decide)
        except AppendUnknown as error:
            log.error("%s; looking", error)
            if not self._was_committed(reads, pos, now):
                return Did.NOTHING
            committed = True
        except EngineUnavailable as error:
            log.error("what a run did in self.transaction() was undone, and is done again: %s", error)
            return Did.NOTHING
        except Exception as error:  # noqa: BLE001 - the driver's: a constraint of the user's, say
            return self._failed(service, row, span, verdict, error)
        if not committed:
            log.error("a lease was lost: what its run did in self.transaction() was undone")
            self._caller.slot.words[p.BOUND] = 0  # nothing more of it is ours to run
            return verdict  # refused with the rest of the lease, and counted
        self.settlement = settlement
        return Did.COMMIT

    def _failed(self, service: Service, row: Row, span: Span, verdict: Verdict, error: Exception) -> Verdict:
        runner = service.runner(row[1])
        assert runner is not None
        failed = self._caller.failure(runner, row, span, error)
        failed.calls = self._run.undo() + verdict.calls  # they are sent, as those of any run that fails (H8)
        failed.dropped = verdict.dropped
        failed.progressed = verdict.progressed
        return failed

    def _was_committed(self, reads: Reads, pos: int, ended: float) -> bool:
        """Say whether a settlement was committed whose connection broke at its COMMIT.

        Under the group's lock, which that transaction holds for as long as it is undecided.
        """
        self._transact(reads, lambda view, change: None)
        mine = (self._worker, self._child, ended)
        entries = self._engine.journal(reads.group, pos)
        return any((entry.owner, entry.child, entry.ended) == mine for entry in entries)


def ranges(lease: Lease, rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Return the rows' positions as ranges; those of one span that have no holes are one, at no cost."""
    if len(lease.spans) == 1 and rows and rows[-1][0] - rows[0][0] == len(rows) - 1:
        return [(rows[0][0], rows[-1][0] + 1)]
    return ranges_of(row[0] for row in rows)
