"""Limits in State, on every engine: tokens, slots, who waits for them, and who is woken when one is free."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.engines.kits import KITS, EngineKit

from respool.delivery.admin import purge, redrive
from respool.delivery.claim import Request, claim
from respool.delivery.death import Cause, bury_lease
from respool.delivery.lanes import Turns
from respool.delivery.limits import Ask, Limit, admit, bucket
from respool.delivery.model import Bucket, Change, Lease, LimitChange, Settlement, Verdict, View
from respool.delivery.settle import give_back, settle
from respool.engines.base import Engine, Group, ParkedFilter, Reads, Stream
from respool.record import first_pos, new_head

NOW = 1_700_000_000.0
ALL = 1_000_000
RULE = "shop/task send"
numbers = itertools.count(1)


@pytest.fixture(params=KITS)
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineKit]:
    made = KITS[request.param](request, tmp_path, "os")
    yield made
    made.remove()


def replay_of(engine: Engine, queue: Stream, name: str = "v2") -> Group:
    group = engine.create_group(
        queue, "shop", name, "replay", {}, [(log, first_pos(log), None) for log in queue.logs]
    )
    assert group is not None
    return group


def fill(engine: Engine, queue: Stream, amount: int) -> None:
    engine.append_run(queue.logs[0], "send", [b"%d" % n for n in range(amount)], None, new_head(NOW), NOW)


def limit(rate: float | None = None, burst: float = 1.0, slots: int | None = None) -> Bucket:
    return bucket(RULE, "", Limit(rate, burst, slots), NOW)


def grant(
    engine: Engine,
    group: Group,
    want: int,
    now: float = NOW,
    owner: int = 1,
    most_new: int = 4096,
    lanes: Turns | None = None,
) -> Lease | None:
    request = Request(want, owner, 0, owner << 40 | next(numbers), now, lanes=lanes, most_new=most_new)
    reads = Reads(group.id, positions=True, due=want, returned=ALL, now=now, open=64)
    lease: Lease | None = engine.transact(reads, lambda view, change: claim(view, change, request))
    return lease


def ask(
    engine: Engine, group: Group, lease: Lease, *buckets: Bucket, now: float = NOW, most: int = ALL
) -> Lease | None:
    """Let in what may be of all of a lease."""
    asks = [Ask(pos, "send", buckets) for pos in positions_of(lease)]
    after: Lease | None = engine.transact(
        Reads(group.id, (lease.id,), now=now, buckets=[one.id for one in buckets]),
        lambda view, change: admit(view, change, lease.id, lease.owner or 0, asks, most, now),
    )
    return after


def start(
    engine: Engine, group: Group, want: int, *buckets: Bucket, owner: int = 1, now: float = NOW
) -> Lease:
    """Claim, and let in; return what may run."""
    lease = grant(engine, group, want, now, owner)
    assert lease is not None
    after = ask(engine, group, lease, *buckets, now=now)
    assert after is not None
    return after


def finish(engine: Engine, group: Group, lease: Lease, *verdicts: Verdict, release: bool = False) -> bool:
    done = [] if release else [(span.lo, span.hi) for span in lease.spans]
    said = Settlement(lease.id, lease.owner or 0, done, list(verdicts), ended=NOW, release=release)
    return bool(engine.transact(Reads(group.id, (lease.id,)), lambda v, c: settle(v, c, said)))


def positions_of(lease: Lease) -> list[int]:
    return [pos for span in lease.spans for pos in range(span.lo, span.hi)]


def limited(engine: Engine, group: Group) -> list[int]:
    return sorted(parked.pos for _, parked in engine.parked(ParkedFilter([group.id], ("limited",)), ALL))


def offsets(positions: Sequence[int]) -> list[int]:
    return [pos & (1 << 40) - 1 for pos in positions]


def test_a_rate_holds_over_all_leases_and_nothing_spins(engine: Engine, queue: Stream, main: Group) -> None:
    fill(engine, queue, 30)
    ten = limit(10.0, 5.0)
    assert offsets(positions_of(start(engine, main, 15, ten))) == [0, 1, 2, 3, 4]
    assert offsets(positions_of(start(engine, main, 15, ten, owner=2))) == [], "those wait, and so do these"
    assert offsets(limited(engine, main)) == list(range(5, 30))
    assert engine.counts(main).parked == {"limited": 25}
    assert engine.counters(main.id) == {"limited": 25}
    assert engine.limited(main.id, 10) == 10
    assert engine.limited(main.id, 100) == 25
    assert not engine.has_work(main.id, NOW, ())
    assert grant(engine, main, 10) is None
    due = engine.next_due(main.id)
    assert due == pytest.approx(NOW + 0.15)
    assert engine.has_work(main.id, NOW + 0.16, ())
    lease = grant(engine, main, 10, NOW + 0.16)
    assert lease is not None
    assert offsets(positions_of(lease)) == [5], "in their turn"
    assert offsets(positions_of(grant(engine, main, 10, NOW + 10) or lease)) == [6, 7, 8, 9, 10], "the burst"


def test_a_priority_overtakes_among_those_that_wait_and_starves_none(
    engine: Engine, queue: Stream, main: Group
) -> None:
    """Of one bucket the high lane comes first, the low ones get their turns, and the rate holds (H11)."""
    one = limit(10.0, burst=2.0)
    queue = engine.add_lane(engine.add_lane(queue, 9), 2)
    lanes = {9: queue.lanes[9][0], 4: queue.logs[0], 2: queue.lanes[2][0]}
    for log in (lanes[4], lanes[2], lanes[9]):
        bodies = [b"%d" % n for n in range(60)]
        engine.append_run(log, "send", bodies, None, new_head(NOW), NOW)
    turns = Turns()
    started: list[int] = []
    while (lease := grant(engine, main, 60, lanes=turns)) is not None:
        after = ask(engine, main, lease, one)
        assert after is not None
        if after.spans:
            started += positions_of(after)
            finish(engine, main, after)
    assert len(limited(engine, main)) == 178
    priority = {log: lane for lane, log in lanes.items()}
    for n in range(1, 101):
        now = NOW + n * 0.2
        while (lease := grant(engine, main, 60, now, most_new=0, lanes=turns)) is not None:
            started += positions_of(lease)
            finish(engine, main, lease)
        assert len(started) <= 2 + n * 2 + 1e-6, "the rate holds"
    by_lane = {lane: [pos for pos in started if priority[pos >> 40] == lane] for lane in lanes}
    assert all(positions == sorted(positions) for positions in by_lane.values())
    first = [priority[pos >> 40] for pos in started[:40]]
    assert first.count(9) >= 24, "the high one comes first"
    assert first.count(4) > first.count(2) > 0, "and the low ones get their share"
    assert len(started) >= 170


def test_a_status_tells_that_a_record_is_limited(engine: Engine, queue: Stream, main: Group) -> None:
    fill(engine, queue, 2)
    ten = limit(10.0)
    start(engine, main, 2, ten)
    status = engine.status(main, limited(engine, main)[0])
    assert status.place == "parked"
    assert status.parked is not None
    assert (status.parked.reason, status.parked.waits) == ("limited", ten.id)
    (known,) = engine.buckets([ten.id])
    assert (known.rule, known.rate, known.tokens) == (RULE, 10.0, 0.0)
    (stored,) = engine.leases(main)
    assert stored.admitted == {ten.id: [(stored.spans[0].lo, stored.spans[0].hi)]}


ENDINGS = ["settled", "released", "given back", "died", "taken over"]


def end(engine: Engine, main: Group, lease: Lease, how: str) -> None:
    """Have a lease end in one of these ways."""
    if how in ("settled", "released"):
        assert finish(engine, main, lease, release=how == "released")
    elif how == "given back":
        ranges = [(span.lo, span.hi) for span in lease.spans]
        engine.transact(
            Reads(main.id, (lease.id,)), lambda v, c: give_back(v, c, lease.id, 1, ranges, next(numbers))
        )
    else:
        cause = Cause.CHILD if how == "died" else Cause.WORKER
        engine.transact(
            Reads(main.id, (lease.id,)), lambda v, c: bury_lease(v, c, lease.id, 1, cause, None, (), NOW)
        )


@pytest.mark.parametrize("how", ENDINGS)
def test_whatever_ends_a_lease_frees_its_slot(engine: Engine, queue: Stream, main: Group, how: str) -> None:
    fill(engine, queue, 4)
    single = limit(slots=1)
    lease = start(engine, main, 2, single)
    assert len(positions_of(lease)) == 2
    assert positions_of(start(engine, main, 2, single, owner=2)) == []
    assert engine.next_due(main.id) is None, "a slot must be freed, and no time does that"
    assert not engine.has_work(main.id, NOW + 1e6, ())
    end(engine, main, lease, how)
    assert engine.has_work(main.id, NOW, ())
    while (again := grant(engine, main, 4, NOW, owner=3)) is not None:
        after = ask(engine, main, again, single)
        assert after is not None
        if after.spans:
            assert finish(engine, main, after)
    assert engine.counts(main)[:4] == (0, 0, 0, {})


@pytest.mark.parametrize("how", [*ENDINGS, "group dropped", "another limit", "overlooked"])
def test_who_waits_for_a_slot_is_rung_for_whatever_they_serve(
    kit: EngineKit, engine: Engine, queue: Stream, main: Group, how: str
) -> None:
    """A limit may be shared by two queues; who frees it serves one of them."""
    other = engine.create_stream("queue", "shop", "other", 2, {})
    theirs = next(group for group in engine.groups() if group.stream == other.id)
    for each in (queue, other):
        fill(engine, each, 1)
    single, again = limit(slots=1), replay_of(engine, queue)
    if how == "overlooked":  # a ring, and a write, that were lost
        lease = start(engine, main, 1, single)
        start(engine, theirs, 1, single, owner=2)
        finish(engine, main, lease)
        reads = Reads(theirs.id, now=NOW, buckets=[single.id])
        engine.transact(reads, lambda view, change: wait_for_a_slot(change, single.id))
    else:
        lease = start(engine, again if how == "group dropped" else main, 1, single)
        assert positions_of(start(engine, theirs, 1, single, owner=2)) == []
    mine, sleeper = kit.open().sleeper(queue.logs, 6), kit.open().sleeper(other.logs, 7)
    mine.prepare()
    sleeper.prepare()
    if how == "another limit":
        engine.declare_limit(RULE, Limit(None, 1.0, 2))
    elif how == "overlooked":
        engine.sweep_limits(0.0, ALL)
    elif how == "group dropped":
        engine.drop_group(again)
    else:
        end(engine, main, lease, how)
    assert sleeper.sleep(10), "rung before it slept"
    assert not mine.sleep(0), "nothing there waits for it"


def wait_for_a_slot(change: Change, one: int) -> None:
    change.limits = LimitChange()
    change.limits.next[one] = None


def test_a_group_that_is_dropped_frees_its_slots(engine: Engine, queue: Stream, main: Group) -> None:
    fill(engine, queue, 2)
    single, other = limit(slots=1), replay_of(engine, queue)
    start(engine, other, 2, single)
    assert positions_of(start(engine, main, 2, single)) == []
    engine.drop_group(other)
    assert len(positions_of(grant(engine, main, 2) or Lease(0, 0, 0, []))) == 2


def test_a_replay_shares_the_limits_of_its_task(engine: Engine, queue: Stream, main: Group) -> None:
    fill(engine, queue, 6)
    ten, other = limit(10.0, 5.0), replay_of(engine, queue)
    assert len(positions_of(start(engine, main, 3, ten))) == 3
    assert len(positions_of(start(engine, other, 3, ten))) == 2


def test_the_start_of_what_is_not_run_goes_to_the_next(engine: Engine, queue: Stream, main: Group) -> None:
    """A call that expired while it waited for its limit ends without a run."""
    fill(engine, queue, 2)
    once = limit(rate=0.01, slots=1)
    lease = start(engine, main, 2, once)
    assert offsets(positions_of(lease)) == [0]
    assert limited(engine, main) == [first_pos(queue.logs[0]) + 1]
    assert not engine.has_work(main.id, NOW, ())
    reads = Reads(main.id, (lease.id,), now=NOW, buckets=[once.id])
    idle = positions_of(lease)
    after = engine.transact(reads, lambda v, c: admit(v, c, lease.id, 1, [], ALL, NOW, idle))
    assert positions_of(after) == idle, "it stays in the lease, and is to be said to have ended"
    assert after.admitted == {}
    assert engine.has_work(main.id, NOW, ())
    following = grant(engine, main, 2, owner=2)
    assert following is not None
    assert offsets(positions_of(following)) == [1]
    assert finish(engine, main, after)
    assert finish(engine, main, following)
    assert not engine.has_work(main.id, NOW, ())


def test_a_start_that_did_not_come_to_be_is_no_start(engine: Engine, queue: Stream, main: Group) -> None:
    fill(engine, queue, 5)
    ten = limit(10.0, 5.0)
    finish(engine, main, start(engine, main, 5, ten), release=True)
    assert engine.buckets([ten.id])[0].tokens == 5.0
    assert len(positions_of(start(engine, main, 5, ten))) == 5


def test_purge_ends_what_waits_and_no_bucket_is_looked_at_again(
    engine: Engine, queue: Stream, main: Group
) -> None:
    fill(engine, queue, 5)
    ten = limit(10.0)
    finish(engine, main, start(engine, main, 5, ten))
    waiting = limited(engine, main)
    reads = Reads(main.id, positions=True, returned=ALL, parked=waiting)
    assert engine.transact(reads, lambda v, c: purge(v, c, v.due, b"gone", NOW)) == 4
    assert limited(engine, main) == []
    assert grant(engine, main, 5, NOW + 10) is None
    assert engine.next_due(main.id) is None
    assert not engine.has_work(main.id, NOW + 20, ())


def test_a_retry_and_a_redriven_dead_letter_wait_too(engine: Engine, queue: Stream, main: Group) -> None:
    fill(engine, queue, 2)
    ten = limit(10.0, 2.0)
    lease = start(engine, main, 2, ten)
    first, second = positions_of(lease)
    finish(
        engine,
        main,
        lease,
        Verdict(first, reason="retry", due=NOW, task="send", retried=True, note="retry: x"),
        Verdict(second, "failure", b"e", "dead", task="send", error=b"e", note="failed: x"),
    )
    engine.transact(Reads(main.id, parked=[second]), lambda v, c: redrive(v, v.due, c, NOW))
    assert positions_of(start(engine, main, 2, ten)) == []
    found = {parked.pos: parked for _, parked in engine.parked(ParkedFilter([main.id]), ALL)}
    assert {parked.reason for parked in found.values()} == {"limited"}
    assert (found[first].retries, found[second].redrives) == (1, 1)


def test_a_limit_that_is_changed_holds_for_those_who_wait(engine: Engine, queue: Stream, main: Group) -> None:
    fill(engine, queue, 5)
    slow = limit(1 / 3600)
    finish(engine, main, start(engine, main, 5, slow))
    engine.declare_limit(RULE, Limit(1 / 3600, 1.0, None))  # the same: nothing happens
    assert not engine.has_work(main.id, NOW + 1, ())
    engine.declare_limit("shop/task other", Limit(1000.0, 10.0, None))
    assert not engine.has_work(main.id, NOW + 1, ())
    engine.declare_limit(RULE, Limit(1000.0, 10.0, None))
    assert engine.has_work(main.id, NOW + 1, ())
    assert len(positions_of(grant(engine, main, 5, NOW + 1) or Lease(0, 0, 0, []))) == 4


def test_buckets_that_are_full_and_unused_are_forgotten(engine: Engine, queue: Stream, main: Group) -> None:
    fill(engine, queue, 4)
    ten, single = limit(10.0), bucket("shop/queue default", "", Limit(None, 1.0, 1), NOW)
    lease = start(engine, main, 2, ten, single)
    assert len(positions_of(lease)) == 1
    assert engine.sweep_limits(NOW + 100, 10) == 0, "somebody waits for one, a lease has the other's slot"
    assert len(engine.buckets([ten.id, single.id])) == 2
    finish(engine, main, lease)
    again = grant(engine, main, 1, NOW + 100)
    assert again is not None
    finish(engine, main, ask(engine, main, again, ten, single, now=NOW + 100) or again)
    assert engine.sweep_limits(NOW + 50, 10) == 1, "the slot's; the other was used since"
    assert engine.sweep_limits(NOW + 1000, 10) == 1
    assert engine.buckets([ten.id, single.id]) == []


def test_nobody_waits_for_ever_for_a_ring_that_was_lost(engine: Engine, queue: Stream, main: Group) -> None:
    fill(engine, queue, 2)
    single = limit(slots=1)
    lease = start(engine, main, 1, single)
    assert positions_of(start(engine, main, 1, single, owner=2)) == []

    def silently(view: View, change: Change) -> None:
        change.dropped_leases.append(lease.id)

    engine.transact(Reads(main.id), silently)
    assert not engine.has_work(main.id, NOW + 1, ())
    engine.sweep_limits(NOW, 10)
    assert engine.has_work(main.id, NOW + 1, ())
    assert grant(engine, main, 1, NOW + 1) is not None


def test_who_waits_for_a_slot_is_looked_at_where_there_is_one(
    engine: Engine, queue: Stream, main: Group
) -> None:
    """Not again and again while all are taken; a page of those that are waited for at a time."""
    fill(engine, queue, 6)
    leases = []
    for key in ("a", "b", "c"):
        one = bucket(RULE, key, Limit(None, 1.0, 1), NOW)
        leases.append(start(engine, main, 1, one))
        assert positions_of(start(engine, main, 1, one, owner=2)) == []
    engine.sweep_limits(NOW, 10)
    assert not engine.has_work(main.id, NOW + 1, ())

    def silently(view: View, change: Change) -> None:
        change.dropped_leases.extend(lease.id for lease in leases[:2])

    engine.transact(Reads(main.id), silently)
    for _ in range(4):
        engine.sweep_limits(NOW, 1)
    found = [positions_of(grant(engine, main, 1, NOW + 1) or Lease(0, 0, 0, [])) for _ in range(3)]
    assert [len(each) for each in found] == [1, 1, 0]


def test_many_who_claim_at_once_keep_a_limit_together(
    kit: EngineKit, engine: Engine, queue: Stream, main: Group
) -> None:
    """In two groups, whose transactions run side by side where the engine can."""
    fill(engine, queue, 400)
    few, groups = limit(10.0, 50.0, slots=3), [main, replay_of(engine, queue)]
    engines = [kit.open() for _ in range(4)]
    began, lock = threading.Barrier(4), threading.Lock()
    holding: set[int] = set()
    most, total = 0, 0

    def work(owner: int) -> None:
        nonlocal most, total
        mine, group = engines[owner], groups[owner % 2]
        began.wait()
        for _ in range(15):
            lease = grant(mine, group, 10, owner=owner + 1)
            if lease is None:
                continue
            after = ask(mine, group, lease, few)
            if after is None or not after.spans:
                continue
            with lock:
                holding.add(after.id)
                most, total = max(most, len(holding)), total + len(positions_of(after))
            with lock:
                holding.discard(after.id)
            assert finish(mine, group, after)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, owner) for owner in range(4)]:
            done.result()
    assert most <= 3
    assert total == 50, "no time went by: the burst and no more"
