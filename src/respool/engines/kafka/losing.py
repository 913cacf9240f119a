"""What the log has lost before it was run is counted and said, and never taken for done (K1)."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ...delivery.lapse import LOST
from ...delivery.model import Change, JournalEntry
from ...delivery.spans import Span, count, intersect, merge, ranges_of, subtract
from ...record import log_of, offset_of
from .ends import KafkaEnds

log = logging.getLogger("respool.engine")
TRIMMED = "trimmed by the log before it was run"


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
