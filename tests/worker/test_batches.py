"""Tasks with `batch=`: what they get, how they form, and what becomes of a bad call among good ones."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from respool import App
from respool.encoding.remote import error_summary
from respool.errors import (
    BadArguments,
    BatchMismatch,
    ConfigError,
    MaxRetriesExceeded,
    NotEncodable,
    Retry,
    SoftTimeLimitExceeded,
    UnknownName,
)
from respool.replay import check, dead_letters
from respool.testing import work


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with App("shop", url=f"sqlite:///{tmp_path / 'shop.db'}") as made:
        yield made
        report = check(made)
        assert report.ok, report
        refused = [
            made.engine.counters(group.id).get("refused settlements") for group in made.engine.groups()
        ]
        assert not any(refused), "nobody else had its leases"


@dataclasses.dataclass
class Point:
    x: int
    y: int


# What the function gets and what it gives


def test_a_batch_that_took_a_while_is_settled_once(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of its lease, of which then nothing is left."""
    monkeypatch.setattr("respool.worker.batching.UNSETTLED", 0)

    @app.task(batch=3)
    def double(numbers: list[int]) -> list[int]:
        return [2 * n for n in numbers]

    results = [double.delay(n) for n in range(7)]
    work(app)
    assert [r.get(timeout=0) for r in results] == [2 * n for n in range(7)]
    assert not [record for record in caplog.records if "lost" in record.getMessage()]


def test_a_batch_function_gets_the_list_of_the_calls_arguments(app: App) -> None:
    got: list[list[str]] = []

    @app.task(batch=3)
    def shout(texts: list[str]) -> list[str]:
        got.append(texts)
        return [text.upper() for text in texts]

    results = [shout.delay(text) for text in "abcdefg"]
    work(app)
    assert [r.get(timeout=0) for r in results] == list("ABCDEFG")
    assert [len(batch) for batch in got] == [3, 3, 1]
    assert shout(["x"]) == ["X"], "calling it runs the function"


def test_several_arguments_are_tuples_and_are_decoded_as_declared(app: App) -> None:
    got: list[Any] = []

    @app.task(batch=10)
    def move(items: list[tuple[Point, int]]) -> list[int]:
        got.extend(items)
        return [point.x + by for point, by in items]

    @app.task(batch=10)
    def free(items):  # type: ignore[no-untyped-def]
        got.extend(items)
        return [None] * len(items)

    moved = move.apply_many([((Point(1, 2), 3), {}), ((Point(4, 5), 6), {})])
    free.delay(1)
    free.delay(1, 2)
    work(app)
    assert moved.get(timeout=0) == [4, 10]
    assert got == [(Point(1, 2), 3), (Point(4, 5), 6), 1, (1, 2)]


