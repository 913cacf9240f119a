"""The results of calls that were sent together, read by the page, on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.kits import KITS

from respool import App, AsyncResult, Revoked
from respool.replay import purge
from respool.testing import work


@pytest.fixture(params=KITS)
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    kit = KITS[request.param](request, tmp_path, "os")
    with App("shop", url=kit.url or "sqlite:///:memory:") as made:
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
