"""What a supervisor does for a child in the middle of a run: time limits, settling, giving back (P7, H3)."""

from __future__ import annotations

import ctypes
import logging
import platform
import signal
import time
from collections.abc import Sequence

from ..clock import boottime_ns, suspended_ns, uptime_ns
from ..clock import now as wall_clock
from ..delivery.model import Change, Settlement, View
from ..delivery.settle import give_back, settle
from ..delivery.spans import ranges_of
from ..engines.base import Engine, Reads
from . import page as p
from .host import ring_for
from .page import Snapshot
from .process import ChildProcess

log = logging.getLogger("respool.worker")
GIVE_BACK = 50_000_000  # ns that a record runs before the rest of its lease goes back (P7)
SETTLE_FOR = 10_000_000  # ns that a record runs before what was finished earlier is settled for the child
_SPARE_CHILD = 255  # number under which the supervisor makes leases of its own


def keep_limits(child: ChildProcess) -> None:
    """End a record that has run too long. It needs no engine, so nothing can hold it up.

    The limits are moments of its run as it began; time that the machine was suspended since is not its own.
    """
    assert child.slot is not None
    words = child.slot.words
    soft, hard = words[p.SOFT_AT], words[p.HARD_AT]
    if not soft and not hard:
        return
    began = words[p.BEGAN]
    if child.suspended[0] != began:
        child.suspended = (began, suspended_ns())
    now = uptime_ns() + child.suspended[1]
    if hard and now >= hard and child.over_limit is None:
        seen = child.slot.snapshot()
        if seen is not None and seen.running and words[p.HARD_AT] == hard:
            child.over_limit = (seen.running, (hard - words[p.BEGAN]) / 1e9)
            child.kill()
    elif soft and now >= soft and words[p.SOFT_FOR] != soft:
        words[p.SOFT_FOR] = soft
        if words[p.SOFT_AT] == soft:  # else it is over; and should it end now, the child sees by its clock
            child.process.send_signal(signal.SIGUSR1)


def end_ordered_run(child: ChildProcess, groups: Sequence[int]) -> None:
    """End a run of an ordered group when we cannot prove that we live: its key may be another's (H5)."""
    assert child.slot is not None
    seen = child.slot.snapshot()
    if seen is not None and seen.running is not None and seen.group in groups and not child.ordered:
        log.warning("a call of an ordered group is ended: this worker could not say in time that it lives")
        child.ordered = True
        child.kill()


def lower_bound(child: ChildProcess, seen: Snapshot) -> list[int]:
    """Bar a child from what it has not started; return what is sure not to be started (H3).

    We lower the bound, then read how far it is; the child says that it starts, then looks at the bound.
    The barrier in between makes sure that one of us sees the other.
    """
    assert child.slot is not None
    words = child.slot.words
    words[p.BOUND] = seen.started
    _barrier()
    if words[p.LEASE] != seen.lease or words[p.SEQ] % 2:
        return []
    return seen.rows[max(words[p.STARTED], seen.started) :]


class Attendant:
    """Settles for the children of one worker what they cannot while they run, and gives back the rest."""

    def __init__(self, engine: Engine, worker: int) -> None:
        self._engine, self._worker = engine, worker
        self._next_lease = p.lease_number(worker, _SPARE_CHILD)
        self.written = 0  # transactions

    def settle(self, child: ChildProcess) -> None:
        """Settle what a child has finished, and give back what it will not start, if it is time.

        Called all the time, and there is seldom anything to do: a few words of the slot say so.
        """
        assert child.slot is not None
        words = child.slot.words
        lease, started = words[p.LEASE], words[p.STARTED]
        ran = boottime_ns() - words[p.BEGAN]
        if not started or ran < SETTLE_FOR:
            return
        finished = words[p.FINISHED] if words[p.TOGETHER] else max(words[p.FINISHED], started - 1)
        known = max(words[p.SETTLED], child.settled[1] if child.settled[0] == lease else 0)
        give = ran >= GIVE_BACK and words[p.ROWS] > started and child.given_back != lease
        if finished <= known and not give:
            return
        seen = child.slot.snapshot()
        if seen is None or not seen.running or seen.lease != lease:
            return  # it goes on
        self._settle_for(child, seen, lower_bound(child, seen) if give else [])

    def _settle_for(self, child: ChildProcess, seen: Snapshot, back: Sequence[int]) -> None:
        finished = Settlement(
            seen.lease,
            self._worker,
            ranges_of(seen.through),
            seen.verdicts,
            seen.results,
            seen.lease_began,
            wall_clock(),
            records=seen.finished,
        )
        self._next_lease += 1
        new_id = self._next_lease

        def decide(view: View, change: Change) -> int:
            held = view.leases.get(seen.lease)
            if held is None or held.owner != self._worker:
                return 0  # the child has settled it meanwhile; if it is lost, its own settlement says so
            if not settle(view, change, finished):
                return 0
            rest = Change()
            if back and change.leases:
                view.leases[seen.lease] = change.leases.pop()
                given = give_back(view, rest, seen.lease, self._worker, ranges_of(back), new_id)
                change.leases += rest.leases or [view.leases[seen.lease]]
                change.dropped_leases += rest.dropped_leases
                change.absorb_limits(rest)
                change.parked += rest.parked  # what waits for its key
                return given
            return 0

        given = self._engine.transact(Reads(seen.group, (seen.lease,)), decide)
        self.written += 1
        child.settled = (seen.lease, seen.finished)
        self._engine.ring_waiters(seen.through)
        ring_for(self._engine, seen.verdicts)
        if back:
            child.given_back = seen.lease
        if given:
            for log in {pos >> 40 for pos in back}:
                self._engine.ring(log, everyone=given > 1)


_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_GLOBAL = 1


def _barrier() -> None:
    """Order our write before our next read, on all processors at once: the children need no barrier.

    See membarrier(2). Where it does not exist, the children's writes get a millisecond to arrive.
    """
    number = _MEMBARRIER.get(platform.machine()) if platform.system() == "Linux" else None
    if number is None or ctypes.CDLL(None).syscall(number, _MEMBARRIER_GLOBAL, 0, 0) != 0:
        time.sleep(0.001)
