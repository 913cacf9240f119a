"""Limits beside a naive model: no limit is overrun, nobody overlooked, and nothing spins."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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

from respool.delivery.admin import drop, purge, redrive
from respool.delivery.claim import Request, claim
from respool.delivery.death import Cause, bury_lease
from respool.delivery.limits import Ask, Limit, admit, bucket
from respool.delivery.model import Lease, Settlement, Verdict
from respool.delivery.seek import begin, end_leases, finish, rewind
from respool.delivery.settle import give_back, settle
from respool.engines.base import Engine, Group, ParkedFilter, Reads
from respool.record import first_pos

pytestmark = pytest.mark.timeout(10 * settings().max_examples)
ALL = 1_000_000
START = 1_000_000.0
LIMITS = {
    "task a": Limit(2.0, 3.0, None),
    "task b": Limit(None, 1.0, 1),
    "task c": Limit(1.0, 2.0, 2),
    "queue q": Limit(4.0, 6.0, 2),
}
BUCKETS = {name: bucket(name, "", limit, START) for name, limit in LIMITS.items()}
NAMES = {one.id: name for name, one in BUCKETS.items()}
OF = ((), ("task a",), ("task b",), ("task c", "queue q"), ("queue q",))  # by a record's position
picks = st.integers(0, 1000)


def limits_of(pos: int) -> tuple[str, ...]:
    return OF[pos % len(OF)]


@dataclass
class Tokens:
    """A bucket, naively."""

    left: float
    at: float = START
    used: bool = False

    def refill(self, limit: Limit, now: float) -> None:
        if limit.rate is None:
            return
        if now < self.at:
            if self.at - now > 60:
                self.at = now
            return
        self.left = min(limit.burst, self.left + (now - self.at) * limit.rate)
        self.at = now


@dataclass
class Held:
    """A lease, as its worker knows it."""

    group: str
    owner: int | None
    positions: list[int]
    let_in: dict[int, set[str]] = field(default_factory=dict)


@dataclass
class Item:
    place: str = "pending"
    waits: str = ""
    retries: int = 0


class LimitsMachine(RuleBasedStateMachine):
    """One queue, read by `main` and by a replay that share their limits."""

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        super().__init__()
        self.engine = make_engine()
        self.now = START
        self.numbers = itertools.count(1)
        self.groups: dict[str, Group] = {}
        self.items: dict[str, dict[int, Item]] = {"main": {}}
        self.leases: dict[int, Held] = {}
        self.tokens = {name: Tokens(limit.burst) for name, limit in LIMITS.items()}

    @initialize(records=st.integers(0, 20))
    def begin(self, records: int) -> None:
        self.queue = self.engine.create_stream("queue", "shop", "q", 1, {})
        self.groups["main"] = next(g for g in self.engine.groups() if g.stream == self.queue.id)
        if records:
            self.append(records)

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self._drain()
        finally:
            self.engine.close()

    # Helpers

    def at(self, group: str, place: str) -> list[int]:
        return sorted(pos for pos, item in self.items[group].items() if item.place == place)

    def owned(self) -> list[int]:
        return [id for id, held in self.leases.items() if held.owner is not None]

    def pick(self, pick: int) -> int:
        owned = self.owned()
        return owned[pick % len(owned)]

    def holders(self, name: str) -> set[int]:
        return {
            id
            for id, held in self.leases.items()
            if held.owner is not None and any(name in names for names in held.let_in.values())
        }

    def transact(self, group: str, reads: dict[str, Any], decide: Callable[[Any, Any], Any]) -> Any:
        return self.engine.transact(Reads(self.groups[group].id, **reads), decide)

    def leave(self, id: int, positions: Sequence[int], *, unused: bool) -> None:
        """Take records out of a lease; `unused`: their starts did not come to be."""
        held = self.leases[id]
        for pos in positions:
            held.positions.remove(pos)
            for name in held.let_in.pop(pos, ()):
                if unused:
                    self.give(name)
        if not held.positions:
            del self.leases[id]

    def give(self, name: str) -> None:
        one = self.tokens[name]
        if LIMITS[name].rate is not None:
            one.left = min(LIMITS[name].burst, one.left + 1)

    def spend(self, name: str) -> None:
        one = self.tokens[name]
        one.used = True
        if LIMITS[name].rate is not None:
            one.left -= 1
            assert one.left > -1e-3, f"{name}: more starts than its rate allows"

    # Rules

    @rule(amount=st.integers(1, 6))
    def append(self, amount: int) -> None:
        head = (next(self.numbers) << 24).to_bytes(16, "big")
        ((log, _, end),) = self.engine.bounds(self.queue)
        self.engine.append_run(log, "send", [b"x"] * amount, None, head, self.now)
        for items in self.items.values():
            items.update((pos, Item()) for pos in range(end, end + amount))

    @rule(
        pick=picks,
        want=st.sampled_from((1, 2, 5, 30)),
        most=st.sampled_from((1, 3, 30)),
        turn=st.integers(0, 5),
        crash=st.integers(0, 5),
        new=st.booleans(),
    )
    def claim_and_ask(self, pick: int, want: int, most: int, turn: int, crash: int, new: bool) -> None:
        group = sorted(self.groups)[pick % len(self.groups)]
        id = self.claim(group, want, turn, 30 if new else 0)
        if id is not None and crash:  # else it dies, or is slow, between the two
            self.ask(id, most)

    def claim(self, group: str, want: int, turn: int = 0, most_new: int = 30) -> int | None:
        request = Request(want, 1 + turn % 3, 0, next(self.numbers), self.now, turn, most_new=most_new)
        reads = {"positions": True, "due": want, "returned": ALL, "now": self.now, "open": 64}
        lease: Lease | None = self.transact(group, reads, lambda v, c: claim(v, c, request))
        if lease is None:
            if most_new:
                assert not self.at(group, "pending")
                found = self.engine.has_work(self.groups[group].id, self.now, ())
                assert not found, "nothing can be claimed, and yet there is work: workers would spin"
            return None
        granted = [pos for span in lease.spans for pos in range(span.lo, span.hi)]
        assert len(granted) <= want
        assert len(set(granted)) == len(granted)
        held = self.leases[lease.id] = Held(group, lease.owner, granted)
        waited = [pos for pos in granted if self.items[group][pos].place == "waiting"]
        self._check_turns(group, waited, lease)
        for pos in granted:
            item = self.items[group][pos]
            if item.place == "waiting":
                held.let_in[pos] = {item.waits}
            elif item.place == "leased":
                others = {i: h for i, h in self.leases.items() if h.group == group and h is not held}
                (before,) = [i for i, h in others.items() if pos in h.positions]
                assert self.leases[before].owner is None
                self.leave(before, [pos], unused=False)
            item.place, item.waits = "leased", ""
        assert lease.admitted == self._admitted(held)
        return lease.id

    def _check_turns(self, group: str, waited: Sequence[int], lease: Lease) -> None:
        """Of each bucket, those come first that are first in the log, if they need not run alone."""
        by_bucket: dict[str, list[int]] = {}
        alone = self.alone(group) if waited else set()
        for pos in waited:
            by_bucket.setdefault(self.items[group][pos].waits, []).append(pos)
        for name, positions in by_bucket.items():
            if not lease.spans[0].alone:
                queue = [
                    p
                    for p in self.at(group, "waiting")
                    if self.items[group][p].waits == name and p not in alone
                ]
                assert queue[: len(positions)] == sorted(positions), "one overtook another"
            self.tokens[name].refill(LIMITS[name], self.now)
            for _ in positions:
                self.spend(name)

    def alone(self, name: str) -> set[int]:
        """Return what a group is to run singly."""
        group = self.groups[name]
        spans = [span for lease in self.engine.leases(group) for span in lease.spans if span.alone]
        parked = [p.pos for _, p in self.engine.parked(ParkedFilter([group.id]), ALL) if p.alone]
        return {*parked, *(pos for span in spans for pos in range(span.lo, span.hi))}

    @precondition(lambda self: self.owned())
    @rule(pick=picks, most=st.sampled_from((1, 3, 30)))
    def ask_again(self, pick: int, most: int) -> None:
        self.ask(self.pick(pick), most)

    def ask(self, id: int, most: int) -> None:
        held, asks = self.leases[id], []
        for pos in held.positions:
            names = limits_of(pos)
            if not set(names) <= held.let_in.get(pos, set()):
                asks.append(Ask(pos, "send", tuple(BUCKETS[name] for name in names)))
        if not asks:
            return
        ids = sorted({one.id for ask in asks for one in ask.buckets})
        after: Lease = self.transact(
            held.group,
            {"leases": (id,), "now": self.now, "buckets": ids},
            lambda v, c: admit(v, c, id, held.owner or 0, asks, most, self.now),
        )
        for one in ids:
            self.tokens[NAMES[one]].refill(LIMITS[NAMES[one]], self.now)
            self.tokens[NAMES[one]].used = True
        left = {pos for span in after.spans for pos in range(span.lo, span.hi)}
        found = {p.pos: p for _, p in self.engine.parked(ParkedFilter([self.groups[held.group].id]), ALL)}
        let_in = 0
        for pos in [ask.pos for ask in asks]:
            if pos in left:
                let_in += 1
                for name in set(limits_of(pos)) - held.let_in.get(pos, set()):
                    self.spend(name)
                    held.let_in.setdefault(pos, set()).add(name)
                continue
            item = self.items[held.group][pos]
            item.place, item.waits = "waiting", NAMES[found[pos].waits or 0]
            assert item.waits in limits_of(pos)
            self.leave(id, [pos], unused=True)
        assert let_in <= most
        if left:
            assert after.admitted == self._admitted(held)

    @staticmethod
    def _admitted(held: Held) -> dict[int, list[tuple[int, int]]]:
        found: dict[int, list[tuple[int, int]]] = {}
        for pos in sorted(held.let_in):
            for name in held.let_in[pos]:
                ranges = found.setdefault(BUCKETS[name].id, [])
                if ranges and ranges[-1][1] == pos:
                    ranges[-1] = (ranges[-1][0], pos + 1)
                else:
                    ranges.append((pos, pos + 1))
        return found

    @precondition(lambda self: self.owned())
    @rule(
        pick=picks,
        through=st.integers(0, 30),
        first=st.sampled_from(("done", "retry", "dead")),
        release=st.booleans(),
    )
    def settle_some(self, pick: int, through: int, first: str, release: bool) -> None:
        id = self.pick(pick)
        held = self.leases[id]
        done = held.positions[:through]
        verdicts = [
            Verdict(pos, reason="retry", due=self.now, task="send", retried=True, note="retry: x")
            if first == "retry"
            else Verdict(pos, "failure", b"e", reason="dead", task="send", error=b"e", note="failed: x")
            for pos in done[:1]
            if first != "done"
        ]
        said = Settlement(
            id, held.owner or 0, [(pos, pos + 1) for pos in done], verdicts, ended=self.now, release=release
        )
        assert self.transact(held.group, {"leases": (id,)}, lambda v, c: settle(v, c, said))
        for pos in done:
            parked = {"retry": "due"}.get(first, first) if verdicts and pos == done[0] else "done"
            self.items[held.group][pos].place = parked
        self.leave(id, done, unused=False)
        if release and id in self.leases:
            self.returned(id)

    def returned(self, id: int) -> None:
        held = self.leases[id]
        held.owner = None
        for names in held.let_in.values():
            for name in names:
                self.give(name)
        held.let_in = {}

    @precondition(lambda self: self.owned())
    @rule(pick=picks, keep=st.integers(0, 5))
    def give_back(self, pick: int, keep: int) -> None:
        id, new = self.pick(pick), next(self.numbers)
        held = self.leases[id]
        back = held.positions[keep:]
        ranges = [(pos, pos + 1) for pos in back]
        given = self.transact(
            held.group, {"leases": (id,)}, lambda v, c: give_back(v, c, id, held.owner or 0, ranges, new)
        )
        assert given == len(back)
        if back:
            self.leave(id, back, unused=True)
            self.leases[new] = Held(held.group, None, back)

    @precondition(lambda self: self.owned())
    @rule(pick=picks, cause=st.sampled_from(Cause), through=st.integers(0, 3))
    def die(self, pick: int, cause: Cause, through: int) -> None:
        id = self.pick(pick)
        held = self.leases[id]
        done = held.positions[:through]
        said = Settlement(id, held.owner or 0, [(pos, pos + 1) for pos in done]) if done else None
        assert self.transact(
            held.group,
            {"leases": (id,)},
            lambda v, c: bury_lease(v, c, id, held.owner or 0, cause, said, (), self.now),
        )
        for pos in done:
            self.items[held.group][pos].place = "done"
        self.leave(id, done, unused=False)
        if id in self.leases:
            self.returned(id)

    @rule(by=st.sampled_from((0.01, 0.25, 0.5, 1, 5, 100, -0.5, -30, -100)))
    def time_passes(self, by: float) -> None:
        self.now += by

    @rule()
    def purge(self) -> None:
        waiting = [*self.at("main", "waiting"), *self.at("main", "due")]
        reads = {"positions": True, "returned": ALL, "parked": waiting}
        self.transact("main", reads, lambda v, c: purge(v, c, v.due, b"x", self.now))
        for id in [i for i, held in self.leases.items() if held.group == "main" and held.owner is None]:
            for pos in self.leases.pop(id).positions:
                self.items["main"][pos].place = "done"
        for item in self.items["main"].values():
            if item.place in ("pending", "waiting", "due"):
                item.place, item.waits = "done", ""

    @rule(group=st.sampled_from(("main", "v2")), dropped=st.booleans())
    def redrive(self, group: str, dropped: bool) -> None:
        """What is given back waits for its limits as any other."""
        if group not in self.groups:
            return
        dead = self.at(group, "dead")
        act = drop if dropped else lambda v, c, now: redrive(v, v.due, c, now)
        assert self.transact(group, {"parked": dead}, lambda v, c: act(v, c, self.now)) == len(dead)
        for pos in dead:
            self.items[group][pos].place = "done" if dropped else "due"

    @rule(back=picks, size=st.integers(1, 9))
    def seek(self, back: int, size: int) -> None:
        """What is done again waits for its limits again; who waited, or had a slot, does no more (H14)."""
        ((log, _, _),) = self.engine.bounds(self.queue)
        cursor = self.engine.positions(self.groups["main"])[0].cursor
        target = first_pos(log) + back % (cursor - first_pos(log) + 1)
        to = {log: target}
        assert self.transact("main", {"settings": True}, lambda v, c: begin(v, c, to, self.now))
        for owned in (False, True):
            ids = tuple(lease.id for lease in self.engine.leases(self.groups["main"]))
            self.transact(
                "main",
                {"leases": ids, "settings": True},
                lambda v, c, owned=owned: end_leases(v, c, to, self.now, owned=owned),
            )
        for lo in range(target, cursor, size):
            hi = min(lo + size, cursor)
            self.transact(
                "main", {"settings": True}, lambda v, c, lo=lo, hi=hi: rewind(v, c, to, lo, hi, self.now)
            )
        self.transact(
            "main",
            {"positions": True, "returned": ALL, "settings": True},
            lambda v, c: finish(v, c, to, self.now),
        )
        for id in [id for id, held in self.leases.items() if held.group == "main"]:
            self.leave(id, [pos for pos in self.leases[id].positions if pos >= target], unused=False)
        for pos, item in self.items["main"].items():
            if target <= pos < cursor:
                item.place, item.waits = "pending", ""

    @precondition(lambda self: "v2" not in self.groups)
    @rule()
    def replay(self) -> None:
        bounds = [(log, first_pos(log), None) for log in self.queue.logs]
        made = self.engine.create_group(self.queue, "shop", "v2", "replay", {}, bounds)
        assert made is not None
        self.groups["v2"] = made
        self.items["v2"] = {pos: Item() for pos in self.items["main"]}

    @precondition(lambda self: "v2" in self.groups)
    @rule()
    def drop_replay(self) -> None:
        self.engine.drop_group(self.groups.pop("v2"))
        del self.items["v2"]
        self.leases = {id: held for id, held in self.leases.items() if held.group != "v2"}

    # What must hold

    @invariant()
    def each_record_is_in_one_place(self) -> None:
        for name, group in self.groups.items():
            found: dict[int, str] = {}
            for at in self.engine.positions(group):
                found.update((pos, "pending") for pos in range(at.cursor, at.end))
            for lease in self.engine.leases(group):
                for span in lease.spans:
                    for pos in range(span.lo, span.hi):
                        assert pos not in found
                        found[pos] = "leased"
                assert lease.admitted == self._admitted(self.leases[lease.id])
                assert lease.owner == self.leases[lease.id].owner
            for _, parked in self.engine.parked(ParkedFilter([group.id]), ALL):
                assert parked.pos not in found
                found[parked.pos] = {"limited": "waiting", "dead": "dead"}.get(parked.reason, "due")
            assert found == {pos: i.place for pos, i in self.items[name].items() if i.place != "done"}
            assert self.engine.limited(group.id, ALL) == len(self.at(name, "waiting"))

    @invariant()
    def no_limit_is_overrun(self) -> None:
        for name, limit in LIMITS.items():
            assert limit.slots is None or len(self.holders(name)) <= limit.slots
        for stored in self.engine.buckets(list(NAMES)):
            assert stored.tokens == pytest.approx(self.tokens[stored.rule].left, abs=1e-3)

    @invariant()
    def nobody_is_overlooked(self) -> None:
        """Who waits for what is open by now is found, whatever happened before."""
        for name, group in self.groups.items():
            if any(self._is_open(self.items[name][pos].waits) for pos in self.at(name, "waiting")):
                due = self.engine.next_due(group.id)
                assert due is not None, "nobody will ever look"
                assert due <= self.now + 1.1, "somebody waits for what is open"

    def _is_open(self, name: str) -> bool:
        limit, one = LIMITS[name], self.tokens[name]
        if limit.slots is not None and len(self.holders(name)) >= limit.slots:
            return False
        return limit.rate is None or min(limit.burst, one.left + (self.now - one.at) * limit.rate) >= 1.1

    def _drain(self) -> None:
        """All that waits is run in the end."""
        for id in self.owned():
            held = self.leases[id]
            said = Settlement(id, held.owner or 0, [(pos, pos + 1) for pos in held.positions])
            assert self.transact(held.group, {"leases": (id,)}, lambda v, c, said=said: settle(v, c, said))
            for pos in held.positions:
                self.items[held.group][pos].place = "done"
            del self.leases[id]
        self.now += 1000
        for group in self.groups:
            steps = 0
            while any(item.place not in ("done", "dead") for item in self.items[group].values()):
                id = self.claim(group, 5, steps)
                if id is None:
                    due = self.engine.next_due(self.groups[group].id)
                    assert due is not None, "something waits, and nothing will wake it"
                    self.now = max(self.now, due) + 0.01
                else:
                    self.ask(id, 30)
                    if id in self.leases:
                        self.settle_whole(id)
                steps += 1
                assert steps < 20 * len(self.items[group]) + 50, "it is never done"

    def settle_whole(self, id: int) -> None:
        held = self.leases[id]
        said = Settlement(id, held.owner or 0, [(pos, pos + 1) for pos in held.positions])
        assert self.transact(held.group, {"leases": (id,)}, lambda v, c: settle(v, c, said))
        for pos in list(held.positions):
            self.items[held.group][pos].place = "done"
        self.leave(id, list(held.positions), unused=False)


def test_limits(make_engine: Callable[[], Engine]) -> None:
    """Fewer examples than of the core as a whole, and fewer still where a disk or a network is slower."""
    engine = make_engine()
    fewer = 20 if engine.capabilities.many_hosts else 10 if engine.capabilities.durable else 3
    engine.close()
    chosen = settings(max_examples=max(settings().max_examples // fewer, 1))
    run_state_machine_as_test(lambda: LimitsMachine(make_engine), settings=chosen)


def test_who_waits_looks_anew_where_the_clock_was_set_back(make_engine: Callable[[], Engine]) -> None:
    """The model has found it: the time from which to look was of the clock as it was before."""
    machine = LimitsMachine(make_engine)
    try:
        machine.begin(20)
        machine.claim_and_ask(pick=0, want=30, most=30, turn=0, crash=1, new=True)
        machine.time_passes(-100)
        machine.append(2)
        machine.claim_and_ask(pick=0, want=30, most=30, turn=0, crash=1, new=True)
        machine.time_passes(5)
        machine.nobody_is_overlooked()
        machine.no_limit_is_overrun()
    finally:
        machine.teardown()
