"""The network between us and a server breaks, or the server fails over: P1, P2, P3 by an outside record.

Cut in the midst of an append, a claim, a settlement; silent; slow. Producers get an error within their time,
which says whether the call may have been sent; workers stop starting work, keep what they run, and come back.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.services.postgres import PostgresAddress, PostgresServer
from tests.services.proxy import Proxy
from tests.worker.support import FINE_AND_SLOW, Place, eventually
from tests.worker.test_servers import Producer

from respool import App, AppendUnknown, ConfigError
from respool.engines.postgres.connection import SLOW
from respool.engines.turns import GRACE
from respool.errors import EngineUnavailable, GetTimeout, RespoolError

ECHO_AND_SHORT = """
@app.task
def echo(text):
    note("start", "echo", text)
    return text


@app.task
def short(n):
    with noted("short", n):
        time.sleep(0.01)
        return n
"""
CODE = (
    FINE_AND_SLOW
    + ECHO_AND_SHORT
    + """

@app.task(bind=True)
def pay(self, n):
    note("start", "pay", n)
    with self.transaction() as connection:
        connection.execute(f"INSERT INTO {TABLE} VALUES (%s)", (n,))
    return f"paid-{n}"


TABLE = "paid_" + app.url.partition("schema=")[2].partition("&")[0]
"""
)
ONLY = """

@app.task(unique=True)
def only(n):
    return n
"""
TIMEOUT = 2.0
MANY = 8
_SAID = b'SFATAL\0VFATAL\0C3D000\0Mdatabase "calls" does not exist\0\0'
REFUSED = b"E" + (len(_SAID) + 4).to_bytes(4) + _SAID  # what a pooler says whose servers are away


@pytest.fixture
def proxy(postgres: PostgresAddress) -> Iterator[Proxy]:
    with Proxy(postgres.host, postgres.port) as made:
        yield made


@pytest.fixture
def place(session_database: str, proxy: Proxy, tmp_path: Path) -> Iterator[Place]:
    """A place on a server behind the proxy; each statement's text is sent each time, to be recognised by."""
    schema = f"s{uuid.uuid4().hex[:12]}"
    made = Place(tmp_path, proxy.url(f"{session_database}?schema={schema}&prepare=off"))
    yield made
    proxy.delay = 0.0
    proxy.thaw()
    made.close()


def stored(place: Place, text: str) -> int:
    """Return how many records hold a text."""
    stream = place.app.stream_of("queue", "default")
    ((_, lo, hi),) = place.app.engine.bounds(stream)
    return sum(text.encode() in each.body for each in place.app.engine.records(lo, hi, 1000))


def _sent(text: str) -> tuple[bytes, bytes]:
    """Return how a text is sent: as it is, and within an array."""
    return text.encode(), text.encode().hex().encode()


# Producers


@pytest.mark.parametrize("answered", [False, True], ids=["unsent", "unanswered"])
@pytest.mark.parametrize("how", ["one", "many", "row by row"])
def test_append_that_is_cut_is_sent_again_and_stored_once(
    place: Place, proxy: Proxy, answered: bool, how: str
) -> None:
    module = place.module(CODE, append_timeout=TIMEOUT)
    module.echo.delay("first")
    happened = proxy.cut_at(_sent("cut-me"), answered=answered)
    if how == "one":
        module.echo.delay("cut-me")
    elif how == "many":
        module.echo.delay_many(["a", "cut-me", "b"])
    else:
        events = module.app.stream("seen", key="k")
        events.publish_many({"k": n, "text": "cut-me" if n == 7 else ""} for n in range(20))
        assert len(list(events.read())) == 20
    assert happened.is_set()
    if how != "row by row":
        assert stored(place, "cut-me") == 1
    place.check()


@pytest.mark.parametrize("answered", [False, True], ids=["unsent", "unanswered"])
def test_append_that_cannot_be_sent_again_is_unknown(place: Place, proxy: Proxy, answered: bool) -> None:
    module = place.module(CODE, append_timeout=TIMEOUT)
    module.echo.delay("first")
    happened = proxy.cut_at(_sent("cut-me"), answered=answered, refuse=True)
    began = time.monotonic()
    with pytest.raises(
        AppendUnknown, match=r"not known whether it was stored; .*send it again .*: order-7"
    ) as caught:
        module.echo.apply_async(("cut-me",), task_id="order-7")
    assert time.monotonic() - began < TIMEOUT + 2
    assert happened.is_set()
    assert caught.value.ids == ("order-7",)
    with pytest.raises(EngineUnavailable, match="nothing was sent"):
        module.echo.delay("refused")
    proxy.accept()
    assert stored(place, "cut-me") == answered
    again = module.echo.apply_async(("cut-me",), task_id="order-7")
    assert stored(place, "cut-me") == 1
    assert stored(place, "refused") == 0
    place.burst(1)
    assert again.get(timeout=5) == "cut-me"
    assert place.runs("echo") == {"first": 1, "cut-me": 1}
    place.check()