def test_each_call_is_checked_at_delay(app: App) -> None:
    @app.task(batch=10)
    def embed(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    @app.task(batch=10)
    def pairs(items: list[tuple[int, str]]) -> list[int]:
        return [n for n, _ in items]

    for wrong in (
        lambda: embed.delay(1),
        lambda: embed.delay(["a"]),
        lambda: embed.delay("a", "b"),
        lambda: embed.delay(),
        lambda: embed.delay(texts="a"),
        lambda: pairs.delay(1),
        lambda: pairs.delay("a", 1),
        lambda: embed.delay_many(["a", 1]),
    ):
        with pytest.raises(BadArguments):
            wrong()


def test_self_calls_are_the_calls_requests(app: App) -> None:
    seen: list[Any] = []

    @app.task(batch=10, bind=True)
    def each(self: Any, items: list[int]) -> list[str]:
        seen.append([(call.headers.get("tenant"), call.retries, call.queue) for call in self.calls])
        for what in (lambda: self.request, lambda: self.update_state(meta=1)):
            with pytest.raises(ConfigError, match="many calls"):
                what()
        return [call.id for call in self.calls]

    @app.task(bind=True)
    def one(self: Any) -> None:
        _ = self.calls

    results = [each.apply_async((n,), headers={"tenant": f"t{n}"}) for n in range(3)]
    single = one.delay()
    work(app)
    assert [r.get(timeout=0) for r in results] == [r.id for r in results]
    assert seen == [[("t0", 0, "default"), ("t1", 0, "default"), ("t2", 0, "default")]]
    with pytest.raises(ConfigError, match="batch="):
        single.get(timeout=0)


def test_a_coroutine_function_takes_batches(app: App) -> None:
    @app.task(batch=5)
    async def double(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    results = double.delay_many(range(12))
    work(app)
    assert results.get(timeout=0) == [2 * n for n in range(12)]


def test_a_subscription_takes_batches(app: App) -> None:
    events = app.stream("events")
    got: list[Any] = []

    @events.subscribe(group="sink", start="earliest", batch=4)
    def sink(rows: list[dict[str, int]]) -> None:
        got.append(rows)

    events.publish_many({"n": n} for n in range(10))
    work(app)
    assert [len(rows) for rows in got] == [4, 4, 2]
    assert [row["n"] for rows in got for row in rows] == list(range(10))


def test_results_of_tasks_that_share_a_queue_are_each_ones_own(app: App) -> None:
    """Batches are put together from among other calls, and their records do not stand side by side."""

    @app.task(batch=3)
    def negative(items: list[int]) -> list[int]:
        return [-item for item in items]

    @app.task(batch=4)
    def text(items: list[int]) -> list[str]:
        return [str(item) for item in items]

    @app.task
    def square(n: int) -> int:
        return n * n

    results: list[tuple[Any, Any]] = []
    for n in range(100):
        results += [(square.delay(n), n * n)] * (n % 2)
        results += [(negative.delay(n), -n)]
        results += [(text.delay(n), str(n))] * (n % 3 > 0)
    work(app)
    assert [r.get(timeout=0) for r, _ in results] == [expected for _, expected in results]


# One bad call among good ones


def test_item_387_of_500_fails_and_499_succeed(app: App) -> None:
    runs: list[int] = []

    @app.task(batch=500)
    def embed(texts: list[str]) -> list[int]:
        runs.append(len(texts))
        if "malformed" in texts:
            raise ValueError("cannot be embedded")
        return [len(text) for text in texts]

    results = embed.delay_many("malformed" if n == 387 else "x" * (n % 7) for n in range(500))
    work(app)
    assert runs[0] == 500
    assert len(runs) - 1 <= 2 * math.ceil(math.log2(500))
    values = list(results.iterate(0, propagate=False))
    assert isinstance(values[387], ValueError)
    assert [v for n, v in enumerate(values) if n != 387] == [n % 7 for n in range(500) if n != 387]
    (dead,) = dead_letters(app)
    assert dead.parked.task == "embed"


def test_an_item_that_is_an_exception_fails_alone(app: App) -> None:
    runs = []

    @app.task(batch=10, throws=(KeyError,))
    def some(items: list[int]) -> list[Any]:
        runs.append(items)
        found: list[Any] = list(items)
        found[2], found[4], found[5] = ValueError("two"), KeyError("four"), object()
        return found

    results = some.delay_many(range(10))
    work(app)
    values = list(results.iterate(0, propagate=False))
    assert [type(value) for value in values] == [
        *(int, int, ValueError, int, KeyError, NotEncodable, int, int, int, int)
    ]
    assert runs == [list(range(10))]
    found = {error_summary(dead.parked.error or b"")[0].rpartition(".")[2] for dead in dead_letters(app)}
    assert found == {"NotEncodable", "ValueError"}, "an error that is expected makes no dead letter"


def test_only_the_culprit_is_retried(app: App) -> None:
    ran: list[list[int]] = []

    @app.task(batch=8, autoretry_for=(OSError,), default_retry_delay=0.01)
    def fetch(items: list[int]) -> list[int]:
        ran.append(items)
        if 5 in items and sum(5 in batch for batch in ran) <= 5:
            raise OSError("five")
        return items

    results = fetch.delay_many(range(8))
    work(app)
    assert results.get(timeout=0) == list(range(8))
    assert ran[-1] == [5]
    assert ran.count([5]) == 3


def test_a_retry_of_an_item_and_of_a_batch(app: App) -> None:
    ran: list[list[int]] = []

    @app.task(batch=4, bind=True, max_retries=2)
    def again(self: Any, items: list[int]) -> list[Any]:
        ran.append(items)
        if self.calls[0].retries == 0:
            self.retry(countdown=0)
        if self.calls[0].retries == 1:
            return [Retry("odd", countdown=0) if item % 2 else item for item in items]
        return [Retry("always", countdown=0)] * len(items)

    results = again.delay_many(range(4))
    work(app)
    assert ran == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 3]]
    values = list(results.iterate(0, propagate=False))
    assert values[0::2] == [0, 2]
    assert [type(value) for value in values[1::2]] == [MaxRetriesExceeded] * 2


