"""What commands and `check` ask: of the state, the inner engine; of records, the log."""

from __future__ import annotations

from collections.abc import Iterator

from ...delivery.model import Parked
from ...delivery.spans import Span
from ...errors import OF_ONE_STREAM
from ...record import first_pos, offset_of
from ..base import Group, ParkedFilter, Record
from ..inspect import Bounds, Brief, Gaps, GroupPage, GroupState, LogState
from .places import HIDDEN
from .reader import Trimmed
from .reading import FEW, MUCH
from .state import KafkaState

PAGE = 2000
MANY = 10_000  # offsets of small records that are read at a time where they are only counted


class KafkaInspect(KafkaState):
    """Reads for people."""

    def _whole(self, lo: int, hi: int) -> Iterator[Record]:
        """Yield the records at lo <= p < hi; logs may lie between."""
        for log in sorted(self._logs_between(lo, hi)):
            yield from self._in_order(log, max(lo, first_pos(log)), min(hi, first_pos(log + 1)), PAGE)

    def briefs(
        self, lo: int, hi: int, task: str | None, since: float | None, until: float | None, max_body: int
    ) -> list[Brief]:
        """Return the records at lo <= p < hi that match, without bodies of more than `max_body` bytes."""
        return [
            Brief(
                each.pos,
                each.id,
                each.time,
                each.task,
                len(each.body),
                each.body if len(each.body) <= max_body else None,
                each.meta,
            )
            for each in self._whole(lo, hi)
            if (task is None or each.task == task) and _within(each.time, since, until)
        ]

    def task_counts(self, lo: int, hi: int, since: float | None, until: float | None) -> dict[str, int]:
        """Return how many records of each task there are at lo <= p < hi and since <= time < until."""
        found: dict[str, int] = {}
        for each in self._whole(lo, hi):
            if _within(each.time, since, until):
                found[each.task] = found.get(each.task, 0) + 1
        return found

    def record_count(self, lo: int, hi: int) -> int:
        """Return how many records there are at lo <= p < hi."""
        return sum(1 for _ in self._positions(lo, hi))

    def _positions(self, lo: int, hi: int) -> Iterator[int]:
        """Yield where there are records at lo <= p < hi; logs may lie between. Nothing else is looked at."""
        for log in sorted(self._logs_between(lo, hi)):
            low, high = max(lo, first_pos(log)), min(hi, first_pos(log + 1))
            start = self.starts([log])[log]
            if low < start:
                yield from sorted(self._rows_kept([Span(low, min(high, start))]))
            low, high = max(low, start), min(high, self.ends([log])[log])
            page, place = FEW, self.place(log)
            while low < high:
                upto = min(low + page, high)
                try:
                    (found,) = self.seeker.read([(place, offset_of(low), offset_of(low) + upto - low)])
                except Trimmed:  # just now
                    low = max(low + 1, self.starts([log])[log])
                    continue
                yield from (first_pos(log) + message.offset() for message in found)
                small = sum(map(len, found)) < MUCH
                low, page = upto, min(2 * page, MANY) if small else FEW

    def first_record(self, lo: int, hi: int) -> int | None:
        """Return the first position at lo <= p < hi that holds a record."""
        return next(self._positions(lo, hi), None)

    def group_bounds(self, group: Group) -> list[Bounds]:
        """Return what a group reads of each log."""
        return self.inner.group_bounds(group)

    def group_page(self, group: Group, lo: int, hi: int) -> GroupPage:
        """Return all a group knows of lo <= p < hi. Records are read before, and can only grow less."""
        ranges: list[tuple[int, int]] = []
        for pos in self._positions(lo, hi):
            if ranges and ranges[-1][1] == pos:
                ranges[-1] = (ranges[-1][0], pos + 1)
            else:
                ranges.append((pos, pos + 1))
        return self.inner.group_page(group, lo, hi)._replace(records=ranges)

    def group_state(self, group: Group, limit: int) -> GroupState:
        """Return a group as a whole; of what is astray at most `limit`."""
        return self.inner.group_state(group, limit)

    def parked_after(self, chosen: ParkedFilter, group: int, after: int, limit: int) -> list[tuple[int, str]]:
        """Return (position, task) of the group's parked records past `after`, by position."""
        return self.inner.parked_after(chosen, group, after, limit)

    def parked_page(self, chosen: ParkedFilter, group: int, after: int, limit: int) -> list[Parked]:
        """Return the same records as `parked_after`, with all that is kept of them."""
        return self.inner.parked_page(chosen, group, after, limit)

    def log_states(self) -> list[LogState]:
        """Return all logs, by number, those whose stream is gone among them."""
        hidden = {log for stream in self.refresh() if stream.app == HIDDEN for log in stream.logs}
        states = [state for state in self.inner.log_states() if state.log not in hidden]
        by_stream: dict[int, list[int]] = {}
        for log in self.known_logs([state.log for state in states]):
            by_stream.setdefault(self.stream_of_log(log).id, []).append(log)
        starts: dict[int, int] = {}
        ends: dict[int, int] = {}
        unread: dict[int, str] = {}
        for logs in by_stream.values():
            try:
                starts |= self.starts(logs)
                ends |= self.ends(logs)
            except OF_ONE_STREAM as error:
                unread |= dict.fromkeys(logs, str(error))
        return [
            state._replace(error=unread[state.log])
            if state.log in unread
            else state._replace(floor=starts[state.log], first=starts[state.log], end=ends[state.log])
            if state.log in starts
            else state
            for state in states
        ]

    def gaps(self, group: int) -> Gaps | None:
        """Return nothing: a record is seen as soon as it has its number."""
        return None

    def broken_runs(self, lo: int, hi: int, limit: int) -> list[int]:
        """Return nothing: each record has its id and its time."""
        return []

    def losses(self) -> list[str]:
        """Return how many calls of runs, or with given ids, could never be sent, or not yet."""
        lost, waits = self.outbox.lost(), self.outbox.tried_in_vain()
        said = []
        if lost:
            calls = "1 call was" if lost == 1 else f"{lost:,} calls were"
            said += [f"{calls} lost on the way to Kafka: the topic is gone, or takes no record of that size"]
        if waits:
            calls = "1 call waits" if waits == 1 else f"{waits:,} calls wait"
            said += [
                f"{calls} in the state to be sent to Kafka, to a topic that took nothing when it was tried"
            ]
        return said

    def damage(self) -> list[str]:
        """Return what the state's own check finds wrong."""
        return self.inner.damage()

    def orphans(self) -> list[tuple[str, int]]:
        """Return (what, group) of state whose group is gone."""
        return self.inner.orphans()


def _within(time: float, since: float | None, until: float | None) -> bool:
    """Say whether a time is in a window, to the microsecond, as `outside` does."""
    micros = round(time * 1_000_000)
    return (since is None or micros >= int(since * 1_000_000)) and (
        until is None or micros < int(until * 1_000_000)
    )
