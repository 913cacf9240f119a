"""The server that the engines' tests share, and a database of it for each of the run's processes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from tests.services.fixtures import postgres as postgres
from tests.services.fixtures import services_run as services_run
from tests.services.postgres import PostgresAddress


@pytest.fixture(scope="session")
def session_database(postgres: PostgresAddress) -> Iterator[str]:
    """Yield the URL of a database; each store in it is a schema."""
    name = f"t{uuid.uuid4().hex[:12]}"
    url = postgres.create_database(name, "template0")
    yield url
    postgres.drop_database(name)
