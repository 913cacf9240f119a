"""Taking work back: what becomes of records that were run, left out, or given back.

A settlement is fenced by its lease: where the lease is no longer the worker's, nothing of the settlement
is written and the refusal is counted (P4). It is idempotent by record: what the supervisor has settled
already is passed over when the child says it again (H2).
"""

from __future__ import annotations

from . import pace
from .limits import give_up, let_go
from .model import LIMITED, WAITING, Change, JournalEntry, Lease, Outcome, Parked, Settlement, Verdict, View
from .order import give_back_in_order, key_map, packed_keys, sort_out
from .spans import Finder, Span, count, intersect, merge, subtract


def settle(view: View, change: Change, settlement: Settlement) -> bool:
    """Write down what a worker says of a lease; False where the lease is not its own any more."""
    lease = view.leases.get(settlement.lease)
    if lease is None or lease.owner != settlement.owner:
        if not settlement.done:
            return True  # nothing to settle: all of it was settled, or given back, before
        change.count("refused settlements")
        return False
    spans, parked = lease.spans, len(change.parked)
    if settlement.verdicts:
        _settle_verdicts(lease, change, settlement)
        if view.settings:
            pace.give_back(view, change, sum(verdict.skipped for verdict in settlement.verdicts))
    if settlement.results:
        _settle_results(lease, change, settlement)
    if not settlement.verdicts and len(spans) == 1 and settlement.done == [spans[0][:2]]:
        span = spans[0]  # the usual case: all of it is done
        change.journal.append(_entry(lease, settlement, span.lo, span.hi, "done", span.retries))
        if lease.admitted:
            let_go(change, lease, ())
        change.dropped_leases.append(lease.id)
        if lease.keys:
            sort_out(view, change, lease, [], parked, settlement.ended)
        return True
    before = count(lease.spans)
    left = subtract(lease.spans, settlement.done)
    if count(left) != before:
        _write_journal(lease, change, settlement)
    if lease.keys:
        left = sort_out(view, change, lease, left, parked, settlement.ended, settlement.limited)
    if settlement.waits:
        left = _let_wait(change, lease, left, settlement.waits, settlement.waits_as, lease.child)
    if settlement.limited:
        left = _let_wait(change, lease, left, settlement.limited, settlement.limited_as, LIMITED)
    keep_or_return(change, lease, left, release=settlement.release)
    return True


def _let_wait(
    change: Change, lease: Lease, left: list[Span], waits: list[Span], number: int, child: int
) -> list[Span]:
    """Put what waits to be run with more in a lease of its own; return what is left of this one."""
    waiting = [
        span._replace(until=wait.until) for wait in waits for span in intersect(left, [(wait.lo, wait.hi)])
    ]
    if waiting:
        since = min(span.until for span in waiting)
        bodies = _bodies(lease, waiting)
        keys = packed_keys(waiting, key_map(lease)) if lease.keys else b""
        if lease.admitted:
            give_up(change, lease, waiting)
        change.leases.append(Lease(number, WAITING, child, waiting, bodies, since, keys=keys))
    return subtract(left, [(wait.lo, wait.hi) for wait in waits])


def give_back(
    view: View, change: Change, lease_id: int, owner: int, ranges: list[tuple[int, int]], new_id: int
) -> int:
    """Make part of a lease ownerless, for whoever comes next (P7); return how many records that are."""
    lease = view.leases.get(lease_id)
    if lease is None or lease.owner != owner:
        return 0
    given = intersect(lease.spans, ranges)
    if not given:
        return 0
    left, parted = subtract(lease.spans, ranges), count(given)
    if lease.keys:
        given = give_back_in_order(change, lease, given, left, lease.since)
    if given:
        keys = packed_keys(given, key_map(lease)) if lease.keys else b""
        bodies = _bodies(lease, given)
        if lease.admitted:
            give_up(change, lease, given)
        change.leases.append(Lease(new_id, None, lease.child, given, bodies, lease.since, keys=keys))
    keep_or_return(change, lease, left, release=False)
    return parted


def keep_or_return(change: Change, lease: Lease, left: list[Span], *, release: bool) -> None:
    """Store what is left of a lease, with its owner or without; drop it where nothing is."""
    admitted = {}
    if lease.admitted:
        admitted = let_go(change, lease, () if release else left)
        if release:
            give_up(change, lease, left)
    if not left:
        change.dropped_leases.append(lease.id)
        return
    bodies = _bodies(lease, left)
    owner = None if release else lease.owner
    keys = packed_keys(left, key_map(lease)) if lease.keys else b""
    change.leases.append(Lease(lease.id, owner, lease.child, left, bodies, lease.since, admitted, keys))


