"""The death of a worker or of one of its processes: who is blamed, what goes back (P6, H6, H7)."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from .model import Change, JournalEntry, Lease, Settlement, Verdict, View
from .settle import keep_or_return, settle
from .spans import Span, find, subtract


class Cause(Enum):
    """How a lease came to lose its owner."""

    CHILD = "a child process died under a living supervisor: the record it ran is charged"
    WORKER = "the whole worker died: charged only where the record had been granted singly"
    ORDERED = "we ended it (recycling, shutdown, deploy): nobody is charged"


class Suspect(NamedTuple):
    """The record that was running, and what its task allows."""

    pos: int
    task: str
    max_deliveries: int
    how: str  # how the process died, for people: "killed by SIGKILL (signal 9)"
    error: bytes  # the same as an encoded `WorkerLost`
    started: float = 0.0


def bury_lease(
    view: View,
    change: Change,
    lease_id: int,
    owner: int,
    cause: Cause,
    finished: Settlement | None,
    suspect: Suspect | None,
    now: float,
) -> bool:
    """Return a dead owner's lease: what it had finished is settled, the rest goes back.

    Without a suspect (its shared memory is gone) everything left of a dead worker's lease is suspect:
    it is granted again singly. False where the lease is not that owner's any more.
    """
    lease = view.leases.get(lease_id)
    if lease is None or lease.owner != owner:
        return False
    if finished is not None:
        settled = Change()
        settle(view, settled, finished)
        _absorb(change, settled)
        if not settled.leases:
            return True
        lease = settled.leases[-1]
    left = lease.spans
    span = find(left, suspect.pos) if suspect else None
    if suspect is not None and span is not None:
        left = subtract(left, [(suspect.pos, suspect.pos + 1)])
        back = _charge(change, lease, span, suspect, cause, now)
        if back is not None:
            left = [back, *left]
    elif suspect is None and cause is Cause.WORKER:
        # What had been granted singly was the only one that can have been running: it is charged (H6).
        left = [s._replace(alone=True, deliveries=s.deliveries + s.alone) for s in left]
    keep_or_return(change, lease, left, release=True)
    return True


def _absorb(change: Change, other: Change) -> None:
    """Take over all of a partial decision but the lease itself, which is decided further."""
    change.outcomes += other.outcomes
    change.references += other.references
    if other.results:
        change.results, change.results_at = other.results, other.results_at
        change.results_ordered = other.results_ordered
    change.parked += other.parked
    change.journal += other.journal
    change.calls += other.calls
    change.unprogressed += other.unprogressed
    change.dropped_leases += other.dropped_leases
    for name, by in other.counted.items():
        change.count(name, by)


def _charge(
    change: Change, lease: Lease, span: Span, suspect: Suspect, cause: Cause, now: float
) -> Span | None:
    """Decide about the record that was running: the span to hand out again, None where it is buried."""
    charged = cause is Cause.CHILD or (cause is Cause.WORKER and span.alone)
    one = span.part(suspect.pos, suspect.pos + 1)
    change.unprogressed.append(suspect.pos)  # what it said of itself is not true of the next run
    how = suspect.how if charged or cause is not Cause.ORDERED else f"ended by us: {suspect.how}"
    # A task that may run only once was charged before it ran (H7): any death ends it.
    deliveries = one.deliveries + charged if suspect.max_deliveries > 1 else max(one.deliveries, 1)
    if deliveries >= suspect.max_deliveries and (charged or suspect.max_deliveries <= 1):
        _bury(change, lease, one._replace(deliveries=deliveries), suspect, now)
        return None
    change.journal.append(
        JournalEntry(
            suspect.pos,
            suspect.pos + 1,
            lease.owner,
            lease.child,
            suspect.started,
            now,
            "lost",
            one.retries,
            how,
        )
    )
    return one._replace(deliveries=deliveries, alone=cause is Cause.WORKER or one.alone)


def _bury(change: Change, lease: Lease, one: Span, suspect: Suspect, now: float) -> None:
    verdict = Verdict(
        suspect.pos,
        ending="failure",
        value=suspect.error,
        reason="dead",
        task=suspect.task,
        error=suspect.error,
        note=f"lost: {suspect.how}",
        started=suspect.started,
        ended=now,
    )
    single = View()
    single.leases[lease.id] = Lease(lease.id, lease.owner, lease.child, [one], lease.bodies, lease.since)
    buried = Change()
    settle(single, buried, Settlement(lease.id, lease.owner or 0, [(one.lo, one.hi)], [verdict]))
    buried.dropped_leases.clear()
    _absorb(change, buried)


def charge_before(view: View, change: Change, lease_id: int, owner: int, pos: int) -> bool:
    """Charge a record before its run, for a task that may run only once (H7).

    Written and synced before the task starts; a lease found with it later buries it.
    """
    lease = view.leases.get(lease_id)
    span = find(lease.spans, pos) if lease and lease.owner == owner else None
    if lease is None or span is None:
        return False
    spans: list[Span] = []
    for each in lease.spans:
        if each is not span:
            spans.append(each)
            continue
        charged = span.part(pos, pos + 1)._replace(deliveries=span.deliveries + 1, alone=True)
        spans += [s for s in (span.part(span.lo, pos), charged, span.part(pos + 1, span.hi)) if s.lo < s.hi]
    change.leases.append(Lease(lease.id, owner, lease.child, spans, lease.bodies, lease.since))
    return True
