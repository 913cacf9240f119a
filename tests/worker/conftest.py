"""The fixtures of tests with real workers."""

from tests.engines.conftest import session_database as session_database
from tests.engines.conftest import session_newest as session_newest
from tests.engines.conftest import session_oldest as session_oldest
from tests.engines.conftest import session_pooled as session_pooled
from tests.services.fixtures import kafka as kafka
from tests.services.fixtures import newest_postgres as newest_postgres
from tests.services.fixtures import oldest_postgres as oldest_postgres
from tests.services.fixtures import pgbouncer as pgbouncer
from tests.services.fixtures import postgres as postgres
from tests.services.fixtures import services_run as services_run
from tests.worker.support import place as place
from tests.worker.support import shared_place as shared_place
