"""Where a process reads an ordered group's partitions on (K6), and what a claim makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from respool.delivery.claim import Request, claim
from respool.delivery.lanes import unread
from respool.delivery.model import WAITING, Change, Lease, Ordering, Parked, Position, View
from respool.delivery.order import Claimant, choose
from respool.delivery.spans import Span
from respool.engines.kafka import stays as module
from respool.engines.kafka.stays import LONGER, MUCH, STAY, Stays
from respool.record import first_pos

LOGS = range(10, 20)


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    monkeypatch.setattr(module.os, "getpid", lambda: 23)
    return made


MIDDLE_LOGS, HIGH_LOGS = (10, 11), (12, 13)


def offered(stays: Stays, *, lanes: bool) -> View:
    """Return what a claim sees that stays on partition 11 of those with much to be read."""
    view = View()
    view.positions = [Position(log, first_pos(log), first_pos(log) + MUCH) for log in MIDDLE_LOGS]
    if lanes:
        view.positions += [Position(log, *[first_pos(log) + 9] * 2, None, (), 9) for log in HIGH_LOGS]
    stays.among(1, view.positions)
    view.positions = stays.among(1, view.positions)
    assert [at.log for at in view.positions if unread(at)] == [11]
    return view


@pytest.mark.parametrize("lanes", [False, True])
def test_what_is_due_given_back_or_waits_may_be_of_a_partition_that_is_not_offered(
    clock: Clock, lanes: bool
) -> None:
    """Its lane is known nevertheless: be it a group with priorities, or one whose batches wait for more."""
    view, pos = offered(Stays(), lanes=lanes), first_pos(10)
    view.due = [Parked(pos + 3, "retry", 0.0, "t")]
    view.returned = [
        Lease(7, None, 0, [Span(pos + 4, pos + 5)], {}, 0.0),
        Lease(8, WAITING, 0, [Span(pos + 6, pos + 8)], {}, clock.now + 5),
    ]
    change = Change()
    lease = claim(view, change, Request(9, 1, 0, 99, clock.now))
    assert lease is not None
    assert {span.lo >> 40 for span in lease.spans} == {10, 11}
    assert [each for span in lease.spans for each in range(span.lo, span.hi) if each >> 40 == 10] == [
        pos + n for n in (3, 4, 6, 7)
    ], "what waits goes along, as its lane has more"


def order(stays: Stays, *, held: Any = (), at_hand: bool = False, gone: Any = ()) -> list[int]:
    unread = {log: MUCH for log in LOGS if log not in gone}
    return stays.in_order(1, unread, set(held), lambda log: at_hand)


def test_a_process_stays_for_a_while_then_goes_on(clock: Clock) -> None:
    stays = Stays()
    assert order(stays) == [13, 14, 15, 16, 17, 18, 19, 10, 11, 12], "each process begins elsewhere"
    clock.now += STAY * 0.9
    assert order(stays)[0] == 13
    clock.now += STAY * 0.2
    assert order(stays) == [14, 15, 16, 17, 18, 19, 10, 11, 12, 13]
    clock.now += LONGER * 0.9
    assert order(stays, at_hand=True)[0] == 14, "what was read of it is used up first"
    clock.now += LONGER * 0.2
    assert order(stays, at_hand=True)[0] == 15, "but none is forgotten for that"


def test_where_it_claimed_is_where_it_goes_on(clock: Clock) -> None:
    stays = Stays()
    order(stays)
    clock.now += STAY * 0.9
    stays.took(1, 16)
    clock.now += STAY * 0.9
    assert order(stays)[:2] == [16, 17]
    assert order(stays, gone=[16])[0] == 17, "nothing is left of it"
    assert order(stays, gone=[17, 18, 19])[0] == 10


def test_close_behind_others_it_goes_on_from_the_other_side(clock: Clock) -> None:
    stays = Stays()
    assert order(stays, held=[14]) == [13, 18, 19, 10, 11, 12, 14, 15, 16, 17]
    assert order(stays, held=[15])[1] == 18
    assert order(stays, held=[16])[1] == 14, "it is far enough away"
    assert order(stays, held=[12])[1] == 14, "who is behind sees to it"


def test_where_little_is_to_be_read_any_partition_will_do(clock: Clock) -> None:
    assert Stays().in_order(1, {10: MUCH - 10, 11: 9}, set(), lambda log: True) == []
    assert Stays().in_order(1, {}, set(), lambda log: True) == []


def test_a_claim_takes_what_it_prefers_of_what_is_free() -> None:
    view = View()
    view.positions = [Position(log, first_pos(log), first_pos(log) + 5) for log in range(1, 7)]
    view.order = Ordering()
    view.order.leases = [
        Lease(1, 8, 0, [Span(first_pos(4), first_pos(4) + 1)]),  # another worker's
        Lease(2, 7, 1, [Span(first_pos(5), first_pos(5) + 1)]),  # a sibling's
    ]
    chosen = choose(view, (), (), Claimant(7, 0, 9, 1, prefers=[5, 4, 3, 99]))
    assert [(at.log, shared) for at, shared in chosen] == [(3, False), (2, False), (6, False), (1, False),
                                                           (5, True)]  # fmt: skip
