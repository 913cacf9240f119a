"""Kafka: a topic that is gone, made again, or led by nobody holds up its own queue, and no other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from tests import warm
from tests.crash.test_kafka import DELETED as CODE
from tests.crash.test_kafka import placed
from tests.services.kafka import cluster
from tests.worker.support import SOURCES, Place, eventually

from respool.engines.kafka.names import topic_name

on_kafka = pytest.mark.parametrize("place", ["kafka"], indirect=True)


def topic_of(place: Place, queue: str) -> str:
    engine: Any = place.app.engine
    return str(engine.known_place(place.app.stream_of("queue", queue).logs[0]).topic)


def delete(place: Place, queue: str) -> str:
    """Delete the topic of a queue, as somebody may by Kafka's own tools."""
    engine: Any = place.app.engine
    topic = topic_of(place, queue)
    for future in engine.cluster.admin.delete_topics([topic]).values():
        future.result(20)
    eventually(lambda: engine.cluster.describe(topic) is None)
    return topic


def make_again(place: Place, topic: str, records: int) -> None:
    engine: Any = place.app.engine
    engine.cluster.create(topic, 1, {})
    eventually(lambda: engine.cluster.describe(topic) is not None)
    other = Producer({"bootstrap.servers": engine.options.client["bootstrap.servers"]})
    for _ in range(records):
        other.produce(topic, b"another one's", partition=0)
    assert not other.flush(30)


