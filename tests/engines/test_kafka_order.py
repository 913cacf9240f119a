"""Order by key, and unique calls, where the log is in Kafka and what is known of it elsewhere (P8, H16)."""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from tests.engines.kits import KafkaKit, eventually
from tests.engines.test_conformance import finish, granted, numbers, row
from tests.engines.test_kafka import app as app
from tests.engines.test_kafka import dies
from tests.engines.test_kafka import kit as kit
from tests.services.fixtures import KafkaAddress

from respool import App, AppendUnknown
from respool.delivery.claim import Request, claim
from respool.delivery.model import Lease, NewCall, Verdict
from respool.delivery.order import Claimant
from respool.delivery.settle import give_back
from respool.delivery.spans import ranges_of
from respool.engines.base import Group, Reads, Stream
from respool.engines.kafka import ahead
from respool.engines.kafka.outbox import Outbox
from respool.engines.kafka.stays import MUCH
from respool.keys import key_hash
from respool.record import Meta, first_pos, log_of, new_head
from respool.testing import work

NOW = 1_700_000_000.0


@pytest.fixture
def orders(engine: Any) -> Stream:
    return engine.create_stream("queue", "shop", "orders", 1, {"ordered": True})  # type: ignore[no-any-return]


@pytest.fixture
def main(engine: Any, orders: Stream) -> Group:
    return next(group for group in engine.groups() if group.stream == orders.id)


def keyed(log: int, key: str, body: bytes = b"b", id: Any = None, time: float = NOW) -> NewCall:
    return NewCall(log, "add", body, Meta(key=key).packed(), id or new_head(time), time, key_hash(key))


def grant(engine: Any, group: Group, want: int, child: int = 0, now: float = NOW) -> Lease | None:
    who = Claimant(1, child, want)
    request = Request(want, 1, child, 1 << 32 | child << 24 | next(numbers), now, ordered=who)
    reads = Reads(group.id, (), True, want, 99, now, ordered=who)
    return engine.transact(reads, lambda view, change: claim(view, change, request))  # type: ignore[no-any-return]


# Claims


