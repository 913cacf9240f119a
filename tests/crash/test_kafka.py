"""Kafka: workers killed in the midst of relaying calls, brokers killed under workers and producers."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from tests.crash.kills import Rampage
from tests.crash.test_kills import test_kill_at_a_stage as kill_at_a_stage
from tests.crash.test_kills import test_kill_at_a_stage_of_a_batch as kill_at_a_stage_of_a_batch
from tests.crash.test_kills import test_producers_killed_in_mid_append as producers_killed_in_mid_append
from tests.crash.test_kills import test_three_deaths_of_a_whole_worker_bury_no_innocents as three_deaths
from tests.services.kafka import KafkaServer, cluster
from tests.worker.support import Place, eventually

from respool import AppendError, AppendUnknown, EngineError, EngineUnavailable

on_kafka = pytest.mark.parametrize("place", ["kafka"], indirect=True)
KILLS = 4
CODE = """
@app.task
def mark(n):
    with noted("mark", n):
        return n


@app.task
def parent(n):
    with noted("parent", n):
        child.delay(n)
        return n


@app.task
def child(n):
    note("start", "child", n)


if IN_WORKER:
    from respool.engines.kafka.outbox import Outbox

    def dying(name, stage, first):
        inner = getattr(Outbox, name)

        def wrapped(*args, **kwargs):
            if first and once(stage):
                die()
            answer = inner(*args, **kwargs)
            if not first and once(stage):
                die()
            return answer

        setattr(Outbox, name, wrapped)

    dying("_claim", "committed", True)
    dying("_send_to", "taken", True)
    dying("_send_to", "sent", False)
    dying("_settle", "settled", False)
"""


@on_kafka
@pytest.mark.parametrize(
    ("stage", "victim"),
    [
        ("run", "child"),
        ("kept", "supervisor"),
        ("settling", "child"),
        ("writing", "group"),
        ("settled", "group"),
    ],
)
def test_kill_at_a_stage(place: Place, stage: str, victim: str) -> None:
    kill_at_a_stage(place, stage, victim)


@on_kafka
@pytest.mark.parametrize(("stage", "victim"), [("part", "supervisor"), ("kept", "group")])
def test_kill_at_a_stage_of_a_batch(place: Place, stage: str, victim: str) -> None:
    kill_at_a_stage_of_a_batch(place, stage, victim)


@on_kafka
def test_three_deaths_of_a_whole_worker_bury_no_innocents(place: Place) -> None:
    three_deaths(place)


@on_kafka
def test_producers_killed_in_mid_append(place: Place) -> None:
    producers_killed_in_mid_append(place)


@on_kafka
@pytest.mark.parametrize("stage", ["committed", "taken", "sent", "settled"])
def test_a_worker_killed_while_it_relays_calls(place: Place, stage: str) -> None:
    """K4: the calls of a settled run reach Kafka once, whoever relays them in the end."""
    module = place.module(CODE, append_timeout=2.0)  # two of it, and two seconds, until who relays is dead
    module.parent.delay_many(range(20))
    place.touch(stage)
    place.worker(1)
    eventually(lambda: not (place.folder / stage).exists(), stage)
    eventually(lambda: len(place.runs("child")) == 20 and place.idle(), "all calls", 60)
    assert place.runs("child") == {str(n): 1 for n in range(20)}
    assert len(place.runs("parent")) == 20
    stream = place.app.stream_of("queue", "default")
    ((_, lo, hi),) = place.app.engine.bounds(stream)
    tasks = [record.task for record in place.app.engine.records(lo, hi, 1000)]
    assert tasks.count("child") == 20, "each once in the log, too"
    place.check()


@on_kafka
def test_kills(place: Place) -> None:
    rampage = Rampage(place, 11)
    tally = rampage.go(lambda tally: tally.kills >= KILLS)
    assert tally.kills >= KILLS
    rampage.verify()


# Brokers


@contextmanager
def placed(folder: Path, broker: str, database: str) -> Iterator[Place]:
    state = quote(f"{database}?schema=s{uuid.uuid4().hex[:12]}", safe="")
    made = Place(folder, f"{broker}?prefix=t-&state={state}")
    try:
        yield made
    finally:
        made.close()


class Sender(threading.Thread):
    """Sends numbered calls until told to stop; what may have been sent is sent again with its id (H20)."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module, self.sent, self.unknown, self.refused = module, 0, 0, 0
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self._send(self.sent)
                self.sent += 1
                self.stop.wait(0.005)  # a few hundred a second are enough
        except BaseException as error:
            self.error = error
            raise

    def _send(self, n: int) -> None:
        id = None
        while True:
            try:
                self.module.mark.apply_async((n,), task_id=id)
                return
            except AppendUnknown as error:
                self.unknown += 1
                (id,) = error.ids
            except EngineUnavailable:  # nothing was sent
                self.refused += 1


def go_through(place: Place, disturb: Callable[[Sender], None]) -> Sender:
    """Send and run calls while brokers are away; every one that was sent is run, and once."""
    module = place.module(CODE, append_timeout=2.0, beat=0.2)
    sender = Sender(module)
    place.worker(2)
    sender.start()
    eventually(lambda: len(place.runs("mark")) > 20, "calls are run")
    disturb(sender)
    before = sender.sent
    eventually(lambda: sender.sent > before + 20 or sender.error, "calls are sent again", 60)
    sender.stop.set()
    sender.join(30)
    assert sender.error is None
    eventually(lambda: len(place.runs("mark")) >= sender.sent and place.idle(), "all calls done", 60)
    assert place.runs("mark") == {str(n): 1 for n in range(sender.sent)}
    place.check()
    return sender


