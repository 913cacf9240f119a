"""After a death: settle what was finished, blame who is to be blamed, give the rest back (P6, H2, H6)."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from functools import cached_property

from ..clock import boottime_ns
from ..clock import now as wall_clock
from ..delivery.death import Cause, Suspect, bury_lease
from ..delivery.model import Change, Lease, Settlement, Verdict, View
from ..delivery.settle import settle
from ..delivery.spans import Span, ranges_of
from ..encoding.remote import encode_error
from ..engines.base import Engine, Reads
from ..errors import StreamBroken, TimeLimitExceeded, WorkerLost
from .host import ring_for
from .page import Snapshot
from .resting import Apart
from .telling import named, where_seen

log = logging.getLogger("respool.worker")

DEFAULT = (3, False)  # of a task of which nothing is known
ANY_TASK = ""  # in a subscription, whatever the event's type
Deliveries = Mapping[int, Mapping[str, tuple[int, bool]]]
"""By group and task: how many runs may end with the death of their process, and whether a dead letter holds
up its key."""


def how_it_died(status: int) -> str:
    """Return a process's exit status, as `Popen.returncode` gives it, in words."""
    if status >= 0:
        return f"its process exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "a signal"
    hint = "; if nobody sent it, the system was out of memory" if -status == signal.SIGKILL else ""
    return f"its process was killed by {name} (signal {-status}){hint}"


