"""The log in PostgreSQL: reading and finding.

A number is given out when a record is inserted, and seen when its transaction commits: records come to be
seen out of order. Who reads on past a number that is missing keeps it as a gap; see `gaps.py` (G1 to G4).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from ...delivery.model import Change
from ...delivery.spans import Span, count, ranges_of
from ...record import NO_META, Id, Row, id_of, read_meta
from .. import stored_id
from ..base import Reads, Record, Stream
from ..columns import in_micros
from .batch import Batch, Reply
from .connection import Bounded
from .ids import find, id_from, may_be_member
from .part import Part
from .windows import within

_MICRO = 1_000_000


class PostgresLog(Part):
    """Reads, on the connections that do not append."""

    _ahead: tuple[list[Span], list[Reply]] | None = None  # of the lease that was claimed last

    def read_ahead(self, batch: Batch, reads: Reads, change: Change) -> None:
        """Have the records of a lease come along with the claim: `rows` is what is asked next."""
        claimed = [lease.spans for lease in change.leases if lease.owner and lease.id not in reads.leases]
        self._ahead = None
        if len(claimed) == 1:
            asked = [batch.execute(self._sql["rows"], span[:2], binary=True) for span in claimed[0]]
            self._ahead = list(claimed[0]), asked

    def forget_ahead(self) -> None:
        """Forget what came along: it may not have."""
        self._ahead = None

    def rows(self, spans: Iterable[Span]) -> list[Row]:
        """Return the records that exist in the spans, in the spans' order."""
        wanted = list(spans)
        ahead, self._ahead = self._ahead, None

        def run(db: Bounded) -> list[Any]:
            if len(wanted) == 1:
                span = wanted[0]
                return db.batch.run(self._sql["rows"], (span.lo, span.hi), binary=True).fetchall()
            with db.batch as batch:
                replies = [
                    batch.execute(self._sql["rows"], (span.lo, span.hi), binary=True) for span in wanted
                ]
                batch.sync()
            return [row for reply in replies for row in reply.fetchall()]

        if ahead is not None and ahead[0] == wanted:
            replies = ahead[1]  # loaded under the connection's lock, as all that it has read
            found: list[Any] = self._state.read(lambda db: [row for r in replies for row in r.fetchall()])
        else:
            found = self._state.read(run)
        if len(found) < count(wanted):
            found = self._state.read(lambda db: self._with_kept(db, wanted, found))
        return found

    def _with_kept(self, db: Bounded, spans: list[Span], found: list[Any]) -> list[Any]:
        """Add what was parked when its partition was dropped, in the spans' order (H15)."""
        places = sorted(row[0] for row in found)
        short = [span for span in spans if _between(places, span) < span.hi - span.lo]
        bounds = [span.lo for span in short], [span.hi for span in short]
        kept = {row[0]: row for row in db.batch.run(self._sql["rows_kept"], bounds, binary=True).fetchall()}
        if not kept:
            return found
        by_pos = {row[0]: row for row in found} | kept
        order = sorted(by_pos)
        return [
            by_pos[pos]
            for span in spans
            for pos in order[bisect_left(order, span.lo) : bisect_left(order, span.hi)]
        ]

    def records(self, lo: int, hi: int, limit: int) -> list[Record]:
        """Return the first `limit` records at lo <= p < hi in full."""
        bound = {"lo": lo, "hi": hi, "limit": limit}
        found = self._reader.read(lambda db: db.execute(self._sql["records"], bound, binary=True).fetchall())
        return [
            Record(
                pos,
                id_of(id_from(head), seq),
                micros / _MICRO,
                task,
                body,
                read_meta(meta) if meta else NO_META,
            )
            for pos, task, body, meta, seq, head, micros in found
        ]

    def find(self, namespace: str, id: Id) -> int | None:
        """Return the position of the record with this id."""
        stored = stored_id(namespace, id)
        by_id = "by_id" if may_be_member(stored) else "by_id_there"
        sql = self._sql | {"by_id": self._sql[by_id]}
        return self._reader.read(lambda db: find(db, sql, stored))

    def run_spans(self, head: bytes, size: int) -> list[tuple[int, int]] | None:
        """Return the ranges of positions that a run takes; others' records may lie between."""

        def run(db: Bounded) -> list[tuple[int, int]] | None:
            entries = db.execute(
                self._sql["run_parts"], (head, id_of(head, size - 1)), binary=True
            ).fetchall()
            if not entries or entries[0][2] != head:
                return None
            found: list[tuple[int, int]] = []
            for first, last, id in entries:
                places = [(first, last + 1)]
                if len(entries) > 1 or last - first != size - 1:
                    own = db.execute(self._sql["run_positions"], (first, last, id), binary=True).fetchall()
                    places = ranges_of(pos for (pos,) in own)
                found += places
            return found

        return self._reader.read(run)

    def window(self, stream: Stream, since: float | None, until: float | None) -> list[tuple[int, int, int]]:
        """Return (log, first, one past the last) position of what has a time in since <= t < until."""
        bounds = self.bounds(stream)
        if since is None and until is None:
            return bounds
        low, high = in_micros(since, until)

        def run(db: Bounded) -> list[tuple[int, int, int]]:
            return [(log, *within(db, self._sql, first, end, low, high)) for log, first, end in bounds]

        return self._reader.read(run)

    def outside(self, spans: Iterable[Span], since: float | None, until: float | None) -> list[int]:
        """Return the positions in the spans whose time is not in since <= t < until."""
        times, wanted = in_micros(since, until), list(spans)
        return self._reader.read(
            lambda db: [
                pos
                for span in wanted
                for (pos,) in db.execute(self._sql["outside"], (span.lo, span.hi, *times)).fetchall()
            ]
        )

    def bounds(self, stream: Stream) -> list[tuple[int, int, int]]:
        """Return (log, first, one past the last) position there is to be seen."""
        return self._reader.read(lambda db: db.execute(self._sql["bounds"], (stream.id,)).fetchall())


def _between(places: list[int], span: Span) -> int:
    """Return how many of the places, which are sorted, lie in a span."""
    return bisect_left(places, span.hi) - bisect_left(places, span.lo)
