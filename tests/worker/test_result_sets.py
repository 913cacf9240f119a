"""The results of calls that were sent together, read by the page, on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.kits import KITS

from respool import App, AsyncResult, ResultExpired, ResultSet, Revoked, UnknownCall
from respool.clock import now as wall_clock
from respool.errors import BlobLost
from respool.replay import purge
from respool.testing import work


@pytest.fixture(params=KITS)
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    kit = KITS[request.param](request, tmp_path, "os")
    with App("shop", url=kit.url or "sqlite:///:memory:", blobs=(tmp_path / "blobs").as_uri()) as made:
        yield made
    kit.remove()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Take note of the calls that are asked for one by one."""
    found: list[str] = []
    get = AsyncResult.get

    def noted(self: AsyncResult[Any], *given: Any, **more: Any) -> Any:
        found.append(self.id)
        return get(self, *given, **more)

    monkeypatch.setattr(AsyncResult, "get", noted)
    monkeypatch.setattr("respool.result.PAGE", 16)
    return found


def test_calls_that_returned_nothing_are_not_asked_for_one_by_one(app: App, asked: list[str]) -> None:
    @app.task
    def odd(n: int) -> int | None:
        if n == 33:
            raise ValueError(n)
        return n if n % 4 == 1 else None

    calls = odd.delay_many(range(50))
    work(app)
    found = calls.get(timeout=9, propagate=False)
    assert isinstance(found[33], ValueError)
    del found[33]
    assert found == [n if n % 4 == 1 else None for n in range(50) if n != 33]
    assert asked == [calls[33].id, calls[48].id], "that which failed, and the only such one of its page"


def test_what_was_not_run_has_not_returned_nothing(app: App, asked: list[str]) -> None:
    """No outcome means done only where the history says so (H9)."""

    @app.task
    def nothing(n: int) -> None: ...

    done = nothing.delay_many(range(20))
    work(app)
    purged = nothing.delay_many(range(20))
    purge(app, "default")
    assert done.get(timeout=9) == [None] * 20
    with pytest.raises(Revoked):
        purged.get(timeout=9)


def test_what_has_no_value_denies_nobody_the_others(app: App, tmp_path: Path) -> None:
    """`propagate=False`: an exception stands in its place, whatever that is of."""
    app.queue("short")

    @app.task(result_ttl=0.000001)
    def ends(n: int) -> int:
        if n == 1:
            raise ValueError(n)
        return n

    @app.task(offload_over=1000)
    def large(n: int) -> str:
        return "x" * 2000 + str(n)

    @app.task
    def plain(n: int) -> int:
        return n

    short, big, done = ends.delay_many(range(2)), large.delay_many([1]), plain.delay_many(range(3))
    work(app)
    purged = plain.delay_many(range(2))
    purge(app, "default")
    for blob in (tmp_path / "blobs").glob("**/*"):
        if blob.is_file():
            blob.unlink()
    every = ResultSet[Any](app)
    gone = (b"\x01" * 13 + b"\0\0\0", 2)
    for head, size in (*short._runs, *big._runs, gone, *purged._runs, *done._runs):
        every.add_run(head, size)
    values = every.get(timeout=9, propagate=False)
    kinds = [ResultExpired, ResultExpired, BlobLost, UnknownCall, UnknownCall, Revoked, Revoked]
    assert [type(value) for value in values[:-3]] == kinds
    assert values[-3:] == [0, 1, 2]
    assert purged[0].get(timeout=9, propagate=False).args == (f"call {purged[0].id} was revoked: purged",)
    assert isinstance(purged[0].result, Revoked)
    for calls, error in ((short, ResultExpired), (big, BlobLost), (purged, Revoked), (every, UnknownCall)):
        with pytest.raises(error):
            calls.get(timeout=9)
    with pytest.raises(UnknownCall):
        every.wait(9)


def test_each_of_many_lasts_from_when_it_is_appended(app: App) -> None:
    """Not from when the first was given: what gives them one after another may take longer than that."""
    app.queue("keyed", ordered=True, partitions=2)
    app.queue("gated", max_pending=10_000)
    given: dict[Any, float] = {}

    def items(*sizes: int) -> Iterator[str]:
        for n, size in enumerate(sizes):
            given[n] = wall_clock()
            yield f"{n}-".ljust(size, "x")

    many = app.task(name="many", expires=30, offload_over=1000)(len)
    low = app.task(name="low", expires=30, priority=2)(len)
    keyed = app.task(name="keyed", expires=30, queue="keyed", key=lambda text: text)(lambda text: 0)
    gated = app.task(name="gated", expires=30, queue="gated", offload_over=1000)(len)
    once = app.task(name="once", expires=30, unique=True)(lambda text: 0)
    never = app.task(name="never")(len)

    def appended(task: str) -> list[float]:
        """Return until when they last, 0 for those that do so for ever."""
        logs = [log for stream in app.engine.streams() for log in app.engine.bounds(stream)]
        records = [record for _, lo, hi in logs for record in app.engine.records(lo, hi, 100)]
        return sorted(record.meta.expires or 0.0 for record in records if record.task == task)

    for task in many, low, keyed, gated:
        task.delay_many(items(5, 5, 5))
        assert appended(task.name)[0] >= given[2] + 30
        task.apply_many(((text,), {}) for text in items(5, 2000, 5))
        assert len(appended(task.name)) == 6
        assert appended(task.name)[3] >= given[2] + 30
    once.delay_many(items(5, 5, 5))
    assert appended("once")[0] >= given[0] + 30
    never.delay_many(items(5, 2000))
    assert appended("never") == [0.0, 0.0]

    @app.task
    def calls(to: str) -> None:
        app.tasks[to].delay_many(items(5, 2000, 5))

    for task in many, keyed:
        before = len(appended(task.name))
        calls.delay(task.name)
        work(app, queues=["default"])
        made = appended(task.name)[before:]
        assert [each >= given[n] + 30 for n, each in enumerate(made)] == [True] * 3
