"""Kafka keeps the log; what groups know is kept by another engine, the inner one (`state=` in the URL)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..base import CAPABILITIES, AsyncWaiter, Group, Registration, Sleeper, Waiter, Work, Worker
from ..lent import LendsState
from .bells import KafkaSleeper
from .blobs import KafkaBlobs
from .cluster import Cluster
from .epochs import Epochs
from .moved import Moved
from .options import KafkaOptions
from .outbox import Outbox
from .reader import Reader
from .sender import Sender
from .taking import KafkaTaking


class KafkaEngine(KafkaTaking, KafkaBlobs):
    """Composed of a cluster and an inner engine. Clients are made when first used."""

    def __init__(self, options: KafkaOptions, inner: LendsState) -> None:
        KafkaTaking.__init__(self)
        self.options, self.inner, self.moved = options, inner, Moved(inner)
        known = inner.capabilities
        self.capabilities = CAPABILITIES["kafka://"]._replace(
            many_hosts=known.many_hosts, durable=known.durable
        )
        self._pid = os.getpid()
        self.cluster = Cluster(options)
        self.epochs = Epochs(inner, self.cluster)
        self.sender = Sender(self.cluster, self.told_moved)
        self.reader, self.seeker = Reader(self.cluster), Reader(self.cluster)
        try:
            self.sender.prepare()
            self.cluster.connect()
            self.outbox = Outbox(
                *(inner, self, self.sender, self._look_for, self.moved, self._note_times),
                self.cluster.timeout,
            )
        except BaseException:
            self.close()
            raise

    @cached_property
    def target(self) -> str:
        """The cluster, and the store of the state."""
        return f"{self.options.client['bootstrap.servers']} {self.options.prefix} {self.inner.target}"

    @property
    def breaks(self) -> int:
        """The inner engine's."""
        return self.inner.breaks

    @property
    def run_folder(self) -> Path:
        """The inner engine's: it numbers the workers."""
        return self.inner.run_folder

    def usable(self) -> bool:
        """Say whether this process opened the engine."""
        return self._pid == os.getpid()

    def close(self) -> None:
        """Close clients and the inner engine."""
        self.end_tidying()
        self.cluster.close()
        self.sender.close()
        self.reader.close()
        self.seeker.close()
        self.forget()
        self.inner.close()

    # The registry's rest

    def drop_group(self, group: Group) -> None:
        """Forget a group and all that it knows; the records stay."""
        self.inner.drop_group(group)

    def forget_dropped(self, limit: int) -> int:
        """Remove a slice of what is left of groups that were dropped."""
        return self.inner.forget_dropped(limit)

    def begin_work(self, fence: tuple[int, int]) -> Work:
        """Refuse: what a run does in a database commits with nothing in Kafka."""
        raise ConfigError(f"{self.options.shown}: Kafka takes part in no transaction of a database")

    def register(self, worker: Registration) -> int:
        """Enter a worker that starts; return its number."""
        return self.inner.register(worker)

    def beat(self, worker: int, draining: bool, info: dict[str, Any], *, synced: bool) -> int | None:
        """Say that a worker lives; None where it has been declared dead."""
        return self.inner.beat(worker, draining, info, synced=synced)

    def drop_worker(self, worker: int) -> None:
        """Remove a worker that has ended and holds no lease."""
        self.inner.drop_worker(worker)

    def workers(self) -> list[Worker]:
        """Return the workers registered."""
        return self.inner.workers()

    # Bells: the inner engine's, which numbers logs and positions alike

    def ring(self, log: int, *, everyone: bool = False) -> None:
        """Wake sleeping workers that serve a log."""
        self.inner.ring(log, everyone=everyone)

    def ring_waiters(self, positions: Sequence[int]) -> int:
        """Wake all who wait for one of these records."""
        return self.inner.ring_waiters(positions)

    def waiter(self, pos: int | None) -> AbstractContextManager[Waiter]:
        """Give a thread a waiter that is woken when the record, or any (None), may be finished."""
        return self.inner.waiter(pos)

    def async_waiter(self, pos: int | None) -> AbstractContextManager[AsyncWaiter]:
        """Give a coroutine a waiter that is woken when the record, or any (None), may be finished."""
        return self.inner.async_waiter(pos)

    def sleeper(self, logs: Sequence[int], service: int, wake_fds: tuple[int, ...] = ()) -> Sleeper:
        """Return a sleeper that is woken when one of these logs has grown."""
        known = self.known_logs(logs)
        if known:
            self.reader.prepare(self.known_place(known[0]))
        foreign = any(self.stream_of_log(log).settings.get("foreign") for log in known)
        return KafkaSleeper(self.inner.sleeper(logs, service, wake_fds), self.reader, unheard=foreign)
