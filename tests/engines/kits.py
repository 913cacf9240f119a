"""What the tests here need of an engine besides its methods. A new engine adds one kit to `KITS`."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from confluent_kafka import TopicPartition

from respool.engines import open_engine
from respool.engines.base import Engine, Stream
from respool.engines.postgres.sql import in_schema
from respool.location import parse_url

TIMEOUT = 10.0


class EngineKit(ABC):
    """One store of its own, empty at first, and the engines that a test opens on it."""

    url: str | None = None
    """Opens the same store in another process; None: no other process can reach it."""

    own_table = "own"
    """A name for a table of the test's own, beside ours."""

    rings_one = True
    """A ring wakes one worker of each service, not all that listen."""

    cuts_inside = True
    """`cut` can take records from the middle of a log."""

    leaves_holes = True
    """An id that is known leaves a position empty."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []

    def open(self) -> Engine:
        """Open the store, once more where there is an engine; one that only one can use gives that."""
        self.engines.append(self._open())
        return self.engines[-1]

    def reopen(self) -> Engine:
        """Close all engines, as if their processes had ended, and open the store again."""
        self.close()
        return self.open()

    def close(self) -> None:
        for engine in self.engines:
            engine.close()
        self.engines.clear()

    def remove(self) -> None:
        """Close all engines. What they leave behind goes with the run."""
        self.close()

    def drop(self) -> None:
        """Close all engines, and leave nothing behind: for a test that makes thousands."""
        self.remove()

    @abstractmethod
    def _open(self) -> Engine: ...

    # By hand, what no engine has a method for: with an engine open, behind its back

    @abstractmethod
    def cut(self, log: int, lo: int, hi: int) -> None:
        """Delete the records at lo <= p < hi, whoever needs them; the log's end stays as it is (S5)."""

    @abstractmethod
    def drop_stream(self, stream: Stream) -> None:
        """Remove a stream, its logs with their records, and its groups."""


