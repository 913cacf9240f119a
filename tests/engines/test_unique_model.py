"""Unique calls beside a naive model: which call a key is taken by is told by where that call is (H16)."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.engines.kits import EngineKit
from tests.engines.model import positions_of

from respool import App, DuplicateCall, unique
from respool import task as declared
from respool.delivery.admin import purge, redrive
from respool.delivery.claim import Request, claim
from respool.delivery.death import Cause, Suspect, bury_lease
from respool.delivery.model import Change, Lease, Settlement, Verdict, View
from respool.delivery.seek import begin, end_leases, finish, rewind
from respool.delivery.settle import settle
from respool.engines.base import ParkedFilter, Reads

pytestmark = pytest.mark.timeout(10 * settings().max_examples)

WINDOW, SOON = 60.0, 20.0
TASKS: dict[str, dict[str, Any]] = {
    "until_done": {"unique": "key"},
    "until_started": {"unique": "key", "unique_until": "started"},
    "raising": {"unique": "key", "on_duplicate": "raise"},
    "for_a_while": {"unique": "key", "unique_for": WINDOW},
    "replacing": {"unique": "key", "on_duplicate": "replace"},
    "expiring": {"unique": "key", "expires": SOON},
    "expiring_window": {"unique": "key", "unique_for": WINDOW, "expires": SOON},
    "lambda": {"unique": lambda key, n: key % 2},
}
KEYS = (0, 1, 2)
KINDS = ("done", "dead", "retry", "scheduled", "thrown", "kept", "revoked")
picks = st.integers(0, 1000)
ALL = 1_000_000


@dataclass
class Call:
    """One call that was sent, and where it is."""

    task: str
    key: int
    id: str
    until: float
    own: bool  # its id was given
    expires: float = math.inf
    place: str = "pending"  # or leased, retry, scheduled, dead, done; revoked: done, and it did not run
    claimed: float = math.inf  # when a worker took it that has it now
    begun: bool = False  # a run of it has, or is to be repeated


class UniqueMachine(RuleBasedStateMachine):
    """Calls are sent, granted, ended, lost; after each step the keys are as the model says."""

    def __init__(self, make_kit: Callable[[], EngineKit]) -> None:
        super().__init__()
        self.now = time.time()
        self.clock = unique.wall_clock
        unique.wall_clock = declared.wall_clock = lambda: self.now
        kit = make_kit()
        self.engine = kit.open()
        self.app = App("shop", url=kit.url or "sqlite:///:memory:")
        if kit.url is None:
            self.engine = self.app.engine
        self.tasks = {
            name: self.app.task(name=name, **options)(lambda key, n: None) for name, options in TASKS.items()
        }
        self.queue = self.app.stream_of("queue", "default")
        self.main = next(g for g in self.engine.groups() if g.stream == self.queue.id)
        self.numbers = itertools.count(1)
        self.calls: dict[int, Call] = {}  # by position
        self.locks: dict[tuple[str, int], int] = {}  # by task and key: the position of who took it last
        self.held: list[Lease] = []

    def teardown(self) -> None:
        unique.wall_clock = declared.wall_clock = self.clock
        self.app.close()
        self.engine.close()

    # What the model says

    def slot(self, task: str, key: int) -> tuple[str, int]:
        return task, key % 2 if task == "lambda" else key

    def holder(self, task: str, key: int) -> int | None:
        """Return the position of the call that keeps others out; None where there is none."""
        pos = self.locks.get(self.slot(task, key))
        if pos is None or task == "replacing":
            return None
        call = self.calls[pos]
        waits = call.place not in ("done", "dead", "revoked") and not call.begun
        if waits and self.now >= call.expires and call.claimed >= call.expires:
            return None
        if task in ("for_a_while", "expiring_window"):
            return pos if self.now < call.until and call.place != "revoked" else None
        if call.place in ("done", "dead", "revoked"):
            return None
        begun = call.place in ("leased", "retry")
        return None if begun and task == "until_started" else pos

    def moment(self) -> float:
        self.now += 1 / 1024
        return self.now

    def took(self, task: str, key: int, id: str) -> None:
        pos = self.engine.find("shop", self.app.AsyncResult(id)._id)
        assert pos is not None
        assert pos not in self.calls, "it was there before"
        expires = self.now + SOON if task.startswith("expiring") else math.inf
        self.calls[pos] = Call(task, key, id, self.now + WINDOW, id.startswith("mine"), expires)
        self.locks[self.slot(task, key)] = pos

    # Sending

    @rule(task=st.sampled_from(sorted(TASKS)), key=st.sampled_from(KEYS), own=st.booleans())
    def send(self, task: str, key: int, own: bool) -> None:
        holder, number = self.holder(task, key), next(self.numbers)
        given = {"task_id": f"mine-{number}"} if own else {}
        if holder is None:
            result = self.tasks[task].apply_async((key, number), **given)
            if own:
                assert result.id == f"mine-{number}"
                assert self.tasks[task].apply_async((key, number), **given) == result, "the same again"
            self.took(task, key, result.id)
        elif task == "raising":
            with pytest.raises(DuplicateCall) as caught:
                self.tasks[task].apply_async((key, number), **given)
            assert caught.value.existing.id == self.calls[holder].id
        else:
            assert self.tasks[task].apply_async((key, number), **given).id == self.calls[holder].id

    @rule(task=st.sampled_from(sorted(TASKS)), keys=st.lists(st.sampled_from(KEYS), min_size=2, max_size=5))
    def send_in_bulk(self, task: str, keys: Sequence[int]) -> None:
        there = [self.holder(task, key) for key in keys]
        if task == "raising" or any(pos is not None and self.calls[pos].own for pos in there):
            return  # a ResultSet holds no handle of a given id
        calls = [((key, next(self.numbers)), {}) for key in keys]
        results = self.tasks[task].apply_many(calls)
        for key, result in zip(keys, results, strict=True):
            holder = self.holder(task, key)
            if holder is None:
                self.took(task, key, result.id)
            else:
                assert result.id == self.calls[holder].id

    # What becomes of calls

    @rule(want=st.integers(1, 5), turn=st.integers(0, 5))
    def grant(self, want: int, turn: int) -> None:
        now = self.moment()
        request = Request(want, 1, 0, 1 << 32 | next(self.numbers), now, turn)
        reads = Reads(self.main.id, (), True, want, ALL, now)
        lease = self.engine.transact(reads, lambda view, change: claim(view, change, request))
        if lease is None:
            return
        self.held.append(lease)
        for pos in positions_of(lease):
            self.calls[pos].place, self.calls[pos].claimed = "leased", now

    @precondition(lambda self: self.held)
    @rule(pick=picks, kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    def end(self, pick: int, kinds: Sequence[str]) -> None:
        lease = self.held.pop(pick % len(self.held))
        at = self.moment()
        verdicts, done = [], []
        for pos, kind in zip(positions_of(lease), itertools.cycle(kinds), strict=False):
            said: dict[str, dict[str, Any]] = {
                "dead": {
                    "ending": "failure",
                    "value": b"e",
                    "reason": "dead",
                    "error": b"e",
                    "note": "failed",
                },
                "retry": {"reason": "retry", "due": at, "retried": True, "note": "retry"},
                "scheduled": {"reason": "scheduled", "due": at + 5},
                "thrown": {"ending": "failure", "value": b"t", "note": "failed"},
                "revoked": {"ending": "revoked", "value": b"r", "note": "expired"},
            }
            self.calls[pos].claimed = math.inf
            self.calls[pos].begun |= kind == "retry"
            if kind == "kept":
                continue
            done.append((pos, pos + 1))
            if kind in said:
                verdicts.append(Verdict(pos, task="t", ended=at, started=at, **said[kind]))
            self.calls[pos].place = "done" if kind == "thrown" else kind
        settlement = Settlement(lease.id, 1, done, verdicts, [], at, at, release=True)
        assert self.engine.transact(
            Reads(self.main.id, (lease.id,)), lambda view, change: settle(view, change, settlement)
        )  # what was kept is given back: leased, by nobody

    @precondition(lambda self: self.held)
    @rule(pick=picks, cause=st.sampled_from(Cause), deliveries=st.integers(1, 2))
    def die(self, pick: int, cause: Cause, deliveries: int) -> None:
        lease, now = self.held.pop(pick % len(self.held)), self.moment()
        (first, *_) = positions_of(lease)
        suspects = [Suspect(first, "t", deliveries, "killed", b"lost", now)]
        self.engine.transact(
            Reads(self.main.id, (lease.id,)),
            lambda view, change: bury_lease(view, change, lease.id, 1, cause, None, suspects, now),
        )
        group = ParkedFilter((self.main.id,), positions=(first,))
        for pos in positions_of(lease):
            self.calls[pos].claimed = math.inf
        self.calls[first].begun = True
        if any(parked.reason == "dead" for _, parked in self.engine.parked(group, 1)):
            self.calls[first].place = "dead"

    @precondition(lambda self: any(call.place == "dead" for call in self.calls.values()))
    @rule()
    def redrive(self) -> None:
        """A dead letter holds nothing; once it is given back it does, unless another has taken its key."""
        dead, now = [pos for pos, call in self.calls.items() if call.place == "dead"], self.moment()

        def decide(view: View, change: Change) -> int:
            return redrive(view, view.due, change, now)

        assert self.engine.transact(Reads(self.main.id, parked=dead), decide) == len(dead)
        for pos in dead:
            self.calls[pos].place, self.calls[pos].begun = "scheduled", True

    @rule()
    def purge(self) -> None:
        waiting, now = [pos for pos, call in self.calls.items() if call.place in ("retry", "scheduled")], 0.0
        now = self.moment()
        self.engine.transact(
            Reads(self.main.id, positions=True, returned=ALL, parked=waiting),
            lambda view, change: purge(view, change, view.due, b"purged", now),
        )
        held = {pos for lease in self.held for pos in positions_of(lease)}
        for pos, call in self.calls.items():
            if call.place not in ("dead", "done") and pos not in held:
                call.place = "revoked"

    @rule(back=picks)
    def seek(self, back: int) -> None:
        """What is to be done again holds its key again, unless another has it or its row was swept (H14)."""
        while self.held:
            self.end(0, ["kept"])
        ((log, first, _),) = self.engine.bounds(self.queue)
        cursor, now = self.engine.positions(self.main)[0].cursor, self.moment()
        target = first + back % (cursor - first + 1)
        to = {log: target}
        ids = tuple(lease.id for lease in self.engine.leases(self.main))
        for reads, step in (
            ({}, lambda v, c: begin(v, c, to, now)),
            ({"leases": ids}, lambda v, c: end_leases(v, c, to, now, owned=True)),
            ({}, lambda v, c: target == cursor or rewind(v, c, to, target, cursor, now)),
            ({"positions": True, "returned": ALL}, lambda v, c: finish(v, c, to, now)),
        ):
            self.engine.transact(Reads(self.main.id, **reads, settings=True), step)  # type: ignore[arg-type]
        for pos, call in self.calls.items():
            if target <= pos < cursor:
                call.place, call.begun = "pending", True

    @rule()
    def replay(self) -> None:
        """A replay of all there is takes nothing and frees nothing."""
        name, now = f"v{next(self.numbers)}", self.moment()
        bounds = [(log, lo, hi) for log, lo, hi in self.engine.bounds(self.queue)]
        group = self.engine.create_group(self.queue, "shop", name, "replay", {}, bounds)
        assert group is not None
        request = Request(20, 2, 0, 2 << 32 | next(self.numbers), now)
        reads = Reads(group.id, (), True, 20, ALL, now)
        lease = self.engine.transact(reads, lambda view, change: claim(view, change, request))
        if lease is not None:
            done = [(span.lo, span.hi) for span in lease.spans]
            settlement = Settlement(lease.id, 2, done, [], [], now, now)
            self.engine.transact(
                Reads(group.id, (lease.id,)), lambda view, change: settle(view, change, settlement)
            )

    @rule()
    def sweep(self) -> None:
        """Rows of what has ended go; a dead letter's stays, and holds again once it is redriven."""
        ended = {
            slot: pos
            for slot, pos in self.locks.items()
            if self.calls[pos].place in ("done", "revoked")
            and ("unique_for" not in TASKS[slot[0]] or self.calls[pos].until <= self.now)
        }
        assert self.engine.sweep_locks(self.now, 100) == len(ended)
        for slot in ended:
            del self.locks[slot]

    @rule(by=st.sampled_from((1.0, 10.0, WINDOW)))
    def wait(self, by: float) -> None:
        self.now += by

    # What must hold

    @invariant()
    def keys_are_taken_by_whom_the_model_says(self) -> None:
        for (task, key), pos in self.locks.items():
            rule_ = self.tasks[task].unique
            assert rule_ is not None
            text = rule_.key("shop", (key, 0), {}, ((key, 0), {}))
            lock = self.engine.lock_of(text)
            assert lock is not None
            assert lock.placed
            assert lock.pos == pos
            holds = unique.holds(self.app, self.engine, lock, rule_, self.now)
            if task != "replacing":
                assert holds == (self.holder(task, key) is not None)

    @invariant()
    def nothing_was_sent_twice(self) -> None:
        ((_, lo, hi),) = self.engine.bounds(self.queue)
        assert {record.pos for record in self.engine.records(lo, hi, ALL)} == set(self.calls)


def test_unique(make_kit: Callable[[], EngineKit], request: pytest.FixtureRequest) -> None:
    fewer = {"sqlite-memory": 1, "sqlite-file": 5, "postgres": 10}.get(
        request.node.callspec.params["make_kit"], 25
    )
    chosen = settings(max_examples=max(settings().max_examples // fewer, 2))
    run_state_machine_as_test(lambda: UniqueMachine(make_kit), settings=chosen)
