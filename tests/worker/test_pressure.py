"""Backpressure: a full queue takes no more, and says how full it is."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.worker.support import Place, eventually, on_each_engine

from respool import App
from respool.errors import ConfigError, DeclarationConflict, QueueFull, UnknownName
from respool.testing import work


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with App("shop", url=f"sqlite:///{tmp_path / 'shop.db'}") as made:
        yield made


def _task(app: App, **options: Any) -> Any:
    app.queue("mails", **options)

    @app.task(queue="mails")
    def mail(n: int) -> int:
        return n

    return mail


def test_a_full_queue_raises_and_takes_more_when_workers_came_on(app: App) -> None:
    mail = _task(app, max_pending=50, when_full="raise")
    for n in range(50):
        mail.delay(n)
    assert (app.lag("mails"), app.lag(), app.pressure()) == (50, 50, 1.0)
    with pytest.raises(QueueFull, match=r"50 calls to do, its max_pending is 50.*nothing was sent"):
        mail.delay(50)
    with pytest.raises(QueueFull):
        mail.delay_many(range(10))
    with pytest.raises(QueueFull):
        asyncio.run(mail.adelay(50))
    assert app.lag("mails") == 50
    work(app)
    assert (app.lag("mails"), app.pressure("mails")) == (0, 0.0)
    assert mail.delay(50).id


def test_one_who_waits_goes_on_when_there_is_room(app: App) -> None:
    mail = _task(app, max_pending=10, max_pending_wait=20)
    mail.delay_many(range(10))
    sent: list[Any] = []
    waits = threading.Thread(target=lambda: sent.append(mail.delay(10)))
    waits.start()
    waits.join(0.3)
    assert waits.is_alive(), "it waits"
    assert app.lag() == 10
    work(app)
    waits.join(20)
    assert sent


def test_a_coroutine_that_waits_holds_up_no_event_loop(app: App) -> None:
    mail = _task(app, max_pending=10, max_pending_wait=20)
    mail.delay_many(range(10))

    async def send() -> None:
        waiting = asyncio.gather(*(mail.adelay(n) for n in range(3)))
        turns = 0
        while turns < 50:
            await asyncio.sleep(0.001)
            turns += 1
        assert not waiting.done()
        waiting.cancel()

    asyncio.run(send())
    assert app.lag() == 10


def test_the_wait_is_bounded(app: App) -> None:
    mail = _task(app, max_pending=1, max_pending_wait=0.2)
    mail.delay(0)
    began = time.monotonic()
    with pytest.raises(QueueFull, match=r"no room within 0\.2 s"):
        mail.delay(1)
    assert 0.2 <= time.monotonic() - began < 5


def test_h16_a_tasks_own_calls_are_not_held_up(app: App) -> None:
    """Else those who make room would wait for room."""
    mail = _task(app, max_pending=5, when_full="raise")

    @app.task(queue="mails")
    def many(n: int) -> None:
        for each in range(n):
            mail.delay(each)

    many.delay(100)
    for n in range(4):  # the queue is full while the first runs
        mail.delay(n)
    with pytest.raises(QueueFull):
        mail.delay(5)
    work(app)
    assert app.lag() == 0
    assert sum(app.engine.counts(group).parked.get("dead", 0) for group in app.groups()) == 0


def test_a_unique_call_finds_no_room_and_one_that_is_there_needs_none(app: App) -> None:
    app.queue("mails", max_pending=2, when_full="raise")

    @app.task(queue="mails", unique=True)
    def mail(n: int) -> None: ...

    first, _ = mail.delay(1), mail.delay(2)
    with pytest.raises(QueueFull, match="nothing was sent"):
        mail.delay(3)
    assert mail.delay(1) == first, "it adds nothing"
    work(app)
    assert mail.delay(3).id


def test_a_call_costs_no_look_at_the_queue(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    mail = _task(app, max_pending=100_000)
    looks = []
    positions = app.engine.positions
    monkeypatch.setattr(app.engine, "positions", lambda group: looks.append(1) or positions(group))
    began = time.monotonic()
    for n in range(2000):
        mail.delay(n)
    assert len(looks) <= 3 + 5 * (time.monotonic() - began)


def test_where_it_is_not_used_nothing_is_looked_at(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    mail = _task(app)
    monkeypatch.setattr(app.engine, "positions", lambda group: pytest.fail("looked"))
    mail.delay(1)
    mail.delay_many(range(10))
    assert app.pressure() == 0.0


def test_more_at_once_than_fit_in_go_into_an_empty_queue(app: App) -> None:
    mail = _task(app, max_pending=100, when_full="raise")
    mail.delay_many(range(500))
    assert app.lag() == 500
    assert app.pressure() == 5.0
    with pytest.raises(QueueFull):
        mail.delay(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_pending": 0}, "above 0"),
        ({"max_pending": "fast"}, "above 0"),
        ({"max_pending": 5, "when_full": "rise"}, "raise"),
        ({"when_full": "raise"}, "max_pending="),
        ({"max_pending": 5, "max_pending_wait": "long"}, "no duration"),
    ],
)
def test_limits_that_cannot_be(app: App, options: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, UnknownName), match=said):
        app.queue("mails", **options)


def test_two_different_limits(app: App) -> None:
    app.queue("mails", max_pending=5)
    app.queue("mails")
    with pytest.raises(DeclarationConflict):
        app.queue("mails", max_pending=6)


CODE = """
app.queue("mails", max_pending=100, max_pending_wait=30)


@app.task(queue="mails")
def mail(n):
    note("start", "mail", n)
    time.sleep(0.001)
"""


@on_each_engine
def test_a_producer_keeps_pace_with_its_workers(place: Place) -> None:
    module = place.module(CODE)
    place.worker(1).said("serves")
    most = 0
    for n in range(1500):
        module.mail.delay(n)
        if n % 50 == 0:
            most = max(most, place.app.lag("mails"))
    assert most <= 150
    eventually(lambda: place.app.lag() == 0, "all done")
    assert len(place.runs("mail")) == 1500