def test_append_into_silence_is_unknown_in_time_and_once_at_last(place: Place, proxy: Proxy) -> None:
    """Half-open: nobody says that the connection is gone; what was on its way may arrive much later."""
    module = place.module(CODE, append_timeout=TIMEOUT)
    module.echo.delay("first")
    proxy.freeze()
    began = time.monotonic()
    with pytest.raises(AppendUnknown, match="order-8"):
        module.echo.apply_async(("vanished",), task_id="order-8")
    assert time.monotonic() - began < 3 * TIMEOUT + 1
    with pytest.raises(EngineUnavailable, match="nothing was sent"):
        module.echo.delay("refused")
    proxy.thaw()
    module.echo.apply_async(("vanished",), task_id="order-8")
    place.burst(1)
    assert place.runs("echo") == {"first": 1, "vanished": 1}
    place.check()


def together(do: Callable[[int], object]) -> list[tuple[float, BaseException | None]]:
    """Have threads do something at once; return how long each took, and what it met."""
    begin = threading.Barrier(MANY)

    def one(n: int) -> tuple[float, BaseException | None]:
        begin.wait(10)
        began = time.monotonic()
        try:
            do(n)
        except RespoolError as error:
            return time.monotonic() - began, error
        return time.monotonic() - began, None

    with ThreadPoolExecutor(MANY) as threads:
        return list(threads.map(one, range(MANY)))


def test_threads_behind_a_silent_server_wait_once_and_not_one_after_the_other(
    place: Place, proxy: Proxy
) -> None:
    """P10: what one waits for its turn counts; nothing of theirs was sent."""
    module = place.module(CODE + ONLY, append_timeout=TIMEOUT)
    sent = module.only.delay(-1)
    with pytest.raises(GetTimeout):
        sent.get(timeout=0)
    proxy.freeze()
    for times in range(2):  # the second time there is no connection to wait on
        for took, error in together(lambda n: module.only.delay(n)):
            assert isinstance(error, EngineUnavailable), error
            assert took < TIMEOUT + 2 * GRACE + 1, (times, took)
        for took, error in together(lambda n: sent.get(timeout=1)):
            assert isinstance(error, EngineUnavailable | GetTimeout), error
            assert took < 1 + GRACE + 1, (times, took)
        for took, error in together(lambda n: module.echo.apply_async(("late",), task_id=f"late-{n}")):
            assert isinstance(error, EngineUnavailable | AppendUnknown), error
            assert took < 2 * SLOW + GRACE + 1, (times, took)
    proxy.thaw()
    assert module.only.delay(7).id != sent.id
    with pytest.raises(GetTimeout):
        sent.get(timeout=1)
    place.check()


def test_who_waits_for_its_turn_has_its_own_time_where_the_server_answers(place: Place, proxy: Proxy) -> None:
    module = place.module(CODE + ONLY, append_timeout=TIMEOUT)
    sent = module.only.delay(-1)
    assert sent.state == "PENDING"
    proxy.delay = 0.1
    for took, error in together(lambda n: sent.state):
        assert error is None, (took, error)
    proxy.delay = 0.0


@pytest.mark.long
def test_slow_network_slows_and_breaks_nothing(place: Place, proxy: Proxy) -> None:
    """2 s for a question and its answer: a call is sent, claimed and run, and nobody is taken for dead."""
    module = place.module(CODE, beat=1.0, worker_ttl=10.0)
    worker = place.worker(1)
    assert module.fine.delay(1).get(timeout=20) == 1
    proxy.delay = 1.0
    began = time.monotonic()
    sent = module.fine.delay(2)
    assert 2 <= time.monotonic() - began < 10
    place.await_start("fine", "2", timeout=60)
    proxy.delay = 0.0
    assert sent.get(timeout=20) == 2
    assert module.fine.delay(3).get(timeout=20) == 3
    assert place.runs("fine") == {"1": 1, "2": 1, "3": 1}
    assert "declared dead" not in worker.log
    assert "cannot beat" not in worker.log
    assert worker.stop() == 0
    place.check()


