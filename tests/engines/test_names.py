"""Names of queues, streams, groups and tasks may hold any text, on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.kits import KITS, EngineKit

from respool import App
from respool.replay import check
from respool.testing import work

NAMES = [
    "'; DROP TABLE record; --", 'a"b', "%s %(x)s {} $1 :x ?", "наш 键 🎈", "with space/and:colon",
    "back\\slash", "a.b", "a_b", "a-b", "A", "a", "..", "__consumer_offsets", "x" * 190,
]  # fmt: skip


@pytest.fixture(params=[name for name in KITS if name != "sqlite-memory"])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineKit]:
    made = KITS[request.param](request, tmp_path, "full")
    yield made
    made.remove()


def test_any_text_is_a_name(kit: EngineKit, request: pytest.FixtureRequest) -> None:
    """What is sent to each is there, and nowhere else; no name is taken for SQL, or for another's topic."""
    names = (
        NAMES if "kafka" not in request.node.name else [NAMES[0], NAMES[2], NAMES[3], *NAMES[6:9]]
    )  # topics are dear
    with App('it\'s "my" app', url=kit.url) as app:
        seen: list[tuple[str, Any]] = []
        for name in names:
            app.queue(name)
            app.task(name=name, queue=name)(lambda n, name=name: (name, n))
            stream = app.stream(name)
            stream.subscribe(
                lambda value, name=name: seen.append((name, value)), group=name, name=f"on {name}"
            )
        _ = app.engine
        sent = {name: app.tasks[name].apply_async((n,), task_id=name) for n, name in enumerate(names)}
        for n, name in enumerate(names):
            app.stream_handles[name].publish({"n": n}, record_id=name, headers={name: name}, type=name)
        work(app)
        for name in names:
            work(app, group=name)
        assert {name: tuple(result.get(timeout=5)) for name, result in sent.items()} == {
            name: (name, n) for n, name in enumerate(names)
        }
        assert sorted(seen) == sorted((name, {"n": n}) for n, name in enumerate(names))
        for n, name in enumerate(names):
            (event,) = app.stream_handles[name].read()
            assert (event.id, event.type, event.headers, event.value) == (name, name, {name: name}, {"n": n})
            assert app.AsyncResult(name).state == "SUCCESS"
        report = check(app)
        assert report.ok, [report.problems, [group.problems for group in report.groups]]