class Aftermath:
    """Clears up after processes of one worker that are dead."""

    def __init__(self, engine: Engine, owner: int, deliveries: Deliveries) -> None:
        self._engine, self._owner, self._deliveries = engine, owner, deliveries

    @cached_property
    def _name(self) -> str:
        """The name of the worker whose process died, where it is still known."""
        named = {worker.id: worker.name for worker in self._engine.workers()}
        return named.get(self._owner, f"number {self._owner}")

    def of_child(self, child: int, seen: Snapshot | None, cause: Cause, how: str) -> int:
        """Give back what a dead child held; `seen` are its last words. Returns how many leases it had.

        Raises: StreamUnavailable, once all others are given back, where one is of a log that is out of reach.
        """
        held = [
            (group, lease) for group, lease in self._engine.leases_of(self._owner) if lease.child == child
        ]
        apart = Apart()
        for group, lease in held:
            with apart:
                if seen is not None and lease.id == seen.lease:
                    self._bury(group, lease, seen, cause, how)
                else:  # claimed, and not begun: nobody is to blame
                    self._bury(group, lease, None, Cause.ORDERED, how)
        apart.end()
        return len(held)

    def of_stranger(self, cause: Cause) -> int:
        """Give back all that a worker held of whose children nothing is known any more."""
        held, apart = self._engine.leases_of(self._owner), Apart()
        for group, lease in held:
            with apart:
                self._bury(group, lease, None, cause, "its machine or its worker was lost")
        apart.end()
        return len(held)

    def _bury(self, group: int, lease: Lease, seen: Snapshot | None, cause: Cause, how: str) -> None:
        finished = None
        suspects: list[Suspect] = []
        now = wall_clock()
        if seen is not None:
            finished = self._finished(lease, seen, now)
            if seen.running:
                suspects = self._suspects(group, seen, how)
            else:  # nothing was being run: nobody is to blame
                cause = Cause.ORDERED

        dead: list[int] = []

        def decide(view: View, change: Change) -> bool:
            buried = bury_lease(view, change, lease.id, self._owner, cause, finished, suspects, now)
            dead[:] = [parked.pos for parked in change.parked if parked.reason == "dead"]
            return buried

        self._engine.transact(Reads(group, (lease.id,)), decide)
        for pos in {suspect.pos for suspect in suspects}.intersection(dead):
            told = named(self._engine, [pos]), how, where_seen(self._engine, [pos])
            log.error("%s is a dead letter: %s; %s", *told)
        if seen is not None:  # the one that ran may have been buried
            self._engine.ring_waiters(seen.through + seen.running)
        if finished is not None:
            ring_for(self._engine, finished.verdicts)
        for place in {span.lo >> 40 for span in lease.spans}:
            self._engine.ring(place, everyone=True)

    def _finished(self, lease: Lease, seen: Snapshot, now: float) -> Settlement | None:
        if not seen.finished:
            return None
        done = ranges_of(seen.through)
        return Settlement(
            lease.id,
            self._owner,
            done,
            seen.verdicts,
            seen.results,
            seen.lease_began,
            now,
            records=seen.finished,
        )

    def _suspects(self, group: int, seen: Snapshot, how: str) -> list[Suspect]:
        task = self._task_of(seen.running[0])  # those of a batch are calls of one task
        most, holds = self._allowed(group, task)
        if seen.looking:  # none of them was run: not even one that may run only once is at its end
            most = max(most, 2)
            how = f"{how} while it looked for batches or limits of calls"
        error = encode_error(WorkerLost(f"{how} while it ran {task or 'this call'}"), worker=self._name)
        began = wall_clock() - max(boottime_ns() / 1e9 - seen.began, 0.0)
        return [Suspect(pos, task, most, how, error, began, holds) for pos in seen.running]

    def _task_of(self, pos: int) -> str:
        """Return a record's task; nothing where it is gone, if need be with its whole log.

        One that is out of reach is waited for: a task that may run only once must not be judged as others.
        """
        try:
            rows = self._engine.rows([Span(pos, pos + 1)])
        except StreamBroken:
            return ""
        return rows[0][1] if rows else ""

    def _allowed(self, group: int, task: str) -> tuple[int, bool]:
        allowed = self._deliveries.get(group, {})
        return allowed.get(task, allowed.get(ANY_TASK, DEFAULT))

    def time_limit(self, seen: Snapshot, positions: Sequence[int], seconds: float) -> None:
        """Fail a record whose process we killed at its time limit; only that record fails.

        Of a batch, nobody knows which was too slow: its records are granted again singly, unless they may
        run only once.
        """
        task = self._task_of(positions[0])
        most, holds = self._allowed(seen.group, task)
        if len(positions) > 1 and most > 1:
            how = f"its batch was killed after {seconds:g} s, its time_limit"
            for group, lease in self._engine.leases_of(self._owner):
                if lease.id == seen.lease:
                    self._bury(group, lease, seen, Cause.CHILD, how)
            return
        verdicts = [self._too_long(task, pos, seconds, holds=holds) for pos in positions]
        done = ranges_of([*seen.through, *positions])
        settlement = Settlement(
            seen.lease,
            self._owner,
            done,
            [*seen.verdicts, *verdicts],
            seen.results,
            seen.lease_began,
            wall_clock(),
            release=True,
        )
        settled = self._engine.transact(
            Reads(seen.group, (seen.lease,)), lambda view, change: settle(view, change, settlement)
        )
        if settled:
            what, hint = named(self._engine, positions), where_seen(self._engine, positions)
            are = "is a dead letter" if len(positions) == 1 else "are dead letters"
            log.error("%s %s: killed after %g s, its time_limit; %s", what, are, seconds, hint)
        self._engine.ring_waiters([*seen.through, *positions])
        ring_for(self._engine, seen.verdicts)
        self._engine.ring(positions[0] >> 40, everyone=True)

    def _too_long(self, task: str, pos: int, seconds: float, *, holds: bool) -> Verdict:
        now = wall_clock()
        limit = TimeLimitExceeded(f"{task} was killed after {seconds:g} s, its time_limit")
        error = encode_error(limit, worker=self._name)
        return Verdict(
            pos, "failure", error, "dead", task=task, error=error, note=f"failed: time_limit {seconds:g} s",
            started=now - seconds, ended=now, progressed=True, holds=holds,
        )  # fmt: skip
