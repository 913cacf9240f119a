"""The state is the inner engine's: what depends on where the log begins and ends is told to it here.

The ends are read before the transaction, never within it: they can only have grown since. What is parked
goes into the state with its body, in the transaction that parks it (H15); so do the calls that runs have
made (K4).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from ...delivery.model import Change, NewCall, Position, View
from ...record import Row
from ..base import Reads
from .ahead import KeysMissing
from .asked import KafkaAsked
from .ends import tell_ends
from .parking import NotAtHand, parked_before

T = TypeVar("T")
log = logging.getLogger("respool.engine")


class _NewLog(Exception):
    """A group has got a log that nothing was known of: the lane of a priority that was not used before."""

    def __init__(self, logs: list[int]) -> None:
        super().__init__(logs)
        self.logs = logs


class _Further(Exception):
    """Others have claimed what was known to be there: it is asked how far the log goes."""


class KafkaState(KafkaAsked):
    """What groups know."""

    def transact(self, reads: Reads, decide: Callable[[View, Change], T], *, synced: bool = False) -> T:
        """Lock, read, let `decide` fill the change, write, commit; return what `decide` returned."""
        logs = self.logs_of(reads.group) if reads.positions else ()
        if self._begins and reads.due and reads.ordered is None:
            self._pass_over(reads, logs)
        ends = self.ends_for(reads, logs)
        absent: set[int] = set()
        fetched: dict[int, Row] = {}
        calls: list[NewCall] = []
        to: set[int] = set()  # logs of the outbox
        told: list[tuple[int, int]] = []

        def run(view: View, change: Change) -> T:
            everywhere: list[Position] = []
            if reads.positions:
                new = [at.log for at in view.positions if at.log not in ends.by_log]
                if new:
                    raise _NewLog(new)
                tell_ends(view, ends.by_log)
                everywhere = view.positions
                if not ends.suffice(everywhere):
                    raise _Further
                if reads.due and reads.ordered is None:
                    view.positions = self._stays.among(reads.group, everywhere)
            answer = decide(view, change)
            change.kept = self._to_keep(change.parked, fetched, absent | parked_before(view))
            calls[:] = change.calls
            if calls:
                change.calls = self.outbox.rewritten(calls)
                to.update(call.log for call in change.calls)
            if reads.positions:
                cursors = {at.log: at.cursor for at in everywhere} | dict(change.cursors)
                self._note_cursors(reads.group, cursors)
            if reads.due:
                self._once_parked = parked_before(view)
                if reads.ordered is not None:
                    self._claimed_by_key(reads, view, change)
            if self._lost and change.journal:
                told[:] = self._tell_lost(change)
            return answer

        reads = reads._replace(bare=True)
        if reads.ordered is not None:
            reads = self._by_key(reads, ends.by_log)
            self._read_on(reads, ends.by_log)
        while True:
            try:
                answer = self.inner.transact(reads, run, synced=synced)
                break
            except KeysMissing as missing:
                self._read_keys(missing)
            except _Further:
                ends = self.ends_for(reads, logs, ask=True)
            except _NewLog as found:
                self.forget()
                gone = dict.fromkeys(found.logs, 0)  # unless its stream is there
                ends.by_log.update(gone | ends.by_log | self.ends(self.logs_of(reads.group)))
            except NotAtHand as missing:
                fetched |= self._fetch(missing.positions)
                absent.update(pos for pos in missing.positions if pos not in fetched)
        if told:
            self._forget_lost(told)
        if calls:
            self._relay_now(to, calls)
        return answer

    def _relay_now(self, to: set[int], calls: list[NewCall]) -> None:
        """Send the calls of runs that were just settled. What cannot be sent yet waits for a beat."""
        error = self.outbox.relay(to, calls).why_not(calls)
        if error is not None:  # the settlement stands, whatever it is
            log.warning("calls of runs wait in the state until they can be sent: %s", error)

    def look(self, reads: Reads, decide: Callable[[View, Change], T]) -> T:
        """Return what `decide` would, and write nothing: without a lock."""
        logs = self.logs_of(reads.group) if reads.positions else ()
        ends = self.ends(logs)

        def run(view: View, change: Change) -> T:
            if reads.positions:
                tell_ends(view, ends)
            return decide(view, change)

        if reads.ordered is not None:
            reads = self._by_key(reads, ends)
        while True:
            try:
                return self.inner.look(reads, run)
            except KeysMissing as missing:
                self._read_keys(missing)
