"""The state is the inner engine's: what depends on where the log begins and ends is told to it here.

The ends are read before the transaction, never within it: they can only have grown since. What is parked
goes into the state with its body, in the transaction that parks it (H15); so do the calls that runs have
made (K4).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ...delivery.lapse import LOST
from ...delivery.limits import Limit
from ...delivery.model import Bucket, Change, JournalEntry, Lease, NewCall, Outcome, Parked, Position, View
from ...delivery.order import Claimant
from ...delivery.seek import held
from ...delivery.spans import Span, count, intersect, merge, ranges_of, subtract
from ...errors import RespoolError
from ...record import Id, Row, first_pos, log_of, offset_of
from ..base import Counts, Group, ParkedFilter, Reads, Status, UniqueLock
from .ahead import Ahead, KeysMissing, Range
from .log import KafkaLog
from .message import header_of, row_of
from .reader import Trimmed
from .stays import Stays

T = TypeVar("T")
log = logging.getLogger("respool.engine")
LOOK = 1.0  # seconds between two looks at the ids of topics
TRIMMED = "trimmed by the log before it was run"


class _Missing(Exception):
    """A decision parks records that are not at hand: they are read, and it is made again."""

    def __init__(self, positions: list[int]) -> None:
        super().__init__(positions)
        self.positions = positions


class _NewLog(Exception):
    """A group has got a log that nothing was known of: the lane of a priority that was not used before."""

    def __init__(self, logs: list[int]) -> None:
        super().__init__(logs)
        self.logs = logs


def _parked_before(view: View) -> set[int]:
    """Return what a decision has seen of what is parked: the state has it already (H15)."""
    found = {parked.pos for parked in view.due}
    if view.order is not None:
        found.update(parked.pos for chain in view.order.waiting.values() for parked in chain)
    return found


class _Elsewhere:
    """What a claim of an ordered group wants to know of the log, in the transaction of the state."""

    def __init__(self, group: int, ends: dict[int, int], ahead: Ahead) -> None:
        self._group, self._ends, self._ahead = group, ends, ahead

    def tell_ends(self, view: View) -> None:
        _tell_ends(view, self._ends)

    def ahead(
        self, view: View, positions: Sequence[Position], limit: int
    ) -> Mapping[int, list[tuple[int, int | None]]]:
        return self._ahead.rows(self._group, view, positions, limit)


def _tell_ends(view: View, ends: Mapping[int, int]) -> None:
    positions = []
    for at in view.positions:
        end = max(ends.get(at.log, at.cursor), at.cursor)
        positions.append(at._replace(end=end, missing=()))
    view.positions = positions


class KafkaState(KafkaLog):
    """What groups know."""

    def __init__(self) -> None:
        KafkaLog.__init__(self)
        self._cursors: dict[int, dict[int, int]] = {}  # of groups, as seen last
        self._cursors_at: dict[int, float] = {}
        self._lost: list[tuple[int, int]] = []  # found trimmed, until their lease is settled (K1)
        self._stays = Stays()
        self._looked_at = 0.0  # when topics were looked at last (K3)

    def transact(self, reads: Reads, decide: Callable[[View, Change], T], *, synced: bool = False) -> T:
        """Lock, read, let `decide` fill the change, write, commit; return what `decide` returned."""
        logs = self.logs_of(reads.group) if reads.positions else ()
        ends = self.ends(logs)
        if reads.due:
            self._look_at_topics(logs)
            self._look_at_epochs(reads.group, logs)
            self.inner.reserve(end - 1 for log, end in ends.items() if end > first_pos(log))
        absent: set[int] = set()
        fetched: dict[int, Row] = {}
        calls: list[NewCall] = []
        to: set[int] = set()  # logs of the outbox
        told: list[tuple[int, int]] = []

        def run(view: View, change: Change) -> T:
            everywhere: list[Position] = []
            if reads.positions:
                new = [at.log for at in view.positions if at.log not in ends]
                if new:
                    raise _NewLog(new)
                _tell_ends(view, ends)
                everywhere = view.positions
                if reads.due and reads.ordered is None:
                    view.positions = self._stays.among(reads.group, everywhere)
            answer = decide(view, change)
            change.kept = self._to_keep(change.parked, fetched, absent | _parked_before(view))
            calls[:] = change.calls
            if calls:
                change.calls = self.outbox.rewritten(calls)
                to.update(call.log for call in change.calls)
            if reads.positions:
                cursors = {at.log: at.cursor for at in everywhere} | dict(change.cursors)
                self._note_cursors(reads.group, cursors)
            if reads.due:
                self._once_parked = _parked_before(view)
            if self._lost and change.journal:
                told[:] = self._tell_lost(change)
            return answer

        if reads.ordered is not None:
            reads = self._by_key(reads, ends)
        while True:
            try:
                answer = self.inner.transact(reads, run, synced=synced)
                break
            except KeysMissing as missing:
                self._read_keys(missing)
            except _NewLog as found:
                self.forget()
                ends.update(self.ends(self.logs_of(reads.group)))
                ends.update({log: 0 for log in found.logs if log not in ends})  # its stream is gone
            except _Missing as missing:
                for pos in missing.positions:
                    row = self._fetch(pos)
                    if row is None:
                        absent.add(pos)
                    else:
                        fetched[pos] = row
        if told:
            with self._remembering:
                self._lost = [(s.lo, s.hi) for s in subtract([Span(*each) for each in self._lost], told)]
        if calls:
            self._relay_now(to)
        return answer

    def _by_key(self, reads: Reads, ends: dict[int, int]) -> Reads:
        """Return what a claim of an ordered group reads: by keys that are in Kafka."""
        who = reads.ordered
        assert who is not None
        before = self._cursors.get(reads.group, {})
        unread = max((end - before.get(log, end) for log, end in ends.items()), default=0)
        turn = self._stays.turn(who.turn, unread)
        now = Claimant(who.owner, who.child, who.want, turn, who.room)
        return reads._replace(ordered=now, elsewhere=_Elsewhere(reads.group, ends, self._ahead))

    def _read_keys(self, missing: KeysMissing) -> None:
        """Read what a claim needs to know."""
        self._ahead.keep(missing.group, self._messages_of(missing.ranges))

    def _messages_of(self, ranges: Sequence[Range]) -> list[tuple[Range, int, list[Any]]]:
        """Return ranges, where the log begins in each, and the messages from there on."""
        if not ranges:
            return []
        asked = [(self.place(log_of(lo)), offset_of(lo), offset_of(lo) + hi - lo) for lo, hi in ranges]
        try:
            read = self.reader.read(asked)
        except Trimmed:
            starts = self.starts([log_of(lo) for lo, _ in ranges])
            there = {each: (min(max(each[0], starts[log_of(each[0])]), each[1]), each[1]) for each in ranges}
            left = self._messages_of([now for now in there.values() if now[0] < now[1]])
            found = {now: (begins, messages) for now, begins, messages in left}
            return [(each, *found.get(now, (now[0], []))) for each, now in there.items()]
        return [(each, each[0], messages) for each, messages in zip(ranges, read, strict=True)]

    def _to_keep(self, parked: Sequence[Parked], fetched: dict[int, Row], absent: set[int]) -> list[Row]:
        """Return what is parked, to be kept in the state: from what a worker has just read, or fetched.

        But for what is `absent`: it is there already, or nowhere.
        """
        kept, missing = [], []
        for each in parked:
            pos = each.pos
            if pos in absent:
                continue
            known = self._at_hand.get(pos)
            ahead = self._ahead.messages.get(pos)
            if ahead is not None:
                row = row_of(log_of(pos), ahead)
                kept.append(Row(pos, row[1], row[2], header_of(ahead)))
            elif known is not None:
                row, behind = known
                packed = behind if isinstance(behind, bytes) else header_of(behind)
                kept.append(Row(pos, row[1], row[2], packed))
            elif pos in fetched:
                kept.append(fetched[pos])
            else:
                missing.append(pos)
        if missing:
            raise _Missing(missing)
        return kept

    def _fetch(self, pos: int) -> Row | None:
        """Return a record as it is kept, from the state or from Kafka; None where it is nowhere."""
        for row in self.inner.rows([Span(pos, pos + 1)]):
            return Row(*row)
        if not self.known_logs([log_of(pos)]):
            return None
        found: dict[int, Any] = {}
        if self.starts([log_of(pos)])[log_of(pos)] <= pos < self.ends([log_of(pos)])[log_of(pos)]:
            self._read_into(found, self.seeker, [(pos, pos + 1)])
        for row, message in found.values():
            return Row(pos, row[1], row[2], header_of(message))
        return None

    def _relay_now(self, to: set[int]) -> None:
        """Send the calls of runs that were just settled. What cannot be sent yet waits for a beat."""
        try:
            self.outbox.relay(to)
        except RespoolError as error:  # the settlement stands, whatever it is
            log.warning("calls of runs wait in the state until they can be sent: %s", error)

    # K1

    def _lose(self, lo: int, hi: int, kept: Iterable[int]) -> None:
        lost = subtract([Span(lo, hi)], ranges_of(kept))
        if lost:
            place = self.place(log_of(lo))
            log.error(
                "%d record(s) of %s/%d from offset %d on are lost: trimmed before they were done",
                *(count(lost), place.topic, place.partition, offset_of(lo)),
            )
            with self._remembering:
                self._lost += [(span.lo, span.hi) for span in lost]

    def _tell_lost(self, change: Change) -> list[tuple[int, int]]:
        """Say of what was trimmed before it was run that it is lost: it must not read as done (H9, K1).

        Returns: of what that is said, once it is written.
        """
        with self._remembering:
            lost = merge(self._lost)
            told = [(e.lo, e.hi) for e in change.journal if e.how == "done"]
            here = intersect([Span(lo, hi) for lo, hi in lost], told)
        if not here:
            return []
        entries: list[JournalEntry] = []
        for entry in change.journal:
            gone = intersect(here, [(entry.lo, entry.hi)]) if entry.how == "done" else []
            left = subtract([Span(entry.lo, entry.hi)], [(s.lo, s.hi) for s in gone])
            entries += [entry._replace(lo=s.lo, hi=s.hi) for s in left]
            entries += [entry._replace(lo=s.lo, hi=s.hi, how="trimmed", note=TRIMMED) for s in gone]
        change.journal[:] = entries
        change.count(LOST, count(here))
        return told

    def _look_at_topics(self, logs: Sequence[int]) -> None:
        """Now and then see whether topics are those that they were: a claim is no look at a name (K3)."""
        now = time.monotonic()
        if now - self._looked_at < LOOK:
            return
        self._looked_at = now
        for stream in {self.stream_of_log(each).id: self.stream_of_log(each) for each in logs}.values():
            self.check_topic(stream)

    def _look_at_epochs(self, group: int, logs: Sequence[int]) -> None:
        """See whether logs that another leader leads now hold what the group has read of them (K3)."""
        changed = self.epochs.changed(group, {log: self._epochs_seen.get(log, -1) for log in logs})
        if changed:
            seen = {log: self._epochs_seen[log] for log in changed}
            starts = self.starts(changed)
            # Before the epochs are read: who keeps another one has looked, and moves on only then
            cursors = {at.log: at.cursor for at in self.inner.positions(Group(group, 0, "", "", "group"))}
            read = {log: offset_of(max(cursors.get(log, 0), starts[log])) for log in changed}
            at = {log: (self.place(log), read[log], seen[log]) for log in changed if log in cursors}
            self.epochs.look(self.outbox.group.id, group, at)

    # Questions about the ends

    def has_work(self, group: int, now: float, tasks: Sequence[str]) -> bool:
        """Say whether a claim would find anything."""
        if self.inner.has_work(group, now, tasks):
            return True
        logs = self.logs_of(group, fresh=LOOK)
        known = self._cursors.get(group)
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
        positions = self.inner.positions(Group(group, 0, "", "", "group"))
        self._note_cursors(group, {at.log: at.cursor for at in positions})
        read = all(
            at.cursor >= (ends.get(at.log, 0) if at.stop is None else min(ends.get(at.log, 0), at.stop))
            for at in positions
        )
        if read and not led:
            return False
        if any(held(each.settings) for each in self.inner.groups() if each.id == group):
            return False
        if led:
            self._look_at_epochs(group, logs)  # what has lost its end has nothing to be read, and says so
        return not read

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

    # What the inner engine knows by itself

    def look(self, reads: Reads, decide: Callable[[View, Change], T]) -> T:
        """Return what `decide` would, and write nothing: without a lock."""
        logs = self.logs_of(reads.group) if reads.positions else ()
        ends = self.ends(logs)

        def run(view: View, change: Change) -> T:
            if reads.positions:
                _tell_ends(view, ends)
            return decide(view, change)

        if reads.ordered is not None:
            reads = self._by_key(reads, ends)
        while True:
            try:
                return self.inner.look(reads, run)
            except KeysMissing as missing:
                self._read_keys(missing)

    def next_due(self, group: int, after: float = -1.0) -> float | None:
        """Return when the next of the group's parked records is due."""
        return self.inner.next_due(group, after)

    def lock_of(self, key: str, connection: Any = None) -> UniqueLock | None:
        """Return what a key is taken by, or was."""
        return self.outbox.lock_of(key)

    def append_unique(
        self,
        row: NewCall,
        key: str,
        seen: Id | None,
        until: float | None,
        fence: tuple[int, int] | None = None,
        connection: Any = None,
    ) -> int | None:
        """Append a record and have it take a key: by way of the outbox, where both are stored together."""
        if connection is not None:
            self.enlist(connection)
        pos = self.outbox.append_unique(row, key, seen, until, fence)
        if pos is not None:
            self.inner.ring(row.log)
        return pos

    def sweep_locks(self, now: float, limit: int) -> int:
        """Forget locks of records that have ended, of the next `limit` locks."""
        return self.inner.sweep_locks(now, limit)

    def step_done(self, pos: int, step: str) -> bytes | None:
        """Return what a step of a call gave; None where it was not done."""
        return self.inner.step_done(pos, step)

    def keep_step(self, pos: int, step: str, value: bytes, now: float) -> None:
        """Keep what a step of a call gave."""
        self.inner.keep_step(pos, step, value, now)

    def limited(self, group: int, most: int) -> int:
        """Return how many records wait for limits, counted up to `most`."""
        return self.inner.limited(group, most)

    def buckets(self, ids: Sequence[int]) -> list[Bucket]:
        """Return those of these buckets that are stored."""
        return self.inner.buckets(ids)

    def declare_limit(self, rule: str, limit: Limit) -> None:
        """Have the rule's buckets keep this limit from now on."""
        self.inner.declare_limit(rule, limit)

    def sweep_limits(self, before: float, limit: int) -> int:
        """Forget buckets that are full and were not used since."""
        return self.inner.sweep_limits(before, limit)

    def set_progress(self, group: int, pos: int, value: bytes, fence: tuple[int, int] | None = None) -> None:
        """Keep what a running task says of itself, unless it lost its lease."""
        self.inner.set_progress(group, pos, value, fence)

    def status(self, group: Group, pos: int) -> Status:
        """Return where a record is in a group."""
        return self.inner.status(group, pos)

    def journal(self, group: int, pos: int) -> list[JournalEntry]:
        """Return the entries that cover a position, the oldest first."""
        return self.inner.journal(group, pos)

    def outcomes(self, group: int, lo: int, hi: int) -> list[Outcome]:
        """Return the outcomes stored for lo <= p < hi."""
        return self.inner.outcomes(group, lo, hi)

    def unfinished(self, group: Group, lo: int, hi: int) -> int:
        """Return how many of lo <= p < hi are not done in a group."""
        return self.inner.unfinished(group, lo, hi)

    def parked(self, chosen: ParkedFilter, limit: int) -> list[tuple[int, Parked]]:
        """Return (group, parked record), the oldest first."""
        return self.inner.parked(chosen, limit)

    def leases(self, group: Group) -> list[Lease]:
        """Return a group's leases, the returned ones among them."""
        return self.inner.leases(group)

    def leases_of(self, owner: int) -> list[tuple[int, Lease]]:
        """Return (group, lease) of a worker."""
        return self.inner.leases_of(owner)

    def counters(self, group: int) -> dict[str, int]:
        """Return what was skipped, refused, dropped, lost: counted since the group was made."""
        return self.inner.counters(group)

    def expire_outcomes(self, now: float, limit: int) -> int:
        """Drop the values of outcomes past their `result_ttl`, at most `limit`; return how many."""
        return self.inner.expire_outcomes(now, limit)

    def unknown_tasks(self, group: int) -> set[str]:
        """Return the tasks of records parked as unknown."""
        return self.inner.unknown_tasks(group)
