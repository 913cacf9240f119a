"""What limits mean for a worker: which of its records they concern, and how much it should look at."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..delivery.limits import Ask, Limit, bucket, positions
from ..delivery.model import MAX_LEASE, Bucket, Lease
from ..delivery.sizing import LARGEST
from ..errors import BadArguments, BlobLost, BlobsUnavailable, CorruptBody
from ..record import NO_META, Row, unpack_meta
from ..reference import is_reference

if TYPE_CHECKING:
    from ..callkeys import CallKey
    from ..engines.base import Engine
    from .looking import Looks
    from .services import Runner, Service

OPEN_BUCKETS = 64  # looked at in one claim
_GROWTH = 4
_SHARE = 0.1  # of its time that a worker may spend counting what waits


class Rule(NamedTuple):
    """A limit, whose it is, and by which key of a call, if by any."""

    name: str
    limit: Limit
    key: CallKey | None = None


class Limiter:
    """The limits of one service: None of its records is run before its buckets have let it in."""

    def __init__(self, engine: Engine, rules: dict[str, Rule], queue: Rule | None, cap: int) -> None:
        self._engine, self._by_task, self._queue, self._cap = engine, rules, queue, cap
        self.scan = 1
        """How many new records to look at in the next claim, where most of those in the last had to wait."""
        self.full = False
        """Whether so many records wait for limits that the cursor does, too."""
        self._count_at = 0.0
        self._waiting = 0  # as of the last count, and what we have put aside since
        self._fresh: dict[tuple[str, str], Bucket] = {}
        for rule in self.rules:
            engine.declare_limit(rule.name, rule.limit)

    @property
    def rules(self) -> list[Rule]:
        """All limits there are."""
        return [*self._by_task.values(), *([self._queue] if self._queue is not None else [])]

    @property
    def keyed(self) -> bool:
        """Whether a function of the user's says whose limit a call is under."""
        return any(rule.key is not None for rule in self._by_task.values())

    def most_new(self, group: int) -> int:
        """Return how many new records may be claimed: none where the cap on those that wait is reached."""
        now = time.monotonic()
        if now >= self._count_at:
            self._waiting = self._engine.limited(group, self._cap)
            self._count_at = time.monotonic() + max(0.1, (time.monotonic() - now) / _SHARE)
        self.full = self._waiting >= self._cap
        return 0 if self.full else MAX_LEASE

    def looked(self, records: int, ready: int) -> None:
        """Take note of how much of a lease was let in: what only has to be parked is claimed in bulk."""
        self._waiting += records - ready
        self.scan = min(max(records, 1) * _GROWTH, LARGEST) if ready * 2 < records else 1

    def asks(
        self, service: Service, lease: Lease, rows: Sequence[Row], looks: Looks, now: float
    ) -> tuple[list[Ask], dict[int, Exception], list[int]]:
        """Return what is to be let in of a lease.

        And of which records nobody can tell for which limit, and which were let in and will not be run: what
        expired while it waited, say. What would not be run takes no start from others.
        """
        asks: list[Ask] = []
        keyless: dict[int, Exception] = {}
        idle: list[int] = []
        admitted = {one: positions(ranges) for one, ranges in lease.admitted.items()}
        get, by_task, queue = service.runner, self._by_task, self._queue
        self._fresh.clear()
        for row in rows:
            pos, task, body, packed = row
            runner = get(task)
            if runner is None or (queue is None and runner.name not in by_task):
                continue
            if not looks.would_run(runner, row):
                if any(pos in positions for positions in admitted.values()):
                    idle.append(pos)
                continue
            buckets = []
            rule = by_task.get(runner.name)
            if rule is not None:
                try:
                    key = (
                        ""
                        if rule.key is None
                        else _key(rule.key, runner, lease.bodies.get(pos, body), packed)
                    )
                except (BlobLost, BlobsUnavailable):
                    continue  # it cannot be run either, and that says what becomes of it
                except (BadArguments, CorruptBody) as error:
                    keyless[pos] = error
                    continue
                buckets.append(self._bucket(rule, key, now))
            if queue is not None:
                buckets.append(self._bucket(queue, "", now))
            if not all(pos in admitted.get(one.id, ()) for one in buckets):
                asks.append(Ask(pos, task, tuple(buckets)))
        return asks, keyless, idle

    def _bucket(self, rule: Rule, key: str, now: float) -> Bucket:
        known = self._fresh.get((rule.name, key))
        if known is None:
            known = self._fresh[rule.name, key] = bucket(rule.name, key, rule.limit, now)
        return known


def _key(key: CallKey, runner: Runner, body: bytes, packed: bytes | None) -> str:
    meta = NO_META if packed is None else unpack_meta(packed)
    if is_reference(body):
        body = runner.task.app.payloads.load(body)
    return key.of(*runner.arguments(body, meta))
