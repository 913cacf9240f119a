"""What is Kafka's own: names, trimmed and remade topics, calls on their way, other programs' records."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]
from hypothesis import given
from hypothesis import strategies as st
from tests.engines.kits import KafkaKit, SQLiteKit, eventually
from tests.engines.test_blobs import BODY, large, swept
from tests.engines.test_conformance import fill, finish, grant, granted, head, row, write
from tests.services.fixtures import KafkaAddress
from tests.services.install import java
from tests.services.kafka import JVM, libraries

from respool import App, AppendUnknown, ConfigError, EngineUnavailable, keys
from respool.blobs import Blobs, Store
from respool.clock import boottime_ns
from respool.delivery.model import NewCall, Verdict
from respool.engines import open_engine
from respool.engines.base import Group, Stream
from respool.engines.kafka import cluster as cluster_module
from respool.engines.kafka import log as log_module
from respool.engines.kafka import names
from respool.engines.kafka import relay as relay_module
from respool.engines.kafka.cluster import TopicGone
from respool.engines.kafka.message import item
from respool.engines.kafka.outbox import Outbox
from respool.engines.kafka.relay import RELAY
from respool.engines.kafka.sender import AppendDropped
from respool.location import parse_url
from respool.record import first_pos, new_head
from respool.replay import check
from respool.testing import work

NOW = 1_700_000_000.0


@pytest.fixture
def kit(kafka: KafkaAddress, tmp_path: Path) -> Iterator[KafkaKit]:
    """The state in SQLite: nothing here depends on where it is."""
    made = KafkaKit(kafka.url(), SQLiteKit(tmp_path, "full"), "full")
    yield made
    made.remove()


@pytest.fixture
def app(kit: KafkaKit) -> Iterator[App]:
    made = App("shop", url=kit.url)
    yield made
    made.close()


def fresh(engine: Any, log: int, amount: int) -> list[bytes]:
    """Append as `delay_many` does; return the ids."""
    now = time.time()
    first = new_head(now)
    engine.append_run(log, "add", [b"%d" % n for n in range(amount)], None, first, now)
    number = int.from_bytes(first[13:], "big")
    return [first[:13] + (number + n).to_bytes(3, "big") for n in range(amount)]


def console(kafka: KafkaAddress, tool: str, *arguments: str, said: str | None = None) -> str:
    """Run one of Kafka's own commands; `said`: what it reads."""
    program = java()
    assert program is not None
    command = [program, "-Xmx128m", *JVM, "-cp", f"{libraries()}/*", f"org.apache.kafka.tools.{tool}"]
    done = subprocess.run(
        [*command, "--bootstrap-server", kafka.bootstrap, *arguments],
        capture_output=True, text=True, timeout=90, input=said,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def respool(*arguments: str) -> str:
    """Run one of ours; return all that it said."""
    done = subprocess.run(
        [sys.executable, "-m", "respool", *arguments], capture_output=True, text=True, timeout=90
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout + done.stderr


# Names


@given(st.lists(st.text(min_size=1, max_size=300), min_size=2, max_size=8, unique=True))
def test_names_of_topics_are_legal_and_apart(texts: list[str]) -> None:
    made = [names.topic_name("p-", "stream", "", text) for text in texts]
    made += [names.topic_name("p-", "queue", app, name) for app in texts for name in texts]
    for name in made:
        assert len(name) <= 249
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    assert len(set(made)) == len(made)


def test_usual_names_stay_as_they_are() -> None:
    assert names.topic_name("", "stream", "", "user-events_v2") == "user-events_v2"
    assert names.topic_name("", "queue", "shop", "default") == "shop--queue--default"
    assert names.topic_name("", "stream", "", "__consumer_offsets") != "__consumer_offsets"


# Appending straight, as `delay()` does


def test_fresh_ids_are_found_without_an_index(kit: KafkaKit, engine: Any, queue: Stream) -> None:
    """By another process too, about the time that the id says."""
    log = queue.logs[0]
    ids = fresh(engine, log, 3)
    now = time.time()
    single = NewCall(log, "add", b"one", None, new_head(now), now)
    pos = engine.append_row(single)
    other = kit.open()
    assert [other.find("shop", id) for id in ids] == [first_pos(log) + n for n in range(3)]
    assert other.find("shop", single.id) == pos
    assert other.find("", ids[0]) == first_pos(log)
    assert other.run_spans(ids[0], 3) == [(first_pos(log), first_pos(log) + 3)]
    assert other.find("shop", new_head(now)) is None
    assert other.find("blog", ids[0]) is None, "of another app"


def test_a_fresh_id_sent_again_after_it_was_unknown(kit: KafkaKit, engine: Any, queue: Stream) -> None:
    """P1: the same id, given now, adds nothing where it had arrived; another body is a conflict."""
    log = queue.logs[0]
    now = time.time()
    sent = NewCall(log, "add", b"one", None, new_head(now), now)
    pos = engine.append_row(sent)
    other = kit.open()
    later = now + 1.5
    assert other.append_row(NewCall(log, "add", b"one", None, sent.id, later)) == pos
    conflict = other.append_row(NewCall(log, "add", b"two", None, sent.id, later))
    assert (conflict.pos, conflict.same) == (pos, False)
    never = NewCall(log, "add", b"lost", None, new_head(now), later)
    assert [other.append_row(never) for _ in range(2)] == [pos + 1] * 2
    assert engine.bounds(queue)[0][2] == pos + 2


# K4: the outbox


def dies(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["before it was sent", "after it was sent"])
def test_calls_survive_who_relays_them(
    kit: KafkaKit, engine: Any, queue: Stream, main: Group, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committed with the settlement; relayed once by whoever comes next, whether or not they had arrived."""
    log = queue.logs[0]
    fill(engine, log, 1)
    lease = grant(engine, main, 1)
    assert lease is not None
    calls = [row(log, b"%d" % n, id=b"\7" * 15 + bytes([n + 1]), time=time.time()) for n in range(3)]
    monkeypatch.setattr(engine.outbox, "patience", 0.01)  # whoever takes them is soon dead
    with monkeypatch.context() as patch:
        if stage == "before it was sent":
            patch.setattr(Outbox, "_send_to", dies)
        else:
            patch.setattr(Outbox, "_settle", dies)
        with pytest.raises(KeyboardInterrupt):
            finish(engine, main, lease, Verdict(first_pos(log), "success", calls=calls))
    assert engine.status(main, first_pos(log)).place == "done", "the settlement stands"
    other = kit.open()
    sleeper = kit.open().sleeper([log], 7)
    sleeper.prepare()
    eventually(lambda: (other.tidy_now(), other.inner.leases(other.outbox.group))[1] == [])
    assert sleeper.sleep(10), "workers are told of what was left behind"
    sleeper.close()
    first = first_pos(log) + 1
    assert [r.body for r in other.records(first, first + 99, 99)] == [b"0", b"1", b"2"]
    assert [other.find("shop", call.id) for call in calls] == [first, first + 1, first + 2]
    other.tidy_now()
    assert other.bounds(queue)[0][2] == first + 3


@pytest.mark.parametrize("error", [EngineUnavailable("no broker"), TopicGone("a broker knows no such topic")])
def test_what_is_kept_and_cannot_be_sent_is_unknown_and_not_lost(
    kit: KafkaKit, engine: Any, queue: Stream, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1: who sends it anew, by its id, adds nothing. A broker that knows no topic is not believed."""
    log = queue.logs[0]
    call = row(log, b"one", "shop\0given", time.time())

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(engine.sender, "append", fails)
        with pytest.raises(AppendUnknown):
            engine.append_row(call)
        with pytest.raises(AppendUnknown):
            engine.append_rows([call])
    assert engine.append_row(call) == first_pos(log)
    assert engine.bounds(queue)[0][2] == first_pos(log) + 1
    assert engine.outbox.lost() == 0


def test_a_run_of_which_some_may_be_stored_is_completed(
    engine: Any, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1: the same head again appends only what is not there."""
    log, now = queue.logs[0], time.time()
    first, begins = first_pos(log), new_head(now)
    append = engine.sender.append

    def part(place: Any, items: Any, **more: Any) -> Any:
        append(place, list(items)[:2], **more)
        raise AppendUnknown("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(engine.sender, "append", part)
        with pytest.raises(AppendUnknown):
            engine.append_run(log, "add", [b"0", b"1", b"2"], None, begins, now)
    for _ in range(2):
        engine.append_run(log, "add", [b"0", b"1", b"2"], None, begins, now)
        assert [each.body for each in engine.records(first, first + 99, 99)] == [b"0", b"1", b"2"]


def test_ids_in_doubt_are_kept_for_a_window(
    engine: Any, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded (P10): what is older is appended as new in any case."""

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise AppendUnknown("no answer")

    monkeypatch.setattr(engine.sender, "append", fails)
    monkeypatch.setattr(log_module, "RECENT", 3)
    old, now = time.time() - 2 * engine.options.id_window, time.time()
    for at in (old, old, now, old, old):
        with pytest.raises(AppendUnknown):
            engine.append_row(NewCall(queue.logs[0], "add", b"x", None, new_head(at), at))
    assert len(engine._doubtful) <= 3
    assert [each for each in engine._doubtful if engine._made_lately(each)]


def test_given_ids_are_known_for_a_window_and_no_longer(kafka: KafkaAddress, tmp_path: Path) -> None:
    kit = KafkaKit(kafka.url(), SQLiteKit(tmp_path, "full"), "full", "&id_window=60s")
    engine: Any = kit.open()
    queue = engine.create_stream("queue", "shop", "default", 1, {})
    log = queue.logs[0]
    old, new = (row(log, b"b", f"shop\0{age}", time.time() - age) for age in (100, 0))
    assert [engine.append_row(each) for each in (old, new, old, new)] == [
        first_pos(log), first_pos(log) + 1, first_pos(log), first_pos(log) + 1,
    ]  # fmt: skip
    while engine.inner.trim(engine.outbox.boxes[0].stream, time.time() - engine.options.id_window, 5000):
        continue
    assert engine.find("shop", "0") == first_pos(log) + 1
    assert engine.find("shop", "100") is None
    assert engine.append_row(new) == first_pos(log) + 1
    assert engine.append_row(old) == first_pos(log) + 2, "beyond the window it is another one"
    kit.remove()


def test_calls_to_a_topic_that_is_gone_are_counted(engine: Any, kit: KafkaKit, queue: Stream) -> None:
    """P10: not dropped in silence, and nothing behind them waits for ever."""
    gone = engine.create_stream("queue", "shop", "gone", 1, {})
    now = time.time()
    calls = [row(gone.logs[0], b"1", "shop\0a", now), row(queue.logs[0], b"2", "shop\0b", now)]
    engine.inner.append_rows(engine.outbox.rewritten(calls))
    kit.drop_stream(gone)
    engine.tidy_now()
    assert engine.find("shop", "b") == first_pos(queue.logs[0])
    said = "1 call was lost on the way to Kafka: the topic is gone, or takes no record of that size"
    assert engine.losses() == [said]
    for command in ("lag", "check"):
        shown = respool("--url", kit.url, command)
        assert said in " ".join(shown.split()), shown


def test_a_topic_that_some_broker_knows_is_not_gone(
    engine: Any, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One broker may have missed it: before calls are lost, all are asked."""

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise TopicGone("a broker knows no such topic")

    call = row(queue.logs[0], b"one", "shop\0given", time.time())
    with monkeypatch.context() as patch:
        patch.setattr(engine.sender, "append", fails)
        patch.setattr(engine.cluster, "describe_all", dict.fromkeys)
        patch.setattr(cluster_module, "SHORTEST", 0.1)
        with pytest.raises(EngineUnavailable, match="a broker does not know of it that others know of"):
            engine.check_topic(engine.stream_of_log(queue.logs[0]))
        with pytest.raises(AppendUnknown):
            engine.append_row(call)
    assert engine.outbox.lost() == 0
    assert engine.append_row(call) == first_pos(queue.logs[0])
    assert engine.cluster.known_to_none(f"{engine.options.prefix}no-such-topic")


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0])
def test_who_relays_is_dead_by_the_clock_of_who_looks(
    kit: KafkaKit, engine: Any, queue: Stream, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines' clocks are compared by nobody."""
    call = row(queue.logs[0], b"one", "shop\0given", time.time())
    monkeypatch.setattr(engine.outbox, "patience", 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(relay_module, "wall_clock", lambda: time.time() + wrong)
        patch.setattr(Outbox, "_send_to", dies)
        patch.setattr(Outbox, "_settle", lambda *given, **more: None)
        with pytest.raises(KeyboardInterrupt):
            engine.append_row(call)
    other = kit.open()
    began = time.monotonic()
    other.outbox.recover()
    assert [each.owner for each in other.inner.leases(other.outbox.group)] == [RELAY]
    eventually(lambda: (other.tidy_now(), other.bounds(queue)[0][2])[1] == first_pos(queue.logs[0]) + 1)
    assert 1.0 <= time.monotonic() - began < 60


def test_who_relays_sends_nothing_once_others_may_take_it_for_dead(
    engine: Any, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = queue.logs[0]
    call = row(log, b"one", "shop\0given", time.time())
    with monkeypatch.context() as patch:
        patch.setattr(engine.outbox, "_timeout", -0.001)
        with pytest.raises(AppendUnknown):
            engine.append_row(call)
    with pytest.raises(AppendUnknown):  # each record is handed over in time, or not
        engine.sender.append(engine.place(log), [item(call)], until=boottime_ns() - 1)
    assert engine.ends([log])[log] == first_pos(log)
    assert engine.append_row(call) == first_pos(log)


def test_what_is_relayed_together_takes_one_claim(
    engine: Any, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a claim of what is in Kafka asks the state for no records (`Reads.bare`)."""
    seen: list[Any] = []
    transact = engine.inner.transact

    def noted(reads: Any, decide: Any, **more: Any) -> Any:
        seen.append(reads)
        return transact(reads, decide, **more)

    monkeypatch.setattr(engine.inner, "transact", noted)
    now = time.time()
    engine.append_rows([row(queue.logs[0], b"%d" % n, f"shop\0{n}", now) for n in range(5)])
    boxes = {box.group.id for box in engine.outbox.boxes}
    assert [(reads.due > 0, reads.bare) for reads in seen if reads.group in boxes][:2] == [
        (True, False),
        (False, False),
    ]
    assert sum(reads.due > 0 for reads in seen) == 1
    main = next(group for group in engine.groups() if group.stream == queue.id)
    seen.clear()
    grant(engine, main, 5)
    assert [reads.bare for reads in seen if reads.group == main.id] == [True]


# H15


def test_what_is_parked_outlives_its_topics_records(
    kit: KafkaKit, engine: Any, queue: Stream, main: Group
) -> None:
    log = queue.logs[0]
    first = fill(engine, log, 5)
    lease = grant(engine, main, 5)
    assert lease is not None
    engine.rows(lease.spans)
    parked = [
        Verdict(first + 1, "failure", b"e", reason="dead", task="add", error=b"e"),
        Verdict(first + 3, reason="retry", due=NOW + 1, task="add", retried=True),
    ]
    finish(engine, main, lease, *parked)
    before = engine.records(first, first + 5, 99)
    kit.cut(log, first, first + 5)
    other = kit.open()
    assert other.records(first, first + 5, 99) == [before[1], before[3]]
    again = grant(other, main, 9, now=NOW + 2)
    assert granted(again) == [first + 3]
    assert again is not None
    assert [r[:3] for r in other.rows(again.spans)] == [(first + 3, "add", b"3")]
    assert other.inner.drop_kept(other._as_stored(queue), 99) == 0, "one is dead, one is leased"
    finish(other, main, again)
    assert other.inner.drop_kept(other._as_stored(queue), 99) == 1
    assert [r.pos for r in other.records(first, first + 5, 99)] == [first + 1]


def test_a_supervisor_parks_what_it_has_not_read(
    engine: Any, queue: Stream, main: Group, kit: KafkaKit
) -> None:
    """Who buries a dead child's record has not seen it: it is read then."""
    first = fill(engine, queue.logs[0], 3)
    lease = grant(engine, main, 3)
    assert lease is not None
    other = kit.open()
    finish(other, main, lease, Verdict(first + 1, "failure", b"e", reason="dead", task="add"))
    kit.cut(queue.logs[0], first, first + 3)
    assert [r.body for r in other.records(first, first + 3, 9)] == [b"1"]


# H18


def test_a_large_payload_is_held_until_its_record_and_its_way_in_are_gone(
    engine: Any, queue: Stream, main: Group, tmp_path: Path
) -> None:
    log = queue.logs[0]
    blobs = Blobs(engine, Store((tmp_path / "blobs").as_uri(), 5.0, own=True), 1 << 20)
    reference = blobs.offload(BODY)
    engine.append_row(large(log, reference, time=NOW))
    far = time.time() + 1e6
    while engine.inner.trim(engine.outbox.boxes[0].stream, far, 5000):
        continue
    assert swept(engine, blobs._store, far) == 0, "its record is there"
    lease = grant(engine, main, 1)
    assert lease is not None
    finish(engine, main, lease)
    assert engine.trim(queue, NOW + 1, 5000) == 1
    assert swept(engine, blobs._store, far) == 1
    assert not engine.has_blobs()


# K1


def test_what_is_trimmed_before_it_was_done_is_lost_and_counted(
    kit: KafkaKit, engine: Any, queue: Stream, main: Group, caplog: pytest.LogCaptureFixture
) -> None:
    """Never jumped over in silence, as consumers do by default; never taken for done (H9)."""
    log = queue.logs[0]
    first = fill(engine, log, 10)
    kit.cut(log, first, first + 4)
    lease = grant(engine, main, 8)
    assert lease is not None
    assert [r[2] for r in engine.rows(lease.spans)] == [b"4", b"5", b"6", b"7"]
    assert "4 record(s)" in caplog.text
    finish(engine, main, lease)
    assert engine.counters(main.id) == {"lost: trimmed before they were done": 4}
    assert [engine.status(main, first + n).how for n in (0, 3, 4, 7)] == [
        *("trimmed", "trimmed"),
        *("done", "done"),
    ]
    assert [e.how for e in engine.journal(main.id, first + 2)] == ["trimmed"]
    rest = grant(engine, main, 8)
    assert granted(rest) == [first + 8, first + 9]
    assert [r[2] for r in engine.rows(rest.spans)] == [b"8", b"9"]  # type: ignore[union-attr]


def test_what_is_trimmed_is_passed_over_at_once(
    kit: KafkaKit, engine: Any, queue: Stream, main: Group, caplog: pytest.LogCaptureFixture
) -> None:
    """Not claim by claim; but for what the state keeps of it, since another group has parked it (H15)."""
    log = queue.logs[0]
    first = fill(engine, log, 3000)
    v2 = engine.create_group(queue, "shop", "v2", "replay", {}, [(log, first, None)])
    lease = grant(engine, main, 1200)
    assert lease is not None
    engine.rows(lease.spans)
    finish(engine, main, lease, Verdict(first + 1100, "failure", b"e", reason="dead", task="add", error=b"e"))
    kit.cut(log, first, first + 2500)
    handed = []
    for _ in range(4):
        lease = grant(engine, v2, 1)
        assert lease is not None
        handed.append([(lease.spans[0].lo - first, row[2]) for row in engine.rows(lease.spans)])
        finish(engine, v2, lease)
    assert handed == [[], [(1100, b"1100")], [(2500, b"2500")], [(2501, b"2501")]]
    assert engine.counters(v2.id) == {"lost: trimmed before they were done": 2499}
    how = {n: engine.status(v2, first + n).how for n in (0, 1, 1099, 1100, 1101, 2499, 2500)}
    assert how == {**dict.fromkeys((0, 1, 1099, 1101, 2499), "trimmed"), 1100: "done", 2500: "done"}
    assert [n for n in (1, 1099, 1399) if f"{n} record(s)" in caplog.text] == [1, 1099, 1399]
    write(engine, main, settings={"paused": 1.0})
    assert grant(engine, main, 1) is None
    assert engine.counters(main.id) == {}, "it stands still, and is told what it lost when it goes on"
    write(engine, main, settings={"paused": None})
    assert granted(grant(engine, main, 1)) == [first + 2500]
    assert engine.counters(main.id) == {"lost: trimmed before they were done": 1300}
    report = check(engine)
    assert report.ok, [group.problems for group in report.groups]


def test_a_range_trimmed_while_it_is_leased(kit: KafkaKit, engine: Any, queue: Stream, main: Group) -> None:
    log = queue.logs[0]
    first = fill(engine, log, 6)
    lease = grant(engine, main, 6)
    kit.cut(log, first, first + 6)
    assert lease is not None
    assert engine.rows(lease.spans) == []
    finish(engine, main, lease)
    assert engine.counters(main.id) == {"lost: trimmed before they were done": 6}


# K2


def test_nobody_reads_past_the_last_stable_offset(
    kafka: KafkaAddress, engine: Any, queue: Stream, main: Group
) -> None:
    """A range waits neither for a transaction that is open, nor takes its marks for records."""
    log = queue.logs[0]
    fill(engine, log, 2)
    place = engine.place(log)
    other = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": kit_id()})
    other.init_transactions(30)
    other.begin_transaction()
    other.produce(place.topic, b"open", partition=0)
    other.flush(30)
    after = Producer({"bootstrap.servers": kafka.bootstrap})
    after.produce(place.topic, b"after", partition=0)
    after.flush(30)
    assert granted(grant(engine, main, 99)) == [first_pos(log), first_pos(log) + 1]
    other.abort_transaction(30)
    eventually(lambda: engine.ends([log])[log] > first_pos(log) + 2)
    lease = grant(engine, main, 99)
    assert lease is not None
    assert [r[2] for r in engine.rows(lease.spans)] == [b"after"]
    assert len(granted(lease)) == 3, "a range is not a count"


def kit_id() -> str:
    return f"t{time.time_ns()}"


# K3


def test_a_topic_made_again_is_an_error_not_a_resumption(
    kit: KafkaKit, engine: Any, queue: Stream, main: Group
) -> None:
    log = queue.logs[0]
    fill(engine, log, 3)
    assert grant(engine, main, 1) is not None
    topic = engine.place(log).topic
    for future in engine.cluster.admin.delete_topics([topic]).values():
        future.result(20)
    eventually(lambda: engine.cluster.describe(topic) is None)
    opened: Any = kit.open()  # which is not refused: other queues can be used
    with pytest.raises(TopicGone, match="was deleted"):
        opened.bounds(opened.create_stream("queue", "shop", "default", 1, {}))
    opened.create_stream("queue", "shop", "other", 1, {})
    engine.cluster.create(topic, 1, {})
    again = Producer({"bootstrap.servers": engine.options.client["bootstrap.servers"]})
    for _ in range(9):
        again.produce(topic, b"another one's", partition=0)
    again.flush(30)
    for each in (engine, kit.open()):
        each._looked_at.clear()
        with pytest.raises(TopicGone, match="made again"):
            grant(each, main, 5)
    with pytest.raises(TopicGone, match="made again"):
        kit.open().has_work(main.id, time.time(), ())
    assert engine.inner.positions(main)[0].cursor == first_pos(log) + 1, "nothing was taken"


@pytest.mark.parametrize("older", [False, True], ids=["kept", "made when no id was kept"])
def test_a_lane_made_again_is_an_error_not_a_resumption(
    kit: KafkaKit, engine: Any, queue: Stream, main: Group, older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent there is refused, nothing is claimed, and what goes to other lanes is not lost."""
    with monkeypatch.context() as patched:
        if older:
            patched.setattr(engine.inner, "set_within", lambda *given: None)
        (lane,) = engine.add_lane(queue, 9).lanes[9]
    fill(engine, lane, 3)
    assert grant(engine, main, 1) is not None
    topic = engine.place(lane).topic
    if older:
        kit.open().tidy_now()  # type: ignore[attr-defined]
    remade = engine.cluster.describe(topic)
    for future in engine.cluster.admin.delete_topics([topic]).values():
        future.result(20)
    eventually(lambda: engine.cluster.describe(topic) is None)
    engine.cluster.create(topic, 1, {})
    eventually(lambda: engine.cluster.describe(topic) not in (None, remade))
    now = time.time()
    for each in (engine, kit.open()):
        each._looked_at.clear()
        with pytest.raises(TopicGone, match=f"topic {topic} of queue default was deleted and made again"):
            grant(each, main, 5)
        with pytest.raises(TopicGone, match="made again"):
            each.append_row(row(lane, id=new_head(now), time=now))
        each.append_row(row(queue.logs[0], b"one", "shop\0given", now))
        assert each.outbox.lost() == 0
    assert engine.bounds(queue)[0][2] == first_pos(queue.logs[0]) + 1


def test_lanes_are_looked_at_together(
    kit: KafkaKit, engine: Any, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K3 once a second costs one request, whatever lanes there are."""
    for priority in (0, 9):
        queue = engine.add_lane(queue, priority)
    asked: list[Any] = []
    inner = engine.cluster.admin.describe_topics
    client = type(
        "Client", (), {"describe_topics": lambda self, *a, **b: asked.append(a) or inner(*a, **b)}
    )()
    monkeypatch.setattr(engine.cluster, "_admin", client)
    engine.check_topic(engine.stream_of_log(queue.logs[0]))
    assert len(asked) == 1


def test_what_a_client_drops_is_asked_for_its_topic(
    kit: KafkaKit, engine: Any, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It drops what it holds for a topic that a broker has forgotten: a retry of what was stored, maybe."""
    log = queue.logs[0]

    def young() -> NewCall:
        now = time.time()
        return row(log, id=new_head(now), time=now)

    def dropped(*args: Any, **kwargs: Any) -> Any:
        raise AppendDropped("not known")

    monkeypatch.setattr(engine.sender, "append", dropped)
    given = young()
    with pytest.raises(AppendUnknown, match="not known"):
        engine.append_row(given)
    assert not engine._goes_straight(given), "sent again, it is looked for first"
    topic = engine.place(log).topic
    for future in engine.cluster.admin.delete_topics([topic]).values():
        future.result(20)
    eventually(lambda: engine.cluster.describe(topic) is None)
    with pytest.raises(TopicGone, match="was deleted"):
        engine.append_row(young())


def test_records_that_no_state_knows_are_not_taken_over(
    kafka: KafkaAddress, kit: KafkaKit, tmp_path: Path
) -> None:
    """Two environments on one cluster, with the same app and two states, must not eat one another's calls."""
    engine: Any = kit.open()
    log = engine.create_stream("queue", "shop", "default", 1, {}).logs[0]
    fill(engine, log, 1)
    url = f"{kafka.url()}?prefix={kit.prefix}&state={quote(f'sqlite:///{tmp_path}/other.db', safe='')}"
    other: Any = open_engine(parse_url(url), "full", 10.0)
    with pytest.raises(ConfigError, match="belongs to another state; set prefix="):
        other.create_stream("queue", "shop", "default", 1, {})
    other.close()


def test_a_lane_that_no_state_knows_is_not_taken_over(
    kafka: KafkaAddress, kit: KafkaKit, tmp_path: Path
) -> None:
    """The same of two environments whose calls all have a priority: their common topic is empty."""
    engine: Any = kit.open()
    queue = engine.create_stream("queue", "shop", "default", 1, {})
    url = f"{kafka.url()}?prefix={kit.prefix}&state={quote(f'sqlite:///{tmp_path}/other.db', safe='')}"
    other: Any = open_engine(parse_url(url), "full", 10.0)
    same = other.create_stream("queue", "shop", "default", 1, {})
    fill(engine, engine.add_lane(queue, 9).lanes[9][0], 1)
    with pytest.raises(
        ConfigError, match="knows no priority 9 of queue default: it belongs to another state"
    ):
        other.add_lane(same, 9)
    assert list(other.add_lane(same, 8).lanes) == [8]
    engine.cluster.create(engine.place(queue.logs[0]).topic + "--lane--7", 2, {})
    with pytest.raises(ConfigError, match=r"wants 1 partition\(s\), topic .*--lane--7 has 2"):
        other.add_lane(same, 7)
    other.close()


def test_a_lane_that_another_process_has_just_filled_is_the_same(
    kit: KafkaKit, engine: Any, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked when there was none, and asks where the topic ends when the other has appended to it."""
    other: Any = kit.open()
    made: list[Stream] = []
    inner = engine.cluster.offsets

    def offsets(*given: Any, **more: Any) -> Any:
        if not made:
            made.append(other.add_lane(queue, 9))
            fill(other, made[0].lanes[9][0], 1)
        return inner(*given, **more)

    monkeypatch.setattr(engine.cluster, "offsets", offsets)
    assert engine.add_lane(queue, 9) == made[0]


# K4, K5: retention


def test_a_round_of_trimming_asks_for_all_partitions_at_once(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5: a supervisor does not beat meanwhile, and an ordered queue has 64 of them."""
    wide = engine.create_stream("queue", "shop", "wide", 12, {"ordered": True})
    for log in wide.logs[::2]:
        fill(engine, log, 2)
    asked: list[int] = []
    inner = engine.cluster.offsets
    monkeypatch.setattr(
        engine.cluster, "offsets", lambda places, *a, **k: asked.append(len(places)) or inner(places, *a, **k)
    )
    assert engine.trim(wide, time.time() - 60, 100) == 0, "main has them all before it"
    assert len([each for each in asked if each]) <= 5


def test_workers_trim_and_kafka_does_not(engine: Any, queue: Stream, main: Group) -> None:
    """Old times are no reason for a broker to delete, as they are by its own settings (K5)."""
    log = queue.logs[0]
    first = fill(engine, log, 10)
    config = engine.cluster.admin.describe_configs([_topic_resource(engine.place(log).topic)])
    (said,) = [future.result(20) for future in config.values()]
    assert said["retention.ms"].value == "-1"
    assert said["message.timestamp.type"].value == "LogAppendTime"
    assert engine.trim(queue, NOW + 1, 5000) == 0, "nobody has done them"
    lease = grant(engine, main, 6)
    assert lease is not None
    finish(engine, main, lease)
    assert engine.trim(queue, NOW - 1, 5000) == 0, "they are young"
    assert engine.trim(queue, NOW + 1, 5000) == 6
    assert engine.bounds(queue) == [(log, first + 6, first + 10)]
    assert engine.status(main, first).how == "done" or engine.trim(queue, NOW + 1, 5000) == 0


def test_what_is_left_of_a_lease_at_the_beginning_stays(
    kit: KafkaKit, engine: Any, queue: Stream, main: Group
) -> None:
    """Where something else has cut off what is before it."""
    log = queue.logs[0]
    first = fill(engine, log, 10)
    lease = grant(engine, main, 6)
    assert lease is not None
    kit.cut(log, first, first + 3)
    assert engine.trim(queue, NOW + 1, 5000) == 0
    assert [each[2] for each in engine.rows(lease.spans)] == [b"3", b"4", b"5"]
    finish(engine, main, lease)
    assert engine.trim(queue, NOW + 1, 5000) == 3


def _topic_resource(name: str) -> Any:
    from confluent_kafka.admin import ConfigResource, ResourceType  # type: ignore[attr-defined]

    return ConfigResource(ResourceType.TOPIC, name)


# Other programs


def test_kafkas_own_tools_see_groups_and_records(kafka: KafkaAddress, kit: KafkaKit, engine: Any) -> None:
    """K6: the true lag; a record's value is the body as it is."""
    stream = engine.create_stream("stream", "", "events", 1, {})
    log = stream.logs[0]
    engine.append_run(log, "", [b'{"n": %d}' % n for n in range(5)], None, head(), NOW)
    group = engine.create_group(stream, "shop", "audit", "subscription", {}, [(log, first_pos(log), None)])
    lease = grant(engine, group, 3)
    assert lease is not None
    finish(engine, group, lease)
    engine.tidy_now()
    described = console(
        kafka, "consumer.group.ConsumerGroupCommand", "--describe", "--group", f"{kit.prefix}shop.audit"
    )
    (line,) = [line.split() for line in described.splitlines() if f"{kit.prefix}events" in line]
    assert line[2:6] == ["0", "3", "5", "2"], described
    read = console(
        kafka, "consumer.ConsoleConsumer", "--topic", f"{kit.prefix}events", "--from-beginning",
        "--max-messages", "5",
    )  # fmt: skip
    assert [json.loads(each)["n"] for each in read.splitlines()] == [0, 1, 2, 3, 4]


class Upper:
    """A codec as users write them."""

    @staticmethod
    def decode(body: bytes) -> str:
        return body.decode().upper()


def test_a_topic_of_another_program_is_a_stream(kafka: KafkaAddress, kit: KafkaKit, app: App) -> None:
    topic = f"{kit.prefix}payments"
    seen: list[Any] = []
    other = Producer({"bootstrap.servers": kafka.bootstrap})
    admin = kit.open().cluster.admin  # type: ignore[attr-defined]
    admin.create_topics([NewTopic(topic, 3, 1)])[topic].result(20)
    payments = app.stream(topic, foreign=True, codec=Upper)

    @payments.subscribe(group="audit", start="earliest", bind=True)
    def audit(self: Any, event: Any) -> None:
        seen.append((event, self.request.key, self.request.headers.get("from"), self.request.partition))

    app.engine  # noqa: B018 - made before the first record
    for n in range(6):
        other.produce(topic, b"paid %d" % n, key=b"k%d" % n, partition=n % 3, headers={"from": b"bank"})
    other.flush(30)
    work(app, group="audit")
    assert sorted(seen) == [(f"PAID {n}", f"k{n}", "bank", n % 3) for n in range(6)]
    events = list(payments.read())
    assert len(events) == 6
    assert events[0].id == f"kafka:{topic}/0/0"
    assert app.engine.find(f"stream:{topic}", events[0].id) is not None
    with pytest.raises(ConfigError, match="is foreign"):
        payments.publish({"n": 1})
    app.stream(f"{kit.prefix}none", foreign=True)
    with pytest.raises(ConfigError, match="there is no topic"):
        app.stream_of("stream", f"{kit.prefix}none")


def test_batches_pass_over_what_is_no_record(kafka: KafkaAddress, kit: KafkaKit, app: App) -> None:
    """K1, K2: marks of transactions, and what was trimmed, are done with the batches about them; once."""
    topic, seen = f"{kit.prefix}payments", []
    admin = kit.open().cluster.admin  # type: ignore[attr-defined]
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(20)
    payments = app.stream(topic, foreign=True, codec=Upper)

    @payments.subscribe(group="audit", start="earliest", batch=5)
    def audit(events: Any) -> None:
        seen.extend(events)

    engine: Any = app.engine
    other = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": kit_id()})
    other.init_transactions(30)
    for n in range(3):
        other.begin_transaction()
        other.produce(topic, b"paid %d" % n, partition=0)
        other.commit_transaction(30)
    until = TopicPartition(topic, 0, 2)
    for future in engine.cluster.admin.delete_records([until]).values():
        future.result(20)
    group = next(each for each in engine.groups() if each.name == "audit")
    eventually(lambda: engine.counts(group).pending >= 4)
    work(app, group="audit")
    assert seen == ["PAID 1", "PAID 2"]
    counts = engine.counts(group)
    assert (counts.pending, counts.leased, counts.returned) == (0, 0, 0)


def test_records_that_nobody_rings_for_are_noticed(kafka: KafkaAddress, kit: KafkaKit) -> None:
    """A worker that sleeps on a topic of another program looks again soon, however long it might sleep."""
    engine: Any = kit.open()
    topic = f"{kit.prefix}payments"
    engine.cluster.create(topic, 1, {})
    foreign = engine.create_stream("stream", "", topic, 1, {"foreign": True})
    ours = engine.create_stream("queue", "shop", "default", 1, {})
    for stream, soon in ((foreign, True), (ours, False)):
        sleeper = engine.sleeper(stream.logs, 7)
        sleeper.prepare()
        began = time.monotonic()
        assert not sleeper.sleep(1.0)
        assert (time.monotonic() - began < 0.9) == soon
        sleeper.close()


JAVA = {  # of Kafka's own tests of its `Utils.murmur2`
    "21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829, "abc": 479470107,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
}  # fmt: skip


def test_keys_go_where_javas_producers_put_them(kafka: KafkaAddress, kit: KafkaKit, app: App) -> None:
    """And ours where theirs are: each key is in one partition, whoever writes it."""
    assert {text: keys.murmur2(text.encode()) for text in JAVA} == {
        text: number & 0xFFFFFFFF for text, number in JAVA.items()
    }
    events = app.stream("seen", key="k", partitions=7)
    texts = [*JAVA, *(f"user-{n}" for n in range(40)), "ключ", "键", "x" * 500]
    events.publish_many({"k": text, "by": "us"} for text in texts)
    topic = app.engine.place(app.stream_of("stream", "seen").logs[0]).topic  # type: ignore[attr-defined]
    console(
        kafka, "ConsoleProducer", "--topic", topic, "--property", "parse.key=true",
        "--property", "key.separator=\t",
        said="".join(f"{text}\t{json.dumps({'k': text, 'by': 'java'})}\n" for text in texts),
    )  # fmt: skip
    found: dict[str, set[int]] = {}
    for event in events.read():
        found.setdefault(event.key, set()).add(event.partition)
        assert event.key == event.value["k"]
    assert len(list(events.read())) == 2 * len(texts)
    assert found == {text: {keys.partition_of(text, 7)} for text in texts}
    assert len(set.union(*found.values())) == 7


def test_a_trace_is_a_header_of_its_own(kafka: KafkaAddress, kit: KafkaKit, app: App) -> None:
    """Where a call or event has one; all else of it is in one header (K6)."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen: list[Any] = []

    @app.task(bind=True)
    def traced(self: Any) -> None:
        seen.append(self.request.headers)

    headers = {"traceparent": trace, "tenant": "acme"}
    traced.apply_async(headers=headers)
    traced.apply_async(headers=headers, task_id="given")
    traced.delay()
    events = app.stream("seen")
    events.publish({"n": 1}, headers=headers)
    for kind, name, amount in (("queue", "default", 3), ("stream", "seen", 1)):
        place = app.engine.place(app.stream_of(kind, name).logs[0])  # type: ignore[attr-defined, arg-type]
        consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": kit.prefix})
        consumer.assign([TopicPartition(place.topic, 0, 0)])
        messages = consumer.consume(amount, 20)
        consumer.close()
        said = [dict(message.headers() or ()) for message in messages]
        assert [each.pop("respool") is not None for each in said] == [True] * amount
        assert said == [{"traceparent": trace.encode()}] * (amount - (kind == "queue")) + [{}] * (
            kind == "queue"
        )
    work(app)
    assert seen == [headers, headers, {}]


def test_cloudevents_both_ways(kafka: KafkaAddress, kit: KafkaKit, app: App) -> None:
    events = app.stream("orders", cloudevents=True)
    id = events.publish({"n": 1}, type="order.placed")
    place = app.engine.place(app.stream_of("stream", "orders").logs[0])  # type: ignore[attr-defined]
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": kit.prefix})
    consumer.assign([TopicPartition(place.topic, 0, 0)])
    message = consumer.poll(20)
    consumer.close()
    assert message is not None
    assert json.loads(message.value() or b"") == {"n": 1}
    said = {
        name: value.decode() for name, value in message.headers() or () if name.startswith(("ce_", "con"))
    }
    assert said.pop("ce_time").endswith("Z")
    assert said == {
        "ce_specversion": "1.0", "ce_id": id, "ce_source": "respool", "ce_type": "order.placed",
        "content-type": "application/json",
    }  # fmt: skip
    other = Producer({"bootstrap.servers": kafka.bootstrap})
    headers = {"ce_id": b"7", "ce_type": b"order.paid", "ce_time": b"2026-01-31T14:00:00Z"}
    other.produce(place.topic, b'{"n": 2}', partition=0, headers=headers)
    other.flush(30)
    read = list(events.read())
    assert [(event.type, event.value) for event in read] == [
        ("order.placed", {"n": 1}), ("order.paid", {"n": 2}),
    ]  # fmt: skip
    assert read[1].time.isoformat() == "2026-01-31T14:00:00+00:00"


def test_where_others_have_no_such_streams(tmp_path: Path) -> None:
    app = App("shop", url=f"sqlite:///{tmp_path / 'log.db'}")
    app.stream("payments", foreign=True)
    with pytest.raises(ConfigError, match="foreign=True is for Kafka"):
        app.stream_of("stream", "payments")
    app.close()


# The state in SQLite: a smoke test of all of it


def test_calls_retries_delays_and_results_with_sqlite(app: App) -> None:
    tries: list[int] = []

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(bind=True, max_retries=2)
    def moody(self: Any, n: int) -> int:
        tries.append(n)
        if self.request.retries == 0:
            raise self.retry(countdown=0.01)
        return int(add.delay(n, 1).id is not None)

    @app.task
    def bad() -> None:
        raise ValueError("bad")

    one = add.delay(2, 3)
    later, given = add.apply_async((1, 1), countdown=0.2), add.apply_async((5, 5), task_id="order-1")
    retried, failed = moody.delay(7), bad.delay()
    eventually(lambda: work(app) or later.ready())
    assert (one.get(1), later.get(1), given.get(1), retried.get(1)) == (5, 2, 10, 1)
    assert tries == [7, 7]
    with pytest.raises(ValueError, match="bad"):
        failed.get(1)
    assert app.AsyncResult("order-1").get(1) == 10
    assert app.AsyncResult(one.id).get(1) == 5
    assert add.apply_async((5, 5), task_id="order-1").get(1) == 10


# Bad input

LOGIN = "sasl.mechanism=PLAIN&sasl.username=x&sasl.password=s3cret"


def make_queue(url: str) -> None:
    engine = open_engine(parse_url(url), "full", 3.0)
    try:
        engine.create_stream("queue", f"x{time.time_ns()}", "default", 1, {})
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka://localhost", "names no state"),
        ("kafka://localhost?state=", "names no state"),
        ("kafka://localhost?state=mysql://x", "no engine for"),
        ("kafka://localhost?state=sqlite:///:memory:", "state cannot be"),
        ("kafka://localhost/topic?state=sqlite:///x.db", "looks like"),
        ("kafka://?state=sqlite:///x.db", "looks like"),
        ("kafka://localhost?state=sqlite:///x.db&prefx=a", "did you mean 'prefix'"),
        ("kafka://localhost?state=sqlite:///x.db&replication=many", "replication cannot be 'many'"),
        ("kafka://localhost?state=sqlite:///x.db&id_window=soon", "id_window"),
    ],
)
def test_urls_that_cannot_be(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_url(url)


def test_a_password_is_never_shown() -> None:
    location = parse_url(
        "kafka://shop:s3cret@one,two:9093?state=postgresql://me:s3cret@db/x&sasl.password=s3cret"
    )
    assert "s3cret" not in f"{location!r} {location.shown}"
    assert location.shown == "kafka://shop@one:9092,two:9093?state=postgresql://me@db/x"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("acks=1", "unknown option"),
        ("request.required.acks=1", "is not to be set"),
        ("no.such.thing=1", "No such configuration property"),
        (
            "security.protocol=SASL_PLAINTEXT&sasl.mechanism=PLAIN&sasl.username=x&sasl.password=s3cret",
            "cannot be reached|check user",
        ),
        ("ssl.ca.location=/nowhere&security.protocol=SSL", "ca.location"),
        ("oauth_cb=nowhere:call", "cannot be imported"),
        ("topic.no.such=1", "Unknown topic config name"),
        ("replication=9", "set replication="),
    ],
)
def test_options_that_cannot_be(kafka: KafkaAddress, tmp_path: Path, options: str, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(Exception, match=says) as caught:
        make_queue(f"{kafka.url()}?{options}&state=sqlite:///{tmp_path}/s.db")
    assert "s3cret" not in str(caught.value)
    assert time.monotonic() - began < 8


def test_a_cluster_out_of_reach(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(Exception, match="cannot be reached") as caught:
        open_engine(parse_url(f"kafka://u:s3cret@127.0.0.1:9?state=sqlite:///{tmp_path}/s.db"), "full", 2.0)
    assert time.monotonic() - began < 6
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "code", [KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE, KafkaError.REQUEST_TIMED_OUT]
)
def test_what_times_out_is_tried_again(engine: Any, code: int) -> None:
    """Also what has not left the client in time, behind other requests."""
    tries: list[float] = []

    def slow(timeout: float) -> str:
        tries.append(timeout)
        if len(tries) == 1:
            raise KafkaException(KafkaError(code))
        return "an answer"

    assert engine.cluster.again(slow) == "an answer"
    assert isinstance(engine.cluster.translated(KafkaError(code)), EngineUnavailable)


def test_a_topic_with_another_number_of_partitions(kit: KafkaKit, engine: Any) -> None:
    topic = names.topic_name(kit.prefix, "stream", "", "events")
    engine.cluster.create(topic, 3, {})
    with pytest.raises(ConfigError, match="declare it with partitions=3"):
        engine.create_stream("stream", "", "events", 1, {})
