"""What the inner engine knows by itself, wherever the log is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...delivery.limits import Limit
from ...delivery.model import Bucket, JournalEntry, Lease, NewCall, Outcome, Parked
from ...record import Id
from ..base import Group, ParkedFilter, Status, UniqueLock
from .ordered import KafkaOrdered


class KafkaAsked(KafkaOrdered):
    """Its answers as they are."""

    def next_due(self, group: int, after: float = -1.0) -> float | None:
        """Return when the next of the group's parked records is due."""
        return self.inner.next_due(group, after)

    def lock_of(self, key: str, connection: Any = None) -> UniqueLock | None:
        """Return what a key is taken by, or was."""
        return self.outbox.lock_of(key)

    def append_unique(
        self,
        row: NewCall,
        key: str,
        seen: Id | None,
        until: float | None,
        fence: tuple[int, int] | None = None,
        connection: Any = None,
    ) -> int | None:
        """Append a record and have it take a key: by way of the outbox, where both are stored together."""
        if connection is not None:
            self.enlist(connection)
        pos = self.outbox.append_unique(row, key, seen, until, fence)
        if pos is not None:
            self.inner.ring(row.log)
        return pos

    def sweep_locks(self, now: float, limit: int) -> int:
        """Forget locks of records that have ended, of the next `limit` locks."""
        return self.inner.sweep_locks(now, limit)

    def step_done(self, pos: int, step: str) -> bytes | None:
        """Return what a step of a call gave; None where it was not done."""
        return self.inner.step_done(pos, step)

    def keep_step(self, pos: int, step: str, value: bytes, now: float) -> None:
        """Keep what a step of a call gave."""
        self.inner.keep_step(pos, step, value, now)

    def limited(self, group: int, most: int) -> int:
        """Return how many records wait for limits, counted up to `most`."""
        return self.inner.limited(group, most)

    def buckets(self, ids: Sequence[int]) -> list[Bucket]:
        """Return those of these buckets that are stored."""
        return self.inner.buckets(ids)

    def declare_limit(self, rule: str, limit: Limit) -> None:
        """Have the rule's buckets keep this limit from now on."""
        self.inner.declare_limit(rule, limit)

    def sweep_limits(self, before: float, limit: int) -> int:
        """Forget buckets that are full and were not used since."""
        return self.inner.sweep_limits(before, limit)

    def set_progress(self, group: int, pos: int, value: bytes, fence: tuple[int, int] | None = None) -> None:
        """Keep what a running task says of itself, unless it lost its lease."""
        self.inner.set_progress(group, pos, value, fence)

    def status(self, group: Group, pos: int) -> Status:
        """Return where a record is in a group."""
        return self.inner.status(group, pos)

    def journal(self, group: int, pos: int) -> list[JournalEntry]:
        """Return the entries that cover a position, the oldest first."""
        return self.inner.journal(group, pos)

    def began(self, group: int, ranges: Sequence[tuple[int, int]]) -> set[int]:
        """Return at which positions, of ranges [lo, hi), a run began that ended nothing."""
        return self.inner.began(group, ranges)

    def outcomes(self, group: int, lo: int, hi: int) -> list[Outcome]:
        """Return the outcomes stored for lo <= p < hi."""
        return self.inner.outcomes(group, lo, hi)

    def unfinished(self, group: Group, lo: int, hi: int) -> int:
        """Return how many of lo <= p < hi are not done in a group."""
        return self.inner.unfinished(group, lo, hi)

    def parked(self, chosen: ParkedFilter, limit: int) -> list[tuple[int, Parked]]:
        """Return (group, parked record), the oldest first."""
        return self.inner.parked(chosen, limit)

    def dead_before(self, group: int, task: str | None, before: float, limit: int) -> list[int]:
        """Return where dead letters of a task are that died before a moment."""
        return self.inner.dead_before(group, task, before, limit)

    def leases(self, group: Group) -> list[Lease]:
        """Return a group's leases, the returned ones among them."""
        return self.inner.leases(group)

    def leases_of(self, owner: int) -> list[tuple[int, Lease]]:
        """Return (group, lease) of a worker."""
        return self.inner.leases_of(owner)

    def counters(self, group: int) -> dict[str, int]:
        """Return what was skipped, refused, dropped, lost: counted since the group was made."""
        return self.inner.counters(group)

    def expire_outcomes(self, now: float, limit: int) -> int:
        """Drop the values of outcomes past their `result_ttl`, at most `limit`; return how many."""
        return self.inner.expire_outcomes(now, limit)

    def unknown_tasks(self, group: int) -> set[str]:
        """Return the tasks of records parked as unknown."""
        return self.inner.unknown_tasks(group)
