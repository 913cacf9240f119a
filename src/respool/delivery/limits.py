"""How much may start, and how much may run at a time: buckets, and who waits for them.

A bucket is a limit of one task, queue, or key. It has tokens, which come back at a rate and of which each
start takes one, and slots, of which a lease has one for as long as it holds a record that the bucket let in.
A slot is nothing but that: whatever ends the lease frees it, so no death can leak one.

A worker asks for what it has claimed (`admit`); what is over a limit is parked as `limited`, waiting for one
bucket, in its turn. For each group and bucket that is waited for there is a time from which it is worth
looking (`next`), so that nothing spins: a claim takes from the buckets that are open (`offer`, `take`), and a
slot that is freed opens its bucket (`let_go`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from .lanes import lanes_of
from .model import Bucket, Change, Lease, LimitChange, Limits, Parked, View
from .spans import Finder, Span, count, intersect, merge, ranges_of, subtract

GATHER = 0.05  # seconds' worth of starts that a bucket gathers before it opens: claims cost by the batch
DEFAULT_BURST = 0.2  # seconds' worth of starts that may be made up for, where the limit does not say
SKEW = 60.0  # seconds that another machine's clock may be ahead; beyond that ours was set back
_NEARLY = 1e-6  # of a token: rounding is not to cost a start
OPEN = 0.0


class Limit(NamedTuple):
    """A limit as it is declared; see `Bucket`."""

    rate: float | None
    burst: float
    slots: int | None


class Ask(NamedTuple):
    """One record of a lease, and the buckets that have to let it in, as they are declared."""

    pos: int
    task: str
    buckets: tuple[Bucket, ...]


def bucket(rule: str, key: str, limit: Limit, now: float) -> Bucket:
    """Return a bucket that was not used yet. Its number is made of its name, so nobody need look it up."""
    digest = hashlib.blake2b(f"{rule}\0{key}".encode(), digest_size=8).digest()
    return Bucket(int.from_bytes(digest, "big") >> 1, rule, key, *limit, limit.burst, now)


def refilled(one: Bucket, now: float) -> Bucket:
    """Return a bucket with the tokens that it has by now."""
    if one.rate is None:
        return one
    if now < one.at:  # another machine's clock is ahead; or ours was set back, and time goes on from here
        return one if one.at - now <= SKEW else one._replace(at=now)
    return one._replace(tokens=min(one.burst, one.tokens + (now - one.at) * one.rate), at=now)


def opens(one: Bucket, holders: set[int], now: float) -> float | None:
    """Return from when it is worth looking whether a bucket lets something in; None: a slot must be freed."""
    if one.slots is not None and len(holders) >= one.slots:
        return None
    if one.rate is None or one.tokens >= 1 - _NEARLY:
        return OPEN
    return max(one.at, now) + (min(one.burst, 1 + one.rate * GATHER) - one.tokens) / one.rate


def _room(one: Bucket, holders: set[int], lease: int, want: int) -> int:
    """Return how many more records of a lease a bucket lets in."""
    if one.slots is not None and lease not in holders and len(holders) >= one.slots:
        return 0
    return want if one.rate is None else min(int(one.tokens + _NEARLY), want)


def _holders(limits: Limits, change: LimitChange, one: int) -> set[int]:
    """Return who has a slot of a bucket, without those that this very decision takes it from."""
    return limits.holders.get(one, set()) - {lease for lease, freed in change.freed if freed == one}


def _written(change: Change) -> LimitChange:
    if change.limits is None:
        change.limits = LimitChange()
    return change.limits


# What a worker has claimed


def admit(
    view: View,
    change: Change,
    lease_id: int,
    owner: int,
    asks: Sequence[Ask],
    most: int,
    now: float,
    idle: Sequence[int] = (),
) -> Lease | None:
    """Let in what the limits allow of a lease's records, and park the rest, in its turn.

    Parameters:
        most: records to let in, at most: one lease is not to take for long what others could run now.
        idle: records that were let in, and will not be run: their starts did not come to be.

    Returns: the lease with what is left in it, which may be nothing; None where it is not the owner's.
    """
    lease, limits = view.leases.get(lease_id), view.limits
    if lease is None or lease.owner != owner or limits is None:
        return None
    written = _written(change)
    known: dict[int, Bucket] = {}
    let_in = {one: positions(ranges) for one, ranges in lease.admitted.items()}
    for one, held in let_in.items():
        unused = held.intersection(idle)
        if unused:
            held -= unused
            written.refunds[one] = written.refunds.get(one, 0) + len(unused)
    spans = Finder(lease.spans)
    parked: list[Parked] = []
    inside = 0
    for ask in asks:
        span = spans.find(ask.pos)
        if span is None:
            continue
        for declared in ask.buckets:
            if declared.id not in known:
                known[declared.id] = refilled(limits.buckets.get(declared.id, declared), now)
                if declared.id in limits.buckets and known[declared.id].at < limits.buckets[declared.id].at:
                    written.refunds.setdefault(declared.id, 0)  # so that whoever waits for it looks anew
        new = [b.id for b in ask.buckets if ask.pos not in let_in.get(b.id, ())]
        first = len(new) == len(ask.buckets)
        lacking = [one for one in new if _lacks(known[one], limits, written, lease_id, first)]
        if not lacking and inside < most:
            inside += 1
            for one in new:
                known[one] = _spent(known[one], 1)
                limits.holders.setdefault(one, set()).add(lease_id)
                let_in.setdefault(one, set()).add(ask.pos)
            continue
        for b in ask.buckets:  # what it was let in by before is for others, here already
            if b.id not in new:
                let_in[b.id].discard(ask.pos)
                known[b.id] = _spent(known[b.id], -1)
                if b.id in limits.queued:
                    written.next[b.id] = OPEN
        waits = (lacking or new or [ask.buckets[0].id])[0]
        parked.append(_limited(ask, span, lease, waits, now))
        if waits not in limits.queued:
            limits.queued.add(waits)
            written.next[waits] = OPEN
    if parked:
        change.parked += parked
        change.count("limited", len(parked))
    written.buckets.update(known)
    left = subtract(lease.spans, ranges_of(one.pos for one in parked))
    kept = Finder(left)
    after = Lease(
        lease.id,
        lease.owner,
        lease.child,
        left,
        {pos: body for pos, body in lease.bodies.items() if kept.find(pos)},
        lease.since,
        {one: ranges_of(positions) for one, positions in let_in.items() if positions},
    )
    for one in lease.admitted.keys() - after.admitted.keys():
        written.freed.append((lease_id, one))
    for one in written.next:
        if one in known:
            written.next[one] = opens(known[one], _holders(limits, written, one), now)
    if left:
        change.leases.append(after)
    else:
        change.dropped_leases.append(lease.id)
    return after


def _lacks(one: Bucket, limits: Limits, written: LimitChange, lease: int, first: bool) -> bool:
    """Say whether a record has to wait for a bucket: it lets nothing in, or others wait already.

    Those it may pass where it has waited for another bucket before, and what it was let in by goes to the
    next at once if it has to wait: or else two could be sent behind each other for ever.
    """
    return (first and one.id in limits.queued) or not _room(one, _holders(limits, written, one.id), lease, 1)


def _spent(one: Bucket, starts: int) -> Bucket:
    return one if one.rate is None else one._replace(tokens=min(one.burst, one.tokens - starts))


def _limited(ask: Ask, span: Span, lease: Lease, waits: int, now: float) -> Parked:
    return Parked(
        ask.pos,
        "limited",
        None,
        ask.task,
        span.retries,
        span.deliveries,
        span.redrives,
        span.alone,
        lease.bodies.get(ask.pos),
        None,
        now,
        waits,
    )


def positions(ranges: Sequence[tuple[int, int]]) -> set[int]:
    """Return the positions in some ranges."""
    return {pos for lo, hi in ranges for pos in range(lo, hi)}


# What waits


def offer(view: View, change: Change, lease: int, want: int, now: float) -> None:
    """Add to what is due what open buckets let in, of each a fair share; of each lane as if it were alone."""
    limits = view.limits
    assert limits is not None
    written, left = _written(change), want
    hungry = list(limits.waiting)
    for at, one in enumerate(hungry):
        known = limits.buckets.get(one)
        waiting = limits.waiting[one]
        share = -(-left // (len(hungry) - at))
        room = share
        if known is not None:
            before, known = known, refilled(known, now)
            limits.buckets[one] = known
            if known.at < before.at:
                limits.set_back.add(one)
            room = _room(known, _holders(limits, written, one), lease, share)
        for lane in lanes_of(view, waiting):  # which of them is served the claim decides: it is of one (H11)
            view.due += lane[:room]
        left -= min(room, len(waiting))


def take(view: View, change: Change, lease: Lease | None, now: float) -> None:
    """Write down what a lease has of the records that buckets let in, and when each is open again."""
    limits = view.limits
    assert limits is not None
    written = _written(change)
    granted = Finder(lease.spans) if lease is not None else None
    for one, waiting in limits.waiting.items():
        taken = [] if granted is None else [parked.pos for parked in waiting if granted.find(parked.pos)]
        known = limits.buckets.get(one)
        if taken and lease is not None and known is not None:
            limits.holders.setdefault(one, set()).add(lease.id)
            known = written.buckets[one] = _spent(known, len(taken))
            if one in limits.set_back:
                written.refunds.setdefault(one, 0)  # so that the other groups look anew
            lease.admitted = {**lease.admitted, one: ranges_of(taken)}
        if len(taken) == len(waiting) < limits.asked:
            written.passed.append(one)
        elif known is not None:
            written.next[one] = opens(known, _holders(limits, written, one), now)


# What ends


def let_go(change: Change, lease: Lease, left: Sequence[Span]) -> dict[int, list[tuple[int, int]]]:
    """Return what of a lease's admissions is left in some of its spans; slots then free are noted."""
    kept = {}
    for one, ranges in lease.admitted.items():
        still = merge((span.lo, span.hi) for span in intersect(left, ranges))
        if still:
            kept[one] = still
        else:
            _written(change).freed.append((lease.id, one))
    return kept


def give_up(change: Change, lease: Lease, back: Sequence[Span]) -> None:
    """Take back the starts of records that go back: they did not come to be."""
    for one, ranges in lease.admitted.items():
        unused = count(intersect(back, ranges))
        if unused:
            refunds = _written(change).refunds
            refunds[one] = refunds.get(one, 0) + unused
