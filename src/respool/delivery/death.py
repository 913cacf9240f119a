"""The death of a worker or of one of its processes: who is blamed, what goes back (P6, H6, H7)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import msgspec

from .model import Change, JournalEntry, Lease, Ordering, Settlement, Verdict, View
from .order import key_map, packed_keys
from .settle import keep_or_return, settle
from .spans import Span, count, find, intersect, joined, ranges_of, subtract


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
    holds: bool = False  # as a dead letter it holds up its key (on_dead="block")


def bury_lease(
    view: View,
    change: Change,
    lease_id: int,
    owner: int,
    cause: Cause,
    finished: Settlement | None,
    suspects: Sequence[Suspect],
    now: float,
) -> bool:
    """Return a dead owner's lease: what it had finished is settled, the rest goes back.

    Of the records of a batch, which ran as a whole, none alone can be blamed: they are granted again
    singly. Without suspects (its shared memory is gone) so is everything left of a dead worker's lease.
    False where the lease is not that owner's any more.
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
    if len(suspects) > 1 and suspects[0].max_deliveries > 1:
        left = _suspect_all(change, lease, suspects, cause, now)
    elif suspects:
        left = subtract(left, ranges_of(suspect.pos for suspect in suspects))
        for suspect in suspects:
            span = find(lease.spans, suspect.pos)
            back = _charge(change, lease, span, suspect, cause, now, view.order) if span is not None else None
            if back is not None:
                left = [back, *left]
        if lease.keys:
            left = joined(left)
    elif cause is Cause.WORKER:
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
    change.absorb_limits(other)
    for name, by in other.counted.items():
        change.count(name, by)


def _suspect_all(
    change: Change, lease: Lease, suspects: Sequence[Suspect], cause: Cause, now: float
) -> list[Span]:
    """Charge nobody, and grant each of a batch singly unless we ended it; return what the lease has left."""
    ranges = ranges_of(suspect.pos for suspect in suspects)
    how, started = suspects[0].how, suspects[0].started
    ran = intersect(lease.spans, ranges)
    note = f"{how}, one of a batch of {count(ran)}"
    for span in ran:
        for pos in range(span.lo, span.hi):  # an entry each: that they began is looked up by position
            change.journal.append(
                JournalEntry(pos, pos + 1, lease.owner, lease.child, started, now, "lost", span.retries, note)
            )
            change.unprogressed.append(pos)
    if cause is not Cause.ORDERED:
        ran = [span._replace(alone=True) for span in ran]
    return [*ran, *subtract(lease.spans, ranges)]


def _charge(
    change: Change,
    lease: Lease,
    span: Span,
    suspect: Suspect,
    cause: Cause,
    now: float,
    order: Ordering | None,
) -> Span | None:
    """Decide about the record that was running: the span to hand out again, None where it is buried."""
    charged = cause is Cause.CHILD or (cause is Cause.WORKER and span.alone)
    one = span.part(suspect.pos, suspect.pos + 1)
    change.unprogressed.append(suspect.pos)  # what it said of itself is not true of the next run
    how = suspect.how if charged or cause is not Cause.ORDERED else f"ended by us: {suspect.how}"
    # A task that may run only once was charged before it ran (H7): any death ends it.
    deliveries = one.deliveries + charged if suspect.max_deliveries > 1 else max(one.deliveries, 1)
    if deliveries >= suspect.max_deliveries and (charged or suspect.max_deliveries <= 1):
        _bury(change, lease, one._replace(deliveries=deliveries), suspect, now, order)
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


def _bury(
    change: Change, lease: Lease, one: Span, suspect: Suspect, now: float, order: Ordering | None
) -> None:
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
        holds=suspect.holds,
    )
    single = View()
    key = packed_keys([one], key_map(lease)) if lease.keys else b""
    single.leases[lease.id] = Lease(
        lease.id, lease.owner, lease.child, [one], lease.bodies, lease.since, keys=key
    )
    single.order = order
    buried = Change()
    settle(single, buried, Settlement(lease.id, lease.owner or 0, [(one.lo, one.hi)], [verdict]))
    buried.dropped_leases.clear()
    _absorb(change, buried)


def charge_before(view: View, change: Change, lease_id: int, owner: int, positions: Sequence[int]) -> bool:
    """Charge a record, or those of a batch, before the run, for a task that may run only once (H7).

    Written and synced before the task starts; a lease found with it later buries it.
    """
    lease = view.leases.get(lease_id)
    ranges = ranges_of(positions)
    if lease is None or lease.owner != owner or count(intersect(lease.spans, ranges)) < len(positions):
        return False
    spans: list[Span] = []
    for each in lease.spans:
        charged = [
            span._replace(deliveries=span.deliveries + 1, alone=True) for span in intersect([each], ranges)
        ]
        spans += sorted([*subtract([each], ranges), *charged]) if charged else [each]
    change.leases.append(msgspec.structs.replace(lease, spans=spans))
    return True
