"""Priorities: which lane a claim is for, by weighted share, so that none starves (H11).

A priority in use is a log of its own, a lane. What is due and what was given back belongs to the lane of its
position, so a retry of a low lane comes after all that is new in a higher one. A lease is of one lane.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from .model import Lease, Parked, Position, View

PATIENCE = 4
"""Claims in a row for which the second lane is passed over; twice as many for the third, and so on."""
RETURNED_OF_LANES = 500  # ownerless leases read at least, so that those of one lane hide no other's
SHARE = 4  # of a lease: what a lane gets that is served before a higher one


class Turns:
    """Keeps the shares of one who claims: how often in a row each lane was passed over.

    A lane is served when no higher one has anything, or after its patience. So a call of priority 9 that
    comes to a backlog of others is next: they were not passed over for it so far.
    """

    def __init__(self) -> None:
        self._passed: dict[int, int] = {}
        self._before: dict[int, int] = {}  # the claim that was decided last
        self._claim = 0

    def begin(self, claim: int) -> None:
        """Begin with a claim, by the number of its lease: one that is decided anew counts once."""
        if claim == self._claim:
            self._passed = self._before.copy()
        else:
            self._claim, self._before = claim, self._passed.copy()

    def choose(self, waiting: Collection[int]) -> int:
        """Return whose turn it is, of the priorities that have something."""
        ranked = sorted(waiting, reverse=True)
        for rank, priority in enumerate(ranked):
            if rank and self._passed.get(priority, 0) >= PATIENCE * rank:
                return priority
        return ranked[0]

    def served(self, chosen: int, waiting: Collection[int]) -> None:
        """Take note of what got a lease, and of the others: they were passed over once more."""
        for priority in waiting:
            self._passed[priority] = 0 if priority == chosen else self._passed.get(priority, 0) + 1


def unread(at: Position) -> int:
    """Return how many records a group has before it in a log."""
    end = at.end if at.stop is None else min(at.end, at.stop)
    unseen = sum(min(hi, end) - lo for lo, hi in at.missing if lo < end)
    return max(end - at.cursor - unseen, 0)


def claim_by_lane(
    view: View, want: int, turns: Turns, claim: Callable[[View, int], Lease | None]
) -> Lease | None:
    """Claim of the lane whose turn it is; of the others where that has something, and none to grant now.

    Parameters:
        claim: claims of what it is shown, which is one lane, at most so many.
    """
    lanes = {at.log: at.priority for at in view.positions}
    waiting = {at.priority for at in view.positions if unread(at)}
    waiting |= {lanes[parked.pos >> 40] for parked in view.due}
    waiting |= {lanes[lease.spans[0].lo >> 40] for lease in view.returned}
    top = max(waiting, default=0)
    while waiting:
        chosen = turns.choose(waiting)
        lane = View()
        lane.leases, lane.gap_room, lane.near = view.leases, view.gap_room, view.near
        lane.positions = [at for at in view.positions if at.priority == chosen]
        lane.due = [parked for parked in view.due if lanes[parked.pos >> 40] == chosen]
        lane.returned = [lease for lease in view.returned if lanes[lease.spans[0].lo >> 40] == chosen]
        lease = claim(lane, want if chosen == top else max(want // SHARE, 1))
        if lease is not None:
            turns.served(chosen, waiting)
            return lease
        waiting.discard(chosen)
    return None


def has_lanes(view: View) -> bool:
    """Say whether a group reads logs of several priorities, rather than one, or partitions of one."""
    positions = view.positions
    return len(positions) > 1 and any(at.priority != positions[0].priority for at in positions)


def lanes_of(view: View, parked: Sequence[Parked]) -> list[list[Parked]]:
    """Return parked records by lane, the highest first, each in their order."""
    if not has_lanes(view):
        return [[*parked]]
    lanes = {at.log: at.priority for at in view.positions}
    found: dict[int, list[Parked]] = {}
    for each in parked:
        found.setdefault(lanes[each.pos >> 40], []).append(each)
    return [found[priority] for priority in sorted(found, reverse=True)]


def ranges_of_lanes(view: View) -> list[tuple[int, int]]:
    """Return the positions lo <= p < hi that a group's lanes are within; all in one where it has none."""
    if not has_lanes(view):
        return [(0, 1 << 63 - 1)]
    logs: dict[int, list[int]] = {}
    for at in view.positions:
        logs.setdefault(at.priority, []).append(at.log)
    return [(min(lane) << 40, max(lane) + 1 << 40) for lane in logs.values()]


def due_of_lanes(
    view: View, logs: Sequence[int], want: int, read: Callable[[int, int], list[Parked]]
) -> list[Parked]:
    """Return what is due in some logs: of each lane `want` at most, the earliest first.

    Each partition of a lane gets its share of that first; what the others do not need is left to it.

    Parameters:
        read: returns what is due in a log, the earliest first, at most so many.
    """
    if len(logs) == 1:  # the usual case
        return read(logs[0], want)
    lanes = {at.log: at.priority for at in view.positions}
    found: list[Parked] = []
    for lane in sorted({lanes[log] for log in logs}, reverse=True):
        partitions = [log for log in logs if lanes[log] == lane]
        share = max(want // len(partitions), 1)
        of_lane: list[Parked] = []
        full = []
        for log in partitions:
            part = read(log, share)
            of_lane += part
            if len(part) == share:
                full.append((log, share))
        for log, known in full:
            more = want - len(of_lane)
            if more > 0:
                of_lane += read(log, known + more)[known:]
        found += sorted(of_lane, key=_due)[:want]
    return found


def _due(parked: Parked) -> float:
    return parked.due or 0.0
