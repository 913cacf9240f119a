"""The network between us and the brokers breaks, or that to the state; brokers stop, and go on. P1, P2, P3.

As `test_network.py`, of a log in Kafka: log and state are two servers, and each may be away by itself. What
was run is told by an outside record.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from tests.services.kafka import KafkaServer, Listener
from tests.services.postgres import PostgresAddress, PostgresServer
from tests.services.process import free_port
from tests.services.proxy import Proxy
from tests.worker.support import FINE_AND_SLOW, Place, eventually
from tests.worker.test_network import ECHO_AND_SHORT, ONLY, TIMEOUT, _sent, together
from tests.worker.test_servers import Producer, _repeats

from respool import AppendUnknown
from respool.errors import EngineUnavailable

CODE = (
    FINE_AND_SLOW.replace('wait_for(f"go-{n}")', 'wait_for(f"go-{n}", 180)')
    + ECHO_AND_SHORT
    + """

@app.task
def parent(n):
    note("start", "parent", n)
    child.delay(f"child-{n}-of-a-run")


@app.task
def child(text):
    note("start", "child", text)
"""
)


class Net(NamedTuple):
    """Two servers, and a proxy before each."""

    server: KafkaServer
    brokers: Proxy
    state: Proxy


@pytest.fixture(scope="module")
def broker() -> Iterator[tuple[KafkaServer, Proxy]]:
    """A broker of these tests' own, that tells its clients to come through a proxy."""
    port = free_port()
    with (
        Proxy("127.0.0.1", port) as proxy,
        KafkaServer(listeners=[Listener("PROXIED", port, proxy.port)]) as server,
    ):
        yield server, proxy


@pytest.fixture
def net(broker: tuple[KafkaServer, Proxy], postgres: PostgresAddress) -> Iterator[Net]:
    with Proxy(postgres.host, postgres.port) as state:
        made = Net(*broker, state)
        yield made
        for proxy in (made.brokers, made.state):
            proxy.heal()


@pytest.fixture
def place(net: Net, session_database: str, tmp_path: Path) -> Iterator[Place]:
    state = net.state.url(f"{session_database}?schema=s{uuid.uuid4().hex[:12]}&prepare=off")
    yield from placed(tmp_path, net.brokers, state)


def placed(folder: Path, brokers: Proxy, state: str) -> Iterator[Place]:
    prefix = f"t{uuid.uuid4().hex[:12]}-"
    made = Place(folder, f"kafka://127.0.0.1:{brokers.port}?prefix={prefix}&state={quote(state, safe='')}")
    yield made
    brokers.heal()
    made.close()


def stored(place: Place, text: str) -> int:
    """Return how many records hold a text."""
    stream = place.app.stream_of("queue", "default")
    ((_, lo, hi),) = place.app.engine.bounds(stream)
    return sum(text.encode() in each.body for each in place.app.engine.records(lo, hi, 1000))


# Producers


@pytest.mark.parametrize("answered", [False, True], ids=["unsent", "unanswered"])
def test_append_that_is_cut_is_sent_again_and_stored_once(place: Place, net: Net, answered: bool) -> None:
    module = place.module(CODE, append_timeout=TIMEOUT)
    module.echo.delay("first")
    events = module.app.stream("seen", key="k", partitions=3)
    assert list(events.read()) == []
    hows: dict[str, Callable[[str], object]] = {
        "one": lambda text: module.echo.delay(text),
        "many": lambda text: module.echo.delay_many(["a", text, "b"]),
        "given": lambda text: module.echo.apply_async((text,), task_id="order-1"),
        "keyed": lambda text: events.publish_many({"k": n, "text": text * (n == 7)} for n in range(20)),
    }
    for how, send in hows.items():
        happened = net.brokers.cut_at(f"cut-{how}".encode(), answered=answered)
        send(f"cut-{how}")
        assert happened.is_set(), how
    assert [stored(place, f"cut-{how}") for how in hows] == [1, 1, 1, 0]
    assert sorted(event.value["k"] for event in events.read()) == list(range(20))
    place.check()


