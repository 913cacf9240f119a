"""Claim, read, run, settle: the loop that every pool stands on, in one process and one thread."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from ..clock import boottime_ns
from ..clock import now as wall_clock
from ..delivery.death import charge_before
from ..delivery.model import Change, Lease, Settlement, View
from ..delivery.settle import give_back, settle
from ..delivery.sizing import LeaseSizer
from ..delivery.spans import Span
from ..engines.base import Engine, Reads
from ..errors import EngineUnavailable, NotEncodable, StreamUnavailable, unsent
from ..record import Row
from ..running import current_run
from . import page as p
from .batching import Batching
from .calling import Caller, EndNow
from .exchange import Exchange
from .holds import say_lost
from .host import LONGEST, PATIENCE, UNSETTLED, Woken, has_work, ring_for
from .lease_run import LeaseRun
from .own_work import Finished, Kept, OwnWork
from .resting import Resting
from .run import BRIEF, CurrentRun
from .services import Service
from .storms import Storms

log = logging.getLogger("respool.worker")

STAY = 0.1  # seconds with one service before the others get their turn
ONLY_KEY = b"\x81\xa3key"  # how the attributes begin of a record that has nothing but a key
FEW = 4  # records; after no more than that, and with nobody waiting for a result, …
REST = 0.002  # … this many seconds of rest: producers share the machine, and send more at once meanwhile


class Host(Protocol):
    """Who the executor works for: a child process, or the solo pool."""

    def limited(self) -> None:
        """Ask to be watched: a record with a time limit was begun, or the deadline is over."""

    def busy(self, busy: bool) -> None:
        """Say whether there is work."""

    def watch(self) -> None:
        """Ask to be looked at while busy: more than one record was claimed, and one may take long (P7)."""

    def between_leases(self) -> None:
        """Do what is to be done while no user code runs."""

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the worker is to stop."""


