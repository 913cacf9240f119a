"""The server that the engines' tests share, and a database of it for each of the run's processes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from tests.services.fixtures import kafka as kafka
from tests.services.fixtures import newest_postgres as newest_postgres
from tests.services.fixtures import pgbouncer as pgbouncer
from tests.services.fixtures import postgres as postgres
from tests.services.fixtures import services_run as services_run
from tests.services.postgres import PostgresAddress


@pytest.fixture(scope="session")
def session_database(postgres: PostgresAddress) -> Iterator[str]:
    """Yield the URL of a database; each store in it is a schema."""
    yield from _database(postgres)


@pytest.fixture(scope="session")
def session_newest(newest_postgres: PostgresAddress) -> Iterator[str]:
    """Yield the URL of a database on the newest PostgreSQL."""
    yield from _database(newest_postgres)


@pytest.fixture(scope="session")
def session_pooled(postgres: PostgresAddress, pgbouncer: PostgresAddress) -> Iterator[str]:
    """Yield the URL of a database behind PgBouncer in transaction mode."""
    for url in _database(postgres):
        yield pgbouncer.url(url.rpartition("/")[2])


def _database(server: PostgresAddress) -> Iterator[str]:
    name = f"t{uuid.uuid4().hex[:12]}"
    yield server.create_database(name, "template0")
    server.drop_database(name)
