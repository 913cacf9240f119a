"""What can be shown with the solo pool in this process: each case was once wrong."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from respool import App, ConfigError, GetTimeout, MaxRetriesExceeded, Refused, Revoked, result
from respool.delivery.model import NewCall
from respool.producer import Producer
from respool.replay import DeadFilter, redrive
from respool.testing import work
from respool.worker import child as child_module
from respool.worker import executor as executor_module
from respool.worker.child import Child
from respool.worker.host import LogFile
from respool.worker.options import WorkerOptions
from respool.worker.services import Service
from respool.worker.telling import Logging


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with App("shop", url=f"sqlite:///{tmp_path / 'shop.db'}") as made:
        yield made


def test_a_call_to_an_app_on_another_log_goes_there(app: App, tmp_path: Path) -> None:
    """The outbox settles on our log; another log's calls are sent as any client sends them."""
    with App("blog", url=f"sqlite:///{tmp_path / 'blog.db'}") as other:

        @other.task
        def post(n: int) -> int:
            return n

        @app.task
        def forward(n: int) -> str:
            return post.delay(n).id

        sent = forward.delay(7)
        work(app)
        there = other.AsyncResult(sent.get(timeout=0))
        assert there.state == "PENDING"
        work(other)
        assert there.get(timeout=0) == 7


def test_an_id_given_in_a_subscription_is_the_apps(app: App) -> None:
    events = app.stream("orders")

    @app.task
    def ship(n: int) -> int:
        return n

    @events.subscribe(group="shipping", start="earliest")
    def shipping(event: dict[str, int]) -> None:
        ship.apply_async((event["n"],), task_id=f"order-{event['n']}")

    events.publish({"n": 1})
    work(app)
    assert app.AsyncResult("order-1").get(timeout=0) == 1
    assert ship.apply_async((1,), task_id="order-1").get(timeout=0) == 1, "the same id sends nothing again"


def test_an_error_whose_text_is_no_text_fails_once(app: App) -> None:
    ran = []

    @app.task
    def bad() -> None:
        ran.append(1)
        raise ValueError("\udc80")

    r = bad.delay()
    work(app)
    assert r.state == "FAILURE"
    assert len(ran) == 1


def test_a_redriven_call_does_not_expire(app: App) -> None:
    """It was started in time; what expires is a call that nobody got to."""
    fail = [True]

    @app.task
    def once() -> str:
        if fail[0]:
            raise ValueError("not yet")
        return "done"

    r = once.apply_async(expires=2)
    late = once.apply_async(countdown=2.1, expires=2)
    work(app)
    assert r.state == "FAILURE"
    fail[0] = False
    while not late.ready():  # it is due when the other's time is over
        work(app)
    with pytest.raises(Revoked, match="expired"):
        late.get(timeout=0)
    assert redrive(app, DeadFilter()) == 1
    work(app)
    assert r.get(timeout=0) == "done"


def test_retries_without_an_error_end_with_one_that_says_so(app: App) -> None:
    @app.task(bind=True, max_retries=1)
    def again(self: Any) -> None:
        self.retry(countdown=0)

    r = again.delay()
    work(app)
    with pytest.raises(MaxRetriesExceeded, match="max_retries"):
        r.get(timeout=0)