class Executor:
    """Serves groups one lease at a time."""

    def __init__(
        self,
        engine: Engine,
        services: Sequence[Service],
        worker: int,
        child: int,
        slot: p.Slot,
        host: Host,
        hold: float | None,
    ) -> None:
        self.engine, self.services, self.host = engine, list(services), host
        self.worker, self.child, self.slot = worker, child, slot
        self.run = CurrentRun(engine, hold)
        self.caller = Caller(slot, self.run, host.limited)
        self.own_work = OwnWork(engine, worker, child, self.run, self.caller, self.transact)
        self.done = 0
        self.limit: int | None = None  # records to run in all
        self.patient = True  # batches wait for more records
        self.exhausted = False  # the only service has just been asked for more, and had none
        self.rows: list[Row] = []
        self._forked = False
        self.skip: frozenset[int] = frozenset()
        self.keyless: dict[int, Exception] = {}  # of which nobody can tell whose limit they are under
        self.resting = Resting(alone=len(services) == 1)
        self.exchange = Exchange(self)
        self.batching = Batching(self)
        self.storms = self.caller.storms = Storms(self)
        self.limited: list[Span] = []  # of the lease: records whose task is stopped
        self.sizers = {service.group.id: LeaseSizer() for service in services}
        for service in services:
            service.claimant = (worker, child) if service.ordered else None
        self._first_lease = p.lease_number(worker, child)
        self._reachable = True
        self._awaited = False  # somebody waited for what was settled since work was looked for
        self._woke = False  # the last settlement has woken somebody
        # … and there was nothing more: who waits for each result sends the next then.
        self._one_by_one = False
        self._breaks = engine.breaks
        self._known: Lease | None = (
            None  # the present lease as it is stored, unless the supervisor has changed it
        )
        os.register_at_fork(after_in_child=self._after_fork)
        self._outside = current_run.set(self.run)

    def _after_fork(self) -> None:
        """A process that a task forks, and that comes back here, must not go on as if it were us."""
        self._forked = True
        self.rows.clear()
        current_run.set(None)  # its calls are sent like anybody's: our outbox is not its own

    def leave_if_forked(self) -> None:
        """End a process that a task has forked and that did not end by itself."""
        if self._forked:
            os._exit(0)

    def close(self) -> None:
        """Give the process back: what it runs from now on is part of no run."""
        self.run.undo()
        self.caller.close()
        current_run.reset(self._outside)

    @property
    def stopping(self) -> bool:
        """Whether nothing more is to be started."""
        return bool(self.slot.words[p.STOP])

    def work(self, woken: Woken = Woken.BY_TIME) -> bool:
        """Give each service its turn; False where none had anything to do.

        Parameters:
            woken: the bell, or a look, has just said that there is something, so no need to look first.
        """
        if self.engine.breaks != self._breaks:
            self._give_back_what_came_back()
        sure = woken is not Woken.BY_TIME and len(self.services) == 1 and not self.resting
        self._one_by_one = self._one_by_one and woken is Woken.BY_BELL
        worked, before, self._awaited = False, self.done, False
        self.exhausted = False
        for service in self.services:
            if self.stopping:
                break
            if self.resting and self.resting.left(service.group.id) is not None:
                continue
            # What waits for more is work only for those who do not wait.
            if sure or self.has_work(service) or (service.batch and not self.patient):
                worked = self._serve(service) or worked
        if self.caller.retries.withheld:
            self.caller.retries.look()
        if worked and self.done - before <= FEW and not self._awaited:
            self.host.pause(REST)
        return worked

    def _give_back_what_came_back(self) -> None:
        """A server that was away may have lost what we committed last: our leases are as they were (S4).

        Between two leases none can be ours, so whatever is in our name goes to whoever comes next.
        """
        breaks = self.engine.breaks
        try:
            for group, lease in self.engine.leases_of(self.worker):
                if lease.child == self.child:
                    self.put_back(group, lease)
                    log.warning("a lease that was settled came back with the server: its records run again")
        except EngineUnavailable as error:
            log.debug("%s", error)  # who looks for work says so
            return
        self._breaks = breaks

    def put_back(self, group: int, lease: Lease) -> None:
        """Give a lease back of which nothing was run."""
        ranges = [(span.lo, span.hi) for span in lease.spans]
        back = partial(
            give_back, lease_id=lease.id, owner=self.worker, ranges=ranges, new_id=self.next_lease()
        )
        self.transact(Reads(group, (lease.id,)), back)

    def has_work(self, service: Service) -> bool:
        """Look without the write lock, which others may want."""
        try:
            found = self.resting.look(
                service.group.id, service.shown, lambda: has_work(self.engine, service, wall_clock())
            )
        except EngineUnavailable as error:
            if self._reachable:
                log.error("waiting for the engine: %s", unsent(error))
            self._reachable = False
            self.host.pause(PATIENCE[-1])
            return False
        self._reachable = True
        return found

    def _serve(self, service: Service) -> bool:
        """Run leases of one service: for a while where there are others."""
        until = math.inf if len(self.services) == 1 else time.monotonic() + STAY
        lease = self.exchange.next(service, None)
        if lease is None:
            return False
        self.host.busy(True)
        if self.resting:
            self.resting.over(service.group.id, service.shown)
        while lease is not None:
            if len(self.rows) > 1:
                self.host.watch()
            self._known = lease
            if service.batch:
                settlement = self.batching.run(service, lease)
            else:
                settlement = self.run_lease(service, lease)
            if self.limited:
                settlement.limited, settlement.limited_as = self.limited, self.next_lease()
                if not self.rows:
                    self.sizers[service.group.id].left_out()
            self.host.between_leases()
            if time.monotonic() >= until and not self._others_wait(service):
                until = time.monotonic() + STAY
            go_on = not self.stopping and time.monotonic() < until and self.engine.breaks == self._breaks
            lease = self.exchange.next(service, settlement, claim_next=go_on and not self._one_by_one)
            self._one_by_one = lease is None and self._woke
        self.exhausted = go_on and len(self.services) == 1
        return True

    def _others_wait(self, service: Service) -> bool:
        """Say whether another service should have its turn; else the next lease comes with a settlement."""
        return any(self.has_work(other) for other in self.services if other is not service)

    # Transactions

    def next_lease(self) -> int:
        """Return an id for a lease, never used before."""
        self.slot.words[p.LEASES] += 1
        return self._first_lease + self.slot.words[p.LEASES]

    def transact(self, reads: Reads, decide: Callable[[View, Change], Any], *, synced: bool = False) -> Any:
        """Run a decision; where the engine cannot be reached nothing was changed, and it is tried again.

        But for a claim from a log that alone cannot be reached. Any other error ends the process: its
        supervisor then finds out what was left.
        """
        tries = 0
        while True:
            try:
                return self.engine.transact(reads, decide, synced=synced)
            except EngineUnavailable as error:
                if reads.due and isinstance(error, StreamUnavailable):
                    raise
                if tries == 0:
                    log.error("waiting for the engine: %s", unsent(error))
                if self.stopping and tries >= len(PATIENCE):
                    raise
                self.host.pause(PATIENCE[min(tries, len(PATIENCE) - 1)])
                tries += 1

    def announce(self, service: Service, settlement: Settlement, settled: bool) -> None:
        """Wake those whom a settlement concerns; say it where the lease was lost."""
        if not settled:
            say_lost(self.engine, service.group, settlement.records)
            return
        engine = self.engine
        rung = engine.ring_waiters(
            [pos for lo, hi in settlement.done[:65] for pos in range(lo, min(hi, lo + 65))]
        )
        self._woke = rung > 0
        self._awaited = self._awaited or self._woke
        if settlement.verdicts:
            ring_for(engine, settlement.verdicts)

    def known(self, service: Service, settlement: Settlement) -> Lease | None:
        """Return a settlement's lease as it is stored, where that is all that its decision needs to see."""
        others = service.stormy or service.limiter or service.ordered or service.rate is not None
        if others or self._known is None:
            return None
        return self._known if self._known.id == settlement.lease else None

    def forget_lease(self) -> None:
        """Take note that the present lease is not stored any more as it was claimed."""
        self._known = None

    def charge(self, service: Service, lease: Lease, positions: Sequence[int]) -> bool:
        """Charge records with their only delivery before they run (H7); False where the lease is lost."""
        self.forget_lease()
        return bool(
            self.transact(
                Reads(service.group.id, (lease.id,)),
                lambda view, change: charge_before(view, change, lease.id, self.worker, positions),
                synced=True,
            )
        )

    def settle_part(
        self,
        service: Service,
        lease: Lease,
        done: list[tuple[int, int]],
        count: int,
        kept: Kept,
        began: float,
    ) -> None:
        """Settle `count` finished records in the middle of a lease."""
        settlement = Settlement(lease.id, self.worker, done, *kept, began, wall_clock(), records=count)
        known = self.known(service, settlement)
        settings = bool(service.stormy) or service.rate is not None
        reads = Reads(service.group.id, (lease.id,), settings=settings, known=known)
        left: list[Lease] = []

        def decide(view: View, change: Change) -> bool:
            if service.stormy:
                self.storms.within(service, view, change, settlement.ended, over=False)
            settled = settle(view, change, settlement)
            left[:] = change.leases
            return settled

        settled = self.transact(reads, decide)
        self._known = left[0] if len(left) == 1 else None
        if service.stormy:
            self.storms.told(service)
        self.slot.words[p.SETTLED] += count
        self.slot.forget_verdicts()
        self.announce(service, settlement, settled)
        if not settled:
            self.slot.words[p.BOUND] = 0  # nothing more of this lease is ours to run

    def settled_with_work(self, service: Service, finished: Finished) -> None:
        """Take note of what was settled in a transaction of the run's own."""
        assert self.own_work.settlement is not None
        self.slot.words[p.SETTLED] += len(finished.rows)
        self.slot.forget_verdicts()
        self._known = None
        self.announce(service, self.own_work.settlement, settled=True)

    # One lease

    def run_lease(self, service: Service, lease: Lease, few: int | None = None) -> Settlement:
        """Run the records of a lease in order; return what is left to settle at its end.

        This is the hot path: what a record does not need is not done for it.

        Parameters:
            few: run only so many, and say nothing of the others.
        """
        words, slot, run, caller = self.slot.words, self.slot, self.run, self.caller
        rows = self.rows if few is None else self.rows[:few]
        started_word, finished_word, bound = p.STARTED, p.FINISHED, p.BOUND
        deadline, began_word, encode = p.DEADLINE, p.BEGAN, caller.encode
        only, get_runner, clock = service.only, service.runners.get, boottime_ns
        running = LeaseRun(self, service, lease, rows)
        span = lease.spans[0]
        count = 0  # rows run
        start = last = running.began
        settle_at, turn = start + UNSETTLED, 0  # when the run before began
        for row in rows:
            # First say that it is started, then look at the bound: the supervisor, who gives records
            # back, does the two in the other order, and so never gives back one that runs (H3).
            words[began_word] = last
            words[started_word] = count + 1
            if count >= words[bound] or (last > words[deadline] and not self.prove_alive()):
                words[started_word] = count
                break
            runner = only or get_runner(row[1])
            run.row = row
            if run.mark is None or last - turn > BRIEF:
                run.begin()
            turn = last
            verdict = None
            if (
                running.careful
                or (row[3] is not None and row[3][:5] != ONLY_KEY)
                or runner is None
                or not runner.plain
            ):
                verdict = running.call_with_care(runner, row, count)
            else:
                try:
                    args, kwargs = runner.unpack(row[2])
                    if runner.convert is not None:
                        args, kwargs = runner.convert(list(args), kwargs)
                    value = runner.fn(*args, **kwargs)
                except EndNow:
                    raise
                except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
                    verdict = caller.plain_failure(runner, row, span, error)
                else:
                    if run.used or runner.ttl is not None:
                        verdict = caller.success(runner, row, span, value)
                    elif value is not None and not runner.ignores:
                        try:
                            encoded = encode(value, "the result")
                        except NotEncodable as error:
                            verdict = caller.failure(runner, row, span, error)
                        else:
                            if len(encoded) > runner.over:
                                verdict = caller.large_result(runner, row, span, encoded)
                            else:
                                running.results.append((row[0], encoded))
                                if slot.add_result(row[0], encoded):
                                    words[finished_word] = count + 1
                                else:
                                    running.full = True
            count += 1
            if self._forked:
                self.leave_if_forked()
            last = clock()
            if verdict is not None:
                if not running.keep(runner, row, verdict, count):
                    count -= 1
                    words[started_word] = count
                    break
                last = clock()
                settle_at = running.began + UNSETTLED  # it may have been, with a transaction of the run's own
            if (running.full or running.at_once or last >= settle_at) and count < len(rows):
                run.mark = None  # nothing that a run has left behind may send now
                last = running.settle(count)
                settle_at = last + UNSETTLED
                if last - start > LONGEST:
                    break
        run.row = run.mark = None
        self.done += count - running.left_out
        words[p.DONE] = self.done
        self.sizers[service.group.id].ran(count, (last - start) / 1e9)
        return running.end(count)

    def prove_alive(self) -> bool:
        """The supervisor cannot prove that it lives: start nothing until it can (H5). False: stop."""
        while boottime_ns() > self.slot.words[p.DEADLINE]:
            if self.stopping or self.slot.words[p.BOUND] == 0:
                return False
            self.host.limited()
            self.host.pause(0.05)
        return True
