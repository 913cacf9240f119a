"""An outage downstream: it is neither flooded, nor does it bury what waits (breakers and retry budgets)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.worker.support import Place, eventually, on_every_engine

from respool import App
from respool.delivery.model import NewCall
from respool.engines.base import Group, ParkedFilter, Registration
from respool.errors import ConfigError, GetTimeout, UnknownName
from respool.record import new_head
from respool.replay import check, dead_letters
from respool.replay.storms import release, stopped_tasks
from respool.testing import work


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with App("shop", url=f"sqlite:///{tmp_path / 'shop.db'}") as made:
        yield made
        report = check(made)
        assert report.ok, report


def main_of(app: App) -> Group:
    return next(group for group in app.groups() if group.name == "main")


def after(app: App, wanted: Any) -> None:
    """Work again and again until something is so."""

    def worked() -> Any:
        work(app)
        return wanted()

    eventually(worked, "worked off")


def test_an_outage_buries_few_calls_and_the_rest_runs_when_it_is_over(app: App) -> None:
    ran: list[int] = []
    down = [True]

    @app.task(breaker={"failures": 5, "pause": 10, "errors": OSError})  # longer than this takes, anywhere
    def fetch(n: int) -> int:
        ran.append(n)
        if down[0]:
            raise OSError("nobody there")
        return n

    @app.task
    def other(n: int) -> int:
        return n

    fetched = fetch.delay_many(range(5000))
    beside = other.delay(1)
    work(app)
    assert 5 <= len(ran) < 100, "those that had begun by then"
    assert beside.get(timeout=0) == 1, "other tasks run on"
    assert len(dead_letters(app, limit=5000)) == len(ran)
    counts = app.engine.counts(main_of(app))
    assert counts.parked["limited"] == 5000 - len(ran)
    assert (counts.pending, counts.leased, counts.returned) == (0, 0, 0)
    assert len(app.engine.leases(main_of(app))) < 100, "they wait as ranges: what that costs is by the claim"
    (found,) = stopped_tasks(app)
    assert (found.task, found.gauge.state, found.gauge.why) == ("fetch", "open", "OSError: nobody there")

    group = main_of(app)
    worker = app.engine.register(Registration("shop", "w", "h", "b", 1, time.time(), {"groups": [group.id]}))
    told = r"stopped by its breaker for \d+\.\d s more; raised last: OSError: nobody there$"
    with pytest.raises(GetTimeout, match=told):
        fetched[4999].get(timeout=0)
    app.engine.drop_worker(worker)

    down[0], buried = False, len(ran)
    release(app, "fetch")
    after(app, lambda: len(ran) == 5000)
    assert len(set(ran)) == 5000, "each once"
    assert not stopped_tasks(app)
    work(app)
    assert app.engine.counts(main_of(app)).parked == {"dead": buried}


def test_one_call_at_a_time_is_tried_while_it_lasts(app: App) -> None:
    ran: list[float] = []

    @app.task(breaker={"failures": 1, "pause": 1.0}, throws=KeyError)
    def fetch(n: int) -> None:
        ran.append(time.monotonic())
        raise OSError("nobody there")

    fetch.delay_many(range(200))
    after(app, lambda: len(ran) >= 4)
    assert all(b - a >= 0.95 for a, b in pairwise(ran[-3:]))


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Have the clock go on by so many seconds at once."""
    ahead, clock = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: clock() + ahead[0])

    def on(seconds: float) -> None:
        ahead[0] += seconds

    return on


@pytest.mark.parametrize(
    ("ahead", "once"),
    [("expired", True), ("scheduled", True), ("of another kind", True), ("unreadable", False)],
)
def test_calls_that_say_nothing_of_the_outage_are_not_what_is_tried(
    app: App, jump: Callable[[float], None], caplog: pytest.LogCaptureFixture, ahead: str, once: bool
) -> None:
    """One call is tried after each pause: else the good one would be behind as many pauses.

    What ends or is parked without a run is no try. One that cannot be read is found when it is tried, and
    the next is tried at once. An error of another kind is as good as none: the service is there.
    """
    caplog.set_level(logging.INFO, "respool.worker")

    @app.task(breaker={"failures": 1, "pause": 60, "errors": OSError}, throws=KeyError)
    def fetch(n: int) -> int:
        if n < 0:
            raise OSError("nobody there")
        if n == 0:
            raise KeyError(n)
        return n

    fetch.delay(-1)
    work(app)
    for _ in range(10):
        if ahead == "unreadable":
            log = app.stream_of("queue", "default").logs[0]
            app.engine.append_rows([NewCall(log, "fetch", b"\xc1", None, new_head(time.time()), time.time())])
        else:
            how = {"expired": {"expires": 30}, "scheduled": {"countdown": 3600}}.get(ahead, {})
            fetch.apply_async((0,), **how)
    good = fetch.delay(1)
    work(app)
    assert not good.ready()
    jump(61)
    work(app)
    assert good.get(timeout=0) == 1
    assert not stopped_tasks(app)
    assert (caplog.text.count("one of its calls is tried") == 1) == once


