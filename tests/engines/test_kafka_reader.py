"""Reading ranges of a partition: they hold what they should, whatever of it is at hand or put away."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from tests.engines.kits import KafkaKit, SQLiteKit, eventually
from tests.engines.test_conformance import fill
from tests.services.fixtures import KafkaAddress

from respool.engines.kafka import reader as module
from respool.engines.kafka.cluster import Place
from respool.engines.kafka.reader import PLENTY, Reader


@pytest.fixture
def engine(kafka: KafkaAddress, tmp_path: Path) -> Iterator[Any]:
    kit = KafkaKit(kafka.url(), SQLiteKit(tmp_path, "full"), "full")
    yield kit.open()
    kit.remove()


@pytest.fixture
def log(engine: Any) -> int:
    found: int = engine.create_stream("queue", "shop", "default", 1, {}).logs[0]
    return found


@pytest.fixture
def place(engine: Any, log: int) -> Place:
    found: Place = engine.place(log)
    return found


@pytest.fixture
def reader(engine: Any) -> Iterator[Reader]:
    made = Reader(engine.cluster)
    yield made
    made.close()


def offsets(reader: Reader, place: Place, lo: int, hi: int) -> list[int]:
    return [message.offset() for message in reader.read([(place, lo, hi)])[0]]


def assigned(reader: Reader) -> int:
    assert reader._consumer is not None
    return len(reader._consumer.assignment())


def test_what_makes_reading_fast_is_set(
    engine: Any, log: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K6: the driver's own settings read a third as fast, and hear of nothing for a second now and then.

    And what is safe (K1, K2): no jump to another offset, no record of a transaction that is open, each end.
    """
    said: list[dict[str, Any]] = []
    made = engine.cluster.made
    monkeypatch.setattr(
        engine.cluster, "made", lambda client, **more: (said.append(more), made(client, **more))[1]
    )
    with_own = Reader(engine.cluster)
    fill(engine, log, 3000)
    began = time.monotonic()
    for lo in range(0, 3000, 5):  # small ones: each would wait for more, or for its time
        assert len(offsets(with_own, place, lo, lo + 5)) == 5
    assert time.monotonic() - began < 10
    with_own.close()
    (reads,) = said
    assert reads.items() >= {
        "fetch.queue.backoff.ms": 1, "fetch.message.max.bytes": 262144, "queued.min.messages": 1000,
        "fetch.wait.max.ms": 10, "enable.partition.eof": True, "auto.offset.reset": "error",
        "isolation.level": "read_committed", "enable.auto.commit": False,
    }.items()  # fmt: skip


