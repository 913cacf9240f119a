"""A store that is moved while workers run and producers send: nothing is lost, nothing is run twice."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from tests.worker.support import Place, eventually, on_each_engine
from tests.worker.support import place as place

from respool import LogMoved
from respool.delivery.model import NewCall
from respool.engines import open_engine
from respool.engines.base import Engine
from respool.errors import EngineUnavailable
from respool.location import parse_url
from respool.record import first_pos, new_head
from respool.replay import check
from respool.transfer import transfer, undo

each_way = pytest.mark.parametrize(
    ("place", "elsewhere"),
    [("sqlite", "postgres"), ("postgres", "sqlite"), ("kafka", "sqlite"), ("sqlite", "kafka")],
    indirect=True,
    ids=["sqlite-to-postgres", "postgres-to-sqlite", "kafka-to-sqlite", "sqlite-to-kafka"],
)

TASKS = """
@app.task
def work(n):
    with noted("work", n):
        if n == "slow":
            wait_for("go")
    return [n]

@app.task
def fails(n):
    raise ValueError(n)
"""


@pytest.fixture
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path, place: Place) -> Iterator[str]:
    """The URL of an empty store of another engine."""
    database = request.getfixturevalue("session_database") if place.url is None else ""
    server = f"{database}?schema=s{uuid.uuid4().hex[:12]}"
    if getattr(request, "param", None) == "kafka":
        broker = request.getfixturevalue("kafka").url()
        yield f"{broker}?prefix=t{uuid.uuid4().hex[:12]}-&state={quote(server, safe='')}"
    elif place.url is not None:
        yield f"sqlite:///{tmp_path / 'there.db'}"
    else:
        yield server


@pytest.fixture
def target(elsewhere: str) -> Iterator[Engine]:
    engine = open_engine(parse_url(elsewhere), "full", 10.0)
    yield engine
    engine.close()


class Producer(threading.Thread):
    """Sends call after call until it is told that the log is moved."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task, self.sent = task, 0
        self.stopped_by: BaseException | None = None

    def run(self) -> None:
        try:
            while True:
                if self.sent % 3:
                    self.task.delay(self.sent)
                else:
                    self.task.apply_async((self.sent,), task_id=f"{id(self)}-{self.sent}")
                self.sent += 1
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.stopped_by = error


@each_way
def test_live_workers_and_producers(place: Place, target: Engine, elsewhere: str) -> None:
    module = place.module(TASKS)
    worker = place.worker(2)
    producers = [Producer(module.work) for _ in range(2)]
    for producer in producers:
        producer.start()
    eventually(lambda: len(place.marks("end")) > 100, "calls run")
    transfer(place.app.engine, target)
    for producer in producers:
        producer.join(20)
        assert isinstance(producer.stopped_by, LogMoved), producer.stopped_by
        assert target.shown in str(producer.stopped_by)
    with pytest.raises(LogMoved):
        module.work.delay_many([1, 2])
    assert worker.wait(60) == 1
    assert f"Error: this log was moved to {target.shown}" in worker.log
    assert place.burst(2, url=elsewhere).log.count("Traceback") == 0
    sent = sum(producer.sent for producer in producers)
    assert sum(place.runs("work").values()) == sent, "each call was run once"
    assert {name: runs for name, runs in place.runs("work").items() if runs > 2} == {}
    assert check(target).ok
    place.check()


@on_each_engine
def test_a_long_run_ends_before_the_move(place: Place, target: Engine, elsewhere: str) -> None:
    module = place.module(TASKS)
    slow = module.work.delay("slow")
    worker = place.worker(2)
    place.await_start("work", "slow")
    told: list[str] = []
    moving = threading.Thread(
        target=lambda: transfer(place.app.engine, target, tell=lambda what, *_: told.append(what))
    )
    moving.start()
    eventually(lambda: "still running" in told, "the transfer waits")
    later = module.work.delay("later")
    worker.said("this log is being moved to")
    assert "later" not in {mark.key for mark in place.marks("start")}, "claims are stopped"
    place.touch("go")
    moving.join(30)
    assert not moving.is_alive()
    assert slow.get(timeout=5) == ["slow"]
    with pytest.raises(LogMoved, match="was moved to"):
        later.get(timeout=20)
    place.burst(1, url=elsewhere)
    assert place.runs("work") == {"slow": 1, "later": 1}


@on_each_engine
def test_a_killed_workers_calls_are_run_there(place: Place, target: Engine, elsewhere: str) -> None:
    module = place.module(TASKS)
    module.work.delay_many(["slow", "b", "c"])
    worker = place.worker(1)
    place.await_start("work", "slow")
    worker.kill_group()
    transfer(place.app.engine, target)
    place.touch("go")
    place.burst(1, url=elsewhere)
    assert place.runs("work") == {"slow": 2, "b": 1, "c": 1}
    assert check(target).ok


PARENT = """
@app.task
def parent(n):
    child.delay(n)
    with noted("parent", n):
        wait_for("go")

@app.task
def child(n):
    note("start", "child", n)
"""


