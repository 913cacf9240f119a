"""Batches: how what waits comes together, and whose fault it is when one raises as a whole."""

from __future__ import annotations

from .claim import Request, claim
from .model import LIMITED, WAITING, Change, Lease, View
from .spans import count

MOST_RUNS = 64
"""Runs of parts of one batch, at most: with more culprits than that finds, the rest is run later."""


class Splitting:
    """Finds the items that make a batch fail, by running ever smaller parts of it.

    `part` (lo, hi) is to be run next; how that went is said by `succeeded` or `failed`. Parts come from
    left to right, so all that lies before `part` is decided. One culprit among n costs about 2·log2(n) runs
    more. `part` None: it is over, but for `left`, the items that are to be run later: too many runs were
    needed, or nothing has succeeded in as many as one culprit costs, and so the fault is not an item's.
    """

    def __init__(self, size: int, most: int = MOST_RUNS) -> None:
        self.part: tuple[int, int] | None = (0, size)
        self.left: tuple[int, int] | None = None
        self.progress = False
        """Whether any part has succeeded."""
        self._size = size
        self._ahead: list[tuple[int, int]] = []  # the next last
        self._more = most  # runs that may follow
        self._hope = 2 * size.bit_length() + 2  # runs that may follow while nothing has succeeded

    def succeeded(self) -> None:
        """Take note that the part was run."""
        self.progress = True
        self._next()

    def failed(self) -> bool:
        """Take note that the part raised; say whether it is one item, which is at fault alone."""
        assert self.part is not None
        lo, hi = self.part
        if hi - lo > 1:
            middle = (lo + hi + 1) // 2
            self._ahead += [(middle, hi), (lo, middle)]
        self._next()
        return hi - lo == 1

    def _next(self) -> None:
        self.part = self._ahead.pop() if self._ahead else None
        if self.part is None:
            return
        if not self._more or not (self.progress or self._hope):
            self.left, self.part = (self.part[0], self._size), None
        self._more -= 1
        self._hope -= 1


def claim_with(view: View, change: Change, request: Request, waits_as: int) -> Lease | None:
    """Claim after a settlement that has put something back to wait, together with that where others wait too.

    Else two processes that put back parts of one batch at the same time would each wait for the other. Where
    it is too much for one claim it is left alone, or it would be claimed and put back for ever.
    """
    mine = next((lease for lease in change.leases if lease.id == waits_as), None)
    if mine is None or not _belong_together(view, mine, request.want):
        return claim(view, change, request)
    view.returned.append(mine)
    lease = claim(view, change, request._replace(patient=False))
    again = [each for each in change.leases if each.id == waits_as and each is not mine]
    if again or waits_as in change.dropped_leases:  # some of it was granted, or all
        change.leases = [each for each in change.leases if each is not mine]
    return lease


def _belong_together(view: View, mine: Lease, want: int) -> bool:
    lanes = {at.log: at.priority for at in view.positions}
    lane = lanes.get(mine.spans[0].lo >> 40)
    waiting = [each for each in view.returned if each.owner == WAITING and each.child != LIMITED]
    others = [lease for lease in waiting if lanes.get(lease.spans[0].lo >> 40) == lane]
    return bool(others) and count(mine.spans) + sum(count(lease.spans) for lease in others) <= want