def run(place: Place, module: Any, first: int, calls: int, within: float) -> float:
    """Run calls of the other queue one by one; return how long the slowest took."""
    slowest = 0.0
    for n in range(first, first + calls):
        began = time.monotonic()
        assert module.mark.delay(n).get(timeout=within) == n
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def respool(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "respool", "-A", str(place.path), *arguments]
    return warm.run(
        command,
        cwd=place.folder,
        env={"PYTHONPATH": SOURCES, "PATH": "", "COLUMNS": "200", "TZ": "UTC"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@on_kafka
@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_a_topic_made_again_rests_and_the_others_run(place: Place, pool: str) -> None:
    """K3: nothing of it is run, or sent there. Who serves it, and who starts anew, goes on with others."""
    module = place.module(CODE)
    worker = place.worker(1, pool=pool)
    assert module.gone.delay(1).get(timeout=20) == 1
    run(place, module, 0, 1, 20)
    (pid,) = place.children()
    topic = delete(place, "gone")
    worker.said(f"queue gone rests: {place.app.location.shown}: topic {topic} of queue gone was deleted,", 40)
    make_again(place, topic, 5)
    run(place, module, 1, 5, 10)
    worker.said("queue gone was deleted and made again", 40)
    run(place, module, 6, 5, 10)
    assert place.children() == [pid], "its process goes on"
    second = place.worker(1, pool=pool)  # which finds it so when it opens
    second.said("queue gone rests")
    assert worker.stop() == 0
    run(place, module, 11, 5, 10)
    assert second.stop() == 0
    shown_by_commands(place)
    assert "what is left cannot be seen" in second.log
    for each, times in ((worker, 2), (second, 1)):  # once for each reason
        assert each.log.count("queue gone rests") == times, each.log
        assert "ended right after its start" not in each.log
    assert place.runs("gone") == {"1": 1}
    assert place.runs("mark") == {str(n): 1 for n in range(16)}


def shown_by_commands(place: Place) -> None:
    """What begins anew sends to the others, and is told of the one, as are those who list."""
    refused = respool(place, "call", "gone", "7")
    assert refused.returncode == 1
    assert "was deleted and made again" in refused.stderr
    assert respool(place, "call", "mark", "99").returncode == 0
    lag = respool(place, "lag")
    assert lag.returncode == 1
    assert re.search(r"default +main +1 ", lag.stdout), lag.stdout
    assert "t/gone cannot be read" in lag.stdout
    queues = respool(place, "queues")
    assert queues.returncode == 1
    assert "queue gone cannot be read" in queues.stdout
    checked = respool(place, "check")
    assert checked.returncode == 1
    assert "Wrong: a log cannot be read" in checked.stdout
    assert re.search(r"default +main .* ok", checked.stdout), checked.stdout


HELD = """
@app.task(queue="gone")
def hold(n):
    note("start", "hold", n)
    wait_for("never", 180)


@app.task
def slow(n):
    with noted("slow", n):
        wait_for("go", 180)
        return n
"""


@on_kafka
def test_a_process_that_dies_in_a_call_of_a_topic_that_is_gone(place: Place) -> None:
    """K3, P3: its worker goes on with the others; one that dies as a whole is taken over from."""
    module = place.module(CODE + HELD)
    worker = place.worker(3)
    for n in range(2):
        module.hold.delay(n)
        place.await_start("hold", str(n))
    delete(place, "gone")
    dead = place.marks("start", "hold")[0].pid
    os.kill(dead, signal.SIGKILL)
    run(place, module, 0, 5, 20)
    worker.said(f"(pid {dead})")
    assert worker.process.poll() is None, worker.log
    kept = module.slow.delay(7)
    place.await_start("slow", "7")
    worker.kill_group()
    second = place.worker(1, before=TIDIED)
    place.touch("go")
    assert kept.get(timeout=30) == 7
    second.said("is dead: took over", 30)
    rounds = second.log.count("tidied")
    eventually(lambda: second.log.count("tidied") > rounds + 2, "housekeeping goes on")
    assert len(place.registered()) == 1
    assert second.stop() == 0


TIDIED = """
from respool.worker.housekeeping import House
tidy = House.tidy
House.tidy = lambda self, **how: (print("tidied", flush=True), tidy(self, **how))[1]
"""


@on_kafka
def test_a_topic_that_is_gone_is_seldom_looked_at(place: Place) -> None:
    module = place.module(CODE)
    worker = place.worker(1)
    assert module.gone.delay(1).get(timeout=20) == 1
    run(place, module, 0, 1, 20)
    delete(place, "gone")
    worker.said("queue gone rests", 30)
    began = time.monotonic()
    slowest = []
    while time.monotonic() - began < 15:
        slowest.append(run(place, module, len(slowest) + 1, 1, 10))
    late = [each for each in slowest if each > 1.0]
    assert len(late) <= 4, (late, worker.log)
    assert sum(late) < 8, (late, worker.log)
    assert len(slowest) > 100
    assert worker.stop() == 0
    assert worker.log.count("queue gone rests") == 1


@pytest.mark.long
def test_a_topic_that_no_broker_leads_holds_up_no_other(tmp_path: Path, session_database: str) -> None:
    with cluster() as brokers, placed(tmp_path, brokers.url(), session_database) as place:
        only = brokers.servers[-1]
        admin = AdminClient({"bootstrap.servers": brokers.address})
        name = topic_name("t-", "queue", "t", "gone")
        made = NewTopic(name, 1, replica_assignment=[[only.node]])
        for future in admin.create_topics([made]).values():
            future.result(20)
        module = place.module(CODE, append_timeout=3.0)
        worker = place.worker(1)
        assert module.gone.delay(1).get(timeout=30) == 1
        run(place, module, 0, 1, 30)
        (pid,) = place.children()
        only.kill()
        worker.said("queue gone rests", 60)
        assert f"no broker leads partition 0 of topic {name}" in worker.log
        began, took = time.monotonic(), []
        while time.monotonic() - began < 15:
            took.append(run(place, module, len(took) + 1, 1, 20))
        late = [each for each in took if each > 1.0]
        assert len(late) <= 3, (late, worker.log)
        assert sum(late) < 11, (late, worker.log)
        only.start()
        worker.said("queue gone goes on", 60)
        assert module.gone.delay(2).get(timeout=30) == 2
        assert place.children() == [pid], "it is the same process"
        assert worker.stop() == 0