@each_way
def test_calls_sent_early_are_not_sent_again_there(place: Place, target: Engine, elsewhere: str) -> None:
    """H8: a rerun derives the same ids, though streams, logs and groups have other numbers there."""
    other = target.create_stream("queue", "other", "default", 1, {})
    target.append_row(NewCall(other.logs[0], "x", b"", None, new_head(time.time()), time.time()))
    module = place.module(PARENT, outbox_hold=0)
    module.parent.delay("a")
    worker = place.worker(1)
    place.await_start("parent", "a")
    engine = place.app.engine
    (queue,) = engine.streams()
    eventually(
        lambda: engine.record_count(first_pos(queue.logs[0]), first_pos(queue.logs[0] + 1)) == 2, "sent"
    )
    worker.kill_group()
    transfer(engine, target, into=True)
    place.touch("go")
    place.burst(1, url=elsewhere)
    assert place.runs("parent") == {"a": 2}
    assert place.runs("child") == {"a": 1}
    assert check(target).ok


@on_each_engine
def test_workers_of_a_moved_log_do_not_start_and_go_on_after_undo(place: Place, target: Engine) -> None:
    module = place.module(TASKS)
    module.work.delay("a")
    transfer(place.app.engine, target)
    for pool in ("processes", "solo"):
        worker = place.worker(1, pool=pool)
        assert worker.wait() != 0
        assert f"this log was moved to {target.shown}" in worker.log
    undo(place.app.engine, None)
    place.burst(1)
    assert place.runs("work") == {"a": 1}


@each_way
def test_dead_letters_and_results_are_as_before(place: Place, target: Engine, elsewhere: str) -> None:
    """What an app sees of its calls is the same under the other URL; a redrive and a replay work there."""
    from respool import App
    from respool.replay import create_replay, dead_letters, redrive
    from respool.testing import work

    module = place.module(TASKS)
    good, bad = module.work.delay("a"), module.fails.delay("b")
    many = module.work.delay_many(range(50))
    place.burst(2)
    transfer(place.app.engine, target)
    with App("t", url=elsewhere) as app:
        for name in ("work", "fails"):
            app.task(getattr(module, name).fn)
        assert app.AsyncResult(good.id).get(timeout=0) == ["a"]
        assert [app.AsyncResult(each.id).get(timeout=0) for each in many] == [[n] for n in range(50)]
        with pytest.raises(ValueError, match="b"):
            app.AsyncResult(bad.id).get(timeout=0)
        history = [attempt.how for attempt in app.AsyncResult(bad.id).history()]
        assert history == [attempt.how for attempt in bad.history()] == ["failed"]
        assert [letter.parked.error for letter in dead_letters(app)] == [
            letter.parked.error for letter in dead_letters(place.app)
        ]
        assert redrive(app) == 1
        work(app)
        assert [attempt.how for attempt in app.AsyncResult(bad.id).history()] == [
            "failed",
            "redriven",
            "failed",
        ]
        assert create_replay(app, "default", "v2", ["work"]).total == 51
        work(app, group="v2")
        assert app.AsyncResult(good.id).of("v2").get(timeout=0) == ["a"]
    assert check(target).ok


# PostgreSQL: transactions of the caller's own

postgres_place = pytest.mark.parametrize("place", ["postgres"], indirect=True)


@postgres_place
def test_an_open_enqueue_is_waited_for(place: Place, target: Engine, elsewhere: str) -> None:
    """What commits while the source is being closed is moved, also what a group has read past (G4)."""
    module = place.module(TASKS)
    url = str(place.url).partition("?")[0]
    place.app.engine  # noqa: B018 - opens it
    with psycopg.connect(url) as connection:
        with place.app.transaction(connection):
            early = module.work.delay("early")
        late = module.work.delay("late")  # a group reads on past the number of the one before
        place.burst(1)
        assert place.runs("work") == {"late": 1}
        done = threading.Event()
        moving = threading.Thread(target=lambda: (transfer(place.app.engine, target), done.set()))
        moving.start()
        eventually(lambda: place.app.engine.mark() is not None, "claims are stopped")
        assert not done.wait(1.0), "it is waited for"
        connection.commit()
    moving.join(30)
    assert done.is_set()
    place.burst(1, url=elsewhere)
    assert place.runs("work") == {"late": 1, "early": 1}
    assert target.find("t", late._id) is not None
    assert target.find("t", early._id) is not None
    assert check(target).ok


@postgres_place
def test_an_enqueue_that_stays_open_gives_the_transfer_up(place: Place, target: Engine) -> None:
    module = place.module(TASKS, append_timeout=2)
    with psycopg.connect(str(place.url).partition("?")[0]) as connection:
        with place.app.transaction(connection):
            module.work.delay("early")
        with pytest.raises(EngineUnavailable, match="has been open for more than 2 s"):
            transfer(place.app.engine, target)
        assert place.app.engine.mark() is None
        assert target.mark() is None
        connection.commit()
    place.burst(1)
    assert place.runs("work") == {"early": 1}


@on_each_engine
def test_a_callers_transaction_is_told(place: Place, target: Engine) -> None:
    import apsw

    module = place.module(TASKS)
    module.work.delay("a")
    transfer(place.app.engine, target)
    if place.url is None:
        theirs: Any = apsw.Connection(str(place.folder / "log.db"))
        theirs.execute("BEGIN IMMEDIATE")
    else:
        theirs = psycopg.connect(place.url.partition("?")[0])
        theirs.execute("SELECT 1")
    with place.app.transaction(theirs), pytest.raises(LogMoved, match="was moved to"):
        module.work.delay("b")
    theirs.close()
