"""Streams, groups and workers in SQLite."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ...clock import now as wall_clock
from ...record import first_pos
from ..base import Group, Registration, Stream, Worker
from ..things import GroupKind, StreamKind, lanes_of
from .moving import refuse_incoming
from .part import Part
from .sql import SQL

SLICE = 5000  # rows of a dropped group that go in one transaction
MANY = ("parked", "outcome", "progress", "journal")
"""What may be much of a group; the rest of it goes with the group itself."""


class SQLiteRegistry(Part):
    """Which there are."""

    shown: Any
    tidy: Any
    ring_limits: Callable[[Sequence[int]], None]

    def __init__(self) -> None:
        self._rings: dict[int, int] = {}  # as which log a lane rings

    def create_stream(
        self, kind: StreamKind, app: str, name: str, partitions: int, settings: dict[str, Any]
    ) -> Stream:
        """Create a stream, a queue with its `main` at 0 (H10); return the stored one where it exists."""
        with self._reader.lock, self._reader.reading() as db:  # every process asks: no lock for what is there
            row = db.execute(SQL["stream"], (kind, app, name)).get
            if row is not None:
                return self._noted(_stream(db, row))
        with self._writer.lock, self._writer.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            if db.execute(SQL["stream"], (kind, app, name)).get is None:
                refuse_incoming(db, self.shown, kind, app, name)
                created = wall_clock()
                stream = db.execute(SQL["add_stream"], (kind, app, name, json.dumps(settings), created)).get
                logs = [
                    db.execute(SQL["add_log"], (stream, partition, None)).get
                    for partition in range(partitions)
                ]
                db.execute(SQL["set_floor"], (stream,))
                if kind == "queue":
                    group = db.execute(SQL["add_group"], (stream, app, "main", "main", "{}", created)).get
                    for log in logs:
                        db.execute(SQL["add_position"], (group, log, first_pos(log), None))
            db.execute("COMMIT")
            row = db.execute(SQL["stream"], (kind, app, name)).get
            return self._noted(_stream(db, row))

    def set_retention(self, stream: Stream, retention: Any) -> None:
        """Change how long a stream's records stay."""
        self._set_setting(stream, "$.retention", retention)

    def set_within(self, stream: Stream, setting: str, name: str, value: str) -> None:
        """Set one of what a stream's setting holds by name."""
        self._set_setting(stream, f'$."{setting}"."{name}"', value)

    def _set_setting(self, stream: Stream, path: str, value: Any) -> None:
        with self._writer.lock, self._writer.writing() as db:
            db.execute(SQL["set_setting"], (stream.id, path, json.dumps(value)))

    def add_lane(self, stream: Stream, priority: int) -> Stream:
        """Make the logs of a priority, which the stream's groups read from 0 (H10), unless they are there."""
        with self._writer.lock, self._writer.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            now = _stream(db, db.execute(SQL["stream"], (stream.kind, stream.app, stream.name)).get)
            if now.lane(priority) is None:
                for partition in range(now.partitions):
                    db.execute(SQL["add_log"], (stream.id, partition, priority)).fetchall()
                db.execute(SQL["set_floor"], (stream.id,))
                db.execute(SQL["add_positions"], (stream.id,))
                now = _stream(db, db.execute(SQL["stream"], (stream.kind, stream.app, stream.name)).get)
            db.execute("COMMIT")
        return self._noted(now)

    def _noted(self, stream: Stream) -> Stream:
        if stream.lanes:
            self._rings.update(stream.rings())
        return stream

    def streams(self) -> list[Stream]:
        """Return all streams."""
        with self._reader.lock, self._reader.reading() as db:
            return [self._noted(_stream(db, row)) for row in db.execute(SQL["streams"]).fetchall()]

    def groups(self) -> list[Group]:
        """Return all groups."""
        with self._reader.lock, self._reader.reading() as db:
            return [_group(row) for row in db.execute(SQL["groups"]).fetchall()]

    def create_group(
        self,
        stream: Stream,
        app: str,
        name: str,
        kind: GroupKind,
        settings: dict[str, Any],
        bounds: Sequence[tuple[int, int, int | None]],
    ) -> Group | None:
        """Create a group that reads lo <= p < hi (None: no end) of each log; None where it exists."""
        with self._writer.lock, self._writer.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            bound = (stream.id, app, name, kind, json.dumps(settings), wall_clock())
            if any(
                g[1] == stream.id and g[2] == app and g[3] == name
                for g in db.execute(SQL["groups"]).fetchall()
            ):
                db.execute("ROLLBACK")
                return None
            id = db.execute(SQL["add_group"], bound).get
            for log, start, stop in bounds:
                db.execute(SQL["add_position"], (id, log, start, stop))
            db.execute(SQL["add_positions"], (stream.id,))  # of a lane made since the bounds were looked at
            db.execute("COMMIT")
            return Group(id, stream.id, app, name, kind, settings, 0, bound[-1])

    def drop_group(self, group: Group) -> None:
        """Forget a group and all that it knows; the records stay."""
        with self._writer.lock, self._writer.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            for table in ("positions", "leases", "waiting", "counters"):
                db.execute(SQL[f"drop_group_{table}"], (group.id,))
            db.execute(SQL["drop_group"], (group.id,))
            db.execute(SQL["note_dropped"], (group.id, group.stream))
            opened = {one for (one,) in db.execute(SQL["open_all"])}  # its leases may have had slots
            db.execute("COMMIT")
        self.ring_limits(sorted(opened))
        while self.forget_dropped(SLICE):
            self.tidy()

    def forget_dropped(self, limit: int) -> int:
        """Remove a slice of what is left of groups that were dropped."""
        with self._reader.lock, self._reader.reading() as db:
            group = db.execute(SQL["dropped_group"]).get
        if group is None:
            return 0
        with self._state.lock, self._state.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            gone = 0
            for table in MANY:
                db.execute(SQL[f"drop_some_{table}"], (group, limit))
                gone = db.changes()
                if gone:
                    break
            else:
                db.execute(SQL["drop_group_counters"], (group,))
            db.execute("COMMIT")
        return max(gone, 1)

    def register(self, worker: Registration) -> int:
        """Enter a worker that starts; return its number, never used before."""
        with self._writer.lock, self._writer.writing() as db:
            bound = (*worker[:6], json.dumps(worker.info))
            return db.execute(SQL["add_worker"], bound).get  # type: ignore[no-any-return]

    def beat(self, worker: int, draining: bool, info: dict[str, Any], *, synced: bool) -> int | None:
        """Say that a worker lives, in one statement (H1); None where it has been declared dead.

        A synced beat also makes durable what others wrote without syncing (S4).
        """
        connection = self._writer if synced else self._state
        with connection.lock, connection.writing() as db:
            return db.execute(SQL["beat"], (worker, wall_clock(), draining, json.dumps(info))).get  # type: ignore[no-any-return]

    def drop_worker(self, worker: int) -> None:
        """Remove a worker that has ended and holds no lease.

        Synced, as its last beat: nobody else may come to make durable what it settled after that (S4).
        """
        with self._writer.lock, self._writer.writing() as db:
            db.execute(SQL["drop_worker"], (worker,))

    def workers(self) -> list[Worker]:
        """Return the workers registered."""
        with self._reader.lock, self._reader.reading() as db:
            found = db.execute(SQL["workers"]).fetchall()
        return [_worker(*row) for row in found]


def _stream(db: Any, row: Any) -> Stream:
    id, kind, app, name, settings, created = row
    logs = db.execute(SQL["logs"], (id,)).fetchall()
    return Stream(
        id, kind, app, name, tuple(log for log, _ in logs), json.loads(settings), created, lanes_of(logs)
    )


def _worker(*row: Any) -> Worker:
    id, app, name, host, boot, pid, beat, started, beaten, draining, info = row
    return Worker(id, app, name, host, boot, pid, beat, started, beaten, bool(draining), json.loads(info))


def _group(row: Any) -> Group:
    id, stream, app, name, kind, settings, generation, created = row
    return Group(id, stream, app, name, kind, json.loads(settings), generation, created)
