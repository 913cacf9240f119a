"""What is parked in a partition that is to go is moved aside, to `kept` (H15): in slices: nobody waits.

What a group has yet to finish there is parked or leased: all cursors and gaps are past what lies below the
floor. A slice sees both at one moment, moves what is parked, and notes what is leased, for that may be parked
later. The last slice, under the locks of all groups, has these to look at and no more.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...delivery.spans import Span, intersect, merge
from ..base import Stream
from ..columns import spans_of
from .connection import Db
from .partitions import SIZE
from .sql import GROUP_LOCKS

A_SLICE = 2000  # records in one transaction


class Aside:
    """How far one partition has come; of one process: another begins anew, and finds nothing to move."""

    def __init__(self, start: int) -> None:
        self.start = start
        self._after = start
        self._again: list[tuple[int, int]] = []  # leased when their slice had its turn
        self._is_done = False

    def go_on(self, db: Db, sql: dict[str, bytes], stream: Stream) -> int | None:
        """Move the next slice; return how many, 0: all is moved, None: some is run, and would be missed."""
        if self._is_done:
            return 0
        end = self.start + SIZE
        moved, last, leased = self._move(db, sql, stream, [(self._after, end)], A_SLICE)
        upto = end if last is None else last + 1
        held = intersect(leased, [(self._after, upto)])
        self._again = merge([*self._again, *((span.lo, span.hi) for span in held)])
        self._after = upto
        if last is not None:
            return moved or 1  # another worker has moved them
        left = self.finish(db, sql, stream)
        self._is_done = left is not None
        return left

    def finish(self, db: Db, sql: dict[str, bytes], stream: Stream) -> int | None:
        """Move what was parked after its slice had come and gone; return as `go_on`.

        Under the locks of all groups: nothing is parked or leased meanwhile.
        """
        with db.transaction():
            db.execute(sql["lock_groups"], (GROUP_LOCKS, stream.id))
            moved, _, leased = self._move(db, sql, stream, self._again, None)
            return None if intersect(leased, [(self.start, self.start + SIZE)]) else moved

    def _move(
        self,
        db: Db,
        sql: dict[str, bytes],
        stream: Stream,
        ranges: Sequence[tuple[int, int]],
        limit: int | None,
    ) -> tuple[int, int | None, list[Span]]:
        """Move what is parked in ranges; return how many, where the last lay, and what was leased then."""
        bound = {"los": [lo for lo, _ in ranges], "his": [hi for _, hi in ranges], "limit": limit}
        bound |= {"stream": stream.id, "lo": self.start, "hi": self.start + SIZE}
        row = db.execute(sql["keep_parked"], bound).fetchone()
        assert row is not None
        moved, last, leases = row
        return moved, last, list(spans_of((packed,) for packed in leases))
