"""Who is dead: counters that stand still over the observer's own beats, never clocks (H4)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from respool.delivery.liveness import BeatObserver

PATIENCE = 5


class Observer:
    """One who has the same patience with everybody."""

    def __init__(self, patience: int) -> None:
        self._observer, self._patience = BeatObserver(), patience

    def beat_committed(self, counters: Mapping[int, int]) -> list[int]:
        return self._observer.beat_committed({w: (beat, self._patience) for w, beat in counters.items()})


def test_a_worker_that_beats_lives() -> None:
    observer = Observer(PATIENCE)
    assert [observer.beat_committed({1: beat}) for beat in range(50)] == [[]] * 50


@pytest.mark.parametrize("patience", [1, 3, 10])
def test_a_worker_that_stands_still_is_dead_after_so_many_of_our_beats(patience: int) -> None:
    observer = Observer(patience)
    said = [observer.beat_committed({1: 7, 2: beat}) for beat in range(patience + 3)]
    assert said == [[]] * patience + [[1]] * 3


def test_a_worker_seen_for_the_first_time_has_all_its_time() -> None:
    """Also one that never beat, and one that has been silent for long before we came."""
    observer = Observer(PATIENCE)
    for beat in range(20):
        observer.beat_committed({1: beat})
    said = [observer.beat_committed({1: beat, 2: 0}) for beat in range(20, 21 + PATIENCE)]
    assert said == [[]] * PATIENCE + [[2]]


def test_a_slow_worker_lives() -> None:
    observer = Observer(PATIENCE)
    assert [observer.beat_committed({1: beat // PATIENCE}) for beat in range(50)] == [[]] * 50


def test_a_dead_worker_that_beats_again_lives() -> None:
    observer = Observer(1)
    said = [observer.beat_committed({1: beat}) for beat in (4, 4, 5, 5)]
    assert said == [[], [1], [], [1]]


def test_each_worker_has_the_time_that_is_its_own() -> None:
    """Another app's settings may allow for a silence that ours would not."""
    observer = BeatObserver()
    said = [observer.beat_committed({1: (7, 3), 2: (7, 6), 3: (7, 12)}) for _ in range(10)]
    assert said == [[]] * 3 + [[1]] * 3 + [[1, 2]] * 4


def test_a_number_that_went_is_forgotten() -> None:
    observer = Observer(2)
    said = [observer.beat_committed(counters) for counters in ({1: 4}, {1: 4}, {}, {1: 4}, {1: 4}, {1: 4})]
    assert said == [[], [], [], [], [], [1]]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_after_an_outage_nobody_is_robbed(order: tuple[int, ...]) -> None:
    """Nobody could beat, however long; the first one back finds every counter where it was.

    Everybody comes back a beat after the one before. As long as the last is not later than `PATIENCE`
    beats of the first, nobody is taken for dead.
    """
    counters = dict.fromkeys(range(4), 10)
    observers = {worker: Observer(PATIENCE) for worker in counters}

    def beat(worker: int) -> list[int]:
        counters[worker] += 1
        return observers[worker].beat_committed({w: c for w, c in counters.items() if w != worker})

    said = [beat(worker) for _ in range(10) for worker in counters]
    # The outage: what is not committed, no observer hears of.
    said += [beat(worker) for back in range(1, 5) for worker in order[:back]]
    said += [beat(worker) for _ in range(10) for worker in order]
    assert [dead for dead in said if dead] == []


def test_after_an_outage_the_dead_are_found_still() -> None:
    observer = Observer(PATIENCE)
    for beat in range(10):
        observer.beat_committed({1: beat, 2: beat})
    said = [observer.beat_committed({1: beat, 2: 9}) for beat in range(10, 10 + PATIENCE)]
    assert said == [[]] * (PATIENCE - 1) + [[2]]


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=40), st.integers(1, 6))
def test_dead_is_who_stood_still_so_long(history: list[list[bool]], patience: int) -> None:
    """Beside the naive rule: the last `patience` + 1 readings are alike."""
    observer = Observer(patience)
    counters, seen = [0, 0, 0], [[], [], []]  # type: tuple[list[int], list[list[int]]]
    for beats in history:
        for worker, beat in enumerate(beats):
            counters[worker] += beat
            seen[worker].append(counters[worker])
        dead = [w for w in range(3) if len(seen[w]) > patience and len(set(seen[w][-patience - 1 :])) == 1]
        assert observer.beat_committed(dict(enumerate(counters))) == dead
