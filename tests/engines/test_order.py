"""Order in State, on every engine: which keys are free, whose records wait for them, and until when (P8)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.engines.kits import KITS, EngineKit

from respool.delivery.admin import drop
from respool.delivery.claim import Request, claim
from respool.delivery.death import Cause, Suspect, bury_lease
from respool.delivery.lapse import lapse
from respool.delivery.model import LIMITED, WAITING, Change, Lease, NewCall, Parked, Settlement, Verdict, View
from respool.delivery.order import Claimant, packed_keys, stopped_keys
from respool.delivery.settle import give_back, settle
from respool.delivery.spans import Span
from respool.engines.base import Engine, ParkedFilter, Reads
from respool.keys import key_hash
from respool.record import Meta, first_pos, new_head

NOW = 1_700_000_000.0
ALL = 1_000_000
numbers = itertools.count(1)


class Orders:
    """A queue in order; of a record the keys and places stand as a test says them, places from 0 on."""

    def __init__(self, engine: Engine, partitions: int) -> None:
        self.engine = engine
        self.stream = engine.create_stream("queue", "shop", "orders", partitions, {"ordered": True})
        self.main = next(group for group in engine.groups() if group.stream == self.stream.id)

    def pos(self, place: int, partition: int = 0) -> int:
        return first_pos(self.stream.logs[partition]) + place

    def fill(self, keys: str, partition: int = 0) -> None:
        for key in keys:
            packed = Meta(key=key).packed()
            row = NewCall(self.stream.logs[partition], "add", b"b", packed, new_head(NOW), NOW, key_hash(key))
            self.engine.append_rows([row])

    def take(self, want: int, *, child: int = 0, room: int = 1000, now: float = NOW) -> Lease | None:
        who = Claimant(1, child, want, 0, room)
        request = Request(want, 1, child, 1 << 32 | next(numbers), now, ordered=who)
        reads = Reads(self.main.id, positions=True, due=want, returned=ALL, now=now, ordered=who)
        return self.engine.transact(reads, lambda view, change: claim(view, change, request))

    def places(self, lease: Lease | None) -> list[int]:
        """Return what was granted, of whichever partition."""
        found = [] if lease is None else [pos for span in lease.spans for pos in range(span.lo, span.hi)]
        return [pos % (1 << 40) for pos in found]

    def settle(self, lease: Lease, places: Sequence[int], **more: object) -> None:
        """End some of a lease's records, in the first partition."""
        done = [(self.pos(place), self.pos(place) + 1) for place in places]
        settlement = Settlement(lease.id, 1, done, ended=NOW, **more)  # type: ignore[arg-type]
        assert self.engine.transact(
            Reads(self.main.id, (lease.id,)), lambda view, change: settle(view, change, settlement)
        )

    def give_back(self, lease: Lease, place: int) -> None:
        ranges, new = [(self.pos(place), self.pos(place) + 1)], 1 << 32 | next(numbers)
        given = self.engine.transact(
            Reads(self.main.id, (lease.id,)),
            lambda view, change: give_back(view, change, lease.id, 1, ranges, new),
        )
        assert given == 1

    def write(self, leases: Sequence[Lease] = (), parked: Sequence[Parked] = ()) -> None:
        """Write what another feature leaves, as it is."""

        def decide(view: View, change: Change) -> None:
            change.leases.extend(leases)
            change.parked.extend(parked)

        self.engine.transact(Reads(self.main.id), decide)

    def write_by(self, reads: Reads, decide: Callable[[View, Change], object]) -> None:
        """Write what something decides, which is to have something to do."""
        assert self.engine.transact(reads, decide)

    def stopped(self, places: Sequence[int], key: str, until: float) -> Lease:
        """Return a lease of records whose task is stopped."""
        spans = [Span(self.pos(place), self.pos(place) + 1) for place in places]
        keys = packed_keys(spans, {self.pos(place): key_hash(key) for place in places})
        return Lease(next(numbers), WAITING, LIMITED, spans, {}, until, keys=keys)

    def redriven(self, place: int, key: str) -> Parked:
        """Return a dead letter that is to run again now."""
        return Parked(self.pos(place), "scheduled", NOW, "add", redrives=1, at=NOW, key=key_hash(key))

    def blocked(self) -> int:
        return self.engine.counts(self.main).parked.get("blocked", 0)


