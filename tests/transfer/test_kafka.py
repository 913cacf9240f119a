"""What is of Kafka alone in a transfer: topics that are closed and made, an outbox, old records that came."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import NewTopic
from tests.engines.kits import KafkaKit, SQLiteKit, eventually
from tests.services.fixtures import KafkaAddress
from tests.transfer.support import ALL, NOW, end, group_of, stream_of, take

from respool import App
from respool.delivery.lapse import LOST
from respool.delivery.model import NewCall, Verdict
from respool.engines import open_engine
from respool.engines.base import Engine, Stream
from respool.engines.kafka.barring import BARRED, sizes
from respool.engines.sqlite.engine import SQLiteEngine, SQLiteOptions
from respool.errors import AppendUnknown, ConfigError, EngineError, LogMoved
from respool.location import parse_url
from respool.record import Meta, first_pos, new_head, offset_of
from respool.reference import Reference
from respool.replay import check
from respool.testing import work
from respool.transfer import transfer, undo

FOR_GOOD = "&id_window=9999d"


@pytest.fixture
def kit(kafka: KafkaAddress, tmp_path: Path) -> Iterator[KafkaKit]:
    made = KafkaKit(kafka.url(), SQLiteKit(tmp_path, "full"), "full", FOR_GOOD)
    yield made
    made.remove()


@pytest.fixture
def broker(kit: KafkaKit) -> Any:
    """The engine on Kafka."""
    return kit.open()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Engine]:
    engine = SQLiteEngine(SQLiteOptions(tmp_path / "file.db"))
    yield engine
    engine.close()


def filled(engine: Engine, records: int = 20, partitions: int = 1) -> Stream:
    """Return a queue with records a second apart, half of them of ids that users gave."""
    queue = engine.create_stream("queue", "shop", "default", partitions, {})
    for n in range(records):
        id = f"shop\0o{n}" if n % 2 else new_head(NOW + n)
        engine.append_row(NewCall(queue.logs[n % partitions], "add", b"%d" % n, None, id, NOW + n))
    return queue


def bodies(engine: Engine, stream: Stream) -> list[bytes]:
    logs = [(first_pos(log), first_pos(log + 1)) for log in stream.logs]
    return [record.body for lo, hi in logs for record in engine.records(lo, hi, ALL)]


def in_window(engine: Engine, stream: Stream, since: float | None, until: float | None) -> set[bytes]:
    """Return the bodies of what is in a window of time, as replays find it."""
    found = set()
    for _, lo, hi in engine.window(stream, since, until):
        for record in engine.records(lo, hi, ALL):
            if (since is None or record.time >= since) and (until is None or record.time < until):
                found.add(record.body)
    return found


# Closing


def test_no_broker_takes_records_of_a_log_that_was_moved(
    broker: Any, file: Engine, kafka: KafkaAddress
) -> None:
    """Whatever program sends them; and as before when it is open again."""
    queue = filled(broker)
    topic = broker.place(queue.logs[0]).topic
    before = sizes(broker.cluster, [topic])
    assert before != {topic: BARRED}
    said: list[Any] = []

    def send() -> Any:
        producer = Producer({"bootstrap.servers": kafka.bootstrap, "message.timeout.ms": 10_000})
        producer.produce(topic, b"0123456789" * 3, on_delivery=lambda error, message: said.append(error))
        assert producer.flush(15) == 0
        return said.pop()

    transfer(broker, file)
    refused = send()
    assert refused.code() == KafkaError.MSG_SIZE_TOO_LARGE
    with pytest.raises(LogMoved, match="was moved to sqlite:") as raised:
        broker.append_row(NewCall(queue.logs[0], "add", b"", None, new_head(time.time()), time.time()))
    assert raised.value.final
    assert len(bodies(broker, queue)) == 20
    undo(broker, None)
    assert sizes(broker.cluster, [topic]) == before
    assert send() is None
    assert len(bodies(broker, queue)) == 21
    assert broker.mark() is None


def test_a_record_that_is_too_large_is_still_that(broker: Any) -> None:
    queue, now = filled(broker, 1), time.time()
    row = NewCall(queue.logs[0], "add", b"x" * (9 << 20), None, new_head(now), now)
    with pytest.raises(Exception, match=r"raise its max\.message\.bytes"):
        broker.append_row(row)


def test_what_waits_in_the_outbox_is_sent_first(
    broker: Any, file: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept, and not sent, and whoever was to send it has died: it is moved like what was sent (P1)."""
    queue = filled(broker, 4)
    monkeypatch.setattr(broker.outbox, "patience", 0.0)  # after which a relay is taken for dead

    def dies(*given: Any) -> Any:
        raise AppendUnknown("killed")

    with monkeypatch.context() as patched:
        patched.setattr(broker.outbox, "_send_to", dies)
        for name in ("_settle", "_give_back"):  # its lease stays
            patched.setattr(broker.outbox, name, lambda *given, **more: None)
        row = NewCall(queue.logs[0], "add", b"late", None, "shop\0late", NOW)
        with pytest.raises(AppendUnknown):
            broker.append_row(row)
    assert [lease.owner for lease in broker.inner.leases(broker.outbox.group)] == [-1]
    transfer(broker, file)
    there = stream_of(file, "default")
    assert sorted(bodies(file, there)) == [b"0", b"1", b"2", b"3", b"late"]
    assert file.find("shop", "late") is not None
    assert check(file).ok


