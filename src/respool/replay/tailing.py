"""What comes to a queue or stream, as it comes: read at its end, and at what its end has passed over."""

from __future__ import annotations

from ..delivery.spans import Span
from ..engines.base import Engine, Record, Stream
from ..record import first_pos

PAGE = 1_000  # records read together
NEAR = 100  # positions before the end at which what is missing may yet come
MOST_GAPS = 1_000  # ranges that are looked at again; those passed over first are given up first

Range = tuple[int, int]


class Tail:
    """Reads on where a stream ends.

    Where numbers are given before records can be seen, one may appear behind others that were read: what is
    missing is looked for again (G4). A partition made later is read from its beginning (H10).

    >>> tail = Tail(engine, stream)  # doctest: +SKIP
    >>> tail.look()  # doctest: +SKIP
    []
    """

    def __init__(self, engine: Engine, stream: Stream) -> None:
        self.stream = stream
        self._engine = engine
        self._bounds = {log: (first, end) for log, first, end in engine.bounds(stream)}
        self._next = {log: end for log, (_, end) in self._bounds.items()}
        self._gaps: list[Range] = []

    def last(self, number: int) -> list[Record]:
        """Return so many of the newest records from before this was made, the oldest first.

        To be called once: what is missing among them is looked for from then on.
        """
        found: list[Record] = []
        for first, end in self._bounds.values():
            lo = max(first, end - max(number, NEAR))
            page = self._engine.records(lo, end, end - lo)
            self._keep(self._pass_over(lo, page), end)
            found += page
        return _by_time(found)[-number:] if number else []

    def look(self) -> list[Record]:
        """Return what has come since the last look, the oldest first."""
        found = self._late() if self._gaps else []
        now = next((each for each in self._engine.streams() if each.id == self.stream.id), None)
        if now is None:  # dropped
            return found
        self.stream = now
        for log, first, end in self._engine.bounds(now):
            at = max(self._next.get(log, first_pos(log)), first)
            while at < end:
                page = self._engine.records(at, end, PAGE)
                at = self._pass_over(at, page)
                if len(page) < PAGE:
                    self._keep(at, end)
                    at = max(at, end)
                found += page
            self._next[log] = at
        return _by_time(found)

    def _pass_over(self, at: int, page: list[Record]) -> int:
        """Keep in mind what is missing among records; return where they end."""
        for record in page:
            self._keep(at, record.pos)
            at = record.pos + 1
        return at

    def _keep(self, lo: int, hi: int) -> None:
        if lo < hi:
            self._gaps.append((lo, hi))
            del self._gaps[:-MOST_GAPS]

    def _late(self) -> list[Record]:
        """Return what has appeared since where something was missing."""
        gaps, self._gaps = self._gaps, []
        there = {row[0] for row in self._engine.rows([Span(lo, hi) for lo, hi in gaps])}
        found: list[Record] = []
        for lo, hi in gaps:
            here = any(lo <= pos < hi for pos in there)
            page = self._engine.records(lo, hi, hi - lo) if here else []
            self._keep(self._pass_over(lo, page), hi)
            found += page
        return found


def _by_time(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record.time, record.pos))