def test_threads_behind_silent_brokers_wait_once_and_not_one_after_the_other(place: Place, net: Net) -> None:
    """P10: what one waits for its turn counts. What is kept is sent later, and what is refused never."""
    module = place.module(CODE + ONLY, append_timeout=TIMEOUT)
    module.only.delay(-1)
    module.echo.delay("first")
    net.brokers.freeze()

    for each in range(2):

        def send(n: int, each: int = each) -> None:
            if n:
                module.only.delay(10 * each + n)
            else:
                module.echo.delay("beside")

        for took, error in together(send):
            assert isinstance(error, EngineUnavailable | AppendUnknown), error
            assert took < 2 * TIMEOUT + 1, (took, error)
    net.brokers.heal()
    place.burst(1)
    place.check()


@pytest.mark.parametrize("answered", [False, True], ids=["unsent", "unanswered"])
def test_append_that_cannot_be_sent_again_is_unknown(place: Place, net: Net, answered: bool) -> None:
    """In time; by its id it is sent again, and there once, whether or not it had arrived."""
    module = place.module(CODE, append_timeout=TIMEOUT)
    module.echo.delay("first")
    for id in (None, "order-7"):
        text = f"cut-{id}"
        happened = net.brokers.cut_at(text.encode(), answered=answered, refuse=True)
        began = time.monotonic()
        with pytest.raises(AppendUnknown, match="send it again with the same id") as caught:
            module.echo.apply_async((text,), task_id=id)
        assert time.monotonic() - began < 3 * TIMEOUT + 2
        assert happened.is_set()
        (told,) = caught.value.ids
        assert id in (None, told)
        began = time.monotonic()
        with pytest.raises((AppendUnknown, EngineUnavailable)):
            module.echo.delay("second")
        assert time.monotonic() - began < 3 * TIMEOUT + 2
        net.brokers.accept()
        again = module.echo.apply_async((text,), task_id=told)
        assert stored(place, text) == 1
        place.burst(1)
        assert again.get(timeout=5) == text
        assert place.runs("echo")[text] == 1
    place.check()


def test_append_into_silence_is_unknown_in_time_and_once_at_last(place: Place, net: Net) -> None:
    """Half-open: nobody says that the connection is gone; what was on its way may arrive much later."""
    module = place.module(CODE, append_timeout=TIMEOUT)
    module.echo.delay("first")
    net.brokers.freeze()
    ids = []
    for id in ("order-8", None):
        began = time.monotonic()
        with pytest.raises(AppendUnknown) as caught:
            module.echo.apply_async(("vanished",), task_id=id)
        assert time.monotonic() - began < 3 * TIMEOUT + 2
        ids += caught.value.ids
    net.brokers.thaw()
    for id in ids:
        module.echo.apply_async(("vanished",), task_id=id)
    place.burst(1)
    assert place.runs("echo") == {"first": 1, "vanished": 2}, "each of the two once"
    place.check()


def test_an_append_while_the_state_is_silent(place: Place, net: Net) -> None:
    """A fresh id asks no state; who gives one is told in time what became of it."""
    module = place.module(CODE, append_timeout=TIMEOUT)
    module.echo.delay("first")
    net.state.freeze()
    sent = module.echo.delay("straight")
    began = time.monotonic()
    with pytest.raises((AppendUnknown, EngineUnavailable)):
        module.echo.apply_async(("given",), task_id="order-9")
    assert time.monotonic() - began < 3 * TIMEOUT + 2
    net.state.thaw()
    module.echo.apply_async(("given",), task_id="order-9")
    place.burst(1)
    assert sent.get(timeout=5) == "straight"
    assert place.runs("echo") == {"first": 1, "straight": 1, "given": 1}
    place.check()


