"""The delivery core, through an engine, beside the naive model: P2 is asserted after every step."""

from __future__ import annotations

import itertools
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.engines.model import Entry, GroupModel, Item, LogModel, Offer, positions_of

from respool.delivery.admin import drop, purge, redrive
from respool.delivery.batching import claim_with
from respool.delivery.claim import Request, claim
from respool.delivery.death import Cause, Suspect, bury_lease, charge_before
from respool.delivery.lanes import Turns
from respool.delivery.lapse import lapse
from respool.delivery.model import Change, Lease, NewCall, Settlement, Verdict, View
from respool.delivery.order import Claimant
from respool.delivery.seek import SeekUnderWay, begin, end_leases, finish, generation_at, rewind
from respool.delivery.seek import held as is_held
from respool.delivery.settle import give_back, settle
from respool.delivery.spans import Span
from respool.engines.base import Engine, Group, LeaseLost, ParkedFilter, Reads, Status
from respool.keys import key_hash
from respool.record import Meta, first_pos, log_of

# A failure is shrunk before it is shown, which takes longer than it took to find.
pytestmark = pytest.mark.timeout(10 * settings().max_examples)

ALL = 1_000_000
ROOM = 3  # records of a partition that may be blocked
WORKERS = (1, 2, 3)
CHILDREN = (0, 1)
GHOSTS = ("ghost", "phantom")  # tasks that not every worker knows
KINDS = (
    *(
        "plain",
        "returned",
        "value",
        "kept",
        "quiet",
        "dead",
        "thrown",
        "retry",
        "edited",
        "scheduled",
        "holding",
    ),
    *("parked", "unknown", "revoked", "skipped", "filtered", "calls", "progressed"),
)
picks = st.integers(0, 1000)  # which one of what there is
kinds = st.one_of(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=8),
    st.tuples(st.sampled_from(KINDS)),  # all of one kind
    st.tuples(st.sampled_from(("returned", "retry", "edited", "calls", "dead"))),  # what leads to more
)
wants = st.sampled_from((1, 2, 3, 5, 8, 20))
turns = st.integers(0, 5)
jumps = st.sampled_from((0.5, 1, 5, 60, 3600, 10**6, -0.5, -1, -60, -3600))
known = st.sampled_from(((), GHOSTS[:1], GHOSTS))


class Held(NamedTuple):
    """A lease as its worker knows it, whether or not it still has it."""

    group: str
    id: int
    owner: int
    child: int
    positions: tuple[int, ...]