def test_an_outage_does_not_turn_a_batch_into_a_thousand_runs(app: App) -> None:
    runs: list[int] = []

    @app.task(batch=500, autoretry_for=(OSError,), default_retry_delay=0.01, max_retries=1)
    def down(items: list[int]) -> list[int]:
        runs.append(len(items))
        raise OSError("nobody there")

    results = down.delay_many(range(500))
    work(app)
    assert len(runs) < 100
    assert all(isinstance(value, OSError) for value in results.iterate(0, propagate=False))


def test_after_an_outage_all_calls_of_the_batch_succeed(app: App) -> None:
    runs: list[int] = []

    @app.task(batch=500, autoretry_for=(OSError,), default_retry_delay=0.01, max_retries=2)
    def flaky(items: list[int]) -> list[int]:
        runs.append(len(items))
        if len(runs) < 20:
            raise OSError("nobody there")
        return items

    results = flaky.delay_many(range(500))
    work(app)
    assert results.get(timeout=0) == list(range(500))
    assert len(runs) < 60, "far from a run for each call"


def test_with_many_culprits_no_innocent_is_buried(app: App) -> None:
    """What is left after so many runs is put off, without being charged for a retry."""

    @app.task(batch=500, max_retries=0, default_retry_delay=0.0)
    def some(items: list[int]) -> list[int]:
        if any(item % 5 == 0 for item in items):
            raise ValueError("fives")
        return items

    results = some.delay_many(range(500))
    work(app)
    values = list(results.iterate(0, propagate=False))
    assert [n for n, value in enumerate(values) if isinstance(value, ValueError)] == list(range(0, 500, 5))
    assert [value for value in values if not isinstance(value, ValueError)] == [
        n for n in range(500) if n % 5
    ]