@pytest.mark.parametrize(("own", "said", "runs"), [(3, 1, 2), (1, 3, 4), (None, 0, 1), (2, None, 3)])
def test_a_retry_says_how_many_there_may_be(
    app: App, own: int | None, said: int | None, runs: int, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []

    @app.task(bind=True, max_retries=own)
    def charge(self: Any) -> None:
        ran.append(self.request.retries)
        raise self.retry(exc=ValueError("declined"), countdown=0, max_retries=said)

    r = charge.delay()
    with caplog.at_level("INFO", "respool.worker"):
        work(app)
    with pytest.raises(ValueError, match="declined"):
        r.get(timeout=0)
    assert ran == list(range(runs))
    if runs > 1:
        assert f"task charge: retry 1 of {runs - 1} in" in caplog.text


@pytest.mark.parametrize(
    ("options", "error"), [({"args": (1,)}, "UnknownName"), ({"max_retries": -1}, "ConfigError")]
)
def test_a_retry_that_is_refused_keeps_the_error_that_led_to_it(
    app: App, options: dict[str, Any], error: str
) -> None:
    @app.task(bind=True)
    def charge(self: Any) -> None:
        raise self.retry(exc=ValueError("declined"), **options)

    r = charge.delay()
    work(app)
    with pytest.raises(ConfigError, match=next(iter(options))) as caught:
        r.get(timeout=0)
    assert type(caught.value).__name__ == error
    assert "ValueError: declined" in caught.value.remote_traceback  # type: ignore[attr-defined]


def test_each_retry_sends_its_calls_and_an_id_of_the_request_makes_them_one(app: App) -> None:
    """As docs/celery.md says of calls that are made in a task."""
    shipped: list[str] = []

    @app.task
    def ship(how: str) -> None:
        shipped.append(how)

    @app.task(bind=True, max_retries=2)
    def order(self: Any) -> None:
        ship.delay("each")
        ship.apply_async(("once",), task_id=f"ship-{self.request.id}")
        raise self.retry(countdown=0, exc=ValueError("no stock"))

    r = order.delay()
    work(app)
    assert r.state == "FAILURE"
    assert sorted(shipped) == ["each", "each", "each", "once"]


def test_a_result_that_no_store_takes_may_be_larger_than_a_record(tmp_path: Path) -> None:
    """As docs/operations.md says of results without a blob store."""
    url = f"sqlite:///{tmp_path / 'films.db'}"
    with App("films", url=url, offload_over=None, max_record_size="64KiB") as app:

        @app.task
        def encode(size: int) -> bytes:
            return bytes(size)

        r = encode.delay(3 << 20)
        work(app)
        assert len(r.get(timeout=0)) == 3 << 20
        with pytest.raises(Refused):
            app.send_task("encode", (bytes(128 << 10),))
    assert not (tmp_path / "films.db-blobs").exists()


def test_this_process_is_itself_again_after_a_worker(app: App) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    for n in range(3):
        r = add.delay(n, 1)
        work(app)
        assert r.get(timeout=0) == n + 1


def test_a_delayed_call_is_scheduled_at_once(app: App) -> None:
    @app.task
    def later() -> None: ...

    r = later.apply_async(countdown=60)
    assert r.state == "SCHEDULED"
    work(app)
    assert r.state == "SCHEDULED"


def test_a_handle_made_in_a_task_is_good_after_the_worker(app: App) -> None:
    made: list[Any] = []

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task
    def parent() -> None:
        made.append(add.delay(1, 2))

    parent.delay()
    work(app)
    assert made[0].get(timeout=0) == 3
    assert made[0].state == "SUCCESS"


def test_a_task_that_waits_for_a_call_is_told_that_it_holds_its_process(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(result, "HOLDS", 0.05)
    waited: list[Any] = []

    @app.task
    def child() -> None: ...

    @app.task
    async def parent() -> None:
        call = child.delay()
        waited.append(call)
        with pytest.raises(GetTimeout):
            await call.aget(timeout=0.3)

    async def outside() -> None:
        with pytest.raises(GetTimeout):
            await child.delay().aget(timeout=0.3)

    parent.delay()
    asyncio.run(outside())
    assert not caplog.messages
    work(app)
    assert waited[0].successful()
    (told,) = [message for message in caplog.messages if "aget()" in message]
    assert waited[0].id in told
    assert "runs nothing else meanwhile" in told


@pytest.mark.parametrize("how", ["coroutine", "thread"])
def test_what_a_run_leaves_behind_is_not_part_of_the_next(app: App, how: str) -> None:
    """H8: its calls would be the next run's, gone with that if it is lost, and made again by no rerun."""
    refused: list[str] = []
    ran: list[str] = []
    left: list[Any] = []
    go = threading.Event()

    @app.task
    def made(whose: str) -> None:
        ran.append(whose)

    @app.task(bind=True)
    async def leaves(self: Any) -> None:
        def use() -> None:
            for each in (
                lambda: made.delay("left"),
                lambda: self.request,
                lambda: self.update_state(meta=1),
                lambda: self.once("step", int),
                lambda: self.transaction().__enter__(),
            ):
                with pytest.raises(Refused, match="has ended") as caught:
                    each()
                refused.append(str(caught.value))

        async def in_a_coroutine() -> None:
            while not go.is_set():
                await asyncio.sleep(0)
            use()

        def in_a_thread() -> None:
            assert go.wait(10)
            use()

        behind = in_a_coroutine() if how == "coroutine" else asyncio.to_thread(in_a_thread)
        left.append(asyncio.create_task(behind))
        await asyncio.sleep(0)
        assert made.delay("own").state == "PENDING", "within its run it is part of it"

    @app.task(bind=True)
    async def next_run(self: Any) -> str:
        go.set()
        await left[0]
        made.delay("next")
        return str(self.request.id)

    leaves.delay()
    second = next_run.delay()
    work(app)
    assert second.get(timeout=0) == second.id
    assert len(refused) == 5
    assert refused[0].endswith("nothing was sent")
    assert sorted(ran) == ["next", "own"]


@pytest.mark.parametrize("kind", ["plain", "limited", "batch"])
@pytest.mark.parametrize("within", [1, 10])
def test_a_thread_that_a_run_leaves_behind_is_not_part_of_the_next(app: App, kind: str, within: int) -> None:
    """H8: a thread has its run's context where it was given a copy; within that run it is part of it."""
    options: dict[str, Any] = {"plain": {}, "limited": {"soft_time_limit": 60}, "batch": {"batch": 1}}[kind]
    refused: list[str] = []
    ran: list[Any] = []
    pool = ThreadPoolExecutor(1)
    pool.submit(int).result()  # the thread is there before, as those of a library may be
    left: list[Any] = []
    go = threading.Event()

    @app.task
    def made(whose: str) -> None:
        ran.append(whose)

    def use() -> None:
        assert go.wait(10)
        for each in (lambda: made.delay("left"), lambda: leaves.request, lambda: leaves.update_state(meta=1)):
            with pytest.raises(Refused, match="has ended") as caught:
                each()
            refused.append(str(caught.value))

    @app.task(bind=True, **options)
    def leaves(self: Any, n: Any) -> None:
        run = contextvars.copy_context().run
        assert pool.submit(run, made.delay, "own").result(10).state == "PENDING"
        left.append(pool.submit(run, use))

    @app.task(**options)
    def next_run(n: Any) -> None:
        go.set()
        if left:
            left.pop().result(10)
        made.delay("next")

    @app.task
    def quick(n: int) -> None: ...

    for _ in range(3):
        quick.delay_many(range(within))  # a lease has several, so both are in one
        leaves.delay(1)
        next_run.delay(1)
        work(app)
        go.clear()
    assert len(refused) == 9
    assert refused[0].endswith("nothing was sent")
    assert sorted(ran) == ["next"] * 3 + ["own"] * 3
    pool.shutdown()


def test_what_a_run_has_left_behind_sends_nothing_while_it_is_settled(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be sent with the next run, or be lost with that."""
    began, over = threading.Event(), threading.Event()
    said: list[str] = []
    threads: list[threading.Thread] = []
    settle_part = executor_module.Executor.settle_part

    def slowly(self: Any, *args: Any) -> None:
        if threads:
            began.set()
            assert over.wait(10)
        settle_part(self, *args)

    monkeypatch.setattr(executor_module.Executor, "settle_part", slowly)
    monkeypatch.setattr(executor_module, "UNSETTLED", 0)

    @app.task
    def made() -> None:
        raise AssertionError("it was refused")

    def use() -> None:
        assert began.wait(10)
        try:
            made.delay()
        except Refused as error:
            said.append(str(error))
        over.set()

    @app.task
    def leaves(n: int) -> None:
        if n == 20:  # by then a lease has several, and each is settled by itself
            threads.append(threading.Thread(target=contextvars.copy_context().run, args=(use,)))
            threads[0].start()

    leaves.delay_many(range(60))
    work(app)
    threads[0].join(10)
    assert [each.endswith("nothing was sent") for each in said] == [True]


def test_a_cancelled_caller_does_not_hold_up_the_next(app: App) -> None:
    """H17: who stands behind somebody that was cancelled takes over."""
    engine = app.engine
    log = app.stream_of("queue", "default").logs[0]
    began, go_on = threading.Event(), threading.Event()

    class Slow:
        def append_row(self, row: NewCall) -> Any:
            began.set()
            assert go_on.wait(10)
            return engine.append_row(row)

        def append_rows(self, rows: Any) -> Any:
            return engine.append_rows(rows)

        def ring(self, log: int) -> None: ...

    slow: Any = Slow()
    producer = Producer(slow, 1 << 20)

    def call(name: str) -> NewCall:
        return NewCall(log, "add", b"x", None, f"shop\0{name}", 1.0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        leader = loop.run_in_executor(None, producer.append, call("leader"))
        await loop.run_in_executor(None, began.wait, 10)
        cancelled = asyncio.create_task(producer.aappend(call("cancelled")))
        behind = asyncio.create_task(producer.aappend(call("behind")))
        await asyncio.sleep(0)  # both are in the queue now
        cancelled.cancel()
        await asyncio.wait([cancelled], timeout=10)
        go_on.set()
        await asyncio.wait_for(asyncio.gather(leader, behind), 10)

    asyncio.run(main())
    assert engine.find("shop", "behind") is not None
    assert engine.find("shop", "cancelled") is None


def test_a_log_deleted_just_before_a_child_opens_it_is_noticed(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening makes what is not there: the empty file in place of ours must not be served."""
    path = tmp_path / "shop.db"
    assert app.engine.groups(), "the file is there"
    ours, theirs = socket.socketpair()
    child = Child(ours, LogFile.at(str(path)), Logging(sys.stderr, "child"))
    child.options = WorkerOptions(app="shop")
    monkeypatch.setattr(child_module, "load_app", lambda spec, url: app)

    def opened(*_: object) -> list[Service]:
        path.unlink()
        path.touch()
        return []

    monkeypatch.setattr(child_module, "services", opened)
    assert child.load() is None
    assert b"was deleted or replaced while in use" in theirs.recv(10_000)
    ours.close()
    theirs.close()


def test_a_subscription_declared_after_the_log_was_opened(app: App) -> None:
    """Of a stream that is there, and of one that is new: it is served like any other."""
    known = app.stream("known")
    known.publish({"n": 1})
    seen: list[int] = []
    for stream in (known, app.stream("new")):

        @stream.subscribe(group=f"of {stream.name}", start="earliest")
        def see(event: dict[str, int]) -> None:
            seen.append(event["n"])

    app.stream_handles["new"].publish({"n": 2})
    work(app)
    assert sorted(seen) == [1, 2]


def test_a_queue_with_a_backlog_keeps_no_other_waiting(tmp_path: Path) -> None:
    """Its turn goes on while no other has anything to do; a call that comes meanwhile starts within it."""
    app = App("shop", url=f"sqlite:///{tmp_path / 'turns.db'}")
    app.queue("other")
    order: list[int | str] = []

    @app.task(queue="other")
    def short() -> None:
        order.append("short")

    @app.task
    def step(n: int) -> None:
        order.append(n)
        time.sleep(0.005)
        if n == 200:
            short.delay()

    step.delay_many(range(400))
    work(app)
    app.close()
    assert len(order) == 401
    assert order.index("short") < 300, "after a turn of 0.1 s, and the lease that was under way"
