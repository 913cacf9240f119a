"""Ids by their beginning, on every engine: by the time in them, and among the newest records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engines.kits import KITS, EngineKit

from respool import App, ConfigError, UnknownCall
from respool.cli.target import Target


@pytest.fixture(params=KITS)
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineKit]:
    made = KITS[request.param](request, tmp_path, "os")
    yield made
    made.remove()


@pytest.fixture
def app(kit: EngineKit) -> Iterator[App]:
    if kit.url is not None:
        kit.open().close()
    with App("shop", url=kit.url or "sqlite:///:memory:") as app:

        @app.task
        def total(n: int) -> int:
            return n

        yield app


def test_the_beginning_of_an_id_leads_to_its_record(app: App) -> None:
    task = app.tasks["total"]
    ids = [task.delay(n).id for n in range(3)]
    named = task.apply_async((3,), task_id="order-1700").id
    target = Target(app.engine, app, app.name, app.location)
    for id in ids:
        assert target.whole_id(id[:-8]) == id
        assert target.find(id[:-8]) == target.find(id)
    assert target.find("order-17") == target.find(named)
    with pytest.raises(ConfigError, match="is the beginning of several ids"):
        target.find(ids[0][:6])
    with pytest.raises(UnknownCall, match="and none of the newest 100,000 begins so"):
        target.find("order-18")
