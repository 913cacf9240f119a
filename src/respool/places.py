"""Where each record of a page is in a group, for many at once."""

from __future__ import annotations

from functools import cached_property

from .delivery.spans import Finder
from .engines.base import Status
from .engines.inspect import GroupPage


class Places:
    """Where each record of a page is in a group: what `engine.status` says, for many at once."""

    def __init__(self, page: GroupPage) -> None:
        self._page = page
        self._parked = {parked.pos: parked for parked in page.parked}
        self._outcomes = {outcome.pos: outcome for outcome in page.outcomes}
        self._spans = [span for lease in page.leases for span in lease.spans]
        self._leased = Finder(self._spans)
        self._lease_of = {span: lease for lease in page.leases for span in lease.spans}

    @cached_property
    def _how(self) -> dict[int, str]:
        """How the last entry of the journal says that each record ended."""
        page, last = self._page, {}
        for lo, hi, how in page.journal:
            for pos in range(max(lo, page.lo), min(hi, page.hi)):
                last[pos] = how
        return last

    @cached_property
    def redriven(self) -> frozenset[int]:
        """Those that were dead letters and were given back."""
        page = self._page
        found = (
            range(max(lo, page.lo), min(hi, page.hi)) for lo, hi, how in page.journal if how == "redriven"
        )
        return frozenset(pos for each in found for pos in each)

    def may_hold(self, state: str | None) -> bool:
        """Say whether a record of the page may be in a state: most pages have nothing rare."""
        if state in ("RETRY", "SCHEDULED"):
            return bool(self._parked)
        if state in ("STARTED", "PROGRESS"):
            return any(span.lo < self._page.hi and span.hi > self._page.lo for span in self._spans)
        if state == "FAILURE":
            dead = any(parked.reason == "dead" for parked in self._parked.values())
            return dead or any(outcome.ending == "failure" for outcome in self._outcomes.values())
        return True

    def status(self, pos: int) -> Status:
        """Return where a record of the page is."""
        outcome, bounds = self._outcomes.get(pos), self._page.bounds
        if pos in self._parked:
            return Status("parked", parked=self._parked[pos], outcome=outcome)
        if outcome is not None:
            return Status("done", outcome=outcome)
        if pos < bounds.start or (bounds.stop is not None and pos >= bounds.stop):
            return Status("outside")
        if pos >= bounds.cursor:
            return Status("pending")
        span = self._leased.find(pos)
        if span is not None:
            return Status("leased", lease=self._lease_of[span])
        return Status("done", how=self._how.get(pos))