def test_a_claim_reads_keys_before_it_locks_and_its_records_once(
    engine: Any, orders: Stream, main: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a claim has read to decide is what its worker runs; another child gets what is free of it."""
    log, first = orders.logs[0], first_pos(orders.logs[0])
    for n in range(20):
        engine.append_rows([keyed(log, f"k{n % 2}", b"%d" % n, time=time.time())])
    reads: list[Any] = []
    locked = threading.local()
    inner_read, inner_transact = engine.reader.read, engine.inner.transact

    def read(ranges: Any) -> Any:
        assert not getattr(locked, "now", False), "Kafka is asked while the state is locked"
        reads.append(ranges)
        return inner_read(ranges)

    def transact(*args: Any, **kwargs: Any) -> Any:
        locked.now = True
        try:
            return inner_transact(*args, **kwargs)
        finally:
            locked.now = False

    monkeypatch.setattr(engine.reader, "read", read)
    monkeypatch.setattr(engine.inner, "transact", transact)
    one = grant(engine, main, 1)
    assert granted(one) == [first]
    assert one is not None
    assert [r[2] for r in engine.rows(one.spans)] == [b"0"]
    assert len(reads) == 1
    two = grant(engine, main, 9, child=1)
    assert granted(two) == [first + n for n in range(1, 19, 2)], "k0 is taken: all of k1"
    assert two is not None
    assert [r[2] for r in engine.rows(two.spans)] == [b"%d" % n for n in range(1, 19, 2)]
    assert len(reads) == 1, "it was all at hand"
    finish(engine, main, one)
    three = grant(engine, main, 99)
    assert granted(three) == [first + n for n in range(2, 19, 2)]
    assert three is not None
    assert [r[2] for r in engine.rows(three.spans)] == [b"%d" % n for n in range(2, 19, 2)]


def test_bodies_beyond_what_is_kept_are_read_again(
    engine: Any, orders: Stream, main: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "BYTES", 100)
    log = orders.logs[0]
    bodies = [b"%d" % n * 30 for n in range(9)]
    engine.append_rows([keyed(log, f"k{n}", body, time=time.time()) for n, body in enumerate(bodies)])
    lease = grant(engine, main, 9)
    assert lease is not None
    assert [r[2] for r in engine.rows(lease.spans)] == bodies
    assert engine._ahead.size[0] <= 100


def test_a_claim_that_goes_on_reads_first_and_decides_once(
    engine: Any, orders: Stream, main: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is expected to be claimed is read before, a page for several claims; so are ends (K6)."""
    log, first = orders.logs[0], first_pos(orders.logs[0])
    engine.append_rows([keyed(log, f"k{n}", b"%d" % n, time=time.time()) for n in range(MUCH + 600)])
    done: list[str] = []

    def counted(what: Any, name: str) -> None:
        inner = getattr(what, name)
        monkeypatch.setattr(what, name, lambda *a, **k: (done.append(name) if a[0] else 0, inner(*a, **k))[1])

    finish(engine, main, grant(engine, main, 50))  # type: ignore[arg-type]
    counted(engine.inner, "transact")
    counted(engine.reader, "read")
    counted(engine.cluster, "offsets")
    for turn in range(9):
        lease = grant(engine, main, 50)
        assert granted(lease) == list(range(first + 50 * (turn + 1), first + 50 * (turn + 2)))
        assert lease is not None
        assert [r[2] for r in engine.rows(lease.spans)] == [b"%d" % (pos - first) for pos in granted(lease)]
        finish(engine, main, lease)
    assert done.count("transact") == 2 * 9, "none was made in vain"
    assert done.count("read") <= 9 // (1 + ahead.SPARE) + 1
    assert done.count("offsets") < 5


def test_a_page_is_read_in_parts_where_records_are_large(
    engine: Any, orders: Stream, main: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read at once is no more than what may be kept; all that is claimed runs nevertheless."""
    monkeypatch.setattr(ahead, "BYTES", 100_000)
    log = orders.logs[0]
    bodies = [b"%4d" % n * 5000 for n in range(30)]
    engine.append_rows([keyed(log, f"k{n}", body, time=time.time()) for n, body in enumerate(bodies)])
    finish(engine, main, grant(engine, main, 1))  # type: ignore[arg-type]
    engine._ahead.forget(log)
    sizes: list[int] = []
    inner = engine.reader.read

    def read(ranges: Any) -> Any:
        sizes.append(sum(hi - lo for _, lo, hi in ranges))
        return inner(ranges)

    monkeypatch.setattr(engine.reader, "read", read)
    lease = grant(engine, main, 29)
    assert max(sizes) <= 100_000 // 20_000
    assert sum(sizes) == 29
    assert engine._ahead.size[0] <= 100_000
    assert lease is not None
    assert [r[2] for r in engine.rows(lease.spans)] == bodies[1:]


def test_what_is_blocked_outlives_its_topics_records(
    kit: KafkaKit, engine: Any, orders: Stream, main: Group
) -> None:
    """H15: a claim parks what waits for its key with what it has read."""
    log, first = orders.logs[0], first_pos(orders.logs[0])
    engine.append_rows([keyed(log, key, b"%d" % n) for n, key in enumerate("aaab")])
    one = grant(engine, main, 1)
    two = grant(engine, main, 9, child=1)
    assert (granted(one), granted(two)) == ([first], [first + 3])
    assert one is not None
    kit.cut(log, first, first + 4)
    other = kit.open()
    finish(other, main, one, Verdict(first, reason="retry", due=NOW + 1, task="add", retried=True))
    assert grant(other, main, 9) is None
    again = grant(other, main, 9, now=NOW + 2)
    assert granted(again) == [first, first + 1, first + 2]
    assert again is not None
    assert [r[2] for r in other.rows(again.spans)] == [b"1", b"2"], "the first was not read before it was cut"
    finish(other, main, again)
    assert other.counts(main).leased == 1


def test_what_a_supervisor_gives_back_is_fetched_together(
    kit: KafkaKit, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5: nobody beats meanwhile, however much a long run gives back. It is kept whole (H15)."""
    wide = engine.create_stream("queue", "shop", "wide", 2, {"ordered": True})
    main = next(group for group in engine.groups() if group.stream == wide.id)
    blocked: dict[int, bytes] = {}
    for log in wide.logs:
        keys = ["a" if n < 600 or n % 250 == 0 else "b" for n in range(1200)]
        calls = [keyed(log, f"{key}{log}", b"%d" % n) for n, key in enumerate(keys)]
        engine.append_rows(calls)
        blocked |= {first_pos(log) + n: b"%d" % n for n, key in enumerate(keys) if n and key == "a"}
    lease = grant(engine, main, 5000)
    assert lease is not None
    assert {log_of(pos) for pos in granted(lease)} == set(wide.logs), "both in one"
    id, ranges, other = lease.id, ranges_of(blocked), kit.open()
    done: list[str] = []

    with monkeypatch.context() as patched:
        for what, name in ((other.inner, "rows"), (other.cluster, "offsets"), (other.seeker, "read")):
            inner = getattr(what, name)
            patched.setattr(
                what, name, lambda *a, i=inner, n=name, **k: (done.append(n) if a[0] else 0, i(*a, **k))[1]
            )
        given = other.transact(
            Reads(main.id, (id,)), lambda v, c: give_back(v, c, id, 1, ranges, 1 << 32 | next(numbers))
        )
    assert given == len(blocked)
    assert other.counts(main).parked == {"blocked": len(blocked)}
    assert (done.count("rows"), done.count("offsets")) == (1, 2), "where they begin, and end"
    assert done.count("read") <= 5
    for log in wide.logs:
        kit.cut(log, first_pos(log), first_pos(log) + 1200)
    assert {each.pos: each.body for each in other.records(min(blocked), max(blocked) + 1, 9999)} == blocked


def test_a_cursor_below_what_was_trimmed_goes_on_and_says_what_is_lost(
    kit: KafkaKit, engine: Any, orders: Stream, main: Group
) -> None:
    log, first = orders.logs[0], first_pos(orders.logs[0])
    engine.append_rows([keyed(log, f"k{n % 3}", b"%d" % n) for n in range(10)])
    kit.cut(log, first, first + 4)
    lease = grant(engine, main, 99)
    assert granted(lease) == list(range(first, first + 10))
    assert lease is not None
    assert [r[2] for r in engine.rows(lease.spans)] == [b"%d" % n for n in range(4, 10)]
    finish(engine, main, lease)
    assert engine.counters(main.id)["lost: trimmed before they were done"] == 4


def test_other_programs_keys_are_kept_in_order_too(kit: KafkaKit, app: App, kafka: KafkaAddress) -> None:
    """A topic that others write, where transactions have left holes in its offsets."""
    topic = f"{kit.prefix}payments"
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.create_topics([NewTopic(topic, 1)])[topic].result(30)
    other = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": uuid.uuid4().hex})
    other.init_transactions()
    wanted: dict[str, list[int]] = {}
    for n in range(30):
        other.begin_transaction()
        key = f"k{n % 4}"
        other.produce(topic, b"%d" % n, key=key)
        if n % 5 == 4:
            other.abort_transaction()
        else:
            other.commit_transaction()
            wanted.setdefault(key, []).append(n)
    seen: list[tuple[str, int]] = []
    payments = app.stream(topic, foreign=True)

    @payments.subscribe(group="audit", start="earliest", ordered=True, bind=True, autoretry_for=(OSError,),
                        default_retry_delay=0, max_retries=1)  # fmt: skip
    def audit(self: Any, payment: int) -> None:
        seen.append((self.request.key, payment))
        if payment % 3 == 0 and not self.request.retries:
            raise OSError

    work(app)
    for key, numbers_ in wanted.items():
        expected = [n for number in numbers_ for n in ([number] * 2 if number % 3 == 0 else [number])]
        assert [n for k, n in seen if k == key] == expected


# Calls of runs


def test_calls_of_one_key_are_relayed_in_their_order(
    kit: KafkaKit, engine: Any, orders: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process is slow to send what it has taken; another with later calls of that key waits for it."""
    log, now = orders.logs[0], time.time()
    other: Any = kit.open()
    taken, go_on = threading.Event(), threading.Event()
    send = engine.outbox._send_to

    def slowly(*args: Any) -> Any:
        taken.set()
        assert go_on.wait(20)
        return send(*args)

    monkeypatch.setattr(engine.outbox, "_send_to", slowly)
    first = threading.Thread(target=engine.append_row, args=(keyed(log, "a", b"1", "shop\0one", now),))
    second = threading.Thread(target=other.append_row, args=(keyed(log, "a", b"2", "shop\0two", now),))
    first.start()
    assert taken.wait(20)
    second.start()
    eventually(lambda: other.inner.find("\x01kafka", "tshop\0two") is not None)
    other.append_row(keyed(log, "b", b"3", "shop\0three", now))
    other.append_row(row(log, b"4", "shop\0four", now))
    bodies = [r.body for r in other.records(first_pos(log), first_pos(log) + 9, 9)]
    go_on.set()
    first.join(20)
    second.join(20)
    assert sorted(bodies) == [b"3", b"4"], "other keys do not wait"
    bodies = [r.body for r in other.records(first_pos(log), first_pos(log) + 9, 9)]
    assert bodies.index(b"1") < bodies.index(b"2")
    assert len(bodies) == 4


def test_what_could_not_be_sent_stays_before_what_comes_after_it(
    kit: KafkaKit, engine: Any, orders: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, now = orders.logs[0], time.time()
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "_send_to", dies)
        with pytest.raises(KeyboardInterrupt):
            engine.append_row(keyed(log, "a", b"1", "shop\0one", now))
    other: Any = kit.open()
    other.append_row(keyed(log, "a", b"2", "shop\0two", now))
    assert [r.body for r in other.records(first_pos(log), first_pos(log) + 9, 9)] == [b"1", b"2"]


# Unique calls


def test_a_producer_that_dies_leaves_a_call_and_its_lock(
    kit: KafkaKit, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are stored at once; whoever relays next sends it. Until then the key is taken, and known to be."""
    queue = engine.create_stream("queue", "shop", "default", 1, {})
    call = row(queue.logs[0], b"1", new_head(time.time()), time.time())
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "_claim", dies)
        with pytest.raises(KeyboardInterrupt):
            engine.append_unique(call, "k", None, None)
    other: Any = kit.open()
    lock = other.lock_of("k")
    assert (lock.id, lock.placed) == (call.id, False)
    assert other.append_unique(row(queue.logs[0], b"2", new_head(time.time())), "k", None, None) is None
    assert other.sweep_locks(time.time(), 99) == 0, "it has not ended"
    other.tidy_now()
    lock = other.lock_of("k")
    assert (lock.id, lock.placed, lock.pos) == (call.id, True, first_pos(queue.logs[0]))
    assert other.bounds(queue) == [(queue.logs[0], lock.pos, lock.pos + 1)]


def test_a_lock_of_what_is_on_its_way_says_until_when_that_may_begin(
    kit: KafkaKit, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sends the same then need not wait for a call that will not run."""
    queue = engine.create_stream("queue", "shop", "default", 1, {})
    soon = row(queue.logs[0], b"1", new_head(time.time()), time.time())
    soon.meta = Meta(expires=5.0).packed()
    ever = row(queue.logs[0], b"1", new_head(time.time()), time.time())
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "_claim", dies)
        for call, key in ((soon, "soon"), (ever, "ever")):
            with pytest.raises(KeyboardInterrupt):
                engine.append_unique(call, key, None, None)
    other: Any = kit.open()
    locks = [other.lock_of(key) for key in ("soon", "ever")]
    assert [(lock.placed, lock.expires) for lock in locks] == [(False, 5.0), (False, None)]
    fresh = row(queue.logs[0], b"2", new_head(time.time()), time.time())
    assert other.append_unique(fresh, "soon", soon.id, None) is not None
    other.tidy_now()
    lock = other.lock_of("soon")
    assert (lock.id, lock.placed, lock.expires) == (fresh.id, True, None), "not where the first one is by now"


def test_a_key_stays_taken_beyond_the_window_of_ids(engine: Any) -> None:
    """The outbox forgets what it has sent; the lock names where the call is in Kafka."""
    queue = engine.create_stream("queue", "shop", "default", 1, {})
    call = row(queue.logs[0], b"1", new_head(time.time()), time.time())
    pos = engine.append_unique(call, "k", None, None)
    for box in engine.outbox.boxes:
        while engine.inner.trim(box.stream, time.time() + 1e6, 5000):
            continue
    assert engine.sweep_locks(time.time(), 99) == 0
    assert engine.lock_of("k")[1:5] == (call.id, pos, None, True)


def test_an_unknown_append_of_a_unique_call_is_sent_again_with_its_id(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(unique=True)
    def build(n: int) -> int:
        return n

    _ = app.engine

    def broken(*args: Any) -> Any:
        raise AppendUnknown("the broker is away")

    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "_send_to", broken)
        for _ in range(2):
            with pytest.raises(AppendUnknown):
                build.apply_async((1,), task_id="mine")
        assert build.delay(1).id == "mine", "it is on its way, and keeps others out"
    result = build.apply_async((1,), task_id="mine")
    assert build.delay(1) == result
    work(app)
    assert result.get(timeout=5) == 1
    assert build.delay(1) != result