def _bodies(lease: Lease, spans: list[Span]) -> dict[int, bytes]:
    """Return those bodies of a lease that its records in some spans are run with."""
    if not lease.bodies:
        return {}
    held = Finder(spans)
    return {pos: body for pos, body in lease.bodies.items() if held.find(pos)}


def _settle_verdicts(lease: Lease, change: Change, settlement: Settlement) -> None:
    spans, keys = Finder(lease.spans), key_map(lease) if lease.keys else {}
    for verdict in settlement.verdicts:
        span = spans.find(verdict.pos)
        if span is None:
            continue  # settled before, by the supervisor
        _settle_one(lease, span, change, settlement, verdict, keys.get(verdict.pos) or None)


def _settle_results(lease: Lease, change: Change, settlement: Settlement) -> None:
    """Take over what runs returned. Nothing is done for each where all lie in one unbroken span."""
    results, spans = settlement.results, lease.spans
    change.results_at = settlement.ended
    if len(spans) == 1:  # a range is run in order
        change.results_ordered = True
        lo, hi = spans[0][:2]
        if lo <= results[0][0] < hi and lo <= results[-1][0] < hi:  # both: spans are run in any order
            change.results = results
            return
    held = Finder(spans)
    change.results = [result for result in results if held.find(result[0])]


def _settle_one(
    lease: Lease, span: Span, change: Change, settlement: Settlement, verdict: Verdict, key: int | None
) -> None:
    pos, at = verdict.pos, verdict.ended or settlement.ended
    if verdict.progressed:
        change.unprogressed.append(pos)
    if verdict.skipped:
        change.count("skipped")
    if verdict.ending is not None and not (verdict.quiet and verdict.ending == "success"):
        until = None if verdict.ttl is None else at + verdict.ttl
        change.outcomes.append(Outcome(pos, verdict.ending, verdict.value, at, until))
        if verdict.offloaded and verdict.value is not None:
            change.references.append((pos, verdict.value))
    if verdict.reason is not None:
        change.parked.append(
            Parked(
                pos,
                verdict.reason,
                verdict.due,
                verdict.task,
                span.retries + verdict.retried,
                span.deliveries + verdict.charge,
                span.redrives,
                span.alone,
                verdict.body if verdict.body is not None else lease.bodies.get(pos),
                verdict.error,
                at,
                key=-key if key and verdict.reason == "dead" and not verdict.holds else key,
            )
        )
    if verdict.calls:
        change.calls.extend(verdict.calls)
    change.count("calls dropped", verdict.dropped)
    if verdict.note is not None:
        entry = JournalEntry(
            pos,
            pos + 1,
            settlement.owner,
            lease.child,
            verdict.started or settlement.started,
            at,
            verdict.note.partition(":")[0],
            span.retries,
            verdict.note,
        )
        change.journal.append(entry)


def _write_journal(lease: Lease, change: Change, settlement: Settlement) -> None:
    """One row for each unbroken range of done or skipped records; others have rows of their own."""
    apart = [(v.pos, v.pos + 1) for v in settlement.verdicts if v.note is not None or v.reason is not None]
    skipped = [(v.pos, v.pos + 1) for v in settlement.verdicts if v.skipped and v.note is None]
    settled = intersect(lease.spans, settlement.done)
    if skipped:
        _write_ranges(lease, change, settlement, intersect(settled, skipped), "skipped")
    if apart or skipped:
        settled = subtract(settled, [*apart, *skipped])
    _write_ranges(lease, change, settlement, settled, "done")


def _write_ranges(
    lease: Lease, change: Change, settlement: Settlement, settled: list[Span], how: str
) -> None:
    retries = {span.retries for span in settled}
    if retries == {0}:  # the common case: ranges that touch are one row
        runs = [(lo, hi, 0) for lo, hi in merge((span.lo, span.hi) for span in settled)]
    else:
        runs = [(span.lo, span.hi, span.retries) for span in settled]
    for lo, hi, retried in runs:
        change.journal.append(_entry(lease, settlement, lo, hi, how, retried))


def _entry(lease: Lease, settlement: Settlement, lo: int, hi: int, how: str, retries: int) -> JournalEntry:
    owner, child = settlement.owner, lease.child
    return JournalEntry(lo, hi, owner, child, settlement.started, settlement.ended, how, retries)
