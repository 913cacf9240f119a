"""Telling dead workers from living ones, by counters and never by clocks (H4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class BeatObserver:
    """One worker's view of the others' beats.

    A worker is dead when its counter stood still while the observer committed so many beats of its own as
    that worker may be silent. After an outage of the database everybody's counter stood still, but nobody
    has committed a beat either: the first one back waits as long as anyone.
    """

    def __init__(self) -> None:
        self._own_beats = 0
        self._seen: dict[int, tuple[int, int]] = {}  # worker -> its counter, our beat when it changed

    def beat_committed(self, others: Mapping[int, tuple[int, int]]) -> list[int]:
        """Take the others' counters as read with our own committed beat; return who is dead.

        Parameters:
            others: by worker, its counter, and how many beats of ours that may stand still.
        """
        self._own_beats += 1
        dead = []
        for worker, (counter, patience) in others.items():
            last, since = self._seen.get(worker, (-1, self._own_beats))
            if counter != last:
                self._seen[worker] = (counter, self._own_beats)
            elif self._own_beats - since >= patience:
                dead.append(worker)
        self._forget(others)
        return dead

    def _forget(self, present: Iterable[int]) -> None:
        for worker in set(self._seen) - set(present):
            del self._seen[worker]
