"""Features together: each pair works, or is an early and clear error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from respool import App, ConfigError, QueueFull
from respool.testing import work


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with App("shop", url=f"sqlite:///{tmp_path / 'shop.db'}") as made:
        yield made


UNORDERED: list[tuple[str, dict[str, Any]]] = [
    ("rate_limit", {"rate_limit": "5/s"}),
    ("max_concurrency", {"max_concurrency": 1}),
    ("max_concurrency", {"max_concurrency": 1, "limit_key": "n"}),
    ("batch", {"batch": 5}),
]


@pytest.mark.parametrize(("option", "options"), UNORDERED)
def test_what_has_no_place_in_an_ordered_queue_is_refused_where_it_is_sent(
    app: App, option: str, options: dict[str, Any]
) -> None:
    app.queue("orders", ordered=True, partitions=2)

    @app.task(**options)
    def send(n: Any) -> None: ...

    for attempt in (
        lambda: send.apply_async((1,), queue="orders"),
        lambda: send.apply_many([((1,), {})], queue="orders"),
        lambda: app.send_task("send", (1,), queue="orders"),
    ):
        with pytest.raises(
            ConfigError, match=f"send has {option}=, and queue orders is ordered.*nothing was"
        ):
            attempt()
    lag = app.lag("orders")
    assert lag == 0
    send.delay(1)
    assert app.lag("default") == 1


@pytest.mark.parametrize(("option", "options"), UNORDERED)
def test_and_where_it_is_declared(app: App, option: str, options: dict[str, Any]) -> None:
    @app.task(queue="orders", **options)
    def send(n: Any) -> None: ...

    with pytest.raises(ConfigError, match=f"send has {option}=, and its queue orders is ordered"):
        app.queue("orders", ordered=True, partitions=2)
    events = app.stream("events", key="n")
    with pytest.raises(ConfigError, match=f"ordered and {option} exclude each other"):
        events.subscribe(lambda event: None, group="g", name="g", ordered=True, **(options | _NO_KEY))


_NO_KEY = {"limit_key": None}


@pytest.mark.parametrize("limit", [{"rate_limit": "5/s"}, {"max_concurrency": 1}])
@pytest.mark.parametrize("first", [True, False])
def test_an_ordered_queue_has_no_limit(app: App, limit: dict[str, Any], first: bool) -> None:
    order: dict[str, Any] = {"ordered": True, "partitions": 2}
    app.queue("orders", **(order if first else limit))
    with pytest.raises(ConfigError, match="queue orders: ordered and limits exclude each other"):
        app.queue("orders", **(limit if first else order))


@pytest.mark.parametrize(("option", "options"), UNORDERED)
def test_where_the_sender_cannot_know_it_the_call_fails(
    app: App, option: str, options: dict[str, Any]
) -> None:
    """Sent by name; and those beside it, with and without a key, run."""
    app.queue("orders", ordered=True, partitions=1)
    seen: list[int] = []
    sent = [app.send_task("send", (n,), queue="orders") for n in range(2)]
    app.send_task("step", (3,), queue="orders", key="a")
    app.send_task("step", (4,), queue="orders", key="a")

    with App("shop", url=app.url) as worker:
        worker.queue("orders", ordered=True, partitions=1)

        @worker.task(**options)
        def send(n: Any) -> None:
            seen.append(n)

        @worker.task(queue="orders", key="n")
        def step(n: int) -> None:
            seen.append(n)

        work(worker)
    assert seen == [3, 4]
    assert [call.state for call in sent] == ["FAILURE", "FAILURE"]
    with pytest.raises(ConfigError, match=f"send has {option}=, and queue orders is ordered"):
        sent[0].get(timeout=5)
    assert app.dead_letters(task="send").count() == 2


def test_a_batch_with_a_limit_key_that_raises_in_the_worker(app: App) -> None:
    """That call fails, and says why; it does not run as if it had no limit. The others run."""
    seen: list[list[int]] = []
    sending = True

    def tenant(n: int) -> str:
        if n == 3 and not sending:
            raise LookupError(n)
        return str(n % 2)

    @app.task(batch=4, batch_wait=0, max_concurrency=1, limit_key=tenant, autoretry_for=(Exception,))
    def send(numbers: list[int]) -> None:
        seen.append(sorted(numbers))

    calls = [send.delay(n) for n in range(6)]
    sending = False
    work(app)
    assert sorted(n for numbers in seen for n in numbers) == [0, 1, 2, 4, 5]
    assert [call.state for call in calls] == ["SUCCESS"] * 3 + ["FAILURE"] + ["SUCCESS"] * 2
    (letter,) = app.dead_letters()
    assert "limit_key raised LookupError: 3" in letter.error.message


def test_the_cap_of_an_ordered_queue_holds_for_calls_in_bulk(app: App) -> None:
    app.queue("orders", ordered=True, partitions=4, max_pending=100, when_full="raise")

    @app.task(queue="orders", key="n")
    def step(n: int) -> None: ...

    step.delay_many(range(100))
    with pytest.raises(QueueFull, match="nothing was sent"):
        step.delay_many(range(100))
    assert app.lag("orders") == 100
    work(app)
    step.delay_many(range(50))
    assert app.lag("orders") == 50