def test_a_topic_is_asked_for_before_it_is_first_read(
    engine: Any, place: Place, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K6: a consumer that comes to another topic looks for its leader by itself up to a second later."""
    met: list[str] = []
    meet = engine.cluster.meet
    monkeypatch.setattr(
        engine.cluster, "meet", lambda client, topic: (met.append(topic), meet(client, topic))[1]
    )
    logs = [engine.create_stream("queue", "shop", f"other-{n}", 1, {}).logs[0] for n in range(3)]
    for log in logs:
        fill(engine, log, 3)
    others = [engine.place(log) for log in logs]
    reader.prepare(place)
    for other in (*others, *others):
        assert offsets(reader, other, 0, 3) == [0, 1, 2]
    assert met == [place.topic, *(other.topic for other in others)], "each once"


class Stuck:
    """A consumer that fetches nothing more of what it is on."""

    def __init__(self, consumer: Any) -> None:
        self._consumer, self._assigned = consumer, threading.Event()

    def poll(self, timeout: float) -> Any:
        return self._consumer.poll(timeout) if self._assigned.wait(timeout) else None

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self._assigned.set()
        self._consumer.incremental_assign(partitions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


def test_what_the_client_fetches_no_more_is_taken_up_anew(
    engine: Any, log: int, place: Place, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a leader was away: the client may wait for minutes until it looks again."""
    fill(engine, log, 3)
    assert offsets(reader, place, 0, 3) == [0, 1, 2]
    reader._consumer = Stuck(reader._consumer)  # type: ignore[assignment]
    fill(engine, log, 2)
    monkeypatch.setattr(module, "STUCK", 0.05)
    assert offsets(reader, place, 3, 5) == [3, 4]
    assert offsets(reader, place, 0, 5) == [0, 1, 2, 3, 4]


def test_who_reads_slowly_and_has_plenty_at_hand_asks_no_broker(
    engine: Any, log: int, place: Place, reader: Reader
) -> None:
    fill(engine, log, 3 * PLENTY)
    assert offsets(reader, place, 0, 1) == [0]
    assert assigned(reader) == 1, "it was the first: nobody knows how fast it will be"
    eventually(lambda: reader.came(place).end == 3 * PLENTY)  # type: ignore[union-attr]
    time.sleep(module.SLOW)  # it works on what it has read
    assert offsets(reader, place, 1, 8) == list(range(1, 8))
    assert assigned(reader) == 0
    assert offsets(reader, place, 8, 3 * PLENTY) == list(range(8, 3 * PLENTY))
    assert reader.came(place) is None, "there may be more by now: who wants to know asks"
    fill(engine, log, 5)
    assert offsets(reader, place, 3 * PLENTY, 3 * PLENTY + 5) == [3 * PLENTY + n for n in range(5)]
    assert assigned(reader) == 1


def test_who_reads_fast_goes_on_fetching(engine: Any, log: int, place: Place, reader: Reader) -> None:
    fill(engine, log, 3 * PLENTY)
    offsets(reader, place, 0, 1)
    eventually(lambda: reader.came(place).end == 3 * PLENTY)  # type: ignore[union-attr]
    reader._used = time.monotonic()
    offsets(reader, place, 1, 8)
    assert assigned(reader) == 1


@pytest.mark.parametrize("seed", range(4))
def test_ranges_in_any_order_hold_what_they_should(
    engine: Any, log: int, place: Place, reader: Reader, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forth, back, past what is at hand, before and after it was put away; the log grows meanwhile."""
    monkeypatch.setattr(module, "PLENTY", 3)
    monkeypatch.setattr(module, "SKIP", 10)
    draw, end, lo = random.Random(seed), 60, 0
    fill(engine, log, end)
    for _ in range(120):
        monkeypatch.setattr(module, "SLOW", draw.choice([0.0, 0.0, 10.0]))
        if draw.random() < 0.2:
            lo = draw.randrange(end)
        hi = min(lo + draw.randint(1, 12), end)
        assert offsets(reader, place, lo, hi) == list(range(lo, hi))
        if draw.random() < 0.3:
            reader.came(place)
        lo = hi
        if lo == end:
            fill(engine, log, 7)
            end += 7


def test_who_has_less_at_hand_than_it_reads_at_once_goes_on_fetching(
    engine: Any, log: int, place: Place, reader: Reader
) -> None:
    """What was fetched, and not handed out, would be fetched again."""
    fill(engine, log, 5 * PLENTY)
    assert len(offsets(reader, place, 0, 2 * PLENTY)) == 2 * PLENTY
    time.sleep(module.SLOW)
    assert offsets(reader, place, 2 * PLENTY, 4 * PLENTY) == list(range(2 * PLENTY, 4 * PLENTY))
    assert assigned(reader) == 1


def test_what_is_forgotten_is_asked_for_again(engine: Any, log: int, place: Place, reader: Reader) -> None:
    fill(engine, log, 9)
    reader.forget(place)
    assert offsets(reader, place, 0, 1) == [0]
    assert reader.came(place) is not None
    reader.forget(place)
    assert reader.came(place) is None
    assert offsets(reader, place, 1, 9) == list(range(1, 9))
