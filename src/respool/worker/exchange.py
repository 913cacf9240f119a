"""Between two leases: what was run is settled, more is claimed, in one transaction; then it is read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..clock import now as wall_clock
from ..delivery.batching import claim_with
from ..delivery.claim import Request, claim
from ..delivery.limits import admit
from ..delivery.model import Change, Lease, Settlement, View
from ..delivery.order import Claimant
from ..delivery.settle import settle
from ..delivery.spans import Finder
from ..engines.base import Reads
from ..errors import LogMoved, RespoolError, unsent
from .host import PATIENCE
from .limiting import OPEN_BUCKETS
from .looking import Looks
from .services import Service

if TYPE_CHECKING:
    from .executor import Executor

log = logging.getLogger("respool.worker")


class Exchange:
    """Gives a worker's process one lease after the other."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._logs: set[int] = set()  # that the present lease has records of
        self._moved = ""  # what was said of a log that is moved

    def next(
        self, service: Service, settlement: Settlement | None, *, claim_next: bool = True
    ) -> Lease | None:
        """Settle one lease and claim the next that has something to run."""
        ex = self._executor
        lease = self._settle_and_claim(service, settlement, claim_next)
        while lease is not None and not lease.spans:  # all of it has to wait for limits
            if ex.stopping:
                ex.slot.settled()
                return None
            lease = self._settle_and_claim(service, None, True)
        return lease

    def _settle_and_claim(
        self, service: Service, settlement: Settlement | None, claim_next: bool
    ) -> Lease | None:
        """Do both in one transaction; what is over its limit is parked in another."""
        ex = self._executor
        group, sizer, now = service.group.id, ex.sizers[service.group.id], wall_clock()
        number, limiter = ex.next_lease(), service.limiter
        want = max(sizer.want, service.batch)
        if ex.limit is not None:
            want = min(want, ex.limit - ex.done)
            claim_next = claim_next and want > 0
        service.turn += claim_next  # only claims count: else the even turns might all be settlements
        who = None if service.claimant is None else Claimant(*service.claimant, want, service.turn)
        request = Request(
            want, ex.worker, ex.child, number, now, service.turn, service.lanes, ex.patient, ordered=who,
            share=1 if service.batch else sizer.share,
        )  # fmt: skip
        if limiter is not None and claim_next:
            request = request._replace(
                want=max(want, limiter.scan if ex.limit is None else 0),
                most_limited=want,
                most_new=limiter.most_new(group),
            )
        settled, crowded = True, False

        def decide(view: View, change: Change) -> Lease | None:
            nonlocal settled, crowded
            if service.stormy:
                ex.storms.within(service, view, change, now, over=True)
            if settlement is not None:
                settled = settle(view, change, settlement)
            crowded = view.order is not None and bool(view.order.waiting)
            if not claim_next:
                return None
            service.rewinds, service.rate = view.settings.get("rewinds", ()), view.settings.get("rate")
            if settlement is not None and settlement.waits:
                return claim_with(view, change, request, settlement.waits_as)
            return claim(view, change, request)

        settles = (settlement.lease,) if settlement else ()
        reads = Reads(group, settles, settings=service.rate is not None)
        if claim_next:
            tasks = self._offer(service)
            reads = Reads(group, settles, True, request.want, 8, now, tasks, ordered=who)
            if limiter is not None or tasks:  # now and then of others, too, whose code has no limits any more
                reads = reads._replace(open=OPEN_BUCKETS)
        elif service.stormy:
            reads = reads._replace(settings=True)
        elif settlement is not None:
            reads = reads._replace(known=ex.known(service, settlement))
        try:
            lease, error = self._tried(service, lambda: ex.transact(reads, decide), claims=claim_next)
        except LogMoved as moved:
            if not claim_next:
                raise  # closed, though we had a lease: it is not ours any more
            self._claim_nothing(service, settlement, moved)
            return None
        if error is not None:
            self._only_settle(service, settlement)
            return None
        if service.stormy:
            ex.storms.told(service)
        if settlement is not None:
            ex.announce(service, settlement, settled)
            put_off = settlement.waits or settlement.limited
            if put_off and lease is not None:  # else this process sees to it that they run in time
                ex.engine.ring(put_off[0].lo >> 40)
        if who is not None:
            self._ring_for_order(lease, crowded=crowded)
        if lease is None:
            ex.slot.settled()
            if claim_next and settlement is None and not reads.tasks:
                service.offered = 0.0  # nothing else to do: there may be some of these
            return None
        claimed = lease
        lease, error = self._tried(service, lambda: self.read(service, claimed, now), claims=True)
        if error is not None:
            ex.rows = []
            ex.put_back(group, claimed)
            ex.slot.settled()
            return None
        return lease

    def _tried(
        self, service: Service, do: Callable[[], Lease | None], *, claims: bool
    ) -> tuple[Lease | None, RespoolError | None]:
        """Do something that needs the service's log; return why that rests now, if it does."""
        if not claims:
            return do(), None
        return self._executor.resting.tried(service.group.id, service.shown, do)

    def _ring_for_order(self, lease: Lease | None, *, crowded: bool) -> None:
        """Wake those who may go on in the partitions that we leave, or of whose keys some are free now."""
        ex = self._executor
        before, self._logs = self._logs, set() if lease is None else {span.lo >> 40 for span in lease.spans}
        for log in before if crowded else before - self._logs:
            ex.engine.ring(log, everyone=True)

    def _claim_nothing(self, service: Service, settlement: Settlement | None, moved: LogMoved) -> None:
        """The log is moved elsewhere: settle what we have, claim no more, and look again after a while."""
        ex = self._executor
        self._only_settle(service, settlement)
        if self._moved != str(moved):
            self._moved = str(moved)
            log.warning("%s", unsent(self._moved))
        ex.host.pause(PATIENCE[-1])

    def _only_settle(self, service: Service, settlement: Settlement | None) -> None:
        if settlement is not None:
            self.next(service, settlement, claim_next=False)
        else:
            self._executor.slot.settled()

    def _offer(self, service: Service) -> tuple[str, ...]:
        """Once a second, ask for calls of our tasks that nobody knew so far (P11)."""
        now = time.monotonic()
        if now - service.offered < 1.0:
            return ()
        service.offered = now
        return tuple(service.runners)

    def read(self, service: Service, lease: Lease, now: float) -> Lease:
        """Read the records of a lease, and return what may start of it now."""
        ex = self._executor
        ex.rows = ex.engine.rows(lease.spans)
        ex.sizers[service.group.id].weighed([len(row[2]) for row in ex.rows[:: len(ex.rows) // 8 + 1]])
        ex.skip = frozenset()
        if service.choice is not None:
            ex.skip = service.choice.left_out(ex.engine, lease.spans, ex.rows)
        ex.limited = []
        if service.stormy:
            ex.rows, ex.limited = ex.storms.part(service, lease, ex.rows, self._looks(service, lease))
        if service.batch or (service.limiter is not None and service.limiter.keyed):
            ex.slot.looks_at(lease.id, service.group.id, [row[0] for row in ex.rows], now)
        if service.limiter is not None:
            lease = self._admit(service, lease, now)
        if service.batch and lease.spans:
            ex.rows = ex.batching.sort(service, lease, ex.rows)
        ex.slot.claimed(lease.id, service.group.id, [row[0] for row in ex.rows], now)
        return lease

    def _looks(self, service: Service, lease: Lease) -> Looks:
        return Looks(self._executor.caller, service, lease, self._executor.skip)

    def _admit(self, service: Service, lease: Lease, now: float) -> Lease:
        """Have the limits let in what they can of a lease; the rest is parked. All in one transaction."""
        ex = self._executor
        limiter = service.limiter
        assert limiter is not None
        asks, ex.keyless, idle = limiter.asks(service, lease, ex.rows, self._looks(service, lease), now)
        if not asks and not idle:
            limiter.looked(0, 0)
            return lease
        most = max(ex.sizers[service.group.id].want, service.batch)
        ids = tuple({*(one.id for ask in asks for one in ask.buckets), *(lease.admitted if idle else ())})
        after: Lease | None = ex.transact(
            Reads(service.group.id, (lease.id,), now=now, buckets=ids),
            lambda view, change: admit(view, change, lease.id, ex.worker, asks, most, now, idle),
        )
        if after is None:
            log.warning("a lease was lost before anything of it was begun")
            ex.rows = []
            return Lease(lease.id, None, lease.child, [])
        kept, before = Finder(after.spans), len(ex.rows)
        ex.rows = [row for row in ex.rows if kept.find(row[0])]
        limiter.looked(before, len(ex.rows))
        if len(ex.rows) < before:
            ex.engine.ring(service.stream.logs[0])  # who sleeps is to know when the next may start
        return after
