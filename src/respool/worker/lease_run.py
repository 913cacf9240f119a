"""A lease while its records are run: what of it is finished, what is settled, what waits for its key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..clock import boottime_ns
from ..clock import now as wall_clock
from ..delivery.model import Lease, Settlement, Verdict
from ..delivery.order import key_map
from ..delivery.spans import Finder
from ..record import Row
from . import page as p
from . import verdicts
from .own_work import Did, Finished, Kept, ranges
from .services import Runner, Service

if TYPE_CHECKING:
    from .executor import Executor


class LeaseRun:
    """What the executor knows of a lease between its first record and its last.

    A record without a verdict is done, and nothing more is to be said of it than its result, if that.
    """

    def __init__(self, executor: Executor, service: Service, lease: Lease, rows: Sequence[Row]) -> None:
        self._executor, self._service, self._lease, self._rows = executor, service, lease, rows
        plain = not lease.bodies and not any(any(span[2:]) for span in lease.spans)
        self._spans = None if plain else Finder(lease.spans)
        self.careful = not plain or bool(executor.skip) or bool(executor.keyless)
        """Whether each record may have more to it than a body."""
        self.left_out = 0  # records that the group's filter leaves out, or that were put by: nobody's work
        self._held: set[int] = set()  # keys of which a record is to run again: what follows waits for it (P8)
        self._keys: dict[int, int] = {}  # by position, once it matters
        self._go_on_from(0)
        executor.run.span = lease.spans[0]
        executor.run.begin_lease(service, lease.id, executor.worker)

    def _go_on_from(self, count: int) -> None:
        """All rows up to there are settled."""
        self._settled = count
        self._verdicts: list[Verdict] = []
        self.results: list[tuple[int, bytes]] = []
        self._gone = {
            *self._held
        }  # keys of which nothing is left in the lease: a settlement has blocked that
        self.full = False  # the last run's outcome found no room in shared memory
        self.at_once = False  # the last run is to be settled before the next begins (H7) …
        self._charged = False  # … and was charged with its only delivery
        self._wall, self.began = wall_clock(), boottime_ns()

    # One record

    def call_with_care(self, runner: Runner | None, row: Row, count: int) -> Verdict | None:
        """Run, park, or leave out a record that has more to it than a body; `count` were run before it."""
        executor, service, lease = self._executor, self._service, self._lease
        run = executor.run
        if self._spans is not None:
            run.span = self._spans.find(row[0]) or lease.spans[0]
        once = runner is not None and runner.max_deliveries == 1  # claimed singly, settled at once (H7)
        if once and count > self._settled:
            self.settle(count)
        self.at_once = once
        if row[0] in executor.keyless:
            return verdicts.unreadable(row, executor.keyless[row[0]], wall_clock())
        key = self._keys.get(row[0])
        if key in self._held:
            self.at_once = False
            return None if key in self._gone else verdicts.blocked(row, wall_clock())
        return executor.caller.call_with_care(
            service, lease, runner, row, run.span, executor.skip, self._charge
        )

    def _charge(self, pos: int) -> bool:
        """Charge a record with its only delivery before it runs; False where the lease is lost."""
        self._charged = self._executor.charge(self._service, self._lease, [pos])
        return self._charged

    def keep(self, runner: Runner | None, row: Row, verdict: Verdict, count: int) -> bool:
        """Keep what became of a run until it is settled; `count` were run with it.

        Returns: False where it is to be run again: what it did in a transaction of its own was undone.
        """
        if self._executor.run.work is not None:
            became = self._end_own_work(row, verdict, count)
            if became is Did.NOTHING:
                return False
            if became is Did.COMMIT:
                return True
            verdict = became  # by its own end it may have become another one
        if self._lease.keys and verdict.reason is not None:
            self._hold_up(runner, row, verdict)
        if self._charged and verdict.reason is not None:
            verdict.charge = -1  # the run has ended (H7)
        self._verdicts.append(verdict)
        self.left_out += verdicts.is_no_work(verdict)
        self.full = not self._executor.slot.add(verdict)
        if not self.full:
            self._executor.slot.words[p.FINISHED] = count
        return True

    def _hold_up(self, runner: Runner | None, row: Row, verdict: Verdict) -> None:
        """What follows of its key waits for a record that is to run again, or that died and holds it (P8)."""
        verdict.holds = verdict.reason == "dead" and runner is not None and runner.holds
        if verdict.holds or verdict.reason != "dead":
            self._keys = self._keys or key_map(self._lease)
            self._held.add(self._keys.get(row[0]) or -1)  # -1: it has no key, and holds up nobody
            self.careful = True

    def _end_own_work(self, row: Row, verdict: Verdict, count: int) -> Verdict | Did:
        """Commit what a run did in a transaction of its own, and with it all that is finished."""
        executor = self._executor
        finished = Finished(self._ours(count), self._kept, self._wall, self._is_all(count))
        became = executor.own_work.commit(
            self._service, self._lease, row, executor.run.span, verdict, finished
        )
        if became is Did.COMMIT:
            executor.slot.words[p.FINISHED] = count
            executor.settled_with_work(self._service, finished)
            self._go_on_from(count)
        return became

    # What is finished

    @property
    def _kept(self) -> Kept:
        return self._verdicts, self.results

    def _ours(self, count: int) -> Sequence[Row]:
        """Return what is finished of the lease and not settled."""
        rows, keys, gone = self._rows[self._settled : count], self._keys, self._gone
        return [row for row in rows if keys.get(row[0]) not in gone] if gone else rows

    def _is_all(self, count: int) -> bool:
        """Say whether nothing of the lease is left to run, and all that was run is in it."""
        return count == len(self._executor.rows) and not self._executor.limited and not self._gone

    def settle(self, count: int) -> int:
        """Settle what is finished in the middle of the lease; return when it was, in nanoseconds."""
        executor, lease = self._executor, self._lease
        if not self.full:  # what is in no shared memory is not finished until it is settled (H2)
            executor.slot.words[p.FINISHED] = count
        done = ranges(lease, self._ours(count))
        executor.settle_part(self._service, lease, done, count - self._settled, self._kept, self._wall)
        executor.slot.words[p.FINISHED] = count
        self._go_on_from(count)
        return self.began

    def end(self, count: int) -> Settlement:
        """Return what is left to settle once nothing more of the lease is run."""
        lease, settled = self._lease, self._settled
        if not self.full:
            self._executor.slot.words[p.FINISHED] = count
        if settled and settled == len(self._executor.rows):
            done = []
        elif self._is_all(count):
            done = [(span.lo, span.hi) for span in lease.spans]
        else:
            done = ranges(lease, self._ours(count))
        owner, now = self._executor.worker, wall_clock()
        return Settlement(
            lease.id, owner, done, *self._kept, self._wall, now, release=True, records=count - settled
        )
