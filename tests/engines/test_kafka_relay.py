"""Kafka's relay beside a topic that takes nothing, and what others have left in the outbox."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import warm
from tests.engines.kits import KafkaKit, SQLiteKit, eventually
from tests.engines.test_conformance import fill, finish, grant
from tests.services.fixtures import KafkaAddress

from respool import AppendUnknown, ConfigError, EngineUnavailable
from respool.clock import boottime_ns
from respool.delivery.model import NewCall, Verdict
from respool.delivery.spans import count
from respool.engines.base import Stream
from respool.engines.kafka import relay as relay_module
from respool.errors import EngineError, LogMoved, PartlyAppended, RespoolError
from respool.producer import Producer, _Pending
from respool.record import first_pos, new_head

ERRORS = [AppendUnknown("timed out"), EngineUnavailable("too few replicas"), ConfigError("not authorized")]


@pytest.fixture
def kit(kafka: KafkaAddress, tmp_path: Path) -> Iterator[KafkaKit]:
    made = KafkaKit(kafka.url(), SQLiteKit(tmp_path, "full"), "full", "&id_window=60s")
    yield made
    made.remove()


@pytest.fixture
def stuck(engine: Any) -> Stream:
    return engine.create_stream("queue", "shop", "stuck", 1, {})  # type: ignore[no-any-return]


@pytest.fixture
def fine(engine: Any) -> Stream:
    return engine.create_stream("queue", "shop", "fine", 1, {})  # type: ignore[no-any-return]


def call(stream: Stream, id: str, age: float = 0.0, key: int | None = None) -> NewCall:
    return NewCall(stream.logs[0], "add", id.encode(), None, f"shop\0{id}", time.time() - age, key)


def leave(engine: Any, *calls: NewCall) -> None:
    """Put calls into the outbox as a process does that dies before it has sent them."""
    engine.inner.append_rows(engine.outbox.rewritten(calls))


def bodies(engine: Any, stream: Stream) -> list[bytes]:
    first = first_pos(stream.logs[0])
    return sorted(each.body for each in engine.records(first, first + 99, 99))


def taking_nothing(
    engine: Any, stream: Stream, error: RespoolError, meanwhile: Callable[[], None] = lambda: None
) -> list[str]:
    """Have a stream's topic take nothing; return the list of topics that are tried from now on."""
    tried: list[str] = []
    append, topic = engine.sender.append, engine.place(stream.logs[0]).topic

    def refused(place: Any, *given: Any, **more: Any) -> Any:
        tried.append(place.topic)
        if place.topic == topic:
            meanwhile()
            raise error
        return append(place, *given, **more)

    engine.sender.append = refused
    return tried


def test_forked_processes_relay_under_numbers_of_their_own() -> None:
    """One that forks its workers may have read this module before: a dead one's work is not another's."""
    code = (
        "import os; from respool.engines.kafka.relay import _number\n"
        "child = os.fork(); child and os.waitpid(child, 0); print(_number(), flush=True)"
    )
    done = warm.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=True)
    assert len(set(done.stdout.split())) == 2


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_topic_that_takes_nothing_keeps_back_no_other(
    engine: Any, stuck: Stream, fine: Stream, error: RespoolError
) -> None:
    """What is sent is no failure of its caller's; what is left in either box is sent by whoever tidies."""
    taking_nothing(engine, stuck, error)
    with pytest.raises(AppendUnknown):
        engine.append_row(call(stuck, "a"))
    assert engine.append_row(call(fine, "b")) == first_pos(fine.logs[0])
    assert engine.append_rows([call(fine, "c"), call(fine, "d")]) == []
    leave(engine, call(fine, "e"))
    leave(engine, call(fine, "f", key=7))
    with pytest.raises(type(error)):
        engine.tidy_now()
    assert bodies(engine, fine) == [b"b", b"c", b"d", b"e", b"f"]
    with pytest.raises(AppendUnknown):
        engine.append_row(call(stuck, "a"))
    del engine.sender.append
    engine.tidy_now()
    assert bodies(engine, stuck) == [b"a"]