# Workers


def test_worker_that_is_cut_at_each_step(place: Place, proxy: Proxy) -> None:
    """P3: a claim or a settlement that was cut off costs at most the run that it was about."""
    module = place.module(CODE, append_timeout=TIMEOUT, beat=0.2, worker_ttl=5.0)
    schema = (place.url or "").partition("schema=")[2].partition("&")[0]
    module.app.engine._writer.append(lambda db: db.execute(f"CREATE TABLE {module.TABLE} (n bigint)"))
    worker = place.worker(1)
    slow = module.slow.delay(1)
    place.await_start("slow", "1")
    second = place.worker(1)
    steps = {
        "reads of a claim": b"row_number() OVER",
        "a claim": f'INSERT INTO "{schema}".lease '.encode(),
        "a result": _sent("settle-me"),
        "a beat": f'INSERT INTO "{schema}".beat '.encode(),
        "a run's own work": _sent("paid-1"),
        "rows": f'meta FROM "{schema}".record'.encode(),
    }
    sent: list[Any] = []
    for step, pattern in steps.items():
        for answered in (False, True):
            happened = proxy.cut_at(pattern, answered=answered)
            more = [
                module.echo.delay("settle-me"),
                module.pay.delay(100 + len(sent)),
                module.short.delay(len(sent)),
            ]
            sent += more
            assert happened.wait(20), step
            for each in more:
                each.get(timeout=20)
    place.touch("go-1")
    assert slow.get(timeout=20) == 1
    eventually(place.idle)
    assert (worker.stop(), second.stop()) == (0, 0)
    assert place.runs("slow") == {"1": 1}, "it kept its lease, whatever became of others"
    cuts = 2 * len(steps)
    repeats = {name: sum(place.runs(name).values()) - cuts for name in ("echo", "pay", "short")}
    assert all(number >= 0 for number in repeats.values())
    assert sum(repeats.values()) <= 2 * cuts, repeats
    with psycopg.connect(place.app.location.server.value, autocommit=True) as db:  # type: ignore[union-attr]
        paid = db.execute(f"SELECT n FROM {module.TABLE} ORDER BY n".encode()).fetchall()
    assert paid == [(100 + 3 * n,) for n in range(cuts)], "once each, cut or not"
    assert "declared dead" not in worker.log + second.log
    place.check()


def test_worker_in_silence_starts_nothing_and_goes_on_afterwards(place: Place, proxy: Proxy) -> None:
    """H4, H5: it cannot prove that it lives; nobody who could take its lease is heard either."""
    module = place.module(CODE, append_timeout=TIMEOUT, beat=0.1, worker_ttl=0.5)
    slow = module.slow.delay(1)
    worker = place.worker(2)
    place.await_start("slow", "1")
    short = module.short.delay_many(range(300))
    eventually(lambda: len(place.runs("short")) > 10)
    proxy.freeze()
    frozen = time.monotonic()
    worker.said("cannot beat")
    eventually(lambda: time.monotonic() - frozen > 4)
    assert max(mark.at for mark in place.marks("start", "short")) - frozen < 1.0
    assert len(place.runs("short")) < 300
    proxy.thaw()
    worker.said("is back")
    place.touch("go-1")
    assert slow.get(timeout=20) == 1
    assert short.get(timeout=20) == list(range(300))
    assert worker.stop() == 0
    assert place.runs("slow") == {"1": 1}
    assert sum(place.runs("short").values()) - 300 <= 2
    place.check()


def test_work_whose_commit_was_not_answered_is_not_repeated(place: Place, proxy: Proxy) -> None:
    module = place.module(CODE, append_timeout=TIMEOUT)
    module.app.engine._writer.append(lambda db: db.execute(f"CREATE TABLE {module.TABLE} (n bigint)"))
    happened = proxy.cut_at(_sent("paid-7"), answered=True)
    paid = module.pay.delay(7)
    worker = place.burst(1)
    assert happened.is_set()
    assert "not known whether it was committed; looking" in worker.log
    assert paid.get(timeout=5) == "paid-7"
    assert place.runs("pay") == {"7": 1}
    assert [attempt.how for attempt in paid.history()] == ["done"]
    place.check()


