"""Tasks as a user sees them, run by a real worker: results, retries, states, requests, delays."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from tests.worker.support import Place, eventually, on_each_engine

from respool.errors import (
    GetTimeout,
    NotEncodable,
    RemoteError,
    ResultExpired,
    Revoked,
)
from respool.replay import dead_letters

CODE = """
import dataclasses, decimal, uuid
from datetime import date, datetime, timezone


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Own(Exception):
    pass


class Local(Exception):
    def __init__(self, a, b):
        super().__init__(a, b)


@app.task
def echo(value):
    return value


@app.task
def typed(point: Point, when: datetime) -> int:
    assert isinstance(point, Point) and isinstance(when, datetime)
    return point.x + point.y


@app.task
def raises(kind, text="boom"):
    if kind == "hidden":
        class Hidden(Exception):
            pass
        raise Hidden(text)
    if kind == "odd":
        class Odd(Exception):
            def __str__(self):
                raise RuntimeError("no words")
        raise Odd()
    raise {"value": ValueError, "own": Own, "exit": SystemExit, "interrupt": KeyboardInterrupt}[kind](text)


@app.task(throws=(KeyError,))
def expected():
    raise KeyError("as usual")


@app.task
def object_():
    return object()


@app.task(ignore_result=True)
def ignored(n):
    note("start", "ignored", n)
    return n


@app.task(result_ttl=0.2)
def short_lived(n):
    return n


@app.task(bind=True, max_retries=3)
def retried(self, key, times, countdown=0):
    note("start", "retried", key)
    if self.request.retries < times:
        raise self.retry(countdown=countdown, exc=ValueError(f"not yet: {self.request.retries}"))
    return self.request.retries


@app.task(bind=True, max_retries=2)
def retried_in_vain(self, key):
    note("start", "in_vain", key)
    self.retry(countdown=0, exc=Own("always"))


@app.task(autoretry_for=(OSError,), max_retries=4, default_retry_delay=0.05)
def auto(key):
    note("start", "auto", key)
    if (HERE / "record").read_bytes().count(b"start auto %s " % key.encode()) < 3:
        raise ConnectionError("not there")
    return "there"


@app.task(autoretry_for=(OSError,), max_retries=2, retry_backoff=0.02, retry_backoff_max=0.03)
def auto_in_vain(key):
    note("start", "auto_in_vain", key)
    raise OSError(key)


@app.task(autoretry_for=(OSError,), retry_backoff=600, retry_jitter=False)
def patient():
    raise OSError("later")


@app.task(bind=True)
def request(self, n):
    r = self.request
    return {name: getattr(r, name) for name in
            ("id", "task", "retries", "deliveries", "consumer_group", "replay", "headers", "queue",
             "partition", "offset", "key", "root_id", "parent_id")}


@app.task(bind=True)
def family(self, depth):
    if depth:
        return family.delay(depth - 1).id
    return [self.request.parent_id, self.request.root_id]


@app.task(bind=True)
def slow(self, name):
    note("start", "slow", name)
    wait_for(f"go-{name}")
    self.update_state(meta={"done": 50})
    wait_for(f"on-{name}")
    return name


@app.task
def gets():
    from respool.errors import GetInsideTask
    inner = echo.delay(1)
    for get in (inner.get, lambda: echo.delay_many([1, 2]).get()):
        try:
            get()
        except GetInsideTask as error:
            pass
        else:
            return "no error"
    return "raised"


@app.task
async def coroutine(n):
    await asyncio.sleep(0)
    if n < 0:
        raise Own("negative")
    return n + 1


@app.task
async def awaits(n):
    return await (await echo.adelay(n)).aget(timeout=20)


@app.task
async def sibling():
    # What one coroutine leaves behind must not disturb the next.
    asyncio.get_running_loop().create_task(asyncio.sleep(3600))
    return "left"


@app.task
def stamp(key):
    note("start", "stamp", key)