def test_what_was_to_be_tried_and_could_not_be_run_leaves_it_to_the_next(
    app: App, jump: Callable[[float], None]
) -> None:
    """It was to follow one of its key that has failed, and holds that up."""
    app.queue("orders", ordered=True, partitions=1)
    ran: list[str] = []

    @app.task(queue="orders", key="user", breaker={"failures": 1, "pause": 60})
    def pay(user: str, fails: bool = False) -> None:
        if fails:
            raise OSError("nobody there")
        ran.append(user)

    @app.task(queue="orders", key="user", on_dead="block")
    def ship(user: str) -> None:
        if user == "a":
            raise ValueError("no such user")

    pay.delay("first", fails=True)
    work(app)
    assert stopped_tasks(app)
    jump(61)
    ship.apply_many([(("many",), {}) for _ in range(400)])  # quick: the rest is taken together
    ship.delay("a")
    pay.delay("a")
    pay.delay("b")
    work(app)
    assert ran == ["b"]
    assert not stopped_tasks(app)


def test_expected_errors_and_other_kinds_do_not_stop_it(app: App) -> None:
    ran: list[int] = []

    @app.task(breaker={"failures": 2, "pause": 60, "errors": OSError}, throws=FileNotFoundError)
    def fetch(n: int) -> None:
        ran.append(n)
        raise FileNotFoundError if n % 2 else ValueError

    fetch.delay_many(range(100))
    work(app)
    assert len(ran) == 100
    assert not stopped_tasks(app)


def test_released_by_hand(app: App) -> None:
    down = [True]

    @app.task(breaker="2/1m", autoretry_for=(OSError,), default_retry_delay=0.0)
    def fetch(n: int) -> int:
        if down[0]:
            raise OSError("nobody there")
        return n

    results = fetch.delay_many(range(500))
    work(app)
    assert [each.task for each in stopped_tasks(app)] == ["fetch"]
    down[0] = False
    with pytest.raises(UnknownName, match="fetch"):
        release(app, "fetsh")
    assert release(app, "fetch") == 1
    after(app, results.ready)
    assert results.get(timeout=0) == list(range(500))


def test_what_was_taken_before_the_task_was_stopped_is_released_too(app: App) -> None:
    """It was parked one by one, each until the pause is over."""
    down = [True]

    @app.task(breaker={"failures": 2, "pause": 3600})
    def fetch(n: int) -> int:
        if n >= 1500 and down[0]:
            time.sleep(0.006)  # so that it is settled in the middle of its lease
            raise OSError("nobody there")
        return n

    results = fetch.delay_many(range(3000))  # the first are quick: many are taken at once
    work(app)
    parked = app.engine.parked(ParkedFilter((main_of(app).id,), ("limited",)), 3000)
    assert len(parked) > 20, "one by one"
    assert all(each.due is not None and each.due > time.time() + 3000 for _, each in parked)
    down[0] = False
    assert release(app, "fetch") == 1
    after(app, results.ready)
    failed = app.dead_letters().count()
    values = list(results.iterate(0, propagate=False))
    assert sum(isinstance(value, OSError) for value in values) == failed < 10


