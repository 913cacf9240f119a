"""Once, backpressure, large payloads, retention, storms."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.stage import Stage
from tests.worker.support import eventually

from respool import DuplicateCall, QueueFull

ONCE = """
@app.task(unique=True)
def build(page: str) -> None:
    note("start", "build", page)


@app.task(unique="user", on_duplicate="raise")
def greet(user: int, text: str) -> None: ...


@app.task(unique="function", unique_until="started")
def refresh(n: int) -> None:
    note("start", "refresh", n)


@app.task(unique="function", unique_for="1h")
def digest(n: int) -> None: ...


@app.task(unique="doc", debounce=0.2)
def index(doc: str, version: int) -> None:
    note("start", "index", f"{doc}{version}")


@app.task(unique="function")
def fails(n: int) -> None:
    if not (HERE / "mended").exists():
        raise ValueError(n)


@app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=0, max_retries=2)
def order(self, n: int) -> str:
    receipt = self.once("charge", charge, n)
    if self.request.retries < 2 and not self.request.replay:
        raise OSError("the mail server is away")
    return receipt


def charge(n: int) -> str:
    note("start", "charge", n)
    return f"receipt {n}"
"""


def test_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    module = stage.module(ONCE)
    first = module.build.delay("a")
    assert module.build.delay("a") == first
    assert module.build.delay("b") != first
    greeted = module.greet.delay(1, "hello")
    with pytest.raises(DuplicateCall, match="nothing was sent") as caught:
        module.greet.delay(1, "good bye")
    assert caught.value.existing == greeted
    refreshed, digested = module.refresh.delay(1), module.digest.delay(1)
    assert module.refresh.delay(2) == refreshed
    versions = [module.index.delay("doc", version) for version in range(3)]
    mine = module.order.apply_async((7,), task_id="order-7")
    assert module.order.apply_async((7,), task_id="order-7") == mine
    eventually(lambda: bool(stage.work() or stage.runs("index")), "a quiet time")
    assert stage.runs("build") == {"a": 1, "b": 1}
    assert stage.runs("index") == {"doc2": 1}, "the last one wins"
    assert [each.state for each in versions] == ["REVOKED", "REVOKED", "SUCCESS"]
    assert module.build.delay("a") != first, "it has ended"
    assert module.digest.delay(2) == digested, "for an hour, though it has ended"
    later = time.time() + 3601
    monkeypatch.setattr("respool.unique.wall_clock", lambda: later)
    assert module.digest.delay(3) != digested
    assert mine.get(timeout=10) == "receipt 7"
    stage.cli("replay", "--queue", "default", "--group", "v2", "--task", "order")
    stage.work(group="v2")
    assert mine.of("v2").get(timeout=10) == "receipt 7"
    assert stage.runs("charge") == {"7": 1}, "done once, through two retries and a replay"
    stage.check()


def test_a_dead_letter_that_is_given_back_holds_its_key_again(stage: Stage) -> None:
    """Though the workers have looked through the locks meanwhile."""
    module = stage.module(ONCE)
    first = module.fails.delay(1)
    stage.work()
    assert first.state == "FAILURE"
    stage.app.engine.sweep_locks(time.time(), 1000)
    assert stage.data("dead", "redrive") == {"redriven": 1}
    assert module.fails.delay(2) == first, "it waits again"
    stage.touch("mended")
    stage.work()
    assert first.state == "SUCCESS"
    stage.app.engine.sweep_locks(time.time(), 1000)
    assert module.fails.delay(3) != first


PRESSURE = """
app.queue("mails", max_pending=40, when_full="raise")
app.queue("slow", max_pending=40, max_pending_wait=20)


@app.task(queue="mails")
def mail(n: int) -> None:
    if n == 1000:
        for each in range(60):
            mail.delay(each)


@app.task(queue="slow")
def slow(n: int) -> None:
    note("start", "slow", n)
    time.sleep(0.002)
"""


def test_backpressure(stage: Stage) -> None:
    module = stage.module(PRESSURE)
    for n in range(20):
        module.mail.delay(n)
    assert (stage.app.lag("mails"), stage.app.pressure("mails")) == (20, 0.5)
    module.mail.delay_many(range(20))
    with pytest.raises(QueueFull, match="nothing was sent"):
        module.mail.delay(41)
    assert stage.app.pressure() == 1.0
    (shown,) = stage.rows("lag", "--queue", "mails")
    assert shown["pending"] == 40
    stage.work()
    module.mail.delay(1000)
    stage.work()
    assert (stage.app.lag(), stage.app.pressure()) == (0, 0.0), "a task's own calls are not held up (H16)"
    assert stage.app.dead_letters().count() == 0
    stage.worker(1).said("serves")
    most = 0
    for n in range(300):
        module.slow.delay(n)  # waits where there is no room
        most = max(most, stage.app.lag("slow")) if n % 20 == 0 else most
    assert most <= 80
    eventually(lambda: len(stage.runs("slow")) == 300, "all done")


LARGE = """
@app.task
def double(text: str) -> str:
    return text * 2
