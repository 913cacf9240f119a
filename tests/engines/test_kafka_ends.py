"""Where logs end, as claims are told: asked of a broker only where what is known is not enough (K2, K3)."""

from __future__ import annotations

import time
from typing import Any

import pytest
from confluent_kafka import Producer
from tests.engines.kits import KafkaKit, eventually
from tests.engines.test_conformance import NOW, fill, grant, granted
from tests.engines.test_kafka import kit as kit
from tests.engines.test_kafka import kit_id
from tests.services.fixtures import KafkaAddress

from respool.clock import now as wall_clock
from respool.delivery.claim import Request, claim
from respool.delivery.model import Lease, NewCall, Settlement
from respool.delivery.settle import settle
from respool.engines import stored_id
from respool.engines.base import Group, Reads, Stream
from respool.engines.kafka import ends
from respool.engines.kafka.reader import Came, Reader
from respool.errors import AppendUnknown, EngineUnavailable, StreamUnavailable
from respool.record import first_pos, new_head


@pytest.fixture
def asked(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What brokers are asked: a moment each time."""
    moments: list[int] = []
    offsets = engine.cluster.offsets

    def counted(places: Any, moment: int, **more: Any) -> Any:
        moments.append(moment)
        return offsets(places, moment, **more)

    monkeypatch.setattr(engine.cluster, "offsets", counted)
    return moments


def settle_and_claim(engine: Any, group: Group, lease: Lease, want: int) -> Lease | None:
    done = Settlement(lease.id, 1, [(span.lo, span.hi) for span in lease.spans], ended=NOW)
    reads = Reads(group.id, (lease.id,), positions=True, due=want, returned=8, now=NOW)

    def decide(view: Any, change: Any) -> Lease | None:
        assert settle(view, change, done)
        return claim(view, change, Request(want, 1, 0, lease.id + 1000, NOW))

    found: Lease | None = engine.transact(reads, decide)
    return found


def test_a_claim_asks_no_broker_while_there_is_known_to_be_enough(
    engine: Any, queue: Stream, main: Group, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = queue.logs[0]
    fill(engine, log, 20)
    first = first_pos(log)
    assert granted(grant(engine, main, 4)) == [first + n for n in range(4)]
    asked.clear()
    lease = grant(engine, main, 4)
    assert lease is not None
    lease = settle_and_claim(engine, main, lease, 4)
    assert granted(lease) == [first + n for n in range(8, 12)]
    assert asked == []
    monkeypatch.setattr(ends, "LOOK", 0.0)
    assert granted(grant(engine, main, 4)) == [first + n for n in range(12, 16)]
    assert len(asked) == 1, "each second it is seen what the log is, and who leads it (K3)"


def test_what_others_have_claimed_of_it_is_found_out(
    kit: KafkaKit, engine: Any, queue: Stream, main: Group, asked: list[int]
) -> None:
    """Less than is wanted is claimed only once a broker has said that there is no more."""
    log = queue.logs[0]
    fill(engine, log, 20)
    grant(engine, main, 1)
    other = kit.open()
    grant(other, main, 16)
    fill(other, log, 3)
    asked.clear()
    assert granted(grant(engine, main, 8)) == [first_pos(log) + n for n in range(17, 23)]
    assert len(asked) == 1
    grant(engine, main, 8)
    assert len(asked) == 2, "who has nothing to settle was told that there is something"


def test_what_came_by_itself_is_claimed_without_a_question(
    kit: KafkaKit, engine: Any, queue: Stream, main: Group, asked: list[int]
) -> None:
    log = queue.logs[0]
    first, place = fill(engine, log, 1), engine.place(log)
    lease = grant(engine, main, 8)
    assert lease is not None
    assert len(engine.rows(lease.spans)) == 1
    asked.clear()
    assert settle_and_claim(engine, main, lease, 8) is None
    assert asked == [], "what has not come is looked for by whoever goes to sleep"
    assert not engine.has_work(main.id, NOW, ())
    fill(kit.open(), log, 2)
    eventually(lambda: engine.reader.came(place).end == 3)
    asked.clear()
    lease = grant(engine, main, 8)
    assert granted(lease) == [first + 1, first + 2]
    assert lease is not None
    assert [row[2] for row in engine.rows(lease.spans)] == [b"0", b"1"]
    assert asked == []
    assert settle_and_claim(engine, main, lease, 8) is None
    fill(kit.open(), log, 1)
    assert engine.has_work(main.id, NOW, ()), "and is found, though it has come to nobody"
    assert granted(grant(engine, main, 8)) == [first + 3]


def test_what_another_leader_gave_is_not_believed(
    engine: Any, queue: Stream, main: Group, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """K3: the log may have lost what the group has read of it."""
    log = queue.logs[0]
    fill(engine, log, 1)
    lease = grant(engine, main, 8)
    assert lease is not None
    engine.rows(lease.spans)
    fill(engine, log, 1)
    epoch = engine._epochs_seen[log]
    for now, questions in ((epoch, 0), (epoch + 1, 1)):
        monkeypatch.setattr(engine.reader, "came", lambda place, now=now: Came(2, now))
        asked.clear()
        lease = settle_and_claim(engine, main, lease, 8)
        assert granted(lease) == [first_pos(log) + 1] if not questions else lease is None
        assert len(asked) == questions
        if lease is None:
            break


def test_an_end_is_not_believed_of_who_leads_no_more(
    engine: Any, queue: Stream, main: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K3: a broker that was cut off says where its log ends; what others have stored since is not lost."""
    log = queue.logs[0]
    fill(engine, log, 10)
    lease = grant(engine, main, 10)
    assert lease is not None
    epoch = engine._epochs_seen[log]
    engine._ends_seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(engine.cluster, "offsets", lambda places, moment, **more: [(5, epoch)] * len(places))
        patch.setattr(engine.epochs, "_stored", lambda *_: epoch + 1)
        with pytest.raises(EngineUnavailable, match="leads it no more"):
            engine.rows(lease.spans)
    assert engine._lost == []
    assert len(engine.rows(lease.spans)) == 10
    with monkeypatch.context() as patch:
        patch.setattr(engine.cluster, "offsets", lambda places, moment, **more: [(5, epoch)] * len(places))
        engine._ends_seen.clear()
        assert len(engine.rows(lease.spans)) == 5, "who leads it is believed"
    assert engine._lost == [(first_pos(log) + 5, first_pos(log) + 10)]


def test_what_is_stored_is_not_refused_since_the_state_is_away(
    engine: Any, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1: only how late it was could not be noted; the next one says it."""
    log, then = queue.logs[0], wall_clock() - 10

    def away(group: int) -> Any:
        raise EngineUnavailable("the state is away; nothing was sent")

    with monkeypatch.context() as patch:
        patch.setattr(engine.inner, "counters", away)
        engine.append_run(log, "t", [b"a"], None, new_head(then), then)
    assert engine._off == {}
    monkeypatch.setattr(engine, "_note_again", 0.0)
    engine.append_run(log, "t", [b"b"], None, new_head(then), then)
    assert next(iter(engine._off.values())) > 9_000
    assert engine.bounds(queue)[0][2] == first_pos(log) + 2


def test_what_is_kept_is_not_refused_since_the_state_is_away(
    engine: Any, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It will be sent: that nobody can tell where it is now says only that this is not known (P1)."""
    log = queue.logs[0]

    def away(*_: Any) -> Any:
        raise EngineUnavailable("the state is away; nothing was sent")

    with monkeypatch.context() as patch:
        patch.setattr(engine.outbox, "_relay_kept", lambda *_: set())
        patch.setattr(engine.inner, "find", away)
        patch.setattr(engine.outbox, "_await", away)
        with pytest.raises(AppendUnknown, match="kept in the state"):
            engine.append_row(row_of_user(log))
        with pytest.raises(AppendUnknown, match="kept in the state"):
            engine.outbox.append([row_of_user(log)])


def row_of_user(log: int) -> NewCall:
    """A record whose id its sender gave."""
    return NewCall(log, "t", b"", None, stored_id("app", kit_id()), wall_clock())


def test_what_is_not_committed_has_not_come(
    kafka: KafkaAddress, engine: Any, queue: Stream, main: Group
) -> None:
    """K2, for what comes by itself too."""
    log = queue.logs[0]
    fill(engine, log, 1)
    lease = grant(engine, main, 8)
    assert lease is not None
    engine.rows(lease.spans)
    place = engine.place(log)
    other = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": kit_id()})
    other.init_transactions(30)
    other.begin_transaction()
    other.produce(place.topic, b"open", partition=0)
    other.flush(30)
    after = Producer({"bootstrap.servers": kafka.bootstrap})
    after.produce(place.topic, b"after", partition=0)
    after.flush(30)
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        assert engine.reader.came(place).end == 1
    assert grant(engine, main, 8) is None
    other.commit_transaction(30)
    eventually(lambda: engine.reader.came(place).end >= 3)
    lease = grant(engine, main, 8)
    assert lease is not None
    assert [row[2] for row in engine.rows(lease.spans)] == [b"open", b"after"]


def test_a_partition_is_read_at_once_by_who_has_just_begun(engine: Any, queue: Stream) -> None:
    """Half a second after it was made, a consumer may wait as long again for its first record."""
    fill(engine, queue.logs[0], 1)
    place, took = engine.place(queue.logs[0]), []
    for _ in range(7):
        reader = Reader(engine.cluster)
        reader.prepare(place)
        time.sleep(0.5)  # when the driver asks for metadata by itself
        begun = time.monotonic()
        assert len(reader.read([(place, 0, 1)])[0]) == 1
        took.append(time.monotonic() - begun)
        reader.close()
    assert sorted(took)[3] < 0.3


def test_what_no_broker_leads_concerns_one_stream_alone(
    engine: Any, queue: Stream, main: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = queue.logs[0]
    fill(engine, log, 3)
    lease = grant(engine, main, 3)
    assert lease is not None

    def away(*_: Any, **__: Any) -> Any:
        raise EngineUnavailable("nobody answered in time")

    with monkeypatch.context() as patch:
        patch.setattr(engine.reader, "read", away)
        patch.setattr(engine.cluster, "offsets", away)
        for ask in (lambda: engine.rows(lease.spans), lambda: engine.ends([log])):
            with pytest.raises(EngineUnavailable, match="nobody answered in time") as told:
                ask()
            assert not isinstance(told.value, StreamUnavailable), "its broker leads it"
        patch.setattr(engine.cluster, "leaderless", lambda places: list(places))
        for ask in (lambda: engine.rows(lease.spans), lambda: engine.ends([log])):
            with pytest.raises(StreamUnavailable, match="no broker leads partition 0 of topic"):
                ask()
    assert len(engine.rows(lease.spans)) == 3
