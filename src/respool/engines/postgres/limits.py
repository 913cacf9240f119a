"""Buckets of limits, beside the decisions that use them (`delivery/limits.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...delivery.limits import Limit
from ...delivery.model import Bucket
from ..columns import FIRST_BUCKET, slots_held, with_a_slot_free
from .batch import Executes
from .connection import Bounded, one
from .part import Part
from .sql import LIMITS_LOCK


class PostgresLimits(Part):
    """What limits let in."""

    ring_limits: Callable[[Executes, Sequence[int]], None]
    _waits_seen: int = FIRST_BUCKET

    def limited(self, group: int, most: int) -> int:
        """Return how many records wait for limits, counted up to `most`."""
        return int(self._reader.read(lambda db: one(db, self._sql["limited_count"], (group, most))))

    def buckets(self, ids: Sequence[int]) -> list[Bucket]:
        """Return those of these buckets that are stored."""
        return self._reader.read(
            lambda db: [Bucket(*row) for row in db.execute(self._sql["buckets"], (list(ids),))]
        )

    def declare_limit(self, rule: str, limit: Limit) -> None:
        """Have the rule's buckets keep this limit from now on."""
        sql, bound = self._sql, {"rule": rule, **limit._asdict()}
        if self._reader.read(lambda db: one(db, sql["declared"], bound)) is None:
            return

        def declare(db: Bounded) -> None:
            with db.transaction():
                db.execute(sql["lock_limits"], (LIMITS_LOCK,))
                ids = [id for (id,) in db.execute(sql["declared"], bound).fetchall()]
                db.execute(sql["declare"], {**bound, "ids": ids})
                db.execute(sql["open_buckets"], (ids,))
            self.ring_limits(db, ids)

        self._writer.append(declare)

    def sweep_limits(self, before: float, limit: int) -> int:
        """Forget buckets that are full and were not used since, at most `limit`."""
        sql, bound = self._sql, {"before": before, "limit": limit}

        def look(db: Bounded) -> tuple[list[Any], Mapping[int, int], bool]:
            waiting = db.execute(sql["waited_for"], (self._waits_seen, limit)).fetchall()
            held = slots_held(db.execute(sql["holders"])) if waiting else {}
            return waiting, held, one(db, sql["unused_buckets"], bound) is not None

        waiting, held, some = self._reader.read(look)
        self._waits_seen = waiting[-1][0] if len(waiting) == limit else FIRST_BUCKET
        opened = with_a_slot_free(waiting, held)
        if not some and not opened:
            return 0

        def sweep(db: Bounded) -> int:
            with db.transaction():
                db.execute(sql["lock_limits"], (LIMITS_LOCK,))
                if opened:
                    db.execute(sql["slots_freed"], (opened,))
                unused = [id for (id,) in db.execute(sql["unused_buckets"], bound).fetchall()]
                held = slots_held(db.execute(sql["holders"])) if unused else {}
                gone = [id for id in unused if id not in held]
                db.execute(sql["drop_buckets"], (gone,))
            self.ring_limits(db, opened)
            return len(gone)

        return self._state.append(sweep)