@pytest.fixture(params=KITS)
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineKit]:
    made = KITS[request.param](request, tmp_path, "os")
    yield made
    made.remove()


@pytest.mark.parametrize(("room", "taken", "blocked"), [(3, [], 0), (5, [6], 5)])
def test_no_more_is_blocked_for_its_key_than_there_is_room_for(
    engine: Engine, room: int, taken: list[int], blocked: int
) -> None:
    """H13: beyond that the cursor waits, and what is behind it with it."""
    orders = Orders(engine, 1)
    orders.fill("aaaaaab")
    assert orders.places(orders.take(1)) == [0], "a is taken from now on"
    assert orders.places(orders.take(5, child=1, room=room)) == taken
    assert orders.blocked() == blocked
    assert engine.counts(orders.main).pending == 6 - blocked - len(taken)


def test_a_partition_without_room_keeps_nobody_from_the_others(engine: Engine) -> None:
    """What lies behind its cursor, of keys that are free, fills no lease (H13)."""
    orders = Orders(engine, 2)
    orders.fill("aabaac")
    orders.fill("d", partition=1)
    first = orders.take(1)
    assert first is not None
    retry = Verdict(orders.pos(0), reason="retry", due=NOW + 9, task="add", retried=True)
    orders.settle(first, [0], verdicts=[retry])
    second = orders.take(1, room=2)
    assert second is not None
    assert orders.places(second) == [2]
    orders.settle(second, [2])
    taken = orders.take(1, room=2)
    assert taken is not None, "a worker that has found nothing sleeps"
    assert taken.spans == [Span(orders.pos(0, partition=1), orders.pos(1, partition=1))]


def test_what_comes_before_a_stopped_call_of_its_key_runs(engine: Engine) -> None:
    """A dead letter is redriven while calls of its key wait for their task: nobody runs them meanwhile."""
    orders = Orders(engine, 1)
    orders.write([orders.stopped([1], "a", NOW + 9)], [orders.redriven(0, "a")])
    first = orders.take(9)
    assert orders.places(first) == [0]
    assert first is not None
    assert orders.take(9) is None, "its task is stopped"
    orders.settle(first, [0])
    assert orders.places(orders.take(9, now=NOW + 9)) == [1]


def test_what_comes_after_a_stopped_call_of_its_key_waits_for_it(engine: Engine) -> None:
    orders = Orders(engine, 1)
    orders.write([orders.stopped([0, 2], "a", NOW + 9)], [orders.redriven(1, "a")])
    assert orders.take(9) is None
    assert orders.blocked() == 1
    assert orders.places(orders.take(9, now=NOW + 9)) == [0, 1, 2]


def test_what_was_given_back_goes_on_before_a_call_that_is_put_back_as_stopped(engine: Engine) -> None:
    """It waited for the lease, in which only what comes after it was left."""
    orders = Orders(engine, 1)
    orders.fill("baaa")
    lease = orders.take(9)
    assert lease is not None
    orders.give_back(lease, 1)
    orders.give_back(lease, 3)
    assert orders.blocked() == 2
    stopped = [Span(orders.pos(2), orders.pos(3), until=NOW + 9)]
    orders.settle(lease, [0], limited=stopped, limited_as=7, release=True)
    first = orders.take(9)
    assert orders.places(first) == [1]
    assert first is not None
    orders.settle(first, [1])
    assert orders.take(9) is None
    assert orders.places(orders.take(9, now=NOW + 9)) == [2, 3]


