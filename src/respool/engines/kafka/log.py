"""Appending to the log in Kafka: straight to a topic, or by way of the outbox."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import compress
from typing import Any

from ...clock import now as wall_clock
from ...delivery.model import NewCall
from ...errors import AppendUnknown, ConfigError, EngineUnavailable, PartlyAppended, RespoolError
from ...record import OFFSET_BITS, Id, is_fresh
from ...reference import is_reference
from ..base import Conflict, Reads
from ..columns import append_in_parts, places_by_log
from .cluster import TopicUnknown
from .epochs import Epochs
from .finding import AHEAD, BEHIND, EARLY, LATE, KafkaFinding, ranges_in_order, time_of
from .message import item, items_of_run
from .options import KafkaOptions
from .sender import AppendDropped, Sender

RECENT = 10_000
PAUSE = 10.0  # seconds before a note that failed is tried again
logger = logging.getLogger("respool.engine")


class KafkaLog(KafkaFinding):
    """Appends through one producer."""

    options: KafkaOptions
    sender: Sender
    epochs: Epochs

    def __init__(self) -> None:
        KafkaFinding.__init__(self)
        self._doubtful: set[Any] = set()
        self._remembering = threading.Lock()
        self._note_again = 0.0
        self._off: dict[str, int] = {}  # how far records were from when they were stored, as counted, in ms

    def append_run(
        self, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, head: bytes, now: float
    ) -> None:
        """Append records that share all but their bodies; the same head again appends nothing."""
        place = self.place(log)
        if head in self._recent:
            return
        refers = meta is not None and any(map(is_reference, bodies))
        if not is_fresh(head, now) or head in self._doubtful or refers:
            first = int.from_bytes(head[13:], "big")
            ids = [head[:13] + (first + seq).to_bytes(3, "big") for seq in range(len(bodies))]
            sent = head in self._doubtful and self._made_lately(head)
            there = self._look_for(log, set(ids), time_of(head)) if sent else {}
            rows = [NewCall(log, task, body, meta, id, now) for id, body in zip(ids, bodies, strict=True)]
            self.outbox.append([row for row in rows if row.id not in there])
            self.inner.ring(log, everyone=len(bodies) > 1)
            return
        items = items_of_run(bodies, task, meta, head, now, self._events(log))
        with self._doubting(log, [head]):
            stored = self.sender.append(place, items)
        self._note_times(log, [now], stored.at)
        self._remember(head, log, stored.offsets)
        self.inner.ring(log, everyone=len(bodies) > 1)

    def append_row(self, row: NewCall) -> int | Conflict:
        """Append one record; return its position, or the conflict where its id is another record's."""
        if self._goes_straight(row):
            return self._append_fresh([row])[0]
        done = None if self._is_new(row) else self._sent_before(row)
        if done is None:
            self.place(row.log)
            done = self.outbox.append_one(row)
            self.inner.ring(row.log)
        return done

    def append_rows(self, rows: Sequence[NewCall], fence: tuple[int, int] | None = None) -> list[Conflict]:
        """Append records of one log, each with an id of its own.

        What can goes straight, whatever comes along with it: not where a lease fences it, nor where there are
        keys, whose order holds for all that comes together.
        """
        if not rows:
            return []
        straight = [fence is None and self._goes_straight(row) for row in rows]
        keyed = not all(straight) and any(row.key is not None for row in rows)
        if keyed or len({row.id for row in rows}) < len(rows):
            straight = [False] * len(rows)
        sent = list(compress(rows, straight))
        if sent:  # first: of what is refused then, nothing was sent
            self._append_fresh(sent)
            if len(sent) == len(rows):
                return []
        detour = [n for n, goes in enumerate(straight) if not goes]
        try:
            conflicts = self._append_by_outbox([rows[n] for n in detour], fence)
        except RespoolError as error:
            if not sent:
                raise
            raise PartlyAppended(error, len(sent), compress(range(len(rows)), straight)) from error
        return [each._replace(row=detour[each.row]) for each in conflicts]

    def _append_by_outbox(self, rows: Sequence[NewCall], fence: tuple[int, int] | None) -> list[Conflict]:
        places, new, conflicts = [], [], []
        for n, row in enumerate(rows):
            done = None if fence is not None or self._is_new(row) else self._sent_before(row)
            if done is None:
                places.append(n)
                new.append(row)
            elif isinstance(done, Conflict):
                conflicts.append(done._replace(row=n))
        if new:
            if fence is None:  # else they are of a run, whose settlement nothing holds up
                self.place(new[0].log)
            found = self.outbox.append(new, fence)
            conflicts += [each._replace(row=places[each.row]) for each in found]
            self.inner.ring(rows[0].log, everyone=len(rows) > 1)
        return conflicts

    def append_many(self, rows: Sequence[NewCall]) -> None:
        """Append records of any logs, log by log."""
        append_in_parts(rows, places_by_log(rows), self.append_rows)

    def _append_fresh(self, rows: Sequence[NewCall]) -> list[int]:
        """Append records whose ids were made just now, and are nobody else's."""
        log, events = rows[0].log, self._events(rows[0].log)
        place = self.place(log)
        with self._doubting(log, [row.id for row in rows]):
            stored = self.sender.append(place, [item(row, events) for row in rows])
        self._note_times(log, [row.time for row in rows], stored.at)
        for row, offset in zip(rows, stored.offsets, strict=True):
            self._remember(row.id, log, [offset])
        self.inner.ring(log, everyone=len(rows) > 1)
        return [log << OFFSET_BITS | offset for offset in stored.offsets]

    def _goes_straight(self, row: NewCall) -> bool:
        """Say whether a record need not go by way of the outbox: nobody else can have its id, nor a claim on
        what it refers to (H18)."""
        return self._is_new(row) and (row.meta is None or not is_reference(row.body))

    def _is_new(self, row: NewCall) -> bool:
        """Say whether an id was made just now, and never sent: no record can have it."""
        return is_fresh(row.id, row.time) and row.id not in self._recent and row.id not in self._doubtful

    @contextmanager
    def _doubting(self, log: int, ids: Sequence[Id]) -> Iterator[None]:
        """Where it is not known whether something was stored, its ids are no longer fresh.

        Raises: TopicGone where no broker knows of the log's topic any more.
        """
        try:
            yield
        except TopicUnknown:
            self.check_log(log)
            raise
        except AppendUnknown as error:
            if isinstance(error, AppendDropped):
                with suppress(EngineUnavailable):  # which says that nothing was sent
                    self.check_log(log)
            with self._remembering:
                self._doubtful.update(ids)
                if len(self._doubtful) > RECENT:  # beyond `id_window` they would be appended anew anyhow
                    self._doubtful = {id for id in self._doubtful if self._made_lately(id)}
            raise

    def _events(self, log: int) -> bool:
        return bool(self.stream_of_log(log).settings.get("cloudevents"))

    def _sent_before(self, row: NewCall) -> int | Conflict | None:
        """Return where a record is that was appended as fresh, and whose sender could not tell.

        Its id was of ours and is given now: it is looked for about the time that the id says (P1).
        """
        if not isinstance(row.id, bytes) or row.id[13:] != b"\0\0\0":
            return None
        pos = self._recently(row.id)
        if pos is None and self._made_lately(row.id):
            pos = self._look_for(row.log, {row.id}, time_of(row.id)).get(row.id)
        if pos is None:
            return None
        (known,) = self.records(pos, pos + 1, 1)
        same = (known.task, known.body) == (row.task, row.body)
        return pos if same else Conflict(0, pos, same=False)

    def _made_lately(self, id: bytes) -> bool:
        return wall_clock() - time_of(id) <= self.options.id_window

    def _note_times(self, log: int, times: Sequence[float], stored: int) -> None:
        """Take note of how long after or before their times records were stored: what is looked for by its
        time is looked for as far from it."""
        self._note_off(f"{BEHIND} {log}", int(stored - min(times) * 1000), LATE)
        self._note_off(AHEAD, int(max(times) * 1000 - stored), EARLY)

    def _note_off(self, counter: str, off: int, usual: float) -> None:
        if off <= max(self._off.get(counter, 0), usual * 1000) or time.monotonic() < self._note_again:
            return
        group = self.outbox.group.id
        try:
            known = self.inner.counters(group).get(counter, 0)
            if off > known:
                self.inner.transact(Reads(group), lambda view, change: change.count(counter, off - known))
        except (EngineUnavailable, AppendUnknown) as error:  # what is stored is stored
            logger.warning("by how much records are stored late could not be noted: %s", error)
            self._note_again = time.monotonic() + PAUSE
        else:
            self._off[counter] = off

    def _remember(self, id: Id, log: int, offsets: Sequence[int]) -> None:
        first, last = offsets[0], offsets[-1]
        base = log << OFFSET_BITS
        if last - first == len(offsets) - 1:
            spans = [(base + first, base + last + 1)]
        else:
            spans = ranges_in_order(base + offset for offset in offsets)
        with self._remembering:
            self._recent[id] = spans
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)

    def forget(self) -> None:
        """Forget what is known of streams and groups."""
        super().forget()
        self.moved.forget()
        self.epochs.forget()

    def enlist(self, connection: Any) -> Any:
        """Refuse: Kafka takes part in no transaction of a database."""
        raise ConfigError(f"{self.options.shown}: Kafka takes no calls within transactions of others")

    def append_enlisted(self, connection: Any, rows: Sequence[NewCall]) -> list[Conflict]:
        """Refuse, as `enlist`."""
        return self.enlist(connection)  # type: ignore[no-any-return]

    def append_run_enlisted(
        self,
        connection: Any,
        log: int,
        task: str,
        bodies: Sequence[bytes],
        meta: bytes | None,
        head: bytes,
        now: float,
    ) -> None:
        """Refuse, as `enlist`."""
        self.enlist(connection)