def test_what_the_topic_lost_before_it_was_run_is_lost_there_too(
    kit: KafkaKit, broker: Any, file: Engine
) -> None:
    """K1: counted and shown, never done; what is parked has its body (H15), also when it was given back."""
    queue = filled(broker, 20)
    main, log = group_of(broker, queue), queue.logs[0]
    base = first_pos(log)
    lease = take(broker, main, 4, 99)
    waits = [Verdict(base + n, reason="retry", due=NOW, task="add", error=b"e", retried=True) for n in (0, 1)]
    end(broker, main, lease, *waits, done=[(base, base + 4)])
    lease = take(broker, main, 1, 99)  # the retry of the first: given back
    assert [span.lo for span in lease.spans] == [base]
    end(broker, main, lease, done=[], release=True)
    lease = take(broker, main, 6, 99)
    end(
        broker,
        main,
        lease,
        done=[(span.lo, span.hi) for span in lease.spans if span.lo < base + 4],
        release=True,
    )
    returned = [span for each in broker.leases(main) for span in each.spans]
    assert any(base + 4 <= span.lo < base + 10 for span in returned)
    kit.cut(log, base, base + 12)
    transfer(broker, file)
    there = stream_of(file, "default")
    group = group_of(file, there)
    assert file.bounds(there)[0][1:] == (base + 12, base + 20)
    lost = file.counters(group.id)[LOST]
    assert lost >= 6
    assert file.status(group, base + 11).how == "trimmed"
    assert file.counts(group).pending == 8
    assert check(file).ok
    assert check(broker).ok


def test_topics_that_others_write_are_not_moved(broker: Any, file: Engine, kit: KafkaKit) -> None:
    topic = f"{kit.prefix}payments"
    broker.cluster.admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(10)
    broker.create_stream("stream", "", topic, 1, {"foreign": True})
    filled(broker)
    with pytest.raises(ConfigError, match="is a topic that others write"):
        transfer(broker, file)
    assert broker.mark() is None
    assert file.mark() is None


# Making and filling topics


@pytest.mark.parametrize(
    ("partitions", "used", "said"), [(3, False, "has 3 partition"), (1, True, "holds records")]
)
def test_a_topic_that_is_there_is_not_taken(
    broker: Any, file: Engine, kit: KafkaKit, partitions: int, used: bool, said: str, kafka: KafkaAddress
) -> None:
    filled(file)
    topic = f"{kit.prefix}shop--queue--default"
    broker.cluster.admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(10)
    broker.cluster.described(topic)
    if used:
        producer = Producer({"bootstrap.servers": kafka.bootstrap})
        producer.produce(topic, b"theirs")
        assert producer.flush(15) == 0
    with pytest.raises(ConfigError, match=f"topic {topic} {said}"):
        transfer(file, broker)
    undo(file, broker)
    assert file.mark() is None
    assert broker.cluster.describe(topic) is not None, "it is somebody else's"
    assert bodies(file, stream_of(file, "default"))


