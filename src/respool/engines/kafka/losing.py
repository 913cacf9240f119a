"""What the log has lost before it was run is counted and said, and never taken for done (K1)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from ...delivery.lapse import LOST, lapse
from ...delivery.model import Change, JournalEntry, View
from ...delivery.seek import held
from ...delivery.spans import Span, count, intersect, merge, ranges_of, subtract
from ...errors import EngineUnavailable
from ...record import log_of, offset_of
from ..base import Reads
from .ends import KafkaEnds, tell_ends

log = logging.getLogger("respool.engine")
TRIMMED = "trimmed by the log before it was run"
PASSED_AT_ONCE = 1_000_000  # records that are passed over in one transaction


class KafkaLosing(KafkaEnds):
    """Takes note of what is not there any more, until its lease is settled."""

    def __init__(self) -> None:
        KafkaEnds.__init__(self)
        self._lost: list[tuple[int, int]] = []

    def _lose(self, lo: int, hi: int, kept: Iterable[int]) -> None:
        lost = subtract([Span(lo, hi)], ranges_of(kept))
        if lost:
            place = self.place(log_of(lo))
            log.error(
                "%d record(s) of %s/%d from offset %d on are lost: trimmed before they were done",
                *(count(lost), place.topic, place.partition, offset_of(lo)),
            )
            with self._remembering:
                self._lost += [(span.lo, span.hi) for span in lost]

    def _lose_end(self, lo: int, hi: int) -> None:
        """Take note that a log has lost its end, unless who says so leads it no more.

        Raises: EngineUnavailable where another has led it since: he may have what is missing here.
        """
        place, stream = self.place(log_of(lo)), self.stream_of_log(log_of(lo))
        groups = [group.id for group in self.inner.groups() if group.stream == stream.id]
        newest = self.epochs.newest(self.outbox.group.id, groups, log_of(lo))
        if -1 < self._epochs_seen.get(log_of(lo), -1) < newest:
            raise EngineUnavailable(
                f"{self.options.shown}: topic {place.topic}, partition {place.partition}: a broker answered "
                "that leads it no more; looking again"
            )
        self._lose(lo, hi, ())

    def _pass_over(self, reads: Reads, logs: Sequence[int]) -> None:
        """Have a group go on where its logs begin by now: what was trimmed below is lost to it, all at once.

        That some was trimmed is found by reading the first of it. By claims, as large as what is done has
        them, a week of somebody's events would be lost one by one.
        """
        known = self._cursors.get(reads.group, {})
        behind = [each for each in logs if each in known and known[each] < self._begins.get(each, 0)]
        if not behind:
            return
        starts = self.starts(behind)
        upto = {each: self._first_left(known[each], starts[each]) for each in behind}
        self.inner.reserve([pos for each in behind for pos in (known[each], upto[each])])

        def decide(view: View, change: Change) -> int:
            tell_ends(view, upto)
            if held(view.settings):
                return 0
            lost = lapse(view, change, upto, reads.now)
            self._note_cursors(
                reads.group, {at.log: at.cursor for at in view.positions} | dict(change.cursors)
            )
            return lost

        lost = self.inner.transact(Reads(reads.group, positions=True, now=reads.now, bare=True), decide)
        if lost:
            where = ", ".join(f"{self.place(each).topic}/{self.place(each).partition}" for each in behind)
            log.error("%d record(s) of %s are lost: trimmed before they were done", lost, where)

    def _first_left(self, cursor: int, start: int) -> int:
        """Return where the first record is that a group can have, of those below a log's start: the state
        keeps what is parked, by whatever group (H15)."""
        end = min(start, cursor + PASSED_AT_ONCE)
        return min(self._rows_kept([Span(cursor, end)]), default=end) if end > cursor else cursor

    def _tell_lost(self, change: Change) -> list[tuple[int, int]]:
        """Say of what was trimmed before it was run that it is lost: it must not read as done (H9, K1).

        Returns: of what that is said, once it is written.
        """
        with self._remembering:
            lost = merge(self._lost)
            told = [(e.lo, e.hi) for e in change.journal if e.how == "done"]
            here = intersect([Span(lo, hi) for lo, hi in lost], told)
        if not here:
            return []
        entries: list[JournalEntry] = []
        for entry in change.journal:
            gone = intersect(here, [(entry.lo, entry.hi)]) if entry.how == "done" else []
            left = subtract([Span(entry.lo, entry.hi)], [(s.lo, s.hi) for s in gone])
            entries += [entry._replace(lo=s.lo, hi=s.hi) for s in left]
            entries += [entry._replace(lo=s.lo, hi=s.hi, how="trimmed", note=TRIMMED) for s in gone]
        change.journal[:] = entries
        change.count(LOST, count(here))
        return told

    def _forget_lost(self, told: list[tuple[int, int]]) -> None:
        """Take note that it is written down."""
        with self._remembering:
            self._lost = [(s.lo, s.hi) for s in subtract([Span(*each) for each in self._lost], told)]
