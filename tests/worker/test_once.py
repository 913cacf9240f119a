"""Steps and unique calls with real workers, which are killed: held against a record that is kept outside."""

from __future__ import annotations

from tests.worker.support import Place, eventually, on_every_engine

CODE = """
@app.task(bind=True)
def order(self, n):
    self.once("charge", lambda: note("start", "charge", n))
    note("start", "order", n)
    if once("die"):
        die()
    if once("die-all"):
        os.killpg(os.getpgrp(), signal.SIGKILL)


@app.task(unique="function")
def report(n):
    with noted("report", n):
        wait_for("go")
        if once("die"):
            die()
"""


@on_every_engine
def test_a_step_is_not_done_again_after_a_crash(place: Place) -> None:
    module = place.module(CODE)
    place.touch("die")
    module.order.delay_many(range(5))
    place.burst(1)
    place.touch("die-all")
    module.order.delay_many(range(5, 10))
    place.worker(1).wait()
    place.burst(1, timeout=40)
    assert place.runs("charge") == dict.fromkeys(map(str, range(10)), 1)
    assert sum(place.runs("order").values()) == 12, "the two that were killed ran twice"
    place.check()


@on_every_engine
def test_a_crash_frees_no_lock(place: Place) -> None:
    module = place.module(CODE)
    place.touch("die")
    first = module.report.delay(1)
    place.worker(1)
    place.await_start("report", "1")
    assert module.report.delay(2) == first, "it runs"
    place.touch("go")
    first.get(timeout=20)
    assert place.runs("report") == {"1": 2}, "it was killed once, and run again"
    third = module.report.delay(3)
    assert third != first
    third.get(timeout=20)
    eventually(place.idle, "all done")
    place.check()