def test_undo_removes_the_topics_and_what_was_said_of_ids(
    broker: Any, file: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = filled(file)

    def fails(*given: Any) -> Any:
        raise EngineError("enough")

    with monkeypatch.context() as patched:
        patched.setattr(broker, "take_group", fails)
        with pytest.raises(EngineError, match="enough"):
            transfer(file, broker)
    topic = f"{broker.options.prefix}shop--queue--default"
    assert broker.cluster.describe(topic) is not None
    undo(file, broker)
    assert broker.cluster.describe(topic) is None
    assert broker.streams() == []
    assert broker.find("shop", "o1") is None
    made = broker.create_stream("queue", "shop", "default", 1, {})
    sent = broker.append_row(NewCall(made.logs[0], "add", b"1", None, "shop\0o1", NOW + 1))
    assert offset_of(sent) == 0, "its id is nobody's"
    assert bodies(file, queue)


def test_whoever_else_appends_to_it_is_noticed(
    broker: Any, file: Engine, kafka: KafkaAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("respool.transfer.copying.ROWS", 5)
    filled(file)
    producer, sent = Producer({"bootstrap.servers": kafka.bootstrap}), []
    topic = f"{broker.options.prefix}shop--queue--default"

    def tell(what: str, done: int, total: int) -> None:
        if what == "records" and not sent:
            sent.append(what)
            producer.produce(topic, b"theirs")
            assert producer.flush(15) == 0

    with pytest.raises(EngineError, match=f"somebody else appends to topic {topic}"):
        transfer(file, broker, tell=tell)
    with pytest.raises(EngineError, match="holds what is not the source's"):
        transfer(file, broker)
    undo(file, broker)
    transfer(file, broker)
    assert check(broker).ok


# Afterwards


def test_records_of_long_ago_are_found_by_id_and_by_time(broker: Any, file: Engine) -> None:
    """Kafka has stored them now. Their times rise and fall (H19)."""
    queue = file.create_stream("queue", "shop", "default", 2, {})
    for n, log in enumerate(queue.logs):
        for head, times in enumerate(([5, 6, 7], [1], [30, 31], [2, 3], [60])):
            for each in times:
                at = NOW + each + n * 0.5
                file.append_row(NewCall(log, "add", b"%d.%d" % (n, each), None, new_head(at), at))
            at = NOW + 100 + head
            file.append_run(
                log, "add", [b"%d.%d.%d" % (n, head, k) for k in range(3)], None, new_head(at), at
            )
    transfer(file, broker)
    there = stream_of(broker, "default")
    now = time.time()
    fresh = NewCall(there.logs[0], "add", b"new", Meta(key="k").packed(), new_head(now), now)
    broker.append_row(fresh)
    windows = [(None, None), (NOW, NOW + 4), (NOW + 2, NOW + 7), (NOW + 30, NOW + 103), (NOW + 101, None)]
    for since, until in [*windows, (NOW + 8, NOW + 20), (now - 1, now + 1), (None, NOW + 3)]:
        expected = in_window(file, queue, since, until)
        if until is None or until > now:
            expected = {*expected, b"new"}
        assert in_window(broker, there, since, until) == expected, (since, until)
        spans = [(lo, hi) for _, lo, hi in broker.window(there, since, until) if lo < hi]
        ends = [
            record.time
            for lo, hi in spans
            for record in (*broker.records(lo, hi, 1), *broker.records(hi - 1, hi, 1))
        ]
        assert all((since is None or at >= since) and (until is None or at < until) for at in ends), (
            "no wider"
        )
    for log, other in zip(queue.logs, there.logs, strict=True):
        ours = file.records(first_pos(log), first_pos(log + 1), ALL)
        theirs = broker.records(first_pos(other), first_pos(other + 1), ALL)
        assert [record.id for record in ours] == [record.id for record in theirs][: len(ours)]
        assert [record.time for record in ours] == [record.time for record in theirs][: len(ours)]
        for record in theirs:
            assert broker.find("shop", record.id) == record.pos


def test_what_came_is_trimmed_by_its_own_time(broker: Any, file: Engine) -> None:
    queue = filled(file, 20)
    main = group_of(file, queue)
    while file.has_work(main.id, NOW + 99, ()):
        end(file, main, take(file, main, 10, 99, NOW + 99))
    transfer(file, broker)
    there = stream_of(broker, "default")
    while broker.trim(there, NOW + 12, 1000):
        pass
    assert bodies(broker, there) == [b"%d" % n for n in range(12, 20)]
    while broker.trim(there, time.time() - 3600, 1000):
        pass
    assert bodies(broker, there) == []
    assert check(broker).ok


def test_ids_that_users_gave_are_known(broker: Any, file: Engine) -> None:
    """The same call sent again is the one that is there; another with its id is refused (K4)."""
    filled(file, 4)
    transfer(file, broker)
    log = stream_of(broker, "default").logs[0]
    same = NewCall(log, "add", b"1", None, "shop\0o1", NOW + 1)
    assert broker.append_row(same) == first_pos(log) + 1
    (conflict,) = broker.append_rows([NewCall(log, "add", b"other", None, "shop\0o3", NOW)])
    assert (conflict.pos, conflict.same) == (first_pos(log) + 3, False)
    assert len(bodies(broker, stream_of(broker, "default"))) == 4


def test_what_is_parked_there_keeps_its_record(kit: KafkaKit, broker: Any, file: Engine) -> None:
    """H15: the topic may lose it any time, as after any parking."""
    queue = filled(file, 6)
    main = group_of(file, queue)
    lease = take(file, main, 3, 99)
    dead = [Verdict(first_pos(queue.logs[0]) + n, "failure", b"e", "dead", task="add") for n in (0, 2)]
    end(file, main, lease, *dead)
    transfer(file, broker)
    log = stream_of(broker, "default").logs[0]
    broker._look_after()  # which drops what is kept for nobody
    kit.cut(log, first_pos(log), first_pos(log) + 3)
    assert [r.body for r in broker.records(first_pos(log), first_pos(log) + 3, ALL)] == [b"0", b"2"]
    assert check(broker).ok


def test_large_payloads_are_referred_to_as_long_as_their_records_are_there(
    kit: KafkaKit, broker: Any, file: Engine
) -> None:
    """H18: no sweep takes what a record in a topic refers to, though the state has no row of it."""
    queue = filled(file, 2)
    digest = b"\x07" * 32
    large = Reference(digest, 99_000, file.touch_blob(digest, 99_000, NOW)).packed()
    log = queue.logs[0]
    file.append_row(NewCall(log, "add", large, Meta(key="large").packed(), new_head(NOW + 2), NOW + 2))
    transfer(file, broker)
    there = stream_of(broker, "default")
    assert broker.drop_references(None, NOW * 2, 100)[0] == 0
    assert broker.doom_blobs(None, NOW * 2, 100)[0] == 0
    main = group_of(broker, there)
    end(broker, main, take(broker, main, 10, 99))
    while broker.trim(there, NOW + 50, 1000):
        pass
    assert bodies(broker, there) == []
    assert broker.drop_references(None, NOW * 2, 100)[0] == 1
    assert broker.doom_blobs(None, NOW * 2, 100)[0] == 1


def test_large_payloads_come_back(broker: Any, file: Engine, tmp_path: Path) -> None:
    """There the outbox tells who refers to them; elsewhere the record does."""
    queue = broker.create_stream("queue", "shop", "default", 1, {})
    digest = b"\x07" * 32
    large = Reference(digest, 99_000, broker.touch_blob(digest, 99_000, NOW)).packed()
    meta = Meta(key="large").packed()
    pos = broker.append_row(NewCall(queue.logs[0], "add", large, meta, new_head(NOW + 2), NOW + 2))
    assert [(each.pos, each.group) for each in broker.referred(digest) if each.group == 0][-1] == (pos, 0)
    transfer(broker, file)
    there = first_pos(stream_of(file, "default").logs[0])
    assert [(each.pos, each.group) for each in file.referred(digest)] == [(there, 0)]
    assert file.drop_references(None, NOW * 2, 100)[0] == 0


def test_an_ordered_queue_keeps_its_order_there_and_back(kit: KafkaKit, broker: Any, tmp_path: Path) -> None:
    """What waits for its key goes on waiting, and what comes later comes after it (P8)."""
    seen: list[tuple[str, int]] = []
    urls = [f"sqlite:///{tmp_path / 'one.db'}", str(kit.url), f"sqlite:///{tmp_path / 'two.db'}"]

    def step(user: str, n: int) -> None:
        seen.append((user, n))

    for at, url in enumerate(urls):
        with App("shop", url=url) as app:
            app.queue("orders", ordered=True, partitions=2)
            task = app.task(queue="orders", key="user")(step)
            for user in "abc":
                if at == 0:
                    app.send_task("later", (user, 0), queue="orders", key=user)
                task.apply_many([((user, 10 * at + n), {}) for n in (1, 2)])
            work(app)
            assert seen == [], "all wait for the first of their key, of a task that nobody knows"
            if url == urls[-1]:
                app.task(name="later", queue="orders")(step)
                eventually(lambda app=app: work(app) or len(seen) == 21)  # offered once a second
                for user in "abc":
                    assert [n for who, n in seen if who == user] == [0, 1, 2, 11, 12, 21, 22]
                continue
            target = open_engine(parse_url(urls[at + 1]), "full", 10.0)
            transfer(app.engine, target)
            target.close()
