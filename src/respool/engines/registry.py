"""What an engine has: streams, groups and workers. What holds for every method stands in `base.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .things import Group, GroupKind, Registration, Stream, StreamKind, Worker


class Registry(Protocol):
    """Streams, groups and workers. Numbers rise and are never used again, not even after a removal."""

    def create_stream(
        self, kind: StreamKind, app: str, name: str, partitions: int, settings: dict[str, Any]
    ) -> Stream:
        """Create a stream with its logs, for a queue also `main`, which reads each log from offset 0. Synced.

        Where one of this kind, app and name exists, return that as it is stored. Of many who create it at
        once one does, and all get the same. Settings are what JSON keeps. Raises LogMoved where a transfer is
        just filling the stream.
        """

    def set_retention(self, stream: Stream, retention: Any) -> None:
        """Change how long a stream's records stay: as `stored_retention` gives it. Synced.

        Its other settings stay, whatever they have become meanwhile.
        """

    def add_lane(self, stream: Stream, priority: int) -> Stream:
        """Make the lane of a priority, with a log for each partition, and return the stream with it. Synced.

        A transaction of our own, whatever the caller has open. Of many who make it at once one does. Every
        group of the stream reads it from offset 0 (H10), but for a replay, whose window was there before.
        Who sleeps for the stream's other logs is woken by rings for these (`Bells.ring`).
        """

    def streams(self) -> list[Stream]:
        """Return all streams, by number."""

    def create_group(
        self,
        stream: Stream,
        app: str,
        name: str,
        kind: GroupKind,
        settings: dict[str, Any],
        bounds: Sequence[tuple[int, int, int | None]],
    ) -> Group | None:
        """Create a group; None where the stream has one of this app and name. Synced.

        Parameters:
            bounds: (log, lo, hi): it reads lo <= p < hi, None: no end; the cursor begins at lo. A log that
                the stream gets later, or has got by now, is read from offset 0 (H10), by a replay not at all.
        """

    def drop_group(self, group: Group) -> None:
        """Forget a group and all that it knows; the records stay. Synced.

        One transaction takes it out of sight. Its leases are gone: settlements and fences that name them find
        nothing. The rest goes in slices (`forget_dropped`): who is killed in the midst leaves it to workers.
        """

    def forget_dropped(self, limit: int) -> int:
        """Remove what is left of groups that were dropped, about `limit` rows of it, in a short transaction.

        Returns: how many, at least 1 while there may be more; 0: nothing is left. No lock where that is so.
        """

    def groups(self) -> list[Group]:
        """Return all groups, by number."""

    def register(self, worker: Registration) -> int:
        """Enter a worker that starts, with 0 beats; return its number. Synced.

        It must fit in 23 bits: lease ids are made of it (`worker.page.lease_number`) and fit in 63.
        """

    def beat(self, worker: int, draining: bool, info: dict[str, Any], *, synced: bool) -> int | None:
        """Add a beat and store the rest; return how many beats that makes. One statement (H1).

        Called by a thread while tasks run: one call into the driver, that does not hold the GIL. Synced, it
        also makes durable what any process of this host wrote unsynced before.

        Returns: None where the worker is not registered any more: it was declared dead.
        """

    def drop_worker(self, worker: int) -> None:
        """Remove a worker that has ended, or is dead, and holds no lease. Synced, as a beat is."""

    def workers(self) -> list[Worker]:
        """Return the workers registered, by number."""
