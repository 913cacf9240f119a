"""How far logs go: what claims are told of it, and what is seen to meanwhile.

The ends are asked for before a transaction of the state, never within it: they can only have grown since. Nor
are they asked for where it is known without that there is enough to claim: an end of the last second is one
still, and a record that has come by itself was committed (K2). What that misses is found by the next look.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...delivery.model import Change, Position, View
from ...delivery.seek import held
from ...record import first_pos, offset_of
from ..base import Counts, Group, Reads
from .log import KafkaLog
from .stays import MUCH, STAY

LOOK = 1.0  # seconds between two looks at the ids of topics; and that an end is known for, once it was asked

JUST_NOW = (
    0.005  # seconds; an end that was asked for so lately, by the look for work, is what it would be now
)


class Ends(NamedTuple):
    """Where logs end, as a decision is told."""

    by_log: dict[int, int]
    enough: int | None  # records that have to be left of them, or it is to be asked; None: that was done

    def suffice(self, positions: Sequence[Position]) -> bool:
        """Say whether so much is left: others may have claimed it."""
        return self.enough is None or all(
            at.end - at.cursor >= self.enough or (at.stop is not None and at.end >= at.stop)
            for at in positions
        )


class KafkaEnds(KafkaLog):
    """Tells the state's decisions where logs end."""

    def __init__(self) -> None:
        KafkaLog.__init__(self)
        self._cursors: dict[int, dict[int, int]] = {}  # of groups, as seen last
        self._cursors_at: dict[int, float] = {}
        self._looked_at: dict[int, float] = {}  # when the topics of streams were looked at last (K3)

    def ends_for(self, reads: Reads, logs: Sequence[int], *, ask: bool = False) -> Ends:
        """Return where the logs of a decision end; for a claim, once it is seen that they are what they were.

        Parameters:
            ask: what is known is not enough.
        """
        ends = None if ask else self._known_enough(reads, logs)
        if ends is None:
            ends = Ends(self.ends(logs), None)
        if reads.due:
            self._look_at_topics(logs)
            self._look_at_epochs(reads.group, logs)
            known = self._cursors.get(reads.group, {})
            self.inner.reserve(known[log] + reads.due for log in ends.by_log if log in known)
        return ends

    def _known_enough(self, reads: Reads, logs: Sequence[int]) -> Ends | None:
        """Return what is known of a log's end where that is enough for a claim.

        Of a single log only: of several, one with little to be read would be forgotten for the others.
        """
        if reads.due and reads.ordered is not None:
            return self._known_of_many(reads, logs)
        if not reads.due or len(logs) != 1:
            return None
        (log,) = logs
        cursor, asked = self._cursors.get(reads.group, {}).get(log), self._ends_at.get(log)
        if cursor is None or asked is None or time.monotonic() - asked >= LOOK:
            return None
        end = self._ends_seen[log]
        if end > cursor:
            least = 1 if time.monotonic() - asked < JUST_NOW else reads.due
            return Ends({log: end}, least) if end - cursor >= least else None
        came = self.reader.came(self.place(log))
        if came is None or came.epoch > self._epochs_seen[log]:
            return None
        end = max(end, first_pos(log) + came.end)
        if end <= cursor and not reads.leases:
            return None  # it was told that there is something
        self._ends_seen[log] = end
        return Ends({log: end}, 0 if reads.leases else 1)  # who settles looks again before it goes to sleep

    def _known_of_many(self, reads: Reads, logs: Sequence[int]) -> Ends | None:
        """Return what is known of an ordered group's logs, where that leaves much to be read.

        For as long only as a claim stays in one of them: before it goes on to the next, all are asked for.
        """
        since, cursors = time.monotonic() - STAY, self._cursors.get(reads.group, {})
        if not cursors or any(self._ends_at.get(log, 0.0) < since for log in logs):
            return None
        ends = {log: self._ends_seen[log] for log in logs}
        there = sum(end - cursors.get(log, end) for log, end in ends.items())
        return Ends(ends, 0) if there >= MUCH else None

    def _look_at_topics(self, logs: Sequence[int]) -> None:
        """Now and then see whether topics are those that they were: ends and claims go by names (K3)."""
        now = time.monotonic()
        for stream in {self.stream_of_log(each).id: self.stream_of_log(each) for each in logs}.values():
            if now - self._looked_at.get(stream.id, 0.0) >= LOOK:
                self._looked_at[stream.id] = now
                self.check_topic(stream)

    def _look_at_epochs(self, group: int, logs: Sequence[int]) -> None:
        """See whether logs that another leader leads now hold what the group has read of them (K3)."""
        changed = self.epochs.changed(group, {log: self._epochs_seen.get(log, -1) for log in logs})
        if changed:
            seen = {log: self._epochs_seen[log] for log in changed}
            for log in changed:
                self._forget_read(log)
            starts = self.starts(changed)
            # Before the epochs are read: who keeps another one has looked, and moves on only then
            cursors = {at.log: at.cursor for at in self.inner.positions(Group(group, 0, "", "", "group"))}
            read = {log: offset_of(max(cursors.get(log, 0), starts[log])) for log in changed}
            at = {log: (self.place(log), read[log], seen[log]) for log in changed if log in cursors}
            self.epochs.look(self.outbox.group.id, group, at)

    # Questions about the ends

    def has_work(self, group: int, now: float, tasks: Sequence[str]) -> bool:
        """Say whether a claim would find anything."""
        return self._has_more(group) or self.inner.has_work(group, now, tasks)

    def _has_more(self, group: int) -> bool:
        """Say whether there are records that nobody has claimed, and that may be."""
        logs = self.logs_of(group, fresh=LOOK)
        known = self._cursors.get(group)
        self._look_at_topics(logs)  # in one made again there may be nothing to claim, and to be seen by that
        ends = self.ends(logs)
        led = self.epochs.changed(group, {log: self._epochs_seen[log] for log in logs})
        fresh = time.monotonic() - self._cursors_at.get(group, 0.0) < LOOK  # a seek moves them back
        if (
            not led
            and known is not None
            and fresh
            and all(ends[each] <= known.get(each, -1) for each in logs)
        ):
            return False
        positions, waits = self.inner.look(Reads(group, positions=True, due=1), _positions_and_held)
        self._note_cursors(group, {at.log: at.cursor for at in positions})
        if led and not waits:
            self._look_at_epochs(group, logs)  # what has lost its end has nothing to be read, and says so
        return not waits and any(
            at.cursor < (ends.get(at.log, 0) if at.stop is None else min(ends.get(at.log, 0), at.stop))
            for at in positions
        )

    def _note_cursors(self, group: int, cursors: dict[int, int]) -> None:
        self._cursors[group], self._cursors_at[group] = cursors, time.monotonic()

    def positions(self, group: Group) -> list[Position]:
        """Return how far a group is in each log."""
        ends = self.ends(self.logs_of(group.id, fresh=LOOK))
        return [
            at._replace(end=max(ends.get(at.log, at.cursor), at.cursor), missing=())
            for at in self.inner.positions(group)
        ]

    def counts(self, group: Group) -> Counts:
        """Return how many of a group's records are where."""
        ends = self.ends(self.logs_of(group.id, fresh=LOOK))
        before = self.inner.positions(group)
        counts = self.inner.counts(group)
        pending, oldest = 0, None
        for at in before:
            end = max(ends.get(at.log, at.cursor), at.cursor)
            end = end if at.stop is None else min(end, at.stop)
            if end > at.cursor:
                pending += end - at.cursor
                first = next(self._in_order(at.log, at.cursor, end, 1), None)
                if first is not None and (oldest is None or first.time < oldest):
                    oldest = first.time
        return counts._replace(pending=pending, oldest_pending=oldest)


def tell_ends(view: View, ends: Mapping[int, int]) -> None:
    """Enter where logs end into what a decision sees."""
    positions = []
    for at in view.positions:
        end = max(ends.get(at.log, at.cursor), at.cursor)
        positions.append(at._replace(end=end, missing=()))
    view.positions, view.near = positions, False


def _positions_and_held(view: View, change: Change) -> tuple[list[Position], bool]:
    """Return how far a group is, and whether it is held."""
    return view.positions, held(view.settings) is not None
