"""What workers do beside their tasks: trim topics, show how far groups are, look after outbox and topics."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from confluent_kafka import TopicPartition

from ...clock import now as wall_clock
from ...delivery.spans import Span
from ...errors import EngineError, RespoolError
from ...record import first_pos, log_of, offset_of
from ..base import Stream
from ..moving import INCOMING
from .finding import LATE
from .inspect import KafkaInspect
from .mirror import Mirror
from .moved import end_of
from .names import group_name
from .places import HIDDEN
from .reading import PAGE
from .topics import KEPT

log = logging.getLogger("respool.engine")
MIRROR = 1.0  # seconds between two commits of the groups' cursors (K6)
RARELY = 30.0  # seconds between looks at what hardly ever changes
KEPT_A_STEP = 1000
EARLIEST = 3600.0  # seconds that a record is kept longer at most, since its clock was ahead of the brokers'


class KafkaRetention(KafkaInspect):
    """Removes what is old and done; nothing that any group has yet to finish goes (K4)."""

    def __init__(self) -> None:
        KafkaInspect.__init__(self)
        self._mirror: Mirror | None = None
        self._mirror_at = self._rarely_at = 0.0
        self._tidying: threading.Thread | None = None
        self._wanted = threading.Event()
        self._ended = False
        self._said: dict[int, str] = {}  # by stream, what was said of its topic

    def byte_count(self, lo: int, hi: int) -> int:
        """Return how many bytes the bodies of the records at lo <= p < hi have."""
        return sum(brief.size for brief in self.briefs(lo, hi, None, None, None, 0))

    def trim(self, stream: Stream, before: float, limit: int, upto: Mapping[int, int] | None = None) -> int:
        """Cut off old records at the beginning of the stream's logs; return how many.

        What another program writes is not ours to cut: only what is known of what it has lost goes.
        """
        stored = self._as_stored(stream)
        foreign = bool(stored.settings.get("foreign"))
        logs = self.known_logs(stored.logs)
        starts, cut = self.starts(logs), 0
        if not foreign:  # of all at once: nobody beats meanwhile
            ends = self.ends(logs)
            moment = before - min(self._earliness(), EARLIEST)
            since = self._first_stored_in(logs, moment) if before > 0 else {}
        for each, start in starts.items():
            end = start
            if not foreign:
                there = Span(start, ends[each])
                old = self._older(each, there, before, since[each], limit) if before > 0 else start
                least = min((upto or {}).get(each, 0), ends[each])
                end = min(max(old, least), *self._needed(stored, each, start))
                if end > start:
                    self._delete(each, end)
                    cut += end - start
            water = min(max(start, end), *self._needed(stored, each, first_pos(each)))
            self.outbox.forget_references(each, water)
            cut += self.inner.forget_below(stored, each, water)
        return cut or self.inner.drop_kept(stored, limit)

    def _as_stored(self, stream: Stream) -> Stream:
        return self._stored.get(stream.id) or next(s for s in self.refresh() if s.id == stream.id)

    def _older(self, log: int, there: Span, before: float, stored: int, limit: int) -> int:
        """Return up to where all records have a time before a moment; no further than that is easily told.

        What was stored before it is older. What was stored later is looked at where that may be old, too.

        Parameters:
            there: where the log begins and ends.
            stored: the first position that was stored at or after it, or so long before as clocks were ahead.
        """
        micros, start, last = int(before * 1_000_000), there.lo, there.hi
        pages = self._pages(log)
        old = start
        for page in pages:  # what came from another engine was stored long after its time
            if page.hi > start and page.most < micros:
                old = page.hi
            elif page.hi > start:
                old, young = self._end_of_old(log, max(page.lo, start), page.hi, micros, old)
                if young:
                    return old
        start = max(start, end_of(pages, start))
        if stored > start:
            old = start = min(stored, last)
        if self._lateness(log) > LATE:
            old, _ = self._end_of_old(log, start, min(start + max(limit, PAGE), last), micros, old)
        return old

    def _end_of_old(self, log: int, lo: int, hi: int, before: int, old: int) -> tuple[int, bool]:
        """Return up to where records at lo <= p < hi are from before a moment, and whether one is younger.

        Those from a clock that was ahead are old if older follow: nothing else tells how old they are, and
        where it is our clock that is wrong, none follow.

        Parameters:
            old: what to return where none is from before.
        """
        now = int(wall_clock() * 1_000_000)
        for pos, at in self._times(log, lo, hi):
            if at < before:
                old = pos + 1
            elif at <= now:
                return old, True
        return old, False

    def _needed(self, stream: Stream, log: int, start: int) -> list[int]:
        """Return the first positions that groups have yet to finish, pending or leased."""
        needed = [first_pos(log + 1)]
        for group in self.inner.groups():
            if group.stream != stream.id:
                continue
            for at in self.inner.positions(group):
                if at.log == log and not (at.stop is not None and at.cursor >= at.stop):
                    needed.append(at.cursor)
            for lease in self.inner.leases(group):
                needed += [max(s.lo, start) for s in lease.spans if log_of(s.lo) == log and s.hi > start]
        return needed

    def _delete(self, log: int, end: int) -> None:
        place = self.place(log)
        until = TopicPartition(place.topic, place.partition, offset_of(end))
        for future in self.cluster.admin.delete_records(
            [until], request_timeout=self.cluster.timeout
        ).values():
            self.cluster.answer(future, f"topic {place.topic}")

    def tidy(self) -> None:
        """Relay what others left behind, forget old ids, show how far groups are, tidy the state.

        In a thread of its own: whoever beats and keeps time limits must not wait for a broker.
        """
        self.inner.tidy()
        if self._tidying is None:
            self._tidying = threading.Thread(target=self._tidy, name="respool-kafka", daemon=True)
            self._tidying.start()
        self._wanted.set()

    def _tidy(self) -> None:
        while self._wanted.wait() and not self._ended:
            self._wanted.clear()
            try:
                self.tidy_now()
            except RespoolError as error:
                if not self._ended:
                    log.warning("the log in Kafka could not be tidied, which is tried again: %s", error)

    def end_tidying(self) -> None:
        """End the thread, if there is one."""
        self._ended = True
        self._wanted.set()
        if self._tidying is not None and self._tidying is not threading.current_thread():
            self._tidying.join(self.cluster.timeout)
            if self._mirror is not None and not self._tidying.is_alive():
                self._mirror.close()

    def tidy_now(self) -> None:
        """Do it here and now. Raises the first that fails, once the rest is done."""
        self.reader.rest()
        self.seeker.rest()
        steps: list[Callable[[], None]] = [lambda: self.outbox.tidy(self.options.id_window)]
        now = time.monotonic()
        if now >= self._mirror_at:
            self._mirror_at = now + MIRROR
            steps.append(self._mirror_cursors)
        if now >= self._rarely_at:
            self._rarely_at = now + RARELY
            steps.append(self._look_after)
        failed: RespoolError | None = None
        for step in steps:
            try:
                step()
            except RespoolError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _look_after(self) -> None:
        mark = self.inner.mark()
        for stream in self.refresh():
            if stream.app == HIDDEN or KEPT not in stream.settings or stream.app.startswith(INCOMING):
                continue
            try:
                self.check_topic(stream)
                self.keep_ids(stream)
            except EngineError as error:
                if self._said.get(stream.id) != str(error):
                    self._said[stream.id] = str(error)
                    log.error("%s", error)
                continue
            self._said.pop(stream.id, None)
            if mark is not None and mark.phase in ("closed", "moved"):
                continue
            self.inner.drop_kept(stream, KEPT_A_STEP)

    # K6: what Kafka's own tools see

    def _mirror_cursors(self) -> None:
        if self._mirror is None:
            self._mirror = Mirror(self.cluster)
        for group in self.groups():
            stream = self._stored.get(group.stream)
            if stream is not None and KEPT in stream.settings and not self.is_gone(stream):
                name = group_name(self.options.prefix, group.app or stream.app, group.name)
                positions = self.inner.positions(group)
                self.inner.reserve([at.cursor for at in positions], ahead=True)
                self._mirror.show(name, {self.place(at.log): offset_of(at.cursor) for at in positions})