def test_more_than_is_taken_at_once_keeps_back_no_other(
    engine: Any, stuck: Stream, fine: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given back is taken first, and may fill each lease."""
    monkeypatch.setattr(relay_module, "AT_ONCE", 2)
    tried = taking_nothing(engine, stuck, ERRORS[1])
    leave(engine, *(call(stuck, f"{n}") for n in range(7)))
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            engine.tidy_now()
    tried.clear()
    engine.append_row(call(fine, "b"))
    assert bodies(engine, fine) == [b"b"]
    assert len(tried) <= 2, "once for all that waits"
    del engine.sender.append
    engine.tidy_now()
    assert bodies(engine, stuck) == [b"%d" % n for n in range(7)]


def test_a_topic_that_is_waited_for_in_vain_rests(
    engine: Any, stuck: Stream, fine: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others do not wait for it each time, and are sent before it."""
    clock = [boottime_ns() + 10**15]
    monkeypatch.setattr(relay_module, "boottime_ns", lambda: clock[0])
    wait = int(engine.cluster.timeout * 1e9) + 1

    def waits() -> None:
        clock[0] += wait

    tried = taking_nothing(engine, stuck, ERRORS[0], waits)
    places = engine.place(stuck.logs[0]).topic, engine.place(fine.logs[0]).topic
    leave(engine, call(stuck, "a"))
    engine.append_row(call(fine, "b"))
    engine.append_row(call(fine, "c"))
    with pytest.raises(AppendUnknown):
        engine.tidy_now()
    assert tried.count(places[0]) == 1
    clock[0] += 2 * wait
    tried.clear()
    leave(engine, call(stuck, "d"))
    engine.append_row(call(fine, "e"))
    assert tried == [places[1], places[0]], "it is tried again, after the others"
    with pytest.raises(AppendUnknown):
        engine.append_row(call(stuck, "f"))
    assert tried[2:] == [places[0]], "who sends to it tries it"
    assert bodies(engine, fine) == [b"b", b"c", b"e"]


def test_what_waits_for_a_topic_that_takes_nothing_is_not_claimed_by_all_others(
    kit: KafkaKit, engine: Any, stuck: Stream, fine: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put by: a process looks at it once a second, and whoever tidies; the rest costs nobody."""
    clock = [boottime_ns()]
    monkeypatch.setattr(relay_module, "boottime_ns", lambda: clock[0])
    monkeypatch.setattr(relay_module, "AT_ONCE", 50)
    tried = taking_nothing(engine, stuck, ERRORS[1])
    topics = engine.place(stuck.logs[0]).topic, engine.place(fine.logs[0]).topic
    leave(engine, *(call(stuck, f"{n}") for n in range(120)))
    with pytest.raises(EngineUnavailable):
        engine.tidy_now()
    read: list[int] = []
    rows = engine.inner.rows
    monkeypatch.setattr(engine.inner, "rows", lambda spans: (read.append(count(spans)), rows(spans))[1])
    tried.clear()
    for n in range(5):
        engine.append_row(call(fine, f"fine {n}"))
    assert (read, tried) == ([1] * 5, [topics[1]] * 5)
    other: Any = kit.open()  # it knows nothing of it, and looks once
    assert other.append_row(call(fine, "other")) == first_pos(fine.logs[0]) + 5
    assert len(bodies(engine, stuck)) == 99, "the topic takes more now, as the other finds"
    leave(engine, call(stuck, "late"))
    with pytest.raises(AppendUnknown):
        engine.append_row(call(stuck, "own"))
    read.clear()
    tried.clear()
    engine.append_row(call(fine, "again"))
    assert (sum(read), tried) == (1, [topics[1]])
    clock[0] += int(relay_module.LOOK * 1e9)
    engine.append_row(call(fine, "later"))
    assert (sum(read), tried) == (1 + 3, [topics[1], topics[1], topics[0]])
    del engine.sender.append
    clock[0] += int(relay_module.LOOK * 1e9)
    engine.append_row(call(fine, "last"))
    assert {b"late", b"own"} <= set(bodies(engine, stuck)) | set(more_bodies(engine, stuck))


def more_bodies(engine: Any, stream: Stream) -> list[bytes]:
    first = first_pos(stream.logs[0])
    return [each.body for each in engine.records(first + 99, first + 999, 999)]


def test_what_is_put_by_is_sent_when_it_is_asked_for(engine: Any, stuck: Stream, fine: Stream) -> None:
    """By who looks for it, who sends it again, who moves the log; never said to be nowhere meanwhile."""
    taking_nothing(engine, stuck, ERRORS[0])
    for each in ("a", "b", "c"):
        with pytest.raises(AppendUnknown):
            engine.append_row(call(stuck, each))
    for _ in range(2):
        with pytest.raises(AppendUnknown):
            engine.find("shop", "a")
        with pytest.raises(AppendUnknown):
            engine.append_row(call(stuck, "b"))
        with pytest.raises(AppendUnknown):
            engine.append_rows([call(stuck, "c")])
    del engine.sender.append
    assert engine.find("shop", "a") is not None
    assert bodies(engine, stuck) == [b"a", b"b", b"c"], "all that is put by, once"
    taking_nothing(engine, stuck, ERRORS[0])
    for each in ("d", "e"):
        with pytest.raises(AppendUnknown):
            engine.append_row(call(stuck, each))
    del engine.sender.append
    assert [each.same for each in engine.append_rows([call(stuck, "e")])] == [True]
    assert bodies(engine, stuck) == [b"a", b"b", b"c", b"d", b"e"]
    taking_nothing(engine, stuck, ERRORS[0])
    with pytest.raises(AppendUnknown):
        engine.append_row(call(stuck, "f"))
    assert engine._waits(engine.outbox.group), "a transfer sees it"
    assert engine.losses() == [
        "1 call waits in the state to be sent to Kafka, to a topic that took nothing when it was tried"
    ]
    del engine.sender.append
    engine._empty_outbox()
    assert engine.losses() == []
    assert bodies(engine, stuck)[-1] == b"f"


def test_to_look_for_what_waits_fails_only_for_what_cannot_be_sent(
    engine: Any, stuck: Stream, fine: Stream
) -> None:
    taking_nothing(engine, stuck, ERRORS[0])
    leave(engine, call(stuck, "a"), call(fine, "b"))
    assert engine.find("shop", "b") == first_pos(fine.logs[0])
    with pytest.raises(AppendUnknown, match="kept in the state, and could not be sent yet"):
        engine.find("shop", "a")
    del engine.sender.append
    assert engine.find("shop", "a") == first_pos(stuck.logs[0])


def test_the_same_id_again_is_found_whatever_else_cannot_be_sent(
    engine: Any, stuck: Stream, fine: Stream
) -> None:
    """Of its own topic, too: it was sent long ago."""
    first = call(stuck, "a")
    pos = engine.append_row(first)
    taking_nothing(engine, stuck, ERRORS[2])
    leave(engine, call(stuck, "b"))
    assert engine.append_row(first) == pos


def test_a_settlement_sends_its_calls_past_a_topic_that_takes_nothing(
    engine: Any, stuck: Stream, fine: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    main = next(group for group in engine.groups() if group.stream == fine.id)
    taking_nothing(engine, stuck, ERRORS[0])
    leave(engine, call(stuck, "a"))
    fill(engine, fine.logs[0], 1)
    lease = grant(engine, main, 1)
    assert lease is not None
    finish(engine, main, lease, Verdict(first_pos(fine.logs[0]), "success", calls=[call(fine, "made")]))
    assert b"made" in bodies(engine, fine)
    assert "wait in the state" not in caplog.text, "its own do not"


def test_the_state_is_tidied_whatever_cannot_be_sent(
    engine: Any, stuck: Stream, fine: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old ids are forgotten, groups shown to Kafka's own tools, topics looked after."""
    engine.append_row(call(fine, "old", age=100))
    engine.append_row(call(fine, "new"))
    taking_nothing(engine, stuck, ERRORS[2])
    leave(engine, call(stuck, "a"))
    done: list[str] = []
    look_after, trim = engine._look_after, engine.inner.trim
    reserve = engine.inner.reserve
    monkeypatch.setattr(engine, "_look_after", lambda: (done.append("looked"), look_after()))
    monkeypatch.setattr(engine.inner, "trim", lambda *given: (done.append("trimmed"), trim(*given))[1])
    monkeypatch.setattr(
        engine.inner, "reserve", lambda *given, **more: (done.append("ahead"), reserve(*given, **more))[1]
    )
    with pytest.raises(ConfigError, match="not authorized"):
        engine.tidy_now()
    assert set(done) == {"looked", "trimmed", "ahead"}


def test_workers_are_woken_for_what_others_have_left(
    kit: KafkaKit, engine: Any, stuck: Stream, fine: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever sends it, on the way of his own; for that they are woken once, when all is written."""
    rung: list[int] = []
    ring = engine.inner.ring
    monkeypatch.setattr(engine.inner, "ring", lambda log, **more: (rung.append(log), ring(log, **more))[1])
    leave(engine, call(stuck, "a"))
    sleeper = kit.open().sleeper(list(stuck.logs), 7)
    sleeper.prepare()
    engine.append_row(call(fine, "b"))
    assert bodies(engine, stuck) == [b"a"]
    assert sleeper.sleep(10)
    sleeper.close()
    queues = stuck.logs[0], fine.logs[0]
    assert [log for log in rung if log in queues] == [*queues]
    rung.clear()
    leave(engine, call(stuck, "c"))
    assert engine.find("shop", "c") is not None
    assert [log for log in rung if log in queues] == [stuck.logs[0]]


# What goes straight beside what does not


def looks(engine: Any) -> tuple[list[Any], list[int]]:
    """Return lists of the ids that are looked for in Kafka, and of how many records go by the outbox."""
    looked: list[Any] = []
    boxed: list[int] = []
    look_for, append = engine._look_for, engine.outbox.append

    def looking(log: int, wanted: set[Any], *given: Any) -> Any:
        looked.extend(wanted)
        return look_for(log, wanted, *given)

    def appending(rows: Any, *given: Any) -> Any:
        boxed.append(len(rows))
        return append(rows, *given)

    engine._look_for, engine.outbox.append = looking, appending
    return looked, boxed


def fresh(stream: Stream, body: bytes, key: int | None = None) -> NewCall:
    now = time.time()
    return NewCall(stream.logs[0], "add", body, None, new_head(now), now, key)


def test_one_record_with_an_id_makes_no_detour_of_all(engine: Any, fine: Stream) -> None:
    """Nor is anything looked for whose id was made just now; a conflict names its own record."""
    looked, boxed = looks(engine)
    given = call(fine, "given")
    rows = [fresh(fine, b"%d" % n) for n in range(5)]
    assert engine.append_rows([*rows[:3], given, *rows[3:]]) == []
    assert (looked, boxed) == ([], [1])
    other = NewCall(given.log, "add", b"other", None, given.id, given.time)
    (conflict,) = engine.append_rows([fresh(fine, b"5"), other, fresh(fine, b"6")])
    assert (conflict.row, conflict.same) == (1, False)
    assert bodies(engine, fine) == [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"given"]


def test_what_has_keys_stays_together(engine: Any, fine: Stream) -> None:
    """Its order is that of one box (P8); nothing is looked for either."""
    looked, boxed = looks(engine)
    engine.append_rows([fresh(fine, b"1", key=7), call(fine, "2", key=7), fresh(fine, b"3", key=7)])
    assert (looked, boxed) == ([], [3])
    first = first_pos(fine.logs[0])
    assert [each.body for each in engine.records(first, first + 9, 9)] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("error", [EngineUnavailable("the state is away"), EngineError("given up")])
def test_what_went_straight_is_not_said_to_be_unsent(
    engine: Any, fine: Stream, error: RespoolError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1: the others' error is no refusal of all; sent again with their ids, they are there once."""
    rows = [fresh(fine, b"1"), call(fine, "2")]

    def fails(*given: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(engine.outbox, "append", fails)
        with pytest.raises(PartlyAppended, match=str(error)) as raised:
            engine.append_rows(rows)
        assert (raised.value.places, raised.value.error) == ({0}, error)
        with pytest.raises(type(error)):
            engine.append_rows(rows[1:])
    assert engine.append_rows(rows) == []
    assert bodies(engine, fine) == [b"1", b"2"]


def test_an_id_twice_among_what_is_sent_together(engine: Any, fine: Stream) -> None:
    one = fresh(fine, b"1")
    two = NewCall(one.log, "add", b"2", None, one.id, one.time)
    (conflict,) = engine.append_rows([one, fresh(fine, b"3"), two])
    assert (conflict.row, conflict.same) == (2, False)
    assert bodies(engine, fine) == [b"1", b"3"]


def test_a_place_is_known_whatever_is_forgotten_meanwhile(engine: Any, fine: Stream) -> None:
    """Another thread forgets it between any two steps of ours."""

    class Forgotten(dict[int, Any]):
        """Nothing in it, by the time that it is looked at."""

        def get(self, *given: Any) -> Any:
            return None

        def __contains__(self, key: object) -> bool:
            return False

        def __getitem__(self, key: int) -> Any:
            raise KeyError(key)

    place, log = engine.place(fine.logs[0]), fine.logs[0]
    read_anew = engine._read_anew

    def forgotten() -> Any:
        found = read_anew()
        engine._places, engine._of_log = Forgotten(), Forgotten()
        return found

    engine._read_anew = forgotten
    engine._places, engine._of_log = Forgotten(), Forgotten()
    assert engine.place(log) == place
    assert engine.stream_of_log(log).name == "fine"
    with pytest.raises(EngineError, match="does not exist"):
        engine.stream_of_log(log + 99)


# Clocks


AHEAD = 30.0


@pytest.mark.parametrize("known_to", ["itself", "all"])
def test_a_fast_clock_sends_nothing_twice(
    kit: KafkaKit, engine: Any, fine: Stream, known_to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was stored long before the time that it says is looked for from then on (P1)."""
    log = fine.logs[0]
    now = time.time() + AHEAD
    engine.append_row(NewCall(log, "add", b"before", None, new_head(now), now))
    sent = NewCall(log, "add", b"one", None, new_head(now), now)
    pos = engine.append_row(sent)
    other: Any = kit.open()
    again = NewCall(log, "add", b"one", None, sent.id, now + 1.5)
    assert other.append_row(again) == pos
    monkeypatch.setattr(engine.outbox, "patience", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(engine.outbox, "_settle", dies)
        with pytest.raises(KeyboardInterrupt):
            engine.append_row(NewCall(log, "add", b"given", None, "shop\0given", now))
    third: Any = kit.open()
    sender = engine if known_to == "itself" else third
    eventually(lambda: (sender.tidy_now(), sender.inner.leases(sender.outbox.group))[1] == [])
    assert bodies(engine, fine) == [b"before", b"given", b"one"]
    assert third.find("shop", sent.id) == pos
    window = [(lo, hi) for _, lo, hi in third.window(fine, now - 1, now + 1)]
    assert window == [(first_pos(log), first_pos(log) + 3)]


def test_how_far_a_clock_is_ahead_is_counted_once(engine: Any, fine: Stream) -> None:
    now, log = time.time(), fine.logs[0]
    for ahead in (0.0, 1.0, AHEAD, AHEAD / 2):
        engine.append_row(NewCall(log, "add", b"b", None, new_head(now + ahead), now + ahead))
    assert AHEAD - 5 < engine._earliness() <= AHEAD + 0.01


def dies(*given: Any, **more: Any) -> Any:
    raise KeyboardInterrupt


def test_each_caller_hears_of_its_own_record(engine: Any, fine: Stream) -> None:
    """What is combined of several callers is not one append for them."""
    producer = Producer(engine, 1 << 20)
    rows = [fresh(fine, b"1"), call(fine, "2")]

    def refused(*given: Any) -> Any:
        raise LogMoved("it is being moved")

    engine.outbox.append = refused
    waiting = [_Pending(each, threading.Event()) for each in rows]
    producer._append_to_log(waiting)
    assert waiting[0].error is None
    assert isinstance(waiting[1].error, LogMoved)
    assert bodies(engine, fine) == [b"1"]