def test_a_stopped_key_is_taken(engine: Engine) -> None:
    """What is new of it waits; others go."""
    orders = Orders(engine, 1)
    orders.fill("aab")
    first = orders.take(1)
    assert first is not None
    orders.settle(first, [], limited=[Span(orders.pos(0), orders.pos(1), until=NOW + 9)], limited_as=7)
    assert orders.places(orders.take(9)) == [2]
    assert orders.blocked() == 1
    assert orders.places(orders.take(9, now=NOW + 9)) == [0, 1]


def test_partitions_of_which_all_is_stopped_are_not_looked_at(engine: Engine) -> None:
    """Else each claim would look at all of them for nothing, under the group's lock."""
    orders = Orders(engine, 8)
    for n, key in enumerate("abcdefgh"):
        orders.fill(key, partition=n)
    lease = orders.take(9)
    assert lease is not None
    stopped = [Span(orders.pos(0, n), orders.pos(1, n), until=NOW + 9) for n in range(8)]
    orders.settle(lease, [], limited=stopped, limited_as=7)
    orders.fill("xf", partition=5)
    for now, logs in ((NOW, 1), (NOW + 9, 8)):
        reads = Reads(orders.main.id, positions=True, due=20, now=now, ordered=Claimant(1, 0, 20))
        assert len(engine.look(reads, lambda view, change: view.order and view.order.claimed) or ()) == logs
    assert orders.places(orders.take(9)) == [1]


def test_keys_that_are_stopped_are_kept_from_claim_to_claim() -> None:
    spans = [Span(0, 20_000)]
    packed = packed_keys(spans, {pos: pos + 1 for pos in range(20_000)})
    once, again = (
        stopped_keys([Lease(1, WAITING, LIMITED, spans, keys=bytes(bytearray(packed)))]) for _ in range(2)
    )
    assert len(once) == 20_000
    assert once is again, "read anew, and nothing was made of it anew"


def test_what_was_given_back_bit_by_bit_comes_again_in_its_order(engine: Engine) -> None:
    """The first while the next was held, so it waited for that: nobody frees a key that nobody holds."""
    orders = Orders(engine, 1)
    orders.fill("aa")
    lease = orders.take(9)
    assert lease is not None
    orders.give_back(lease, 0)
    orders.give_back(lease, 1)
    assert orders.places(orders.take(9)) == [0, 1]
    assert orders.blocked() == 0


@pytest.mark.parametrize("how", ["settled", "died", "dropped", "lapsed"])
def test_who_serves_a_key_is_rung_for_when_it_is_free(kit: EngineKit, engine: Engine, how: str) -> None:
    """The worker that holds others of its partition may have a child that sleeps."""
    orders = Orders(engine, 1)
    orders.fill("aab")
    lease = orders.take(1)
    assert lease is not None
    assert orders.places(orders.take(1, child=1)) == [2]
    assert orders.blocked() == 1
    dead = Verdict(orders.pos(0), "failure", b"e", "dead", task="add", error=b"e", holds=True)
    if how == "dropped":
        orders.settle(lease, [0], verdicts=[dead])
    elif how == "lapsed":
        orders.give_back(lease, 0)
    sleeper = kit.open().sleeper(orders.stream.logs, 7)
    sleeper.prepare()
    if how == "settled":
        orders.settle(lease, [0])
    elif how == "died":
        suspect = Suspect(orders.pos(0), "add", 1, "killed", b"e")
        orders.write_by(
            Reads(orders.main.id, (lease.id,)),
            lambda view, change: bury_lease(view, change, lease.id, 1, Cause.CHILD, None, [suspect], NOW),
        )
    elif how == "dropped":
        (found,) = engine.parked(ParkedFilter((orders.main.id,), ("dead",)), 9)
        orders.write_by(
            Reads(orders.main.id, parked=(found[1].pos,)), lambda view, change: drop(view, change, NOW)
        )
    else:
        upto = {orders.stream.logs[0]: orders.pos(1)}
        orders.write_by(
            Reads(orders.main.id, positions=True, returned=ALL),
            lambda view, change: lapse(view, change, upto, NOW),
        )
    assert sleeper.sleep(10), "rung before it slept"
    assert orders.places(orders.take(9)) == [1]