class DeliveryMachine(RuleBasedStateMachine):
    """Runs the same events through an engine and through the model.

    There is one queue of two logs, read by `main` and by a replay that comes and goes, and a second
    queue to which the runs of the first send calls.
    """

    def __init__(self, make_engine: Callable[[], Engine], *, holes: bool) -> None:
        super().__init__()
        self.holes = holes
        self.engine = make_engine()
        # Each look is a round trip or two: what is not looked at after this step is after a later one.
        self.looks = 6 if self.engine.capabilities.many_hosts else ALL
        self.now = 1_000_000.0
        self.numbers = itertools.count(1)
        self.groups: dict[str, tuple[Group, GroupModel]] = {}
        self.generations: Counter[str] = Counter()
        self.held: list[Held] = []  # leases that a worker holds
        self.lost: deque[Held] = deque(maxlen=8)  # leases that it held once
        self.known: dict[int, Lease] = {}  # as they were when last seen: others may have changed them
        self.touched: set[int] = set()

    @initialize(records=st.integers(0, 12), ordered=st.booleans())
    def begin(self, records: int, ordered: bool) -> None:
        self.ordered = ordered
        self.queue = self.engine.create_stream("queue", "shop", "default", 2, {"ordered": ordered})
        sink = self.engine.create_stream("queue", "shop", "sink", 1, {})
        self.sink = sink.logs[0]
        self.log = LogModel((*self.queue.logs, self.sink), holes=self.holes)
        main = next(g for g in self.engine.groups() if g.stream == self.queue.id)
        self.lanes: dict[int, int] = {}
        self.turns: dict[Any, Turns] = {}
        bounds = {log: (first_pos(log), None) for log in self.queue.logs}
        self.groups["main"] = main, GroupModel(bounds, self.lanes, self.log if ordered else None)
        if records:
            self.append_run(records, 0)

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # else another error would hide the first one
                self._finish_everything()
        finally:
            self.engine.close()

    # Helpers

    def moment(self) -> float:
        """Return now; every moment is another, in steps that a float holds exactly."""
        self.now += 1 / 1024
        return self.now

    def fresh_id(self) -> bytes:
        return (next(self.numbers) << 24).to_bytes(16, "big")

    def model(self, name: str) -> GroupModel:
        return self.groups[name][1]

    def appended(self, positions: Sequence[int]) -> None:
        for _, model in self.groups.values():
            model.add(positions)
        self.touched.update(positions)

    def call(self, log: int, again: int | None = None) -> NewCall:
        """Return a new call, or one that is known already."""
        if again is not None and self.log.ids:
            id = list(self.log.ids)[again % len(self.log.ids)]
            task, body, _, _ = self.log.rows[self.log.ids[id]]
            return NewCall(log, task, body, None, id, self.moment())
        pick = next(self.numbers) * 7919 % 13 % 5
        key = f"{log}-{pick}" if pick and log in self.queue.logs else None  # a key is of one partition
        about = (None, None) if key is None else (Meta(key=key).packed(), key_hash(key))
        return NewCall(log, "child", b"c", about[0], self.fresh_id(), self.moment(), about[1])

    def pick_held(self, pick: int) -> Held:
        return self.held[pick % len(self.held)]

    def lease_id(self, owner: int, child: int) -> int:
        return owner << 32 | child << 24 | next(self.numbers)

    def transact(self, name: str, reads: dict[str, Any], decide: Callable[[View, Change], Any]) -> Any:
        self.take_in_blocked()
        return self.engine.transact(Reads(self.groups[name][0].id, **reads), decide)

    def take_in_blocked(self) -> None:
        """What the core has blocked, or freed, is checked and taken over: see `GroupModel`."""
        for group, model in self.groups.values() if self.ordered else ():
            found = {each.pos: each for _, each in self.engine.parked(ParkedFilter((group.id,)), ALL)}
            model.take_in_blocked(found, self.now)

    def sort_out(self) -> None:
        """Tell the leases that are held from those that are lost."""
        for held in self.held:
            if self.groups and self._owner(held) != held.owner:
                self.lost.append(held)
        self.held = [held for held in self.held if self._owner(held) == held.owner]
        self.touched.update(pos for held in self.held for pos in held.positions)

    def _owner(self, held: Held) -> int | None:
        if held.group not in self.groups:
            return None
        return self.model(held.group).owners.get(held.id, (None, 0))[0]

    # Appending

    @precondition(lambda self: len(self.queue.lanes) < 3 and not self.ordered)
    @rule(priority=st.sampled_from((0, 3, 5, 9)))
    def use_a_priority(self, priority: int) -> None:
        """A lane is read from its start by the groups that are there (H10), but by no replay."""
        new = self.queue.lane(priority) is None
        self.queue = self.engine.add_lane(self.queue, priority)
        assert self.engine.add_lane(self.queue, priority) == self.queue
        for log in self.queue.lanes[priority] if new else ():
            self.lanes[log] = priority
            self.log.ends[log] = first_pos(log)
            for name, (_, model) in self.groups.items():
                model.bounds[log] = first_pos(log), first_pos(log) if name == "again" else None

    def pick_log(self, pick: int) -> int:
        return self.queue.logs[pick % len(self.queue.logs)]

    @rule(amount=st.integers(1, 3), partition=picks, again=st.none() | picks)
    def append_rows(self, amount: int, partition: int, again: int | None) -> None:
        log = self.pick_log(partition)
        calls = [self.call(log, again if n == 0 else None) for n in range(amount)]
        known_ids = [n for n, call in enumerate(calls) if call.id in self.log.ids]
        conflicts = self.engine.append_rows(calls)
        assert [(c.row, c.same) for c in conflicts] == [(n, True) for n in known_ids]
        self.appended(self.log.append(calls))

    @rule(amount=st.integers(2, 12), partition=picks)
    def append_run(self, amount: int, partition: int) -> None:
        log, head, now = self.pick_log(partition), self.fresh_id(), self.moment()
        bodies = [b"%d" % n for n in range(amount)]
        for _ in range(2):  # the same head again appends nothing
            self.engine.append_run(log, "task", bodies, None, head, now)
            self.appended(self.log.append_run(log, "task", bodies, head, now))

    # Claiming

    @rule(
        pick=picks,
        owner=st.sampled_from(WORKERS),
        child=st.sampled_from(CHILDREN),
        want=wants,
        turn=turns,
        tasks=known,
    )
    def claim_some(
        self, pick: int, owner: int, child: int, want: int, turn: int, tasks: Sequence[str]
    ) -> None:
        self.claim(sorted(self.groups)[pick % len(self.groups)], owner, child, want, turn, tasks)

    def claim(
        self, name: str, owner: int, child: int, want: int, turn: int, tasks: Sequence[str]
    ) -> Held | None:
        request, offer, reads = self._request(name, owner, child, want, turn, tasks)
        lease = self.transact(name, reads, lambda view, change: claim(view, change, request))
        if self.ordered:
            self._check_room(name)
        return self._granted(name, lease, offer, request)

    def _check_room(self, name: str) -> None:
        """A claim blocks no more of a partition than there is room for: then the cursor waits (H13)."""
        group, model = self.groups[name]
        blocked = [p.pos for _, p in self.engine.parked(ParkedFilter((group.id,), ("blocked",)), ALL)]
        for log in {log_of(pos) for pos in blocked if model.items[pos].place == "pending"}:
            assert sum(log_of(pos) == log for pos in blocked) <= ROOM, (
                "more is blocked than there is room for"
            )

    @rule(pick=picks, want=wants, turn=turns)
    def claim_for_each_worker(self, pick: int, want: int, turn: int) -> None:
        for owner in WORKERS:
            self.claim_some(pick, owner, 0, want, turn + owner, ())

    def _request(
        self, name: str, owner: int, child: int, want: int, turn: int, tasks: Sequence[str]
    ) -> tuple[Request, Offer, dict[str, Any]]:
        now = self.moment()
        reads = {"positions": True, "due": want, "returned": ALL, "now": now, "tasks": tasks}
        lanes = self.turns.setdefault((name, owner, child), Turns())
        who = Claimant(owner, child, want, turn, ROOM) if self.ordered else None
        reads["ordered"] = who
        request = Request(want, owner, child, self.lease_id(owner, child), now, turn, lanes, ordered=who)
        self.take_in_blocked()
        return request, self.model(name).offer(now, tasks), reads

    def _granted(
        self, name: str, lease: Lease | None, offer: Offer, request: Request, *, sure: bool = True
    ) -> Held | None:
        if self.ordered:  # not sure: how much is read is decided before a settlement that stops a key
            who = request.owner, request.child
            self.model(name).grant_in_order(lease, offer, who, request.want, ROOM, sure=sure)
        else:
            self.model(name).grant(lease, offer, request.want, request.turn)
        if lease is None:
            return None
        assert (lease.id, lease.owner, lease.child) == (request.lease, request.owner, request.child)
        self.known[lease.id] = msgspec.structs.replace(lease)
        self.held.append(Held(name, lease.id, request.owner, lease.child, tuple(positions_of(lease))))
        return self.held[-1]

    # Settling

    def verdict(self, pos: int, kind: str, pick: int) -> Verdict | None:
        if kind in ("plain", "returned"):
            return None
        at = self.moment()
        made: dict[str, dict[str, Any]] = {
            "value": {"ending": "success", "value": b"v"},
            "kept": {"ending": "success", "value": b"k", "ttl": 60.0},
            "quiet": {"ending": "success", "value": b"q", "quiet": True},
            "dead": {
                "ending": "failure",
                "value": b"e",
                "reason": "dead",
                "error": b"e",
                "note": "failed: e",
            },
            "holding": {
                "ending": "failure",
                "value": b"e",
                "reason": "dead",
                "error": b"e",
                "note": "failed: e",
                "holds": True,
            },
            "thrown": {"ending": "failure", "value": b"t", "quiet": True, "note": "failed: t"},
            "retry": {
                "reason": "retry",
                "due": at + pick % 4,
                "retried": True,
                "error": b"r",
                "note": "retry: r",
            },
            "edited": {"reason": "retry", "due": at, "retried": True, "body": b"b%d" % pick, "note": "retry"},
            "scheduled": {"reason": "scheduled", "due": at + 30.0 * (pick % 3)},
            "parked": {"reason": "limited", "due": at + 1, "note": "limited"},
            "unknown": {"reason": "unknown", "task": GHOSTS[pick % 2]},
            "revoked": {"ending": "revoked", "value": b"x", "note": "expired: long ago"},
            "skipped": {"skipped": True},
            "filtered": {"skipped": True, "note": "skipped: by its task"},
            "calls": {"ending": "success", "calls": self._outbox(pick), "dropped": pick % 3},
            "progressed": {"ending": "success", "value": b"p", "progressed": True},
        }
        return Verdict(pos, **{"task": "task", "ended": at, "started": at, **made[kind]})

    def _outbox(self, pick: int) -> list[NewCall]:
        """Return calls to both queues; now and then one that was sent before."""
        again = pick if pick % 3 == 0 else None
        return [self.call(self.sink), self.call(self.sink, again), self.call(self.queue.logs[0])]

    def settlement(
        self, held: Held, done: Sequence[int], kinds: Sequence[str], pick: int, release: bool
    ) -> Settlement:
        """Return what a worker says that has been through some of a lease's records."""
        each = list(zip(done, itertools.cycle(kinds), strict=False))
        made = [self.verdict(pos, kind, pick) for pos, kind in each]
        return Settlement(
            lease=held.id,
            owner=held.owner,
            done=[(pos, pos + 1) for pos in done],
            verdicts=[verdict for verdict in made if verdict is not None],
            results=[(pos, b"r%d" % pos) for pos, kind in each if kind == "returned"],
            started=self.moment(),
            ended=self.moment(),
            release=release,
        )

    def say(self, held: Held, settlement: Settlement) -> bool:
        """Settle in both; return what the core says."""
        if held.group not in self.groups:
            group = self.dropped
            return bool(self.engine.transact(Reads(group.id, (held.id,)), _settling(settlement)))
        known = self.known.pop(held.id, None)
        reads = {"leases": (held.id,), "known": None if known is None or known.keys else known}
        said = self.transact(held.group, reads, _settling(settlement))
        for lease in self.engine.leases(self.groups[held.group][0]):
            if lease.id == held.id and lease.owner:
                self.known[held.id] = lease
        calls = self.model(held.group).settle(settlement)
        assert said == (calls is not None)
        self.appended(self.log.append(calls or []))
        return bool(said)

    @precondition(lambda self: self.held)
    @rule(pick=picks, through=st.integers(0, 20), kinds=kinds, release=st.booleans())
    def settle_some(self, pick: int, through: int, kinds: Sequence[str], release: bool) -> None:
        held = self.pick_held(pick)
        assert self.say(held, self.settlement(held, held.positions[:through], kinds, pick, release))

    @precondition(lambda self: self.held)
    @rule(pick=picks, skip=st.integers(1, 3), kinds=kinds)
    def settle_here_and_there(self, pick: int, skip: int, kinds: Sequence[str]) -> None:
        held = self.pick_held(pick)
        assert self.say(held, self.settlement(held, held.positions[::skip], kinds, pick, False))

    @precondition(lambda self: self.held)
    @rule(pick=picks, kinds=kinds)
    def settle_all_at_once_and_again(self, pick: int, kinds: Sequence[str]) -> None:
        """One range from the first to the last, beyond what is held where the lease has gaps."""
        held = self.pick_held(pick)
        settlement = self.settlement(held, held.positions, kinds, pick, False)
        settlement.done = [(min(held.positions), max(held.positions) + 1)]
        assert self.say(held, settlement)
        assert not self.say(held, settlement)

    @precondition(lambda self: self.held)
    @rule(pick=picks, through=st.integers(1, 8), kinds=kinds)
    def supervisor_then_child(self, pick: int, through: int, kinds: Sequence[str]) -> None:
        """What the supervisor has settled is passed over when the child says it again (H2)."""
        held = self.pick_held(pick)
        whole = self.settlement(held, held.positions, kinds, pick, False)
        done = held.positions[:through]
        part = Settlement(
            lease=held.id,
            owner=held.owner,
            done=[(pos, pos + 1) for pos in done],
            verdicts=[verdict for verdict in whole.verdicts if verdict.pos in done],
            results=[result for result in whole.results if result[0] in done],
            started=self.moment(),
            ended=self.moment(),
        )
        assert self.say(held, part)
        left = self._owner(held) is not None
        assert self.say(held, whole) == left

    @precondition(lambda self: self.held)
    @rule(pick=picks, through=st.integers(0, 3), keep=st.integers(0, 3), kinds=kinds)
    def give_back_what_has_not_started(
        self, pick: int, through: int, keep: int, kinds: Sequence[str]
    ) -> None:
        """A long run gives the rest of its lease to others, as a lease of its own (P7)."""
        held = self.pick_held(pick)
        settlement = self.settlement(held, held.positions[:through], kinds, pick, False)
        back, new = held.positions[through + keep :: 1 + pick % 2], self.lease_id(held.owner, held.child)

        def decide(view: View, change: Change) -> int:
            assert settle(view, change, settlement)
            if not change.leases:
                return 0
            view.leases[held.id] = change.leases.pop()
            ranges = [(pos, pos + 1) for pos in back]
            given = give_back(view, change, held.id, held.owner, ranges, new)
            if not given:
                change.leases.append(view.leases[held.id])
            return given

        given = self.transact(held.group, {"leases": (held.id,)}, decide)
        calls = self.model(held.group).settle(settlement)
        assert given == self.model(held.group).give_back(held.id, back, new)
        self.appended(self.log.append(calls or []))

    @precondition(lambda self: self.held)
    @rule(pick=picks, kinds=kinds, release=st.booleans(), want=wants, turn=turns, tasks=known)
    def settle_and_claim(
        self, pick: int, kinds: Sequence[str], release: bool, want: int, turn: int, tasks: Sequence[str]
    ) -> None:
        """Both in one transaction, as small leases do it."""
        held = self.pick_held(pick)
        done = held.positions[: len(held.positions) // 2 + 1]
        parked = {*done} & {*self.model(held.group).held(held.id)}
        settlement = self.settlement(held, done, kinds, pick, release)
        request, offer, reads = self._request(held.group, held.owner, held.child, want, turn, tasks)

        def both(view: View, change: Change) -> Lease | None:
            assert settle(view, change, settlement)
            return claim(view, change, request)

        lease = self.transact(held.group, {**reads, "leases": (held.id,)}, both)
        calls = self.model(held.group).settle(settlement)
        if self.ordered:  # what is given back, and freed, can be granted in the same transaction
            offer = self.model(held.group).offer(request.now, tasks)
            offer = offer._replace(due=offer.due - parked)  # but not what was parked in it
        self._granted(held.group, lease, offer, request, sure=False)
        self.appended(self.log.append(calls or []))

    @precondition(lambda self: self.held and not self.ordered)
    @rule(pick=picks, through=st.integers(0, 3), step=st.integers(1, 3), kinds=kinds, release=st.booleans())
    def settle_and_let_the_rest_wait(
        self, pick: int, through: int, step: int, kinds: Sequence[str], release: bool
    ) -> None:
        """What is to run with more than there is now is put back until others come, or for a time."""
        held = self.pick_held(pick)
        settlement = self.settlement(held, held.positions[:through], kinds, pick, release)
        until = self.moment() + pick % 4
        settlement.waits = [
            Span(pos, pos + 1, until=until + n % 2) for n, pos in enumerate(held.positions[through::step])
        ]
        settlement.waits_as = self.lease_id(held.owner, held.child)
        assert self.say(held, settlement)

    @precondition(lambda self: self.held and not self.ordered)
    @rule(pick=picks, keep=st.integers(0, 3), kinds=kinds, want=wants, turn=turns)
    def let_the_rest_wait_and_claim(
        self, pick: int, keep: int, kinds: Sequence[str], want: int, turn: int
    ) -> None:
        self._wait_and_claim(self.pick_held(pick), keep, kinds, pick, want, turn)

    @precondition(lambda self: not self.ordered)
    @rule(pick=picks, size=st.integers(1, 4), want=wants, turn=turns)
    def put_back_parts_of_a_batch_at_once(self, pick: int, size: int, want: int, turn: int) -> None:
        """Each took a part of what would have been one batch, and the second sees the first's."""
        name = sorted(self.groups)[pick % len(self.groups)]
        parts = [self.claim(name, owner, 0, size, 1, ()) for owner in (1, 2)]
        for part in parts:
            if part is not None:
                self._wait_and_claim(part, pick % 2, ("plain",), pick, want, turn)

    def _wait_and_claim(
        self, held: Held, keep: int, kinds: Sequence[str], pick: int, want: int, turn: int
    ) -> None:
        """Where others wait too, what is put back is claimed with them at once: it may make a batch."""
        settlement = self.settlement(held, held.positions[:keep], kinds, pick, True)
        until = self.moment() + 5
        settlement.waits = [Span(pos, pos + 1, until=until) for pos in held.positions[keep:]]
        settlement.waits_as = self.lease_id(held.owner, held.child)
        request, offer, reads = self._request(held.group, held.owner, held.child, want, turn, ())
        joined = False

        def both(view: View, change: Change) -> Lease | None:
            nonlocal joined
            assert settle(view, change, settlement)
            lease = claim_with(view, change, request, settlement.waits_as)
            joined = any(each.id == settlement.waits_as for each in view.returned)
            return lease

        lease = self.transact(held.group, {**reads, "leases": (held.id,)}, both)
        model = self.model(held.group)
        calls = model.settle(settlement)
        if joined:
            assert offer.waiting or offer.returned
            mine = set(model.held(settlement.waits_as))
            alone = offer.alone | {pos for pos in mine if model.items[pos].alone}
            offer = Offer(offer.due, offer.returned | mine, offer.new, alone)
        self._granted(held.group, lease, offer, request)
        self.appended(self.log.append(calls or []))

    @precondition(lambda self: self.held)
    @rule(pick=picks, through=st.integers(0, 3), kinds=kinds, release=st.booleans())
    def settle_and_limit_the_rest(self, pick: int, through: int, kinds: Sequence[str], release: bool) -> None:
        """What belongs to a task that is stopped waits as ranges, and nothing takes it along."""
        held = self.pick_held(pick)
        settlement = self.settlement(held, held.positions[:through], kinds, pick, release)
        until = self.moment() + pick % 40
        settlement.limited = [Span(pos, pos + 1, until=until) for pos in held.positions[through:]]
        settlement.limited_as = self.lease_id(held.owner, held.child)
        assert self.say(held, settlement)

    @rule(pick=picks)
    def release_what_is_limited(self, pick: int) -> None:
        name = sorted(self.groups)[pick % len(self.groups)]

        def decide(view: View, change: Change) -> None:
            change.released = True

        self.transact(name, {}, decide)
        self.model(name).release()

    @precondition(lambda self: self.lost)
    @rule(pick=picks, kinds=kinds, release=st.booleans())
    def stale_settle(self, pick: int, kinds: Sequence[str], release: bool) -> None:
        """A lease that was lost changes nothing: refused and counted (P4)."""
        held = self.lost[pick % len(self.lost)]
        assert not self.say(held, self.settlement(held, held.positions, kinds, pick, release))

    @precondition(lambda self: self.held or self.lost)
    @rule(pick=picks)
    def append_within_a_run(self, pick: int) -> None:
        """What leaves before its settlement is fenced by the lease (H8)."""
        held = [*self.held, *self.lost][pick % (len(self.held) + len(self.lost))]
        calls, fence = [self.call(self.sink), self.call(self.sink)], (held.id, held.owner)
        if held in self.held:
            assert self.engine.append_rows(calls, fence) == []
            self.appended(self.log.append(calls))
        else:
            with pytest.raises(LeaseLost):
                self.engine.append_rows(calls, fence)

    @precondition(lambda self: self.held)
    @rule(pick=picks, kinds=kinds)
    def settle_that_fails(self, pick: int, kinds: Sequence[str]) -> None:
        """An exception in the decision leaves everything as it was."""
        held = self.pick_held(pick)
        settlement = self.settlement(held, held.positions, kinds, pick, False)

        def fail(view: View, change: Change) -> None:
            settle(view, change, settlement)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            self.transact(held.group, {"leases": (held.id,)}, fail)

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def progress(self, pick: int) -> None:
        held = self.pick_held(pick)
        for pos in self.model(held.group).held(held.id):
            self.engine.set_progress(self.groups[held.group][0].id, pos, b"%d" % pick)
            self.model(held.group).items[pos].progress = b"%d" % pick

    # Dying

    def bury(
        self,
        held: Held,
        cause: Cause,
        through: int,
        running: int | None,
        deliveries: int,
        kinds: Sequence[str],
        together: int = 1,
    ) -> bool:
        """Bury a lease whose worker had finished `through` records and ran the one `running` places on.

        Or ran so many `together`, from there on.
        """
        done, left = held.positions[:through], held.positions[through:]
        finished = self.settlement(held, done, kinds, through, False) if done else None
        now = self.moment()
        if self.ordered and finished is not None:  # what comes after one that is to run again is not run
            stopped = {self.log.keys.get(v.pos) for v in finished.verdicts if v.reason} - {None}
            left = tuple(pos for pos in left if self.log.keys.get(pos) not in stopped)
        ran = left[running % len(left) :][:together] if running is not None and left else []
        how = "killed by SIGKILL (signal 9)"
        suspects = [Suspect(pos, "task", deliveries, how, b"lost", now) for pos in ran]
        said = self.transact(
            held.group,
            {"leases": (held.id,)},
            lambda view, change: bury_lease(
                view, change, held.id, held.owner, cause, finished, suspects, now
            ),
        )
        calls = self.model(held.group).bury(held.id, held.owner, cause, finished, suspects, now)
        assert said == (calls is not None)
        self.appended(self.log.append(calls or []))
        return bool(said)

    @precondition(lambda self: self.held)
    @rule(
        pick=picks,
        cause=st.sampled_from(Cause),
        through=st.integers(0, 6),
        running=st.none() | st.integers(0, 3),
        deliveries=st.integers(1, 3),
        kinds=kinds,
        together=st.integers(1, 4),
    )
    def child_dies(
        self,
        pick: int,
        cause: Cause,
        through: int,
        running: int | None,
        deliveries: int,
        kinds: Sequence[str],
        together: int,
    ) -> None:
        held = self.pick_held(pick)
        assert self.bury(held, cause, through, running, deliveries, kinds, together)
        assert not self.bury(held, cause, through, running, deliveries, kinds)

    @precondition(lambda self: self.held)
    @rule(
        pick=picks,
        cause=st.sampled_from(Cause),
        through=st.integers(0, 3),
        running=st.none() | st.just(0),
        deliveries=st.integers(1, 3),
        kinds=kinds,
    )
    def worker_dies(
        self,
        pick: int,
        cause: Cause,
        through: int,
        running: int | None,
        deliveries: int,
        kinds: Sequence[str],
    ) -> None:
        owner = self.pick_held(pick).owner
        for held in [held for held in self.held if held.owner == owner]:
            assert self.bury(held, cause, through, running, deliveries, kinds)

    @precondition(lambda self: self.held)
    @rule(pick=picks, running=st.none() | st.just(0))
    def worker_dies_again_and_again(self, pick: int, running: int | None) -> None:
        """The first death charges nobody; then single grants are charged, one by one (H6)."""
        held = self.pick_held(pick)
        items = [self.model(held.group).items[pos] for pos in held.positions]
        first, charged = not any(item.alone for item in items), sum(item.deliveries for item in items)
        assert self.bury(held, Cause.WORKER, 0, running, 3, ())
        assert not first or charged == sum(item.deliveries for item in items)
        for turn in (0, 2):
            if granted := self.claim(held.group, 3, 0, 5, turn, ()):
                assert self.bury(granted, Cause.WORKER, 0, running, 3, ())

    @precondition(lambda self: self.held)
    @rule(pick=picks, at=picks, together=st.integers(1, 4), dies=st.booleans())
    def charge_before_the_run(self, pick: int, at: int, together: int, dies: bool) -> None:
        """A task that may run only once is charged before it does; any death then ends it (H7)."""
        held = self.pick_held(pick)
        first = at % len(held.positions)
        chosen = held.positions[first : first + together]
        said = self.transact(
            held.group,
            {"leases": (held.id,)},
            lambda view, change: charge_before(view, change, held.id, held.owner, chosen),
        )
        assert said == self.model(held.group).charge_before(held.id, held.owner, chosen)
        if dies:
            self.bury(held, tuple(Cause)[pick % 3], 0, first, 1, (), together)
            items = [self.model(held.group).items[pos] for pos in chosen]
            assert not said or all(item.parked and item.parked.reason == "dead" for item in items)

    # What people do

    def _waiting(self, name: str) -> tuple[int, ...]:
        return tuple(pos for pos, item in self.model(name).items.items() if item.place == "parked")

    @precondition(lambda self: any(self._waiting(name) for name in self.groups))
    @rule(pick=picks, share=st.integers(1, 3))
    def redrive(self, pick: int, share: int) -> None:
        """Dead letters are given back, some with other arguments, at once or one after the other."""
        name = sorted(self.groups)[pick % len(self.groups)]
        chosen, now, interval = self._waiting(name)[::share], self.moment(), pick % 3
        edits = dict.fromkeys(chosen[::2], (b"x%d" % pick, "redriven: edited"))
        said = self.transact(
            name,
            {"parked": chosen},
            lambda view, change: redrive(view, view.due, change, now, interval, edits),
        )
        assert said == self.model(name).redrive(chosen, now, interval, edits)
        self.touched.update(chosen)

    @precondition(lambda self: any(self._waiting(name) for name in self.groups))
    @rule(pick=picks, share=st.integers(1, 3))
    def drop_dead_letters(self, pick: int, share: int) -> None:
        name = sorted(self.groups)[pick % len(self.groups)]
        chosen, now = self._waiting(name)[::share], self.moment()
        said = self.transact(name, {"parked": chosen}, lambda view, change: drop(view, change, now))
        assert said == self.model(name).drop(chosen)
        self.touched.update(chosen)

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def purge_some(self, pick: int) -> None:
        self.purge(sorted(self.groups)[pick % len(self.groups)])

    def purge(self, name: str) -> None:
        waiting, now = self._waiting(name), self.moment()
        self.touched.update(self.model(name).items)
        said = self.transact(
            name,
            {"positions": True, "returned": ALL, "parked": waiting},
            lambda view, change: purge(view, change, view.due, b"purged", now),
        )
        assert said == self.model(name).purge(b"purged", now)

    @rule(pick=picks, shares=st.tuples(picks, picks))
    def lapse(self, pick: int, shares: tuple[int, int]) -> None:
        """A group that holds records for too long loses what it has not done: no worker's, nothing parked."""
        name = sorted(self.groups)[pick % len(self.groups)]
        model, now = self.model(name), self.moment()
        upto: dict[int, int] = {}
        for at in self.engine.positions(self.groups[name][0]):
            behind = at.end - (at.cursor & ~((1 << 40) - 1))
            upto[at.log] = at.end - behind * (shares[at.log % 2] % 4) // 3 if behind else at.cursor
        self.touched.update(pos for pos in model.items if pos < upto.get(log_of(pos), 0))
        said = self.transact(
            name,
            {"positions": True, "returned": ALL},
            lambda view, change: lapse(view, change, upto, now),
        )
        assert said == model.lapse(upto)

    @rule(pick=picks, back=st.tuples(picks, picks), far=st.booleans(), forth=st.integers(0, 2))
    def seek(self, pick: int, back: tuple[int, int], far: bool, forth: int) -> None:
        """A group is moved, in steps that may each be done twice; meanwhile it is granted nothing (H14)."""
        name = sorted(self.groups)[pick % len(self.groups)]
        group, model = self.groups[name]
        bounds = {at.log: at for at in self.engine.group_bounds(group)}
        ends = {at.log: at.end for at in self.engine.positions(group)}
        cursors = {log: at.cursor for log, at in bounds.items()}
        to = {}
        for log, chosen in zip(self.queue.logs, itertools.cycle(back)):
            lo = bounds[log].start
            hi = max(ends[log] if far else cursors[log], cursors[log])
            to[log] = lo + chosen % (hi - lo + 1)
        to = self._begin_seek(name, to, set(self.queue.logs[:forth]), cursors)
        for owned in (False, True, True):
            ids, now = tuple(lease.id for lease in self.engine.leases(group)), self.moment()
            left = self.transact(
                name,
                {"leases": ids, "settings": True},
                lambda view, change, now=now, owned=owned: end_leases(view, change, to, now, owned=owned),
            )
            assert left == model.end_leases(to, owned=owned)
            self.touched.update(model.items)
            self.agrees()
        for log in self.queue.logs:
            for lo in range(to[log], cursors[log], 3):
                hi, now = min(lo + 3, cursors[log]), self.moment()
                for _ in range(1 + pick % 2):
                    assert self.transact(
                        name,
                        {"settings": True},
                        lambda view, change, lo=lo, hi=hi, now=now: rewind(view, change, to, lo, hi, now),
                    )
                    model.rewind(range(lo, hi))
            self.touched.update(model.items)
            self.agrees()
        self._finish_seek(name, to, cursors)

    def _begin_seek(
        self, name: str, to: dict[int, int], forth: set[int], cursors: dict[int, int]
    ) -> dict[int, int]:
        """Begin it; in logs where it leads `forth`, they may have been read past the target since (P3)."""
        now = self.moment()
        there = {log: max(pos, cursors[log]) if log in forth else pos for log, pos in to.items()}
        elsewhere = {log: pos + 1 for log, pos in there.items()}
        for wanted, said in ((to, there), (to, there), (elsewhere, None)):
            assert said == self.transact(
                name,
                {"positions": True, "settings": True},
                lambda view, change, wanted=wanted: begin(view, change, wanted, now, forth),
            )
        request, _, reads = self._request(name, 1, 0, 20, 0, GHOSTS)
        assert self.transact(name, reads, lambda view, change: claim(view, change, request)) is None
        assert not self.engine.has_work(self.groups[name][0].id, self.now, GHOSTS)
        with pytest.raises(SeekUnderWay):
            self.transact(name, {"settings": True}, lambda view, change: redrive(view, [], change, now))
        return there

    def _finish_seek(self, name: str, to: dict[int, int], cursors: dict[int, int]) -> None:
        group, model = self.groups[name]
        now = self.moment()
        reads = {"positions": True, "returned": ALL}
        for said in (True, False):
            moved = None
            while moved is None:  # an engine may not see as far at once
                moved = self.transact(name, reads, lambda view, change: finish(view, change, to, now))
            assert moved is said
        model.finish_seek(to, cursors)
        self.touched.update(model.items)
        found = next(each for each in self.engine.groups() if each.id == group.id)
        back = [log for log, pos in to.items() if pos < cursors[log]]
        assert found.generation == self.generations[name] + bool(back)
        self.generations[name] = found.generation
        for log in back:
            assert generation_at(found.settings["rewinds"], to[log]) == found.generation
            below = generation_at(found.settings["rewinds"], to[log] - 1)
            assert below < found.generation or to[log] == first_pos(log)
        assert "seek" not in found.settings

    @precondition(lambda self: any(self._mortal(model) for _, model in self.groups.values()))
    @rule()
    def expire_outcomes(self) -> None:
        now = self.moment()
        expired = sum(model.expire(now) for _, model in self.groups.values())
        assert self.engine.expire_outcomes(now, ALL) == expired

    @staticmethod
    def _mortal(model: GroupModel) -> bool:
        return any(item.outcome is not None and item.outcome.until for item in model.items.values())

    @rule(by=jumps)
    def jump_in_time(self, by: float) -> None:
        self.now += by

    # Groups

    @precondition(lambda self: "again" not in self.groups)
    @rule(lows=st.tuples(picks, picks), highs=st.tuples(st.none() | picks, st.none() | picks))
    def replay(self, lows: tuple[int, int], highs: tuple[int | None, int | None]) -> None:
        """A second group over old bounds."""
        bounds: dict[int, tuple[int, int | None]] = {}
        for log, low, high in zip(
            self.queue.logs, itertools.cycle(lows), itertools.cycle(highs), strict=False
        ):
            first, size = first_pos(log), self.log.ends[log] - first_pos(log) + 1
            lo = first + low % size
            bounds[log] = lo, None if high is None else lo + high % size
        flat = [(log, lo, hi) for log, (lo, hi) in bounds.items()]
        group = self.engine.create_group(self.queue, "shop", "again", "replay", {}, flat)
        assert self.engine.create_group(self.queue, "shop", "again", "replay", {}, flat) is None
        model = GroupModel(bounds, self.lanes, self.log if self.ordered else None)
        self.turns = {who: turns for who, turns in self.turns.items() if who[0] != "again"}
        model.add(pos for log in bounds for pos in range(first_pos(log), self.log.ends[log]))
        self.groups["again"] = group, model
        self.generations["again"] = 0
        self.touched.update(model.items)

    @precondition(lambda self: "again" in self.groups)
    @rule(purged=st.booleans())
    def drop_replay(self, purged: bool) -> None:
        if purged:
            self.purge("again")
            self.agrees()
        self.dropped, model = self.groups.pop("again")
        self.engine.drop_group(self.dropped)
        left = self.engine.leases(self.dropped), self.engine.parked(ParkedFilter((self.dropped.id,)), ALL)
        assert left == ([], [])
        assert self.engine.outcomes(self.dropped.id, 0, 1 << 62) == []
        assert self.engine.counters(self.dropped.id) == {}
        assert not any(self.engine.journal(self.dropped.id, pos) for pos in model.items)
        self.lost = deque((held for held in self.lost if held.group != "again"), 8)

    # What must hold

    @invariant()
    def agrees(self) -> None:
        self.take_in_blocked()
        for _, model in self.groups.values():
            model.check_order()
        self.sort_out()
        self._check_places()
        self._check_sums()
        self._check_outcomes()
        looked = set(sorted(self.touched, key=lambda pos: pos * 7919 % 1009)[: self.looks])
        self._check_statuses(looked)
        self.touched -= looked

    def _check_places(self) -> None:
        """P2, and everything that belongs to the place."""
        for group, model in self.groups.values():
            found: dict[int, tuple[Any, ...]] = {}
            for pos, place in self._places(group):
                assert pos not in found, f"{pos} is in two places: {found[pos]} and {place}"
                found[pos] = place
            assert found == model.places()

    def _places(self, group: Group) -> Iterator[tuple[int, tuple[Any, ...]]]:
        for at in self.engine.positions(group):
            for pos in range(at.cursor, at.end if at.stop is None else min(at.end, at.stop)):
                yield pos, ("pending",)
        for lease in self.engine.leases(group):
            for span in lease.spans:
                for pos in range(span.lo, span.hi):
                    yield pos, ("leased", lease.id, lease.owner, lease.child, span[2:], lease.bodies.get(pos))
        for _, parked in self.engine.parked(ParkedFilter((group.id,)), ALL):
            yield parked.pos, ("parked", parked._replace(alone=bool(parked.alone)))

    def _check_sums(self) -> None:
        ends = {log: end for stream in self.engine.streams() for log, _, end in self.engine.bounds(stream)}
        assert ends == self.log.ends
        for group, model in self.groups.values():
            counts = model.counts(self.log)
            assert self.engine.counts(group) == counts
            assert self.engine.next_due(group.id) == counts.next_due
            offer = model.offer(self.now, GHOSTS)
            work = (offer.due | offer.returned | offer.new) - offer.waiting
            now_set = next(each.settings for each in self.engine.groups() if each.id == group.id)
            if not is_held(now_set):
                assert self.engine.has_work(group.id, self.now, GHOSTS) == bool(work)
            assert self.engine.counters(group.id) == {k: v for k, v in model.counted.items() if v}
            for log in self.queue.logs:
                lo, hi = first_pos(log), self.log.ends[log]
                lo += next(self.numbers) % (hi - lo + 1)
                assert self.engine.unfinished(group, lo, hi) == model.unfinished(lo, hi)

    def _check_outcomes(self) -> None:
        for group, model in self.groups.values():
            kept = [item.outcome for _, item in sorted(model.items.items()) if item.outcome is not None]
            assert self.engine.outcomes(group.id, 0, 1 << 62) == kept

    def _check_statuses(self, positions: set[int]) -> None:
        """Look at each record that may have been touched."""
        for group, model in self.groups.values():
            for pos in positions:
                status = self.engine.status(group, pos)
                if model.reads(pos):
                    self._check_status(group, pos, model.items[pos], status)
                else:
                    assert status.place == "outside"

    def _check_status(self, group: Group, pos: int, item: Item, status: Status) -> None:
        assert status.place == item.place
        assert status.outcome == item.outcome
        assert (status.lease.id if status.lease else 0) == (item.lease if item.place == "leased" else 0)
        assert status.parked == item.parked
        assert status.progress == (item.progress if item.place == "leased" else None)
        entries = [Entry(e.how, e.retries, e.owner, e.child) for e in self.engine.journal(group.id, pos)]
        assert Counter(entries) == Counter(item.journal)
        if item.place == "done" and item.outcome is None:
            assert item.last_word() is not None, "done, and nothing covers it (H9)"
            assert status.how == item.last_word()

    # The end

    def _finish_everything(self) -> None:
        """Whatever happened, all that is left can be done (P7, P9), and then nothing is left."""
        if not self.groups:
            return
        for held in list(self.held):
            assert self.say(held, self.settlement(held, held.positions, ("plain",), 0, False))
        self.held.clear()
        self.now += 10**7
        for name, (group, model) in self.groups.items():
            turn = 0
            if self.ordered:
                self._finish_in_order(name)
            while model.offer(self.now, GHOSTS) != Offer(set(), set(), set(), set()):
                held = self.claim(name, 1, 0, 20, turn, GHOSTS)
                assert held is not None
                assert self.say(held, self.settlement(held, held.positions, ("plain",), 0, False))
                turn += 1
            counts = self.engine.counts(group)
            assert counts[:3] == (0, 0, 0)
            assert set(counts.parked) <= {"dead"}
            self._check_statuses(set(model.items))
        rows = {record.pos: record for record in self.engine.records(0, 1 << 62, ALL)}
        found = {pos: (r.task, r.body, r.id, r.time) for pos, r in rows.items()}
        assert found == self.log.rows
        assert {id: self.engine.find("shop", id) for id in self.log.ids} == self.log.ids

    def _finish_in_order(self, name: str) -> None:
        """Dead letters that hold up their keys are dropped; then everything comes to its turn."""
        model = self.model(name)
        self.take_in_blocked()
        dead = tuple(pos for pos, item in model.items.items() if item.parked and item.parked.reason == "dead")
        now = self.moment()
        assert self.transact(name, {"parked": dead}, lambda view, change: drop(view, change, now)) == len(
            dead
        )
        model.drop(dead)
        for turn in range(2 * len(model.items) + 2):
            held = self.claim(name, 1, 0, 20, turn, GHOSTS)
            if held is not None:
                assert self.say(held, self.settlement(held, held.positions, ("plain",), 0, False))


def _settling(settlement: Settlement) -> Callable[[View, Change], bool]:
    return lambda view, change: settle(view, change, settlement)


@pytest.fixture
def holes(request: pytest.FixtureRequest) -> bool:
    """Whether the engine leaves a position empty for an id that is known."""
    return bool(request.node.callspec.params["make_kit"] not in ("postgres", "kafka"))


@pytest.mark.long
def test_delivery(make_engine: Callable[[], Engine], holes: bool) -> None:
    """Fewer examples where it is stored: it is the same core, and a disk or a network is slower."""
    chosen = settings()
    engine = make_engine()
    if engine.capabilities.durable:
        fewer = 10 if engine.capabilities.many_hosts else 5
        fewer = fewer if engine.capabilities.one_transaction else 25
        chosen = settings(max_examples=max(chosen.max_examples // fewer, 1))
    engine.close()
    run_state_machine_as_test(lambda: DeliveryMachine(make_engine, holes=holes), settings=chosen)