"""


@pytest.fixture(scope="module")
def shop(shared_place: Place) -> ModuleType:
    module = shared_place.module(CODE)
    shared_place.worker(2)
    return module  # type: ignore[no-any-return]


names = itertools.count()


def key() -> str:
    return f"k{next(names)}"


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        "text",
        b"bytes",
        1.5,
        True,
        [1, [2]],
        {"a": {"b": None}},
        {1, 2},
        datetime(2026, 1, 1, tzinfo=UTC),
        "x" * 600_000,
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_results_arrive_as_returned(shop: Any, value: Any) -> None:
    result = shop.echo.delay(value)
    assert result.get(timeout=20) == value
    assert (result.state, result.ready(), result.successful()) == ("SUCCESS", True, True)


def test_arguments_arrive_as_declared(shop: Any) -> None:
    assert shop.typed.delay(shop.Point(1, 2), datetime.now(UTC)).get(timeout=20) == 3


def test_many_results_in_order(shop: Any) -> None:
    assert shop.echo.delay_many(range(3000)).get(timeout=20) == list(range(3000))


def test_aget(shop: Any) -> None:
    async def main() -> list[int]:
        results = [await shop.echo.adelay(n) for n in range(20)]
        return await asyncio.gather(*(r.aget(timeout=20) for r in results))

    assert asyncio.run(main()) == list(range(20))


def test_exception_is_raised_as_its_own_type_with_the_remote_traceback(shop: Any) -> None:
    result = shop.raises.delay("own")
    with pytest.raises(shop.Own, match="boom") as caught:
        result.get(timeout=20)
    assert result.state == "FAILURE"
    assert "in raises" in result.traceback
    assert "in raises" in "".join(getattr(caught.value, "__notes__", [])) or caught.value.remote_traceback  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["exit", "interrupt"])
def test_even_what_would_end_the_process_is_an_outcome(shop: Any, kind: str) -> None:
    """And none that would end who asks for it: a web process, say."""
    result = shop.raises.delay(kind)
    name = {"exit": "SystemExit", "interrupt": "KeyboardInterrupt"}[kind]
    with pytest.raises(RemoteError, match=f"{name}: boom") as caught:
        result.get(timeout=20)
    with pytest.raises(RemoteError, match="boom"):
        asyncio.run(result.aget(timeout=20))
    assert repr(result.get(timeout=20, propagate=False)) == repr(caught.value)


def test_exception_that_cannot_be_imported(shop: Any) -> None:
    with pytest.raises(RemoteError, match="Hidden"):
        shop.raises.delay("hidden").get(timeout=20)


def test_exception_without_words(shop: Any) -> None:
    with pytest.raises(RemoteError, match="Odd"):
        shop.raises.delay("odd").get(timeout=20)


def test_failure_is_a_dead_letter_with_its_input(shop: Any, shared_place: Place) -> None:
    result = shop.raises.delay("value", "unique words")
    assert isinstance(result.get(timeout=20, propagate=False), ValueError)
    pos, _ = result._locate()
    letters = [d for d in dead_letters(shop.app) if d.parked.pos == pos]
    assert len(letters) == 1
    assert b"unique words" in result.record().body


def test_expected_error_is_a_failure_without_dead_letter(shop: Any) -> None:
    result = shop.expected.delay()
    with pytest.raises(KeyError):
        result.get(timeout=20)
    pos, _ = result._locate()
    assert result.state == "FAILURE"
    assert not [d for d in dead_letters(shop.app) if d.parked.pos == pos]


def test_result_that_cannot_be_encoded_is_a_failure_that_says_so(shop: Any) -> None:
    with pytest.raises(NotEncodable, match="result"):
        shop.object_.delay().get(timeout=20)


def test_ignored_result(shop: Any, shared_place: Place) -> None:
    result = shop.ignored.delay(7)
    assert result.get(timeout=20) is None
    assert result.state == "SUCCESS"


def test_result_ttl(shop: Any) -> None:
    result = shop.short_lived.delay(5)
    eventually(lambda: result.state == "SUCCESS")
    eventually(lambda: _expired(result), "expiry")
    assert result.state == "SUCCESS"


def _expired(result: Any) -> bool:
    try:
        result.get(timeout=20)
    except ResultExpired:
        return True
    return False


def test_retry_counts_and_returns(shop: Any, shared_place: Place) -> None:
    name = key()
    assert shop.retried.delay(name, 3).get(timeout=20) == 3
    assert shared_place.runs("retried")[name] == 4


def test_retry_waits_its_countdown_and_says_so(shop: Any, shared_place: Place) -> None:
    name = key()
    result = shop.retried.delay(name, 1, 0.7)
    eventually(lambda: result.state == "RETRY")
    assert isinstance(result.info, ValueError)
    assert result.get(timeout=20) == 1
    first, second = (m.at for m in shared_place.marks("start", "retried") if m.key == name)
    assert 0.69 <= second - first < 3
    assert [attempt.how for attempt in result.history()] == ["retry", "done"]


def test_retries_used_up_raise_the_cause(shop: Any, shared_place: Place) -> None:
    name = key()
    with pytest.raises(shop.Own, match="always"):
        shop.retried_in_vain.delay(name).get(timeout=20)
    assert shared_place.runs("in_vain")[name] == 3


def test_autoretry(shop: Any, shared_place: Place) -> None:
    name = key()
    result = shop.auto.delay(name)
    assert result.get(timeout=20) == "there"
    starts = [m.at for m in shared_place.marks("start", "auto") if m.key == name]
    assert len(starts) == 3
    assert all(later - earlier >= 0.049 for earlier, later in itertools.pairwise(starts))
    assert [attempt.how for attempt in result.history()] == ["retry", "retry", "done"]


def test_autoretry_gives_up_after_max_retries(shop: Any, shared_place: Place) -> None:
    name = key()
    result = shop.auto_in_vain.delay(name)
    with pytest.raises(OSError, match=name):
        result.get(timeout=20)
    assert shared_place.runs("auto_in_vain")[name] == 3
    assert [attempt.how for attempt in result.history()] == ["retry", "retry", "failed"]


def test_backoff_says_until_when(shop: Any) -> None:
    result = shop.patient.delay()
    eventually(lambda: result.state == "RETRY")
    with pytest.raises(GetTimeout, match="retry"):
        result.get(timeout=0.05)
    due = eventually(lambda: result.find().status.parked).due
    assert 580 < due - time.time() <= 600


def test_request(shop: Any) -> None:
    result = shop.request.apply_async((1,), headers={"trace": "abc"}, task_id=f"given-{key()}")
    seen = result.get(timeout=20)
    assert seen == {
        "id": result.id,
        "task": "request",
        "retries": 0,
        "deliveries": 0,
        "consumer_group": "main",
        "replay": False,
        "headers": {"trace": "abc"},
        "queue": "default",
        "partition": 0,
        "offset": result.record().pos & ((1 << 40) - 1),
        "key": None,
        "root_id": None,
        "parent_id": None,
    }


def test_calls_know_their_ancestors(shop: Any) -> None:
    first = shop.family.delay(2)
    second = first.get(timeout=20)
    third = shop.app.AsyncResult(second).get(timeout=20)
    assert shop.app.AsyncResult(third).get(timeout=20) == [second, first.id]


def test_states_on_the_way(shop: Any, shared_place: Place) -> None:
    name = key()
    result = shop.slow.delay(name)
    shared_place.await_start("slow", name)
    eventually(lambda: result.state == "STARTED", "STARTED")
    with pytest.raises(GetTimeout, match="running for"):
        result.get(timeout=0.05)
    shared_place.touch(f"go-{name}")
    eventually(lambda: result.state == "PROGRESS", "PROGRESS")
    assert result.info == {"done": 50}
    shared_place.touch(f"on-{name}")
    assert result.get(timeout=20) == name
    assert result.state == "SUCCESS"
    (attempt,) = result.history()
    assert attempt.how == "done"
    assert attempt.worker == shared_place.registered()[0].id


def test_unknown_id(shop: Any) -> None:
    assert shop.app.AsyncResult("never").state == "UNKNOWN"


def test_get_inside_a_task_raises(shop: Any) -> None:
    assert shop.gets.delay().get(timeout=20) == "raised"


def test_coroutine_tasks(shop: Any) -> None:
    assert shop.coroutine.delay_many(range(50)).get(timeout=20) == list(range(1, 51))
    with pytest.raises(shop.Own, match="negative"):
        shop.coroutine.delay(-1).get(timeout=20)


def test_coroutine_task_may_await_another_call(shop: Any) -> None:
    assert shop.awaits.delay(7).get(timeout=20) == 7


def test_coroutine_that_leaves_another_behind(shop: Any) -> None:
    assert [shop.sibling.delay().get(timeout=20) for _ in range(3)] == ["left"] * 3
    assert shop.coroutine.delay(1).get(timeout=20) == 2


def test_countdown(shop: Any, shared_place: Place) -> None:
    name = key()
    sent = time.monotonic()
    result = shop.stamp.apply_async((name,), countdown=0.6)
    eventually(lambda: result.state == "SCHEDULED")
    result.get(timeout=20)
    assert 0.6 <= shared_place.await_start("stamp", name).at - sent < 3


def test_eta(shop: Any, shared_place: Place) -> None:
    name = key()
    due = datetime.now(UTC) + timedelta(seconds=0.6)
    sent = time.monotonic()
    shop.stamp.apply_async((name,), eta=due).get(timeout=20)
    assert 0.55 <= shared_place.await_start("stamp", name).at - sent < 3


def test_expired_call_is_revoked_and_not_run(shop: Any, shared_place: Place) -> None:
    name = key()
    result = shop.stamp.apply_async((name,), expires=0.000001)
    with pytest.raises(Revoked, match="expired"):
        result.get(timeout=20)
    assert result.state == "REVOKED"
    assert [attempt.how for attempt in result.history()] == ["expired"]
    assert not shared_place.runs("stamp")[name]


def test_expires_while_it_waits_for_its_time(shop: Any, shared_place: Place) -> None:
    name = key()
    result = shop.stamp.apply_async((name,), countdown=0.4, expires=0.2)
    with pytest.raises(Revoked):
        result.get(timeout=20)
    assert not shared_place.runs("stamp")[name]


def test_same_id_is_run_once(shop: Any, shared_place: Place) -> None:
    name = key()
    for _ in range(3):
        result = shop.stamp.apply_async((name,), task_id=f"only-{name}")
    result.get(timeout=20)
    shop.stamp.delay(f"{name}-after").get(timeout=20)
    assert shared_place.runs("stamp")[name] == 1


def test_send_task_by_name(shop: Any) -> None:
    assert shop.app.send_task("echo", (5,)).get(timeout=20) == 5


@on_each_engine
def test_delays_and_retries_survive_the_worker(place: Place) -> None:
    module = place.module(CODE)
    worker = place.worker()
    module.stamp.delay("first").get(timeout=20)  # it is there, before anything is due
    later = module.stamp.apply_async(("later",), countdown=2.5)
    retried = module.retried.delay("r", 1, 2.5)
    eventually(lambda: (later.state, retried.state) == ("SCHEDULED", "RETRY"))
    worker.kill_group()
    assert (later.state, retried.state) == ("SCHEDULED", "RETRY")
    place.worker()
    later.get(timeout=20)
    assert retried.get(timeout=20) == 1
    assert place.runs() == {"first": 1, "later": 1, "r": 2}


@on_each_engine
def test_burst_waits_for_retries_but_not_for_what_is_scheduled(place: Place) -> None:
    module = place.module(CODE)
    retried = module.retried.delay("r", 2, 0.5)
    module.stamp.apply_async(("never",), countdown=3600)
    place.burst()
    assert retried.get(timeout=1) == 2
    assert not place.runs("stamp")


@on_each_engine
def test_who_waits_is_woken_by_the_doorbell(place: Place) -> None:
    """Not by polling: that is set far off, for those who wait and for those who work."""
    module = place.module(CODE, poll_interval=60)
    place.worker(1)
    place.children(1)

    def soon(n: int) -> Any:
        return module.echo.apply_async((n,), countdown=0.3)  # not there yet when it is waited for

    began = time.monotonic()
    assert [soon(n).get(timeout=40) for n in range(2)] == [0, 1]
    assert [asyncio.run(soon(n).aget(timeout=40)) for n in range(2)] == [0, 1]
    blocked = module.slow.delay("many")
    many = module.echo.delay_many(range(50))
    for name in ("go-many", "on-many"):
        threading.Timer(0.3, place.touch, (name,)).start()
    assert many.get(timeout=40) == list(range(50))
    assert blocked.get(timeout=40) == "many"
    assert module.retried.delay(key(), 1, 0.2).get(timeout=40) == 1, "what is due wakes by itself"
    with pytest.raises(ValueError, match="boom"):
        module.raises.delay("value").get(timeout=40)
    assert time.monotonic() - began < 20
