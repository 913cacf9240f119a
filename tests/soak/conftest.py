"""The fixtures of tests with real workers, on each engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.engines.conftest import session_database as session_database
from tests.services.fixtures import Run, run_of
from tests.services.fixtures import kafka as kafka
from tests.services.fixtures import postgres as postgres


@pytest.fixture(scope="session")
def services_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the run, with its servers on disk: they write for hours."""
    return replace(run_of(request, tmp_path_factory), in_memory=False)
