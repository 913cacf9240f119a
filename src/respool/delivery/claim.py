"""Handing out work: which records a worker is granted next.

A claim moves the cursor over a range without looking at a record of it, so that a claim of a thousand
costs what a claim of one costs. Records that are not to run now (due later, unknown, expired) are found
by the worker as it reads them, and come back as verdicts.
"""

from __future__ import annotations

from typing import NamedTuple

from .granting import claim_in_order
from .lanes import Turns, claim_by_lane, has_lanes, unread
from .limits import offer
from .limits import take as take_admitted
from .model import LIMITED, MAX_LEASE, WAITING, Change, Lease, Parked, Position, View
from .order import Claimant
from .pace import allowed, spent
from .seek import held
from .spans import Span, count, joined, take


class Request(NamedTuple):
    """What a worker asks for: `want` records, for its child number `child`, under a new lease id.

    `turn` counts the child's claims; it decides who goes first where there is not enough for all (H11).
    `lanes` keeps the shares of priorities; without it the first lane that has something is served.
    `ordered` says that no two records of one key are to be run at once, or out of order (P8).
    """

    want: int
    owner: int
    child: int
    lease: int
    now: float
    turn: int = 0
    lanes: Turns | None = None
    patient: bool = True  # leave alone what waits for more, unless there is more or its time has come
    most_new: int = MAX_LEASE  # of them, records that nobody has seen yet, at most
    most_limited: int = MAX_LEASE  # of them, records that waited for limits, at most
    ordered: Claimant | None = None
    share: int = 1  # of the last new records, one in so many at once: the rest is for others, who may be free


def claim(view: View, change: Change, request: Request) -> Lease | None:
    """Grant up to `request.want` records; None where there is nothing to do.

    A lease is of one lane, chosen by priority and share. In it what is due, what was given back and what is
    new each get a third of the lease, and what one does not need goes to the others: a storm of retries
    cannot stop new work, nor the other way round (H11).
    """
    want = min(request.want, MAX_LEASE)
    if view.limits is None:
        return _claim(view, change, request, want)
    offer(view, change, request.lease, min(want, request.most_limited), request.now)
    lease = _claim(view, change, request, want)
    take_admitted(view, change, lease, request.now)
    return lease


def _claim(view: View, change: Change, request: Request, want: int) -> Lease | None:
    if view.settings:
        return _claim_as_set(view, change, request, want)
    return _claim_by_lane(view, change, request, want)


def _claim_as_set(view: View, change: Change, request: Request, want: int) -> Lease | None:
    """Claim for a group that may be held, or have a rate."""
    if held(view.settings):
        return None
    pace = allowed(view, change, request.now)
    if pace is None:
        return _claim_by_lane(view, change, request, want)
    most, bucket = pace
    lease = _claim_by_lane(view, change, request, min(want, most)) if most else None
    if lease is not None:
        spent(change, bucket, count(lease.spans))
    return lease


def _claim_by_lane(view: View, change: Change, request: Request, want: int) -> Lease | None:
    if view.order is not None and request.ordered is not None:
        return claim_in_order(view, change, request, want)
    if view.returned:
        _let_wait(view, request.now, patient=request.patient)
    if not has_lanes(view):
        return _claim_of_lane(view, change, request, want)
    turns = request.lanes or Turns()
    turns.begin(request.lease)
    return claim_by_lane(view, want, turns, lambda lane, most: _claim_of_lane(lane, change, request, most))


def _claim_of_lane(view: View, change: Change, request: Request, want: int) -> Lease | None:
    most_new = request.most_new
    if request.share > 1:
        most_new = min(most_new, fair(view, want, request.share))
    if not view.due and not view.returned:  # the usual case: no shares to be made
        lease = Lease(request.lease, request.owner, request.child, [], {}, request.now)
        return _granted(view, min(want, most_new), change, lease, request.turn)
    alone = _claim_alone(view, change, request)
    if alone is not None:
        return alone
    due = [parked for parked in view.due if not parked.alone]
    returned = [(lease, [s for s in lease.spans if not s.alone]) for lease in view.returned]
    available = (
        len(due),
        sum(count(spans) for _, spans in returned),
        min(sum(unread(p) for p in view.positions), most_new),
    )
    from_due, from_returned, from_new = shares(want, available, request.turn)
    lease = Lease(request.lease, request.owner, request.child, [], {}, request.now)
    _take_due(due[:from_due], change, lease)
    _take_returned(returned, from_returned, change, lease)
    return _granted(view, from_new, change, lease, request.turn)


