"""Buckets of limits, beside the decisions that use them (`delivery/limits.py`)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ...delivery.limits import Limit
from ...delivery.model import Bucket
from ..columns import buckets_held
from .part import Part
from .sql import SQL


class SQLiteLimits(Part):
    """What limits let in."""

    def limited(self, group: int, most: int) -> int:
        """Return how many records wait for limits, counted up to `most`."""
        with self._reader.lock, self._reader.reading() as db:
            return int(db.execute(SQL["limited_count"], (group, most)).get)

    def buckets(self, ids: Sequence[int]) -> list[Bucket]:
        """Return those of these buckets that are stored."""
        with self._reader.lock, self._reader.reading() as db:
            return [Bucket(*row) for row in db.execute(SQL["buckets_of"], (json.dumps(list(ids)),))]

    def declare_limit(self, rule: str, limit: Limit) -> None:
        """Have the rule's buckets keep this limit from now on."""
        with self._reader.lock, self._reader.reading() as db:
            if not db.execute(SQL["declared"], (rule, *limit)).get:
                return
        with self._writer.lock, self._writer.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            for (one,) in db.execute(SQL["declared"], (rule, *limit)).fetchall():
                db.execute(SQL["declare"], (one, *limit))
                db.execute(SQL["open_bucket"], (one,))
            db.execute("COMMIT")

    def sweep_limits(self, before: float, limit: int) -> int:
        """Forget buckets that are full and were not used since, at most `limit`."""
        with self._reader.lock, self._reader.reading() as db:
            if not db.execute(SQL["unused_buckets"], (before, 1)).get and not db.execute(SQL["is_stuck"]).get:
                return 0  # no write lock for nothing
        with self._state.lock, self._state.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute(SQL["open_all"])
            held = buckets_held(db.execute(SQL["holders"]))
            unused = [one for (one,) in db.execute(SQL["unused_buckets"], (before, limit)).fetchall()]
            gone = [(one,) for one in unused if one not in held]
            db.executemany(SQL["drop_bucket"], gone)
            db.execute("COMMIT")
        return len(gone)
