"""The fixtures of the acceptance tests: each runs on each engine."""

from tests.acceptance.stage import stage as stage
from tests.engines.conftest import session_database as session_database
from tests.services.fixtures import kafka as kafka
from tests.services.fixtures import postgres as postgres
from tests.services.fixtures import services_run as services_run
