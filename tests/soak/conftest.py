"""The fixtures of tests with real workers."""

from tests.worker.support import place as place
from tests.worker.support import shared_place as shared_place