@pytest.mark.long
def test_slow_network_slows_and_breaks_nothing(place: Place, net: Net) -> None:
    """2 s for a question and its answer: a call is sent, claimed and run, and nobody is taken for dead."""
    module = place.module(CODE, beat=1.0, worker_ttl=20.0)
    worker = place.worker(1)
    assert module.fine.delay(1).get(timeout=20) == 1
    for proxy in (net.brokers, net.state):
        proxy.delay = 1.0
    began = time.monotonic()
    sent = module.fine.delay(2)
    assert time.monotonic() - began < 15
    place.await_start("fine", "2", timeout=90)
    for proxy in (net.brokers, net.state):
        proxy.delay = 0.0
    assert sent.get(timeout=20) == 2
    assert module.fine.delay(3).get(timeout=20) == 3
    assert place.runs("fine") == {"1": 1, "2": 1, "3": 1}
    assert "declared dead" not in worker.log
    assert worker.stop() == 0
    place.check()


# Workers


def asked(api: int) -> re.Pattern[bytes]:
    """Return how a request of some kind begins: its number, version, correlation, and who asks."""
    return re.compile(rb"\x00" + bytes([api]) + rb"\x00.{5}\x00.rdkafka", re.DOTALL)


FETCH, LIST_OFFSETS, METADATA = 1, 2, 3


def test_worker_that_is_cut_at_each_step(place: Place, net: Net) -> None:
    """P3: a claim or a settlement that is cut costs at most the run that it is about; calls come once."""
    module = place.module(CODE, append_timeout=TIMEOUT, beat=0.2, worker_ttl=5.0)
    assert place.url is not None
    (schema,) = re.findall(r"schema%3D(\w+)", place.url)
    worker = place.worker(1)
    slow = module.slow.delay(1)
    place.await_start("slow", "1")
    second = place.worker(1)
    steps: dict[str, tuple[Proxy, Callable[[int], Any]]] = {
        "the records of a claim": (net.brokers, lambda n: asked(FETCH)),
        "the end of a log": (net.brokers, lambda n: asked(LIST_OFFSETS)),
        "the calls of a run": (net.brokers, lambda n: f"child-{n}-of-a-run".encode()),
        "a claim": (net.state, lambda n: f'INSERT INTO "{schema}".lease '.encode()),
        "a result": (net.state, lambda n: _sent("settle-me")),
        "a beat": (net.state, lambda n: f'INSERT INTO "{schema}".beat '.encode()),
        "calls that are kept": (net.state, lambda n: _sent(f"child-{n}-of-a-run")),
    }
    sent = 0
    for step, (proxy, pattern) in steps.items():
        for answered in (False, True):
            happened = proxy.cut_at(pattern(sent), answered=answered)
            more = [module.echo.delay("settle-me"), module.short.delay(sent), module.parent.delay(sent)]
            sent += 1
            assert happened.wait(20), step
            for each in more:
                each.get(timeout=30)
    eventually(lambda: len(place.runs("child")) == sent, "each run's call")
    place.touch("go-1")
    assert slow.get(timeout=20) == 1
    eventually(place.idle)
    assert (worker.stop(), second.stop()) == (0, 0)
    assert place.runs("slow") == {"1": 1}, "it kept its lease, whatever became of others"
    assert set(place.runs("short")) == {str(n) for n in range(sent)}
    repeats = {name: sum(place.runs(name).values()) - sent for name in ("echo", "short", "parent", "child")}
    assert all(number >= 0 for number in repeats.values())
    assert sum(repeats.values()) <= 2 * sent, repeats
    stream = place.app.stream_of("queue", "default")
    ((_, lo, hi),) = place.app.engine.bounds(stream)
    tasks = [record.task for record in place.app.engine.records(lo, hi, 1000)]
    assert tasks.count("child") == sent, "each once in the log, whatever was cut and however often it ran"
    assert "declared dead" not in worker.log + second.log
    place.check()


