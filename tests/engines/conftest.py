"""The servers that the engines' tests share, a database for each process of the run, a queue in a store.

A module of tests says in `kit` what it runs on.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.kits import KITS, EngineKit
from tests.services.fixtures import kafka as kafka
from tests.services.fixtures import newest_postgres as newest_postgres
from tests.services.fixtures import oldest_postgres as oldest_postgres
from tests.services.fixtures import pgbouncer as pgbouncer
from tests.services.fixtures import postgres as postgres
from tests.services.fixtures import services_run as services_run
from tests.services.postgres import PostgresAddress

from respool.engines.base import Engine, Group, Stream


@pytest.fixture(scope="session")
def session_database(postgres: PostgresAddress) -> Iterator[str]:
    """Yield the URL of a database; each store in it is a schema."""
    yield from _database(postgres)


@pytest.fixture(scope="session")
def session_newest(newest_postgres: PostgresAddress) -> Iterator[str]:
    """Yield the URL of a database on the newest PostgreSQL."""
    yield from _database(newest_postgres)


@pytest.fixture(scope="session")
def session_oldest(oldest_postgres: PostgresAddress) -> Iterator[str]:
    """Yield the URL of a database on the oldest PostgreSQL that is supported."""
    yield from _database(oldest_postgres)


@pytest.fixture(scope="session")
def session_pooled(postgres: PostgresAddress, pgbouncer: PostgresAddress) -> Iterator[str]:
    """Yield the URL of a database behind PgBouncer in transaction mode."""
    for url in _database(postgres):
        yield pgbouncer.url(url.rpartition("/")[2])


def _database(server: PostgresAddress) -> Iterator[str]:
    name = f"t{uuid.uuid4().hex[:12]}"
    yield server.create_database(name, "template0")
    server.drop_database(name)


@pytest.fixture
def engine(kit: EngineKit) -> Any:
    return kit.open()


@pytest.fixture
def queue(engine: Engine) -> Stream:
    return engine.create_stream("queue", "shop", "default", 1, {})


@pytest.fixture
def log(queue: Stream) -> int:
    return queue.logs[0]


@pytest.fixture
def main(engine: Engine, queue: Stream) -> Group:
    return next(group for group in engine.groups() if group.stream == queue.id)


@pytest.fixture(params=KITS)
def make_kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], EngineKit]]:
    """Make stores: one for each example of a model."""
    kits: list[EngineKit] = []
    stores = itertools.count()

    def make() -> EngineKit:
        folder = tmp_path / str(next(stores))
        folder.mkdir()
        while kits:  # an example that has ended
            kits.pop().drop()
        kits.append(KITS[request.param](request, folder, "os"))
        return kits[-1]

    yield make
    for kit in kits:
        kit.remove()


@pytest.fixture
def make_engine(make_kit: Callable[[], EngineKit]) -> Callable[[], Engine]:
    """Make engines, each on a store of its own."""
    return lambda: make_kit().open()