def test_a_clock_that_is_set_back_stops_no_task_for_longer(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call that comes is enough: what was put off with its lease is let go, too."""
    down, ahead, clock = [True], [3600.0], time.time
    monkeypatch.setattr(time, "time", lambda: clock() + ahead[0])

    @app.task(breaker={"failures": 3, "pause": 0.3})
    def fetch(n: int) -> int:
        if down[0]:
            raise OSError("nobody there")
        return n

    results = fetch.delay_many(range(100))
    work(app)
    assert stopped_tasks(app)
    down[0], ahead[0] = False, 0.0
    last = fetch.delay(100)
    after(app, last.ready)
    assert not stopped_tasks(app)
    main = main_of(app)
    after(app, lambda: not app.engine.leases(main))
    late = len(app.engine.parked(ParkedFilter((main.id,), ("limited",)), 100))
    assert late < 50, "what processes had begun with is due when it was said to be"
    assert sum(result.state == "SUCCESS" for result in results) == 100 - late - app.dead_letters().count()


def test_a_batch_that_raises_is_one_failure(app: App) -> None:
    runs: list[int] = []

    @app.task(batch=10, breaker={"failures": 3, "pause": 60})
    def store(items: list[int]) -> list[int]:
        runs.append(len(items))
        raise OSError("nobody there")

    store.delay_many(range(1000))
    work(app)
    assert len(runs) < 60
    assert app.engine.counts(main_of(app)).parked["limited"] > 900


def test_retries_keep_to_their_share(app: App) -> None:
    ran: list[int] = []

    @app.task(
        autoretry_for=(OSError,), max_retries=50, default_retry_delay=0.0,
        retry_budget={"share": 0.1, "floor": 5, "window": "1m"},
    )  # fmt: skip
    def fetch(n: int) -> None:
        ran.append(n)
        raise OSError("nobody there")

    fetch.delay_many(range(200))
    work(app)
    assert 200 < len(ran) <= 200 + 5 + 0.12 * len(ran)
    counts = app.engine.counts(main_of(app))
    assert counts.parked == {"limited": 200}, "none is buried, and none comes back at once"
    assert app.engine.counters(main_of(app).id)["retries over budget"] >= 190
    assert counts.next_due is not None


@pytest.mark.parametrize("how", ["alias", "subscription"])
def test_retries_keep_to_their_share_whatever_they_are_recorded_under(app: App, how: str) -> None:
    """A call under a former name of its task, an event under its type."""
    ran: list[Any] = []
    events = app.stream("inference")
    options: dict[str, Any] = {
        "autoretry_for": (OSError,), "max_retries": 50, "default_retry_delay": 0.0,
        "retry_budget": {"share": 0.1, "floor": 5, "window": "1m"},
    }  # fmt: skip

    if how == "alias":

        @app.task(name="new", aliases=["old"], **options)
        def fetch(n: int) -> None:
            ran.append(n)
            raise OSError("nobody there")

        with App("shop", url=app.url) as sender:  # it has not the code, and knows of no new name
            for n in range(50):
                sender.send_task("old", (n,))
    else:

        @events.subscribe(group="audit", **options)
        def audit(event: Any) -> None:
            ran.append(event)
            raise OSError("nobody there")

        events.publish_many({"n": n} for n in range(50))
    work(app)
    assert 50 < len(ran) <= 50 + 5 + 0.12 * len(ran)


def test_nothing_is_read_or_written_where_it_is_not_used(app: App) -> None:
    @app.task(autoretry_for=(OSError,), default_retry_delay=0.0, max_retries=1)
    def fetch(n: int) -> None:
        raise OSError("nobody there")

    fetch.delay_many(range(50))
    work(app)
    assert main_of(app).settings == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"breaker": 5}, "no dict"),
        ({"breaker": "often"}, "20/1m"),
        ({"breaker": "0/1m"}, "1 or more"),
        ({"breaker": "5/soon"}, "no duration"),
        ({"breaker": {"window": "1m"}}, "failures"),
        ({"breaker": {"failures": 5, "pauze": 1}}, "pause"),
        ({"breaker": {"failures": 5, "errors": "OSError"}}, "no exception class"),
        ({"retry_budget": 0}, "more than 0"),
        ({"retry_budget": "fast"}, "share"),
        ({"retry_budget": 1.5}, "at most 1"),
        ({"retry_budget": {"share": 0.1, "flor": 1}}, "floor"),
    ],
)
def test_options_that_cannot_be(app: App, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):

        @app.task(**options)
        def task(n: int) -> None: ...


BATCHES = """
@app.task(batch=10, batch_wait=60, breaker={"failures": 1, "pause": 0.5})
def store(items):
    note("start", "store", len(items))
    if 0 in items:
        raise OSError("nobody there")
    return items
"""

CODE = """
@app.task(breaker={"failures": 5, "pause": 1.0})
def fetch(n):
    note("start", "fetch", n)
    if not (HERE / "up").exists():
        raise OSError("nobody there")
    return n
"""


@on_every_engine
def test_it_holds_over_all_workers(place: Place) -> None:
    module = place.module(CODE)
    for _ in range(2):
        place.worker(2).said("serves")
    module.fetch.delay_many(range(3000))
    eventually(lambda: stopped_tasks(place.app), "it is stopped")
    eventually(lambda: place.counts().pending == 0 and place.counts().leased == 0, "all wait")
    first = len(place.runs("fetch"))
    assert first < 1000
    eventually(lambda: len(place.runs("fetch")) >= first + 2, "one is tried after each pause")
    tried = sorted(mark.at for mark in place.marks("start", "fetch"))[first:]
    assert all(b - a > 0.8 for a, b in pairwise(tried)), "by one of all workers"
    place.touch("up")
    eventually(lambda: len(place.runs("fetch")) == 3000, "all have run", 40)
    eventually(lambda: place.counts().parked.get("limited", 0) == 0, "nothing waits")
    place.check()


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_call_that_is_tried_waits_for_no_batch(place: Place) -> None:
    module = place.module(BATCHES)
    place.worker(1).said("serves")
    module.store.delay_many([0] * 10)
    eventually(lambda: stopped_tasks(place.app), "it is stopped")
    eventually(lambda: stopped_tasks(place.app)[0].gauge.until < time.time(), "the pause is over")
    assert module.store.delay(1).get(timeout=20) == 1
    assert not stopped_tasks(place.app)
