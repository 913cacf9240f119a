"""Waits that are bounded in all: a thread's own limit, its turn at a lock, what the one before has met."""

from __future__ import annotations

import math
import threading
import time

import pytest

from respool.engines.turns import Down, NotMyTurn, Turn, left, limited
from respool.errors import EngineUnavailable


def refused(turn: Turn) -> None:
    with turn as mine:
        assert not mine
        raise NotMyTurn


def test_a_turn_gives_the_lock_back() -> None:
    lock = threading.Lock()
    turn = Turn(lock.acquire, False)
    for _ in range(2):
        with turn as mine:
            assert mine
            assert lock.locked()
        assert not lock.locked()
    with pytest.raises(ValueError, match="mine"), turn:
        raise ValueError("mine")
    assert not lock.locked()


@pytest.mark.parametrize("seconds", [None, 0.05])
def test_a_turn_that_did_not_come_leaves_the_lock_to_who_has_it(seconds: float | None) -> None:
    lock = threading.Lock()
    turn = Turn(lock.acquire, False) if seconds is None else Turn(lock.acquire, True, seconds)
    with lock:
        began = time.monotonic()
        with pytest.raises(NotMyTurn):
            refused(turn)
        assert time.monotonic() - began >= (seconds or 0.0)
        assert lock.locked(), "it is another's"


def test_a_limit_holds_for_what_is_within_it_and_in_its_thread_only() -> None:
    assert left(7.0) == 7.0
    with limited(time.monotonic() + 5):
        assert 4 < left(7.0) <= 5
        assert left(2.0) == 2.0
        with limited(time.monotonic() + 60), limited(None):
            assert 4 < left(math.inf) <= 5, "what holds already goes on to hold"
        with limited(time.monotonic() - 1):
            assert left(7.0) == 0.0
        others: list[float] = []
        thread = threading.Thread(target=lambda: others.append(left(7.0)))
        thread.start()
        thread.join(10)
        assert others == [7.0]
    assert left(7.0) == 7.0


def test_a_failure_is_shared_by_who_waited_meanwhile_and_had_no_longer_than_that() -> None:
    down = Down()
    down.check(10.0, 20.0)
    down.note("no answer", 10.0, 20.0)
    with pytest.raises(EngineUnavailable, match="no answer"):
        down.check(10.5, 20.5)
    down.check(21.0, 31.0)  # it came later: the server may be back
    down.check(10.5, 60.0)  # it has more time than the other had