@pytest.mark.parametrize("which", ["brokers", "both"])
def test_worker_in_silence_goes_on_afterwards(place: Place, net: Net, which: str) -> None:
    """H4, H5: who cannot prove that it lives starts nothing; who cannot read, nothing it has not read."""
    module = place.module(CODE, append_timeout=TIMEOUT, beat=0.1, worker_ttl=0.5)
    slow = module.slow.delay(1)
    worker = place.worker(2)
    place.await_start("slow", "1")
    short = module.short.delay_many(range(300))
    eventually(lambda: len(place.runs("short")) > 10)
    proxies = [net.brokers] if which == "brokers" else [net.brokers, net.state]
    for proxy in proxies:
        proxy.freeze()
    frozen = time.monotonic()
    if which != "brokers":
        worker.said("cannot beat")
    eventually(lambda: time.monotonic() - frozen > 4)
    if which != "brokers":
        assert max(mark.at for mark in place.marks("start", "short")) - frozen < 1.0
        assert len(place.runs("short")) < 300
    for proxy in proxies:
        proxy.thaw()
    if which != "brokers":
        worker.said("is back")
    place.touch("go-1")
    assert slow.get(timeout=20) == 1
    assert short.get(timeout=30) == list(range(300))
    assert worker.stop() == 0
    assert place.runs("slow") == {"1": 1}
    assert sum(place.runs("short").values()) - 300 <= 2
    place.check()


# Servers that stand still

TTL = 3.0  # more than one question may take that nobody answers


def _stands_still(
    place: Place, pause: Callable[[], None], resume: Callable[[], None], beats: bool
) -> Producer:
    module = place.module(CODE, beat=0.3, worker_ttl=TTL, append_timeout=TIMEOUT)
    slow = module.slow.delay_many([1, 2])
    other = "import respool.worker.supervisor as s\ns.boot_id = lambda: 'boot of {}'\n".format
    workers = [place.worker(1, name=name, before=other(name)) for name in ("first", "second")]
    eventually(lambda: len(place.runs("slow")) == 2)
    producer = Producer(module)
    producer.more()
    pause()
    stopped = time.monotonic()
    place.touch("go-1")
    if not beats:
        for worker in workers:
            worker.said("cannot beat")
    eventually(lambda: producer.refused or producer.unknown or time.monotonic() - stopped > 12)
    eventually(lambda: time.monotonic() - stopped > 2 * TTL)
    resume()
    if not beats:
        for worker in workers:
            worker.said("is back")
    producer.more()
    producer.stop()
    place.touch("go-2")
    assert slow.get(timeout=30) == [1, 2]
    eventually(place.idle)
    producer.verify(place.runs("fine"))
    assert producer.longest < 3 * TIMEOUT + 2
    assert all(producer.sent[n].get(timeout=5) == n for n in producer.sent)
    assert [worker.stop() for worker in workers] == [0, 0]
    logs = "".join(worker.log for worker in workers)
    assert place.runs("slow") == {"1": 1, "2": 1}, f"somebody was robbed:\n{logs}"
    assert "dead" not in logs, logs
    assert _repeats(place.runs("fine")) <= 2
    place.check()
    return producer


def test_a_broker_that_stands_still_for_longer_than_the_time_to_live(place: Place, net: Net) -> None:
    """Its connections stay open and nothing answers; workers prove by the state that they live."""
    producer = _stands_still(place, net.server.pause, net.server.resume, beats=True)
    assert producer.unknown or producer.refused


def test_a_state_that_stands_still_for_longer_than_the_time_to_live(
    broker: tuple[KafkaServer, Proxy], tmp_path: Path
) -> None:
    """H4: nobody has beaten meanwhile, so nobody is dead."""
    with PostgresServer(fsync=False) as server:
        server.create_database("calls")
        for place in placed(tmp_path, broker[1], server.url("calls")):
            _stands_still(place, server.pause, server.resume, beats=False)