def test_what_was_put_off_does_not_expire(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was begun in time (P3)."""
    tried = 0

    @app.task(batch=500, max_retries=0, default_retry_delay=0.0, expires=600)
    def some(items: list[int]) -> list[int]:
        nonlocal tried
        tried += 1
        monkeypatch.setattr("respool.worker.calling.wall_clock", lambda: time.time() + 3600)
        if any(item % 5 == 0 for item in items):
            raise ValueError("fives")
        return items

    results = some.delay_many(range(500))
    work(app)
    assert {result.state for result in results} == {"SUCCESS", "FAILURE"}
    assert tried > 10


@pytest.mark.parametrize("returned", [[1], [1] * 11, "abcdefghij", {"a": 1}, 7])
def test_the_wrong_number_of_items_fails_each_call_and_splits_nothing(app: App, returned: Any) -> None:
    runs = []

    @app.task(batch=10)
    def wrong(items: list[int]) -> Any:
        runs.append(items)
        return returned

    results = wrong.delay_many(range(10))
    work(app)
    assert len(runs) == 1
    for value in results.iterate(0, propagate=False):
        assert isinstance(value, BatchMismatch)
        assert "batch of 10" in str(value)
    assert len(dead_letters(app)) == 10


def test_a_body_that_does_not_fit_costs_the_others_nothing(app: App) -> None:
    @app.task(batch=10)
    def embed(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    good = [embed.delay("abc") for _ in range(3)]
    with App("shop", url=app.url) as elsewhere:  # it has not the code, and checks nothing
        bad = [elsewhere.send_task("embed", *call).id for call in ((("a", "b"),), ((), {"texts": "a"}))]
        named = elsewhere.send_task("embed", ("abc",), headers={"h": "1"}).id
    work(app)
    assert [r.get(timeout=0) for r in [*good, app.AsyncResult(named)]] == [3] * 4
    for id in bad:
        with pytest.raises(BadArguments):
            app.AsyncResult(id).get(timeout=0)


def test_a_soft_limit_is_the_batchs_and_splits_it(app: App) -> None:
    runs = []

    @app.task(batch=4, soft_time_limit=0.1)
    def slow(items: list[int]) -> list[int]:
        runs.append(items)
        if 2 in items:
            time.sleep(5)
        return items

    results = slow.delay_many(range(4))
    work(app)
    values = list(results.iterate(0, propagate=False))
    assert isinstance(values[2], SoftTimeLimitExceeded)
    assert [values[n] for n in (0, 1, 3)] == [0, 1, 3]


def test_calls_made_in_a_batch_are_sent_with_it_and_once(app: App) -> None:
    """A run that raises and is split sends nothing; its parts do."""
    ran: list[int] = []

    @app.task
    def child(n: int) -> None:
        ran.append(n)

    @app.task(batch=8)
    def parent(items: list[int]) -> list[int]:
        for item in items:
            child.delay(item)
        if 3 in items:
            raise ValueError("three")
        return items

    parent.delay_many(range(8))
    work(app)
    assert sorted(ran) == list(range(8))


def test_a_task_that_may_run_once_is_not_split(app: App) -> None:
    runs = []

    @app.task(batch=8, acks_late=False)
    def once(items: list[int]) -> list[int]:
        runs.append(items)
        raise ValueError("no")

    results = once.delay_many(range(8))
    work(app)
    assert runs == [list(range(8))]
    assert all(isinstance(value, ValueError) for value in results.iterate(0, propagate=False))


# Keys


def test_batches_are_of_one_key(app: App) -> None:
    got: list[list[tuple[str, int]]] = []

    @app.task(batch=3, batch_key=lambda item: item[0])
    def send(items: list[tuple[str, int]]) -> list[None]:
        got.append(items)
        return [None] * len(items)

    @app.task(batch=3, batch_key="tenant")
    def store(rows: list[dict[str, Any]]) -> None:
        got.append([(row["tenant"], row["n"]) for row in rows])

    for n in range(12):
        send.delay("abc"[n % 3], n)
    for n in range(6):
        store.delay({"tenant": "xy"[n % 2], "n": n})
    work(app)
    assert all(len({key for key, _ in batch}) == 1 for batch in got)
    assert sorted(n for batch in got for key, n in batch if key in "abc") == list(range(12))
    assert {len(batch) for batch in got} <= {1, 2, 3}
    assert max(len(batch) for batch in got) == 3


def test_a_key_function_that_raises_fails_that_call_alone(app: App) -> None:
    @app.task(batch=3, batch_key=lambda item: 1 // item)
    def some(items: list[int]) -> list[int]:
        return items

    @app.task(batch=3, batch_key="tags")
    def tagged(items: list[dict[str, Any]]) -> None: ...

    results = [some.delay(n) for n in (1, 0, 1)]
    tags = [tagged.delay({"tags": ["a list"]}), tagged.delay({"tags": "a"}), tagged.delay({})]
    work(app)
    assert [r.state for r in results] == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert isinstance(results[1].result, ZeroDivisionError)
    assert [r.state for r in tags] == ["FAILURE", "SUCCESS", "FAILURE"]
    assert isinstance(tags[0].result, TypeError)


# Declaring


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "must be 1 or more"),
        ({"batch": -5}, "0 or more"),
        ({"batch": True}, "whole number"),
        ({"batch": "many"}, "whole number"),
        ({"batch": 5000}, "4,096"),
        ({"batch": 5, "batch_wait": "soon"}, "no duration"),
        ({"batch": 5, "batch_wait": -1}, "negative"),
        ({"batch_wait": 1}, "give batch= too"),
        ({"batch_key": "user"}, "give batch= too"),
        ({"batch": 5, "batch_key": 5}, "neither the name of a field nor a function"),
    ],
)
def test_options_that_cannot_be(app: App, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):

        @app.task(**options)
        def task(items: list[int]) -> list[int]:
            return items


def test_a_misspelt_option_suggests_the_near_one(app: App) -> None:
    with pytest.raises(UnknownName, match="batch_wait"):

        @app.task(batch=3, batchwait=1)
        def task(items: list[int]) -> list[int]:
            return items


def test_a_function_that_takes_no_list_is_no_batch_function(app: App) -> None:
    with pytest.raises(ConfigError, match=r"write list\[str\]"):

        @app.task(batch=3)
        def one(text: str) -> str:
            return text

    with pytest.raises(ConfigError, match="takes one list"):

        @app.task(batch=3)
        def two(texts: list[str], more: int) -> list[str]:
            return texts

    with pytest.raises(ConfigError, match="takes one list"):

        @app.task(batch=3)
        def none() -> list[str]:
            return []