@pytest.mark.server
@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_outage_behind_a_balancer_that_breaks_off_the_handshake(tmp_path: Path, pool: str) -> None:
    """H20, P3: it sounds like a wrong certificate, and is an outage: nothing ends, and nothing is killed."""
    with PostgresServer(fsync=False) as server:
        server.use_tls("db.example")
        server.create_database("calls")
        with Proxy(server.address.host, server.address.port) as proxy:
            place = Place(tmp_path, proxy.url(server.url("calls")) + "?sslmode=require")
            try:
                _break_off(place, proxy, pool)
            finally:
                place.close()


def _break_off(place: Place, proxy: Proxy, pool: str) -> None:
    module = place.module(CODE, append_timeout=TIMEOUT)
    slow = module.slow.delay(1)
    worker = place.worker(1, pool=pool)
    place.await_start("slow", "1")
    proxy.break_off(b"S")
    worker.said("cannot beat")
    with pytest.raises(AppendUnknown):  # it was connected
        module.fine.delay(100)
    with pytest.raises(EngineUnavailable, match=r"SSL.*sslrootcert=FILE.*nothing was sent"):
        module.fine.delay(101)
    proxy.heal()
    assert module.fine.delay(2).id
    place.touch("go-1")
    assert slow.get(timeout=20) == 1
    assert worker.process.poll() is None, worker.log
    assert worker.stop() == 0, worker.log
    assert place.runs("slow") == {"1": 1}
    assert "101" not in place.runs("fine")
    place.check()


def test_what_a_pooler_says_whose_servers_are_away_is_an_outage(place: Place, proxy: Proxy) -> None:
    """H20: the URL was right before. Whoever is new and was never there is told to look at it."""
    place.url = f"{place.url}&sslmode=disable"
    module = place.module(CODE, append_timeout=TIMEOUT)
    module.echo.delay("first")
    engine: Any = place.app.engine
    proxy.break_off(REFUSED)
    with pytest.raises(AppendUnknown):  # it was connected
        module.echo.delay("cut")
    away = r"does not exist; check user and database .*; nothing was sent"
    with pytest.raises(EngineUnavailable, match=away):
        module.echo.delay("refused")
    with pytest.raises(EngineUnavailable, match=away):
        engine.connection_for_work().read(lambda db: db.execute("SELECT 1"))
    other = App("shop", url=str(place.url))
    with pytest.raises(ConfigError, match="does not exist; check user and database"):
        other.engine.workers()
    proxy.heal()
    assert stored(place, "refused") == 0
    assert other.engine.workers() == []
    other.close()


# Failing over


@pytest.mark.server
def test_failover_to_a_synchronous_standby(tmp_path: Path) -> None:
    """P1: what was acknowledged is on the standby. The URL names both, and whichever takes writes is used."""
    with PostgresServer(fsync=False) as primary:
        primary.create_database("calls")
        with primary.standby() as standby:
            at = f"{primary.address.user}:{primary.address.password}"
            hosts = f"127.0.0.1:{primary.address.port},127.0.0.1:{standby.address.port}"
            place = Place(tmp_path, f"postgresql://{at}@{hosts}/calls?target_session_attrs=read-write")
            try:
                _fail_over(place, primary, standby)
            finally:
                place.close()


def _fail_over(place: Place, primary: PostgresServer, standby: PostgresServer) -> None:
    module = place.module(CODE, beat=0.2, worker_ttl=3.0, append_timeout=5.0)
    slow = module.slow.delay(1)
    worker = place.worker(2)
    place.await_start("slow", "1")
    producer = Producer(module)
    producer.more(200)
    eventually(lambda: len(place.runs("fine")) > 100)
    primary.stop("immediate")
    standby.address.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
    standby.promote()
    producer.more(200)
    producer.stop()
    place.touch("go-1")
    assert slow.get(timeout=20) == 1
    eventually(place.idle)
    producer.verify(place.runs("fine"))
    assert all(producer.sent[n].get(timeout=5) == n for n in producer.sent)
    assert producer.longest < 2 * 5.0 + 2
    assert place.runs("slow") == {"1": 1}
    assert worker.stop() == 0
    place.check()
    print("unknown", len(producer.unknown), "refused", len(producer.refused), "repeats", _repeats(place))


def _repeats(place: Place) -> int:
    runs = place.runs("fine")
    return sum(runs.values()) - len(runs)
