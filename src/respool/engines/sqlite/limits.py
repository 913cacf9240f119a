"""Buckets of limits, beside the decisions that use them (`delivery/limits.py`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from ...delivery.limits import Limit
from ...delivery.model import Bucket, Change
from ..columns import FIRST_BUCKET, slots_held, with_a_slot_free
from .bell_page import Kind
from .doorbell import Doorbell
from .part import Part
from .sql import SQL


class SQLiteLimits(Part):
    """What limits let in."""

    bell: Doorbell
    ring: Callable[..., None]
    _waits_seen: int = FIRST_BUCKET

    def ring_limits(self, buckets: Sequence[int]) -> None:
        """Wake workers that sleep and serve a group of which records wait for one of these buckets."""
        if not buckets or not self.bell.asleep(Kind.WORKER):
            return
        with self._reader.lock, self._reader.reading() as db:
            logs = [log for (log,) in db.execute(SQL["logs_waiting"], (json.dumps(list(buckets)),))]
        for log in logs:
            self.ring(log, everyone=True)

    def ring_freed(self, change: Change) -> None:
        """Wake workers that sleep and serve records for which something is free now, by what was written."""
        for log in change.freed_logs():
            self.ring(log, everyone=True)
        self.ring_limits(change.freed_buckets())

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
            changed = [one for (one,) in db.execute(SQL["declared"], (rule, *limit)).fetchall()]
            for one in changed:
                db.execute(SQL["declare"], (one, *limit))
                db.execute(SQL["open_bucket"], (one,))
            db.execute("COMMIT")
        self.ring_limits(changed)

    def sweep_limits(self, before: float, limit: int) -> int:
        """Forget buckets that are full and were not used since, at most `limit`."""
        with self._reader.lock, self._reader.reading() as db:
            waiting = db.execute(SQL["waited_for"], (self._waits_seen, limit)).fetchall()
            held = slots_held(db.execute(SQL["holders"])) if waiting else {}
            some = db.execute(SQL["unused_buckets"], (before, 1)).get
        self._waits_seen = waiting[-1][0] if len(waiting) == limit else FIRST_BUCKET
        opened = with_a_slot_free(waiting, held)
        if not some and not opened:
            return 0  # no write lock for nothing
        with self._state.lock, self._state.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(SQL["slot_freed"], [(one,) for one in opened])
            unused = [one for (one,) in db.execute(SQL["unused_buckets"], (before, limit)).fetchall()]
            held = slots_held(db.execute(SQL["holders"])) if unused else {}
            gone = [(one,) for one in unused if one not in held]
            db.executemany(SQL["drop_bucket"], gone)
            db.execute("COMMIT")
        self.ring_limits(opened)
        return len(gone)
