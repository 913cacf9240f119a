"""The fixtures of the services, for their own tests."""

from tests.services.fixtures import database as database
from tests.services.fixtures import kafka as kafka
from tests.services.fixtures import newest_database as newest_database
from tests.services.fixtures import newest_postgres as newest_postgres
from tests.services.fixtures import pgbouncer as pgbouncer
from tests.services.fixtures import pooled_database as pooled_database
from tests.services.fixtures import postgres as postgres
from tests.services.fixtures import services_run as services_run
from tests.services.fixtures import topic_prefix as topic_prefix
