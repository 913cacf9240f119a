"""Names, ids, types and headers may hold any text, on every engine; what is no text is refused there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.kits import KITS, EngineKit

from respool import App, Refused
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


def test_what_is_no_text_is_refused_and_nothing_is_sent(kit: EngineKit) -> None:
    """H20: it has no bytes to be stored as, or would be something that no reader understands."""
    lone = "\ud800"
    with App("shop", url=kit.url) as app:
        visits, users = app.stream("visits"), app.stream("users", key="id")
        app.queue("ordered", ordered=True, partitions=2)
        add = app.task(name="add")(lambda x: x)
        keyed = app.task(name="keyed", queue="ordered", key=lambda x: lone)(lambda x: x)
        given: list[tuple[str, Callable[[], object]]] = [
            ("an id is printable text", lambda: add.apply_async((1,), task_id=lone)),
            ("an id is printable text", lambda: visits.publish({}, record_id=lone)),
            ("an id is printable text", lambda: app.AsyncResult(lone)),
            ("headers: ", lambda: add.apply_async((1,), headers={lone: "a"})),
            ("headers: ", lambda: add.apply_async((1,), headers={"a": lone})),
            ("headers: ", lambda: add.apply_async((1,), headers=[("a", "b")])),  # type: ignore[arg-type]
            ("headers: ", lambda: visits.publish({}, headers={"a": lone})),
            ("headers: ", lambda: visits.publish({}, headers={"tenant": 7})),  # type: ignore[dict-item]
            ("headers: ", lambda: asyncio.run(visits.apublish({}, headers={7: "a"}))),  # type: ignore[dict-item]
            ("type: ", lambda: visits.publish({}, type=lone)),
            ("type: ", lambda: visits.publish({}, type="a\0b")),
            ("type: ", lambda: visits.publish({}, type=7)),  # type: ignore[arg-type]
            ("type: ", lambda: asyncio.run(visits.apublish({}, type=lone))),
            ("type: ", lambda: visits.publish_many([{}], type=lone)),
            ("type: ", lambda: users.publish_many([{"id": 1}], type="a\0b")),
            ("key", lambda: keyed.delay(1)),
            ("key", lambda: keyed.apply_many([((1,), {})])),
            ("key", lambda: keyed.apply_async((1,), key=lone)),
            ("is not text", lambda: users.publish({"id": lone})),
            ("is not text", lambda: add.delay(lone)),
        ]
        for told, send in given:
            with pytest.raises(Refused, match=told):
                send()
        assert [
            end - first for each in app.engine.streams() for _, first, end in app.engine.bounds(each)
        ] == ([0] * sum(len(each.logs) for each in app.engine.streams()))


def test_text_with_whatever_in_it_arrives(kit: EngineKit) -> None:
    odd = "a\0b \n\x7f \u2028 наш 🎈"
    id = "a\\0b 'наш' \"%s\" 🎈"  # which commands print, and are given
    with App("shop", url=kit.url) as app:
        visits = app.stream("visits", key="id")
        seen: list[Any] = []

        @app.task(bind=True, unique="x", limit_key="x", rate_limit="1000/s")
        def ask(self: Any, x: str) -> None:
            request = self.request
            seen.append((x, request.id, dict(request.headers), self.once("step", lambda: odd)))

        asked = ask.apply_async((odd,), task_id=id, headers={odd: odd})
        assert ask.delay(odd) == asked, "there is one like it"
        visits.publish({"id": odd}, record_id=id, headers={odd: odd}, type=odd.replace("\0", ""))
        work(app)
        assert seen == [(odd, id, {odd: odd}, odd)]
        (event,) = visits.read()
        assert (event.id, event.key, event.type) == (id, odd, odd.replace("\0", ""))
        assert (event.value, event.headers) == ({"id": odd}, {odd: odd})