"""


def test_large_payloads(stage: Stage, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    module = stage.module(LARGE, blobs=blobs.as_uri())
    handle = module.double.delay("x" * 100_000)
    small = module.double.delay("y")
    stage.work()
    assert handle.get(timeout=10) == "x" * 200_000
    assert small.get(timeout=10) == "yy"
    assert len(handle.record().body) < 1000, "a reference"
    files = [path for path in blobs.rglob("*") if path.is_file()]
    assert len(files) == 2, "the arguments and the result"
    lost = module.double.delay("z" * 100_000)
    for path in blobs.rglob("*"):
        if path.is_file() and path not in files:
            path.unlink()
    stage.work()
    (letter,) = stage.rows("dead", "list")
    assert letter["id"] == lost.id
    assert "BlobLost" in letter["error"]
    again = module.double.delay("z" * 100_000)  # puts it there
    assert stage.data("dead", "redrive") == {"redriven": 1}
    stage.work()
    assert lost.get(timeout=10) == again.get(timeout=10) == "z" * 200_000
    assert stage.data("check")["ok"]


RETAINED = """
app.queue("default", retention={"count": 20})


@app.task
def step(n: int) -> int:
    if n == 3 and not (HERE / "mended").exists():
        raise ValueError(n)
    note("end", "step", n)
    return n
"""


def test_retention(stage: Stage) -> None:
    """By count here; what is dead stays, and what `main` has yet to do is run however much it is."""
    module = stage.module(RETAINED)
    first = [module.step.delay(n) for n in range(60)]
    stage.work()
    waiting = [module.step.delay(n) for n in range(100, 160)]

    def kept() -> list[str]:
        return [row["id"] for row in stage.rows("calls", "--queue", "default", "--oldest", "--limit", "200")]

    def trimmed() -> bool:
        stage.work()  # a worker keeps house when it starts
        return len(kept()) <= 20

    eventually(trimmed, "all but 20 are gone", 30)
    assert kept() == [each.id for each in waiting[-20:]], "the newest"
    (shown,) = stage.rows("queues")
    assert shown["records"] == 20
    assert stage.counters().get("lost: trimmed before they were done") is None
    assert {each.state for each in waiting[-20:]} == {"SUCCESS"}
    assert first[3].state == "FAILURE"
    (letter,) = stage.rows("dead", "list")
    assert letter["id"] == first[3].id
    stage.touch("mended")
    assert stage.data("dead", "redrive") == {"redriven": 1}
    stage.work()
    assert stage.marks("end", "step")[-1].key == "3", "it has its input still (H15)"
    assert stage.rows("dead", "list") == []
    stage.check()


STORMS = """
@app.task(breaker={"failures": 5, "pause": "1h", "errors": OSError})
def fetch(n: int) -> int:
    note("start", "fetch", n)
    if not (HERE / "up").exists():
        raise OSError("nobody there")
    return n


@app.task
def other(n: int) -> int:
    return n


@app.task(
    autoretry_for=(OSError,), max_retries=50, default_retry_delay=0, retry_budget={"share": 0.1, "floor": 5}
)
def flaky(n: int) -> None:
    note("start", "flaky", n)
    raise OSError("nobody there")
"""


def test_storms(stage: Stage) -> None:
    module = stage.module(STORMS)
    module.fetch.delay_many(range(1000))
    beside = module.other.delay(1)
    stage.work()
    ran = len(stage.runs("fetch"))
    assert 5 <= ran < 100
    assert beside.get(timeout=10) == 1, "other tasks run on"
    (shown,) = [row for row in stage.rows("tasks") if row["task"] == "fetch"]
    assert shown["stopped"]["why"] == "OSError: nobody there"
    assert "OSError" in shown["options"]["breaker"]
    (lag,) = stage.rows("lag", "--queue", "default")
    assert (lag["limited"], lag["dead"]) == (1000 - ran, ran)
    stage.touch("up")
    stage.cli("tasks", "release", "fetch")
    eventually(lambda: bool(stage.work()) or len(stage.runs("fetch")) == 1000, "all have run")
    module.flaky.delay_many(range(100))
    stage.work()
    runs: Any = stage.runs("flaky")
    assert 100 < sum(runs.values()) <= 100 + 5 + 0.12 * sum(runs.values())
    assert stage.counts().parked["limited"] == 100, "none is buried, and none comes back at once"
    stage.check()
