"""Streams, groups and workers in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from ...clock import now as wall_clock
from ...record import first_pos
from ..base import Group, Registration, Stream, Worker
from ..things import GroupKind, StreamKind, lanes_of
from .batch import Executes
from .connection import Bounded, one
from .groups import LeftOver, take_out_of_sight
from .moving import refuse_incoming
from .part import Part
from .partitions import create_log
from .sql import GROUP_LOCKS

SLICE = 5000  # rows of a dropped group that go in one transaction
_LOCKS = 0x5264  # of changes to streams and groups


class PostgresRegistry(Part):
    """Which there are."""

    rings: dict[int, int]
    ring_limits: Callable[[Executes, Sequence[int]], None]
    _left_over: LeftOver
    _names: dict[int, tuple[bytes, bytes]]

    def create_stream(
        self, kind: StreamKind, app: str, name: str, partitions: int, settings: dict[str, Any]
    ) -> Stream:
        """Create a stream, a queue with its `main` at 0 (H10); return the stored one where it exists."""
        sql = self._sql

        def create(db: Bounded) -> Any:
            found = db.execute(sql["stream"], (kind, app, name)).fetchone()
            if found is not None:
                return found
            with db.transaction():
                db.execute(sql["lock_registry"], (_LOCKS,))
                found = db.execute(sql["stream"], (kind, app, name)).fetchone()
                if found is not None:
                    return found
                refuse_incoming(db, sql, self.options.shown, kind, app, name)
                stream = one(db, sql["add_stream"], (kind, app, name, Jsonb(settings), wall_clock()))
                logs = [self._add_log(db, stream, partition, None) for partition in range(partitions)]
                if kind == "queue":
                    bound = (stream, app, "main", "main", Jsonb({}), wall_clock())
                    self._add_group(db, bound, [(log, first_pos(log), None) for log in logs])
            return db.execute(sql["stream"], (kind, app, name)).fetchone()

        return self._noted(_stream(self._writer.append(create)))

    def _add_log(self, db: Bounded, stream: int, partition: int, priority: int | None) -> int:
        log = int(one(db, self._sql["add_log"], (stream, partition, priority)))
        db.execute(self._sql["set_floor"], (log,))
        create_log(db, self.options.schema, log)
        return log

    def set_retention(self, stream: Stream, retention: Any) -> None:
        """Change how long a stream's records stay."""
        self._set_setting(stream, ["retention"], retention)

    def set_within(self, stream: Stream, setting: str, name: str, value: str) -> None:
        """Set one of what a stream's setting holds by name."""
        self._set_setting(stream, [setting, name], value)

    def _set_setting(self, stream: Stream, path: list[str], value: Any) -> None:
        bound = (path, Jsonb(value), stream.id)
        self._writer.append(lambda db: db.execute(self._sql["set_setting"], bound))

    def add_lane(self, stream: Stream, priority: int) -> Stream:
        """Make the logs of a priority, which the stream's groups read from 0 (H10), unless they are there."""
        which = (stream.kind, stream.app, stream.name)

        def add(db: Bounded) -> Stream:
            with db.transaction():
                db.execute(self._sql["lock_registry"], (_LOCKS,))
                now = _stream(db.execute(self._sql["stream"], which).fetchone())
                if now.lane(priority) is not None:
                    return now
                for partition in range(now.partitions):
                    self._add_log(db, stream.id, partition, priority)
                db.execute(self._sql["add_positions"], (stream.id,))
                return _stream(db.execute(self._sql["stream"], which).fetchone())

        return self._noted(self._writer.append(add))

    def streams(self) -> list[Stream]:
        """Return all streams."""
        found = self._reader.read(lambda db: db.execute(self._sql["streams"]).fetchall())
        return [self._noted(_stream(row)) for row in found]

    def _noted(self, stream: Stream) -> Stream:
        if stream.lanes:
            self.rings.update(stream.rings())
            self._names = {}  # another one: whoever is about to enter what was said before does so in the old
        return stream

    def groups(self) -> list[Group]:
        """Return all groups."""
        return self._reader.read(
            lambda db: [Group(*row) for row in db.execute(self._sql["groups"]).fetchall()]
        )

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
        created = wall_clock()

        def create(db: Bounded) -> Group | None:
            with db.transaction():
                db.execute(self._sql["lock_registry"], (_LOCKS,))
                bound = (stream.id, app, name, kind, Jsonb(settings), created)
                id = self._add_group(db, bound, bounds)
                db.execute(
                    self._sql["add_positions"], (stream.id,)
                )  # of a lane made since the bounds were looked at
            return None if id is None else Group(id, stream.id, app, name, kind, settings, 0, created)

        return self._writer.append(create)

    def _add_group(
        self, db: Bounded, bound: Sequence[Any], bounds: Sequence[tuple[int, int, int | None]]
    ) -> int | None:
        id: int | None = one(db, self._sql["add_group"], bound)
        for log, start, stop in bounds if id is not None else ():
            db.execute(self._sql["add_position"], (id, start, stop, log))
            db.execute(self._sql["add_cursor"], (id, log, start))
        return id

    def drop_group(self, group: Group) -> None:
        """Forget a group and all that it knows; the records stay."""

        def drop(db: Bounded) -> None:
            with db.transaction():
                db.execute(self._sql["lock_group"], (GROUP_LOCKS, group.id))
                opened = take_out_of_sight(db, self._sql, group.id, group.stream)
            if opened:
                self.ring_limits(db, opened)

        self._writer.append(drop)
        while self.forget_dropped(SLICE):
            pass

    def forget_dropped(self, limit: int) -> int:
        """Remove a slice of what is left of groups that were dropped."""
        return self._state.append(lambda db: self._left_over.forget(db, self._sql, limit))

    def register(self, worker: Registration) -> int:
        """Enter a worker that starts; return its number, never used before."""

        def enter(db: Bounded) -> int:
            with db.transaction():
                id = one(db, self._sql["add_worker"], worker[:6])
                db.execute(self._sql["first_beat"], (id, worker.started, Jsonb(worker.info)))
            return int(id)

        return self._writer.append(enter)

    def beat(self, worker: int, draining: bool, info: dict[str, Any], *, synced: bool) -> int | None:
        """Say that a worker lives; None where it has been declared dead.

        A synced beat also makes durable what others wrote without syncing (S4): the log of writes is one.
        """
        bound = (wall_clock(), draining, Jsonb(info), worker)
        connection = self._writer if synced else self._state
        beat: int | None = connection.append(lambda db: one(db, self._sql["beat"], bound))
        return beat

    def drop_worker(self, worker: int) -> None:
        """Remove a worker that has ended and holds no lease."""
        self._state.append(lambda db: db.execute(self._sql["drop_worker"], (worker,)))

    def workers(self) -> list[Worker]:
        """Return the workers registered."""
        return self._reader.read(
            lambda db: [Worker(*row) for row in db.execute(self._sql["workers"]).fetchall()]
        )


def _stream(row: Any) -> Stream:
    id, kind, app, name, settings, created, logs, priorities = row
    lanes = lanes_of(zip(logs, priorities, strict=True))
    return Stream(id, kind, app, name, tuple(logs), settings, created, lanes)