def fair(view: View, want: int, share: int) -> int:
    """Return how many of the new records are to be taken at once, where they take long.

    One in `share` of those that are left, lest one worker has some to run while others find nothing more.
    """
    left = sum(unread(at) for at in view.positions)
    return want if view.near and left >= want else max(-(-left // share), 1)


def _let_wait(view: View, now: float, *, patient: bool) -> None:
    """Leave out what is limited, and what waits for more where its lane has nothing else, before its time."""
    waiting = [lease for lease in view.returned if lease.owner == WAITING and lease.since > now]
    if not waiting:
        return
    if any(lease.child == LIMITED for lease in waiting):
        view.returned = [each for each in view.returned if each.child != LIMITED or each not in waiting]
        waiting = [lease for lease in waiting if lease.child != LIMITED]
    if not patient:
        return
    lanes = {at.log: at.priority for at in view.positions}
    more = {at.priority for at in view.positions if unread(at)}
    more |= {lanes[parked.pos >> 40] for parked in view.due}
    more |= {lanes[lease.spans[0].lo >> 40] for lease in view.returned if lease not in waiting}
    view.returned = [
        lease for lease in view.returned if lease not in waiting or lanes[lease.spans[0].lo >> 40] in more
    ]


def _granted(view: View, from_new: int, change: Change, lease: Lease, turn: int) -> Lease | None:
    """Add what is new to a lease and grant it; None where there is nothing in it."""
    _take_new(view, from_new, change, lease, turn)
    if not lease.spans:
        return None
    change.leases.append(lease)
    return lease


def shares(want: int, available: tuple[int, int, int], turn: int) -> tuple[int, ...]:
    """Split `want` among three sources by thirds, what one cannot fill going to the others.

    The source that comes first, and gets what cannot be split evenly, changes with `turn`.
    """
    given = [0, 0, 0]
    left = min(want, sum(available))
    while left:
        hungry = [s for s in ((turn + step) % 3 for step in range(3)) if given[s] < available[s]]
        each = max(left // len(hungry), 1)
        for source in hungry:
            more = min(available[source] - given[source], each, left)
            given[source] += more
            left -= more
    return tuple(given)


def _claim_alone(view: View, change: Change, request: Request) -> Lease | None:
    """Grant one record singly where one is to be run so, and it is its turn or there is nothing else."""
    suspects = [(parked, None) for parked in view.due if parked.alone]
    suspects += [(s, lease) for lease in view.returned for s in lease.spans if s.alone]  # type: ignore[misc]
    if not suspects:
        return None
    other = (
        any(not parked.alone for parked in view.due)
        or any(not s.alone for lease in view.returned for s in lease.spans)
        or any(unread(p) for p in view.positions)
    )
    if other and request.turn % 2:
        return None
    suspect, source = suspects[0]
    granted = Lease(request.lease, request.owner, request.child, [], {}, request.now)
    if source is None:
        assert isinstance(suspect, Parked)
        _take_due([suspect], change, granted)
    else:
        assert isinstance(suspect, Span)
        granted.spans = [suspect.part(suspect.lo, suspect.lo + 1)]
        rest = [s for s in source.spans if s is not suspect]
        if suspect.hi - suspect.lo > 1:
            rest.append(suspect.part(suspect.lo + 1, suspect.hi))
        _shrink(source, rest, granted, change)
    change.leases.append(granted)
    return granted


def _take_due(due: list[Parked], change: Change, lease: Lease) -> None:
    lease.spans += joined(parked.span() for parked in due)
    for parked in due:
        if parked.body is not None:
            lease.bodies[parked.pos] = parked.body
        change.unparked.append(parked.pos)


def _take_returned(returned: list[tuple[Lease, list[Span]]], want: int, change: Change, lease: Lease) -> None:
    for source, spans in returned:
        if not want:
            return
        taken, rest = take(spans, want)
        want -= count(taken)
        lease.spans += taken
        _shrink(source, rest + [s for s in source.spans if s.alone], lease, change)


def _shrink(source: Lease, rest: list[Span], target: Lease, change: Change) -> None:
    """Leave `rest` in a returned lease; the bodies of what was taken go along."""
    kept: dict[int, bytes] = {}
    for pos, body in source.bodies.items():
        left_here = any(span.lo <= pos < span.hi for span in rest)
        (kept if left_here else target.bodies)[pos] = body
    if rest:
        change.leases.append(Lease(source.id, source.owner, source.child, rest, kept, source.since))
    else:
        change.dropped_leases.append(source.id)


def _take_new(view: View, want: int, change: Change, lease: Lease, turn: int) -> None:
    """Advance the cursors, beginning with another log each turn."""
    positions = view.positions
    for step in range(len(positions)):
        if not want:
            return
        at = positions[(turn + step) % len(positions)]
        size = min(unread(at), want)
        if not size:
            continue
        if at.missing:
            want -= _take_between_gaps(view, at, size, change, lease)
        else:
            lease.spans.append(Span(at.cursor, at.cursor + size))
            change.cursors.append((at.log, at.cursor + size))
            want -= size


def _take_between_gaps(view: View, at: Position, size: int, change: Change, lease: Lease) -> int:
    """Take what is seen of a log, and keep what is not as gaps; return how many records that is.

    Where there is no room for another gap, the cursor waits before it.
    """
    cursor, left = at.cursor, size
    for lo, hi in (*at.missing, (at.end, at.end)):
        if lo > cursor and left:
            taken = min(lo - cursor, left)
            lease.spans.append(Span(cursor, cursor + taken))
            cursor, left = cursor + taken, left - taken
        if not left or cursor < lo:
            break
        if hi > lo:
            if view.gap_room <= 0:
                break
            view.gap_room -= 1
            change.gaps.append((lo, hi))
            cursor = hi
    if cursor > at.cursor:
        change.cursors.append((at.log, cursor))
    return size - left