class SQLiteKit(EngineKit):
    """A file, or memory (`folder` None), where only the engine that made it can reach it."""

    def __init__(self, folder: Path | None, durability: str) -> None:
        super().__init__()
        self._location = parse_url(f"sqlite:///{folder / 'respool.db' if folder else ':memory:'}")
        self._durability = durability
        if folder is not None:
            self.url = f"sqlite:///{folder / 'respool.db'}"

    def open(self) -> Engine:
        return self.engines[0] if self.url is None and self.engines else super().open()

    def _open(self) -> Engine:
        return open_engine(self._location, self._durability, TIMEOUT)

    def cut(self, log: int, lo: int, hi: int) -> None:
        some = "EXISTS (SELECT 1 FROM record WHERE pos >> 40 = ?1 AND pos"
        self._run(  # at the beginning or the end of a log the floor tells; in the middle it leaves a gap
            (
                "UPDATE log SET floor = max(floor, ?3) "
                f"WHERE id = ?1 AND NOT ({some} < ?2) AND {some} >= ?3))",
                (log, lo, hi),
            ),
            ("DELETE FROM record WHERE pos >= ? AND pos < ?", (lo, hi)),
        )

    def drop_stream(self, stream: Stream) -> None:
        self._run(
            ("DELETE FROM grp WHERE stream = ?", (stream.id,)),
            *(("DELETE FROM record WHERE pos >> 40 = ?", (log,)) for log in stream.logs),
            ("DELETE FROM log WHERE stream = ?", (stream.id,)),
            ("DELETE FROM stream WHERE id = ?", (stream.id,)),
        )

    def _run(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        engine: Any = self.engines[0]
        with engine._writer.lock, engine._writer.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            for statement, bound in statements:
                db.execute(statement, bound)
            db.execute("COMMIT")


class PostgresKit(EngineKit):
    """A schema of a database's, which goes with that: to drop it takes longer than to make it."""

    rings_one = False
    leaves_holes = False

    def __init__(self, database: str, durability: str) -> None:
        super().__init__()
        self.schema = f"s{uuid.uuid4().hex[:12]}"
        self.url = f"{database}?schema={self.schema}"
        self.own_table = f"own_{self.schema}"
        self._location = parse_url(self.url)
        self._durability = durability

    def drop(self) -> None:
        self.close()  # they may hold locks
        engine: Any = self.open()
        engine._writer.append(lambda db: db.execute(f"DROP SCHEMA {self.schema} CASCADE"))
        self.close()

    def _open(self) -> Engine:
        return open_engine(self._location, self._durability, TIMEOUT)

    def cut(self, log: int, lo: int, hi: int) -> None:
        self._run(("DELETE FROM respool.record WHERE pos >= %s AND pos < %s", (lo, hi)))
        (first,) = self._run(
            ("SELECT coalesce(min(pos), %s) FROM respool.record WHERE pos >> 40 = %s", (hi, log))
        )[0]
        self._run(
            (
                "UPDATE respool.log SET floor = greatest(floor, %s) WHERE id = %s AND %s >= %s",
                (hi, log, first, hi),
            )
        )

    def drop_stream(self, stream: Stream) -> None:
        self._run(
            ("DELETE FROM respool.grp WHERE stream = %s", (stream.id,)),
            *(("DELETE FROM respool.record WHERE pos >> 40 = %s", (log,)) for log in stream.logs),
            *((f"DROP SEQUENCE respool.log_{log}", ()) for log in stream.logs),
            ("DELETE FROM respool.log WHERE stream = %s", (stream.id,)),
            ("DELETE FROM respool.stream WHERE id = %s", (stream.id,)),
        )

    def _run(self, *statements: tuple[str, tuple[Any, ...]]) -> list[Any]:
        engine: Any = self.engines[0]

        def run(db: Any) -> list[Any]:
            with db.transaction():
                for statement, bound in statements:
                    cursor = db.execute(in_schema(statement, self.schema), bound)
                return cursor.fetchall() if cursor.description else []

        return engine._writer.append(run)  # type: ignore[no-any-return]


class KafkaKit(EngineKit):
    """Topics of a broker's, and the state in a store of another kit."""

    cuts_inside = False
    leaves_holes = False

    def __init__(self, broker: str, inner: EngineKit, durability: str, more: str = "") -> None:
        super().__init__()
        self.inner, self.rings_one = inner, inner.rings_one
        self.prefix = f"t{uuid.uuid4().hex[:12]}-"
        assert inner.url is not None
        self.url = f"{broker}?prefix={self.prefix}&state={quote(inner.url, safe='')}{more}"
        self._location = parse_url(self.url)
        self._durability = durability

    def _open(self) -> Engine:
        engine: Any = open_engine(self._location, self._durability, TIMEOUT)
        self.inner.engines.append(engine.inner)
        return engine  # type: ignore[no-any-return]

    def close(self) -> None:
        super().close()
        self.inner.engines.clear()

    def remove(self) -> None:
        self.close()
        self.inner.remove()

    def drop(self) -> None:
        self.close()
        self.inner.drop()

    def cut(self, log: int, lo: int, hi: int) -> None:
        engine: Any = self.engines[0]
        place = engine.place(log)
        until = TopicPartition(place.topic, place.partition, hi & (1 << 40) - 1)
        for future in engine.cluster.admin.delete_records([until]).values():
            future.result(TIMEOUT)

    def drop_stream(self, stream: Stream) -> None:
        engine: Any = self.engines[0]
        for topic in {engine.place(log).topic for log in stream.logs}:
            for future in engine.cluster.admin.delete_topics([topic]).values():
                future.result(TIMEOUT)
            eventually(lambda name=topic: engine.cluster.describe(name) is None)
        self.inner.drop_stream(stream)
        for each in self.engines:
            each.forget()  # type: ignore[attr-defined]


def eventually(holds: Callable[[], bool], timeout: float = 20.0) -> None:
    """Wait until something holds that has no way to tell."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def _sqlite_file(request: pytest.FixtureRequest, folder: Path, durability: str) -> EngineKit:
    return SQLiteKit(folder, durability)


def _sqlite_memory(request: pytest.FixtureRequest, folder: Path, durability: str) -> EngineKit:
    return SQLiteKit(None, durability)


def _postgres(request: pytest.FixtureRequest, folder: Path, durability: str) -> EngineKit:
    return PostgresKit(request.getfixturevalue("session_database"), durability)


def _postgres_newest(request: pytest.FixtureRequest, folder: Path, durability: str) -> EngineKit:
    return PostgresKit(request.getfixturevalue("session_newest"), durability)


def _postgres_pooled(request: pytest.FixtureRequest, folder: Path, durability: str) -> EngineKit:
    return PostgresKit(request.getfixturevalue("session_pooled"), durability)


def _kafka(request: pytest.FixtureRequest, folder: Path, durability: str) -> EngineKit:
    broker = request.getfixturevalue("kafka")
    return KafkaKit(broker.url(), _postgres(request, folder, durability), durability)


def _kafka_sqlite(request: pytest.FixtureRequest, folder: Path, durability: str) -> EngineKit:
    broker = request.getfixturevalue("kafka")
    return KafkaKit(broker.url(), SQLiteKit(folder, durability), durability)


KITS: dict[str, Callable[[pytest.FixtureRequest, Path, str], EngineKit]] = {
    "sqlite-file": _sqlite_file,
    "sqlite-memory": _sqlite_memory,
    "postgres": _postgres,
    "kafka": _kafka,
}
"""By name: makes the kit of a new, empty store. It gets an empty folder of its own and a durability."""

OTHER_SERVERS = {"postgres-newest": _postgres_newest, "postgres-pooled": _postgres_pooled}
"""Kits for the suite's core only: the newest PostgreSQL, and one behind PgBouncer in transaction mode."""

SHARED = [name for name in KITS if name != "sqlite-memory"]
"""Those whose store other processes can reach, and that outlives its engine."""

CUTS_ENDS = ("sqlite-file", "sqlite-memory")
"""Those where `cut` can take the last records of a log, and its end stays."""
