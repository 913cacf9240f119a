"""Fixtures: a run's servers, shared by all its processes, and a database or a prefix for each test.

A conftest.py imports what its tests use and what that uses (`services_run`, `postgres`, `database`).
A test that stops or pauses a server makes its own: `with PostgresServer() as server`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.services.keeper import joined
from tests.services.postgres import PostgresAddress


@dataclass(frozen=True)
class Run:
    """What the processes of a run share."""

    folder: Path
    controller: int
    in_memory: bool = True  # servers may keep their files there

    def joined(
        self, service: str, given: dict[str, object] | None = None
    ) -> AbstractContextManager[dict[str, Any]]:
        """Use one of its servers."""
        return joined(self.folder, service, self.controller, given or {"in_memory": self.in_memory})


@dataclass(frozen=True)
class KafkaAddress:
    """Where the run's broker is."""

    bootstrap: str

    def url(self) -> str:
        """Return its URL."""
        return f"kafka://{self.bootstrap}"


@pytest.fixture(scope="session")
def services_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the run."""
    return run_of(request, tmp_path_factory)


def run_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the run: xdist's workers are children of its controller, their folders below its folder."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        return Run(folder.parent, os.getppid())
    return Run(folder, os.getpid())


@pytest.fixture(scope="session")
def postgres(services_run: Run) -> Iterator[PostgresAddress]:
    """Yield the run's PostgreSQL server, Debian's."""
    with services_run.joined("postgres") as told:
        yield PostgresAddress(**told)


@pytest.fixture(scope="session")
def newest_postgres(services_run: Run) -> Iterator[PostgresAddress]:
    """Yield the run's PostgreSQL server of the newest version."""
    with services_run.joined("newest") as told:
        yield PostgresAddress(**told)


@pytest.fixture(scope="session")
def oldest_postgres(services_run: Run) -> Iterator[PostgresAddress]:
    """Yield the run's PostgreSQL server of the oldest version that is supported."""
    with services_run.joined("oldest") as told:
        yield PostgresAddress(**told)


@pytest.fixture(scope="session")
def pgbouncer(services_run: Run, postgres: PostgresAddress) -> Iterator[PostgresAddress]:
    """Yield the run's PgBouncer, before `postgres`: `pgbouncer.url(name)` is a database of that, pooled."""
    with services_run.joined("pgbouncer", postgres.to_json()) as told:
        yield PostgresAddress(**told)


@pytest.fixture(scope="session")
def kafka(services_run: Run) -> Iterator[KafkaAddress]:
    """Yield the run's broker."""
    with services_run.joined("kafka") as told:
        yield KafkaAddress(**told)


@pytest.fixture
def database(postgres: PostgresAddress) -> Iterator[str]:
    """Yield the URL of an empty database, dropped after the test."""
    yield from _database(postgres)


@pytest.fixture
def newest_database(newest_postgres: PostgresAddress) -> Iterator[str]:
    """Yield the URL of an empty database on the newest PostgreSQL, dropped after the test."""
    yield from _database(newest_postgres)


@pytest.fixture
def pooled_database(postgres: PostgresAddress, pgbouncer: PostgresAddress) -> Iterator[str]:
    """Yield the URL of an empty database through PgBouncer, dropped after the test."""
    for url in _database(postgres):
        yield pgbouncer.url(url.rpartition("/")[2])


@pytest.fixture
def topic_prefix(kafka: KafkaAddress) -> str:
    """Return what this test's topics and groups on the shared broker begin with."""
    return f"t{uuid.uuid4().hex[:12]}-"


def _database(server: PostgresAddress) -> Iterator[str]:
    name = f"t{uuid.uuid4().hex[:12]}"
    url = server.create_database(name, "template0")
    try:
        yield url
    finally:
        server.drop_database(name)
