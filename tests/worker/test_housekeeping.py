"""What a worker does beside its tasks: whatever that meets, the worker goes on."""

from __future__ import annotations

import pytest
from tests.worker.support import FINE_AND_SLOW, Place, eventually

from respool.engines.moving import Mark

each_pool = pytest.mark.parametrize("pool", ["processes", "solo"])

AT_EACH_BEAT = """
from respool.worker import housekeeping
housekeeping.HOUSEKEEPING = housekeeping.QUIET_HOUSEKEEPING = housekeeping.IDLE_HOUSEKEEPING = 0.0
"""

IT_FAILS = """
from respool.errors import EngineError
from respool.worker import housekeeping, solo

def fail(*given):
    raise EngineError("the index is damaged")

housekeeping.keep_house = solo.keep_house = fail
"""

UNIQUE = """
@app.task(unique=True)
def single(n):
    note("start", "single", n)
"""


def beats(place: Place) -> int:
    """Return how often the worker has beaten."""
    return max((worker.beat for worker in place.registered()), default=0)


@each_pool
def test_an_error_of_housekeeping_ends_no_worker(place: Place, pool: str) -> None:
    module = place.module(FINE_AND_SLOW)
    worker = place.worker(1, pool=pool, before=AT_EACH_BEAT + IT_FAILS)
    worker.said("the index is damaged")
    eventually(lambda: beats(place) >= 5)
    assert module.fine.delay(1).get(timeout=20) == 1
    assert worker.stop() == 0, worker.log
    if pool == "processes":
        assert worker.log.count("the index is damaged") == 1, worker.log


@each_pool
def test_housekeeping_waits_while_the_log_is_closed(place: Place, pool: str) -> None:
    module = place.module(FINE_AND_SLOW, UNIQUE)
    module.single.delay(1)
    place.burst(1)  # its lock is to be swept
    place.app.engine.set_mark(Mark("move", "closed", "sqlite:///elsewhere.db", 0.0))
    worker = place.worker(1, pool=pool, before=AT_EACH_BEAT)
    eventually(lambda: beats(place) >= 5 or worker.process.poll() is not None)
    place.app.engine.set_mark(None)
    assert module.fine.delay(1).get(timeout=20) == 1, worker.log
    assert worker.stop() == 0, worker.log
