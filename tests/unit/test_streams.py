"""Streams through the public API: publishing, and reading by time, by offset and by partition."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from respool import App, CorruptBody, IdConflict, clock
from respool.delivery.model import NewCall
from respool.record import new_head
from respool.testing import work

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.fixture
def app() -> Iterator[App]:
    with App("shop", url="sqlite:///:memory:") as app:
        yield app


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the clock by which events are sent."""

    def set_clock(moment: datetime) -> None:
        for module in ("respool.sending", "respool.engines.sqlite.log"):
            monkeypatch.setattr(f"{module}.wall_clock", moment.timestamp)

    assert clock.now() > NOON.timestamp()
    return set_clock


def test_an_event_arrives_with_all_that_was_sent(app: App) -> None:
    visits = app.stream("visits", key="user")
    before = datetime.now(UTC)
    id = visits.publish({"user": 7, "page": "/"}, headers={"trace": "abc"}, type="view")
    (event,) = visits.read()
    assert event.value == {"user": 7, "page": "/"}
    assert (event.id, event.key, event.type, dict(event.headers)) == (id, "7", "view", {"trace": "abc"})
    assert before - timedelta(milliseconds=2) <= event.time <= datetime.now(UTC)
    assert event.offset == 0


def test_an_event_that_cannot_be_read_says_where_it_is_and_how_to_go_on(app: App) -> None:
    visits = app.stream("visits")
    (log,) = app.stream_of("stream", "visits").logs
    wrong = b"\x81\xa7headers\x81\xa6tenant\x07"
    visits.publish({"n": 0})
    for meta, body in ((wrong, b"{}"), (None, b"{")):
        app.engine.append_rows([NewCall(log, "", body, meta, new_head(clock.now()), clock.now())])
    visits.publish({"n": 3})
    events, found = visits.read(), []
    found.append(next(events).value)
    for offset, told in ((1, "attributes cannot be read: Expected `str`"), (2, "not one JSON value")):
        with pytest.raises(
            CorruptBody, match=rf"visits, partition 0, offset {offset}: .*{told}.* To go on"
        ) as e:
            next(events)
        assert f"read(partition=0, offset={offset + 1})" in str(e.value)
        events = visits.read(partition=0, offset=offset + 1)
    assert [*found, *(event.value for event in events)] == [{"n": 0}, {"n": 3}]


def test_an_id_of_ones_own_makes_it_once(app: App) -> None:
    visits = app.stream("visits")
    for _ in range(3):
        assert visits.publish({"n": 1}, record_id="visit-1") == "visit-1"
    assert asyncio.run(visits.apublish({"n": 1}, record_id="visit-1")) == "visit-1"
    assert [event.id for event in visits.read()] == ["visit-1"]
    with pytest.raises(IdConflict, match="visit-1"):
        visits.publish({"n": 2}, record_id="visit-1")
    other = app.stream("clicks")
    assert other.publish({"n": 2}, record_id="visit-1") == "visit-1", "ids are unique within a stream"


def test_coroutines_publish(app: App) -> None:
    visits = app.stream("visits")

    async def main() -> list[str]:
        return await asyncio.gather(*(visits.apublish({"n": n}) for n in range(50)))

    ids = asyncio.run(main())
    assert sorted(event.value["n"] for event in visits.read()) == list(range(50))
    assert {event.id for event in visits.read()} == set(ids)


def test_reading_a_window_in_time(app: App, at: Any) -> None:
    visits = app.stream("visits", key="user", partitions=4)
    for minute in (0, 6, 3, 9, 1, 5, 7, 2, 8, 4):  # a clock that is set to and fro (H19)
        at(NOON + timedelta(minutes=minute))
        if minute % 2:
            visits.publish_many({"user": user, "minute": minute} for user in range(8))
        else:
            for user in range(8):
                visits.publish({"user": user, "minute": minute})

    def minutes(**window: Any) -> dict[int, int]:
        return dict(Counter(event.value["minute"] for event in visits.read(**window)))

    four, seven = NOON + timedelta(minutes=4), NOON + timedelta(minutes=7)
    assert minutes() == dict.fromkeys(range(10), 8)
    assert minutes(since=four, until=seven) == dict.fromkeys((4, 5, 6), 8), "until is not included"
    assert minutes(since=seven) == dict.fromkeys((7, 8, 9), 8)
    assert minutes(until=four) == dict.fromkeys(range(4), 8)
    assert minutes(since=four.astimezone()) == minutes(since=four), "a moment is one in any zone"
    assert minutes(since=four + timedelta(seconds=1), until=four + timedelta(seconds=2)) == {}
    assert minutes(since=seven, until=four) == {}


def test_a_key_stays_in_one_partition_and_in_its_order(app: App) -> None:
    visits = app.stream("visits", key="user", partitions=4)
    visits.publish_many({"user": n % 10, "n": n} for n in range(200))
    where: dict[str, set[int]] = {}
    for partition in range(4):
        events = list(visits.read(partition=partition))
        assert {event.partition for event in events} == {partition}
        assert [event.offset for event in events] == list(range(len(events)))
        for event in events:
            where.setdefault(str(event.key), set()).add(partition)
        for key in {event.key for event in events}:
            numbers = [event.value["n"] for event in events if event.key == key]
            assert numbers == sorted(numbers)
        half = len(events) // 2
        assert list(visits.read(partition=partition, offset=half)) == events[half:]
    assert len(where) == 10
    assert all(len(partitions) == 1 for partitions in where.values())


def test_apps_share_a_stream_and_each_has_groups_of_its_own(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    with App("shop", url=url) as shop, App("audit", url=url) as audit:
        seen: dict[str, list[int]] = {"shop": [], "audit": [], "late": []}
        for app, group in ((shop, "shop"), (audit, "audit")):
            visits = app.stream("visits")
            visits.subscribe(seen[group].append, group=group, start="earliest", name=group)
        shop.stream("visits").publish_many(range(3))
        audit.stream("visits").subscribe(seen["late"].append, group="late", name="late")
        assert audit.engine is not shop.engine
        shop.stream("visits").publish_many(range(3, 5))
        work(audit)
        assert seen == {"shop": [], "audit": [0, 1, 2, 3, 4], "late": [3, 4]}
        work(shop)
        assert seen["shop"] == [0, 1, 2, 3, 4]