def test_a_broker_killed_and_started_again(tmp_path: Path, session_database: str) -> None:
    with KafkaServer() as server, placed(tmp_path, server.url(), session_database) as place:

        def disturb(sender: Sender) -> None:
            server.kill()
            eventually(lambda: sender.unknown + sender.refused > 0, "what is sent meanwhile is an error")
            server.start()

        sender = go_through(place, disturb)
        assert sender.unknown + sender.refused > 0


def test_one_of_three_brokers_killed(tmp_path: Path, session_database: str) -> None:
    """acks=all with two replicas in sync: what is acknowledged is on another broker too (P1)."""
    with cluster() as brokers, placed(tmp_path, brokers.url(), session_database) as place:

        def disturb(sender: Sender) -> None:
            engine = place.app.engine
            topic = engine.place(place.app.stream_of("queue", "default").logs[0]).topic
            leader = engine.cluster.admin.list_topics(topic, timeout=10).topics[topic].partitions[0].leader
            next(server for server in brokers.servers if server.node == leader).kill()

        go_through(place, disturb)


# Topics that somebody else deletes, or trims


@on_kafka
def test_a_topic_deleted_under_workers(place: Place) -> None:
    """K3: who sends to it, and who runs its calls, is told; other queues go on. It is not made anew."""
    module = place.module(DELETED, append_timeout=2.0)
    worker = place.worker(2, before="from respool.engines.kafka import retention as r; r.RARELY = 1.0")
    assert module.mark.delay(1).get(timeout=20) == 1
    assert module.gone.delay(1).get(timeout=20) == 1
    engine: Any = place.app.engine
    topic = engine.place(place.app.stream_of("queue", "gone").logs[0]).topic
    for future in engine.cluster.admin.delete_topics([topic]).values():
        future.result(20)
    eventually(lambda: engine.cluster.describe(topic) is None)

    def refused() -> str:
        """What is said. A client that has not heard of it yet may say at first that it does not know."""
        with pytest.raises((EngineError, AppendError)) as told:
            module.gone.delay(2)
        return str(told.value) if told.errisinstance(EngineError) else ""

    assert f"topic {topic} of queue gone was deleted" in eventually(refused, "it is said", 60)
    worker.said("was deleted, and its records with it", 30)
    assert module.mark.delay(2).get(timeout=20) == 2
    assert engine.cluster.describe(topic) is None, "nobody has made it again"
    assert worker.stop() == 0
    assert place.runs("gone") == {"1": 1}


DELETED = """
@app.task
def mark(n):
    with noted("mark", n):
        return n


@app.task(queue="gone")
def gone(n):
    with noted("gone", n):
        return n
"""


@pytest.mark.long
def test_retention_shrunk_by_somebody_else(tmp_path: Path, session_database: str) -> None:
    """K1: what the brokers delete before it was done is lost, loudly; nothing is jumped over in silence.

    And what Kafka's own tools are told of a worker's group is where it truly is (K6).
    """
    settings = {"log.retention.check.interval.ms": 200, "log.segment.delete.delay.ms": 100}
    with KafkaServer(settings) as server, placed(tmp_path, server.url(), session_database) as place:
        module = place.module(CODE, append_timeout=5.0)
        lost, engine = module.mark.delay_many(range(50)), place.app.engine
        at = engine.place(place.app.stream_of("queue", "default").logs[0])  # type: ignore[attr-defined]
        _set_retention(server, at.topic, "1")
        stream = place.app.stream_of("queue", "default")
        eventually(lambda: engine.bounds(stream)[0][1] == engine.bounds(stream)[0][2], "they are deleted", 30)
        _set_retention(server, at.topic, "-1")
        kept = module.mark.delay_many(range(100, 120))
        worker = place.worker(1)
        assert kept.get(timeout=30) == list(range(100, 120))
        worker.said("are lost: trimmed before they were done")
        assert set(place.runs("mark")) == {str(n) for n in range(100, 120)}
        assert [result.state for result in lost] == ["UNKNOWN"] * 50
        eventually(lambda: place.counters().get("lost: trimmed before they were done") == 50)
        told = subprocess.run(
            [sys.executable, "-m", "respool", "--url", str(place.url), "lag"],
            capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip
        assert "50" in told
        assert "lost" in told
        group = f"{engine.options.prefix}t.main"  # type: ignore[attr-defined]
        asks = Consumer({"bootstrap.servers": server.address, "group.id": group})
        where = [TopicPartition(at.topic, at.partition)]
        eventually(lambda: asks.committed(where, 10)[0].offset == 70, "the group's offset is its cursor")
        asks.close()
        assert worker.stop() == 0
        told = [int(each) for each in re.findall(r"(\d+) record\(s\) .* are lost", worker.log)]
        assert sum(told) == 50
        assert len(told) <= 2, "found by one, and the rest passed over at once"
        place.check()


def _set_retention(server: KafkaServer, topic: str, milliseconds: str) -> None:
    entry = ConfigEntry("retention.ms", milliseconds, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": server.address})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(20)
