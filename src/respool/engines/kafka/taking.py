"""Taking in what comes from another engine: topics are made and filled, what groups know goes to the state.

A topic keeps its name, so an incoming stream's has the last one from the beginning; nobody uses it, since the
state does not know the stream by its name yet. A topic begins at 0 and holds what was sent, in that order: so
it is known before it is sent where each record will be, and is said to the state first (`moved.py`). What was
sent and not told by the mark is found at the topic's end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException

from ...clock import now as wall_clock
from ...delivery.model import MIDDLE, Change, Lease, NewCall, Outcome, View
from ...errors import ConfigError, EngineError
from ...record import OFFSET_BITS, Row, first_pos, id_of, log_of, offset_of
from ...reference import Reference, is_reference
from ..base import Group, Reads, Stream
from ..inspect import Bounds
from ..moving import BlobRow, LogPlace, Mark, RawRecord, StateTable
from . import header as h
from .cluster import LATEST, PAUSE, Place
from .message import item_of
from .moved import says_time
from .moving import OWN, KafkaMoving
from .names import topic_name
from .places import FOR_GOOD
from .reading import header_at_hand, near
from .topics import KEPT, id_name, lane_topic


class KafkaTaking(KafkaMoving):
    """The target of a transfer."""

    def __init__(self) -> None:
        KafkaMoving.__init__(self)
        self._filled: dict[int, int] = {}  # by log that is being filled: where it ends, as far as we know

    def take_stream(self, mark: Mark, stream: Stream, places: Sequence[LogPlace]) -> Mark:
        """Make a stream's topics, then the stream; return the mark with its numbers."""
        priorities = {MIDDLE if place.priority is None else place.priority for place in places}
        topic = topic_name(self.options.prefix, stream.kind, stream.app, stream.name)
        ids = {each: self._make_empty(lane_topic(topic, each), stream.partitions) for each in priorities}
        kept = {"topic": topic, "partitions": stream.partitions}
        kept |= {id_name(each): id for each, id in ids.items()}
        settings = {**stream.settings, KEPT: kept}
        taken = self.inner.take_stream(mark, msgspec.structs.replace(stream, settings=settings), places)
        self.forget()
        return taken

    def _make_empty(self, topic: str, partitions: int) -> str:
        """Make a topic, or see that it is an empty one: return its id."""
        if self.cluster.describe(topic) is None:
            self.cluster.create(topic, partitions, FOR_GOOD)
        id, there = self.cluster.described(topic)
        ends = self.cluster.offsets([Place(topic, number) for number in range(there)], LATEST)
        if there != partitions or any(offset for offset, _ in ends):
            what = f"has {there} partition(s), not {partitions}" if there != partitions else "holds records"
            raise ConfigError(
                f"{self.shown}: topic {topic} {what}: delete it, or set prefix=… in the URL to have others"
            )
        return id

    def take_records(self, mark: Mark, log: int, rows: Sequence[RawRecord]) -> list[int]:
        """Append records to a topic; return where they are."""
        place, stream = self.place(log), self.stream_of_log(log)
        offset = self._filled.get(log)
        if offset is None:
            ((offset, _),) = self.cluster.offsets([place], LATEST)
        window = wall_clock() - self.options.id_window
        self._refuse_taken(log, rows, window)
        self.moved.note(stream, first_pos(log) + offset, rows, window)
        events = bool(stream.settings.get("cloudevents"))
        items = (item_of(_call(log, row), row.micros, events) for row in rows)
        self._filled.pop(log, None)
        offsets = self.sender.append(place, items).offsets
        if offsets != list(range(offset, offset + len(rows))):
            raise EngineError(
                f"{self.shown}: somebody else appends to topic {place.topic}; end that, give this up "
                "(respool transfer --undo), and begin again"
            )
        self._filled[log] = offset + len(rows)
        return [log << OFFSET_BITS | each for each in offsets]

    def _refuse_taken(self, log: int, rows: Sequence[RawRecord], since: float) -> None:
        """Raise ConfigError where an id is another record's here; only some are known."""
        for row in rows:
            id = id_of(row.head, row.seq)
            if row.micros < since * h.MICRO or says_time(id, row.micros):
                continue
            pos = self.outbox.find(id)
            if pos is not None and log_of(pos) != log:
                there = f"{self.place(log_of(pos)).topic}, offset {offset_of(pos)}"
                raise ConfigError(f"an id of the source is taken in {self.shown}: {id!r}, by topic {there}")

    def take_group(
        self, mark: Mark, stream: int, group: Group, bounds: Sequence[Bounds], leases: Sequence[Lease]
    ) -> Mark:
        """Create a group of an incoming stream; return the mark with its number."""
        self._filled.clear()
        self.inner.reserve(at.cursor for at in bounds)
        return self.inner.take_group(mark, stream, group, bounds, leases)

    def take_state(self, mark: Mark, table: StateTable, group: int, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add what a group knows; of what is parked also the records (H15)."""
        if table.positions:
            first = table.columns.index(table.positions[0])
            self.inner.reserve({row[first] for row in rows})
        if table.name == "parked":
            self._keep([row[0] for row in rows], group)
        if table is OWN and not group:
            self._take_references(mark, table, rows)
        else:
            self.inner.take_state(mark, table, group, rows)

    def _keep(self, positions: Sequence[int], group: int) -> None:
        """Have the state keep records, as if they had just been parked."""
        for lo, hi, wanted in near(positions):
            found: dict[int, Any] = {}
            self._read_into(found, self.seeker, [(lo, hi)])
            kept = [
                Row(pos, row[1], row[2], header_at_hand(message))
                for pos, (row, message) in sorted(found.items())
                if pos in wanted
            ]

            def keep(view: View, change: Change, kept: list[Row] = kept) -> None:
                change.kept = kept

            self.inner.transact(Reads(group), keep)

    def _take_references(self, mark: Mark, table: StateTable, rows: Sequence[tuple[Any, ...]]) -> None:
        """Enter who refers to payloads: as the outbox does, since the state has no row of the record."""
        outcomes = {}
        for digest, stamp, pos, _ in rows:
            found = self.records(pos, pos + 1, 1)
            own = found and is_reference(found[0].body)
            if own or pos not in outcomes:  # else it is what the record is run with instead
                body = found[0].body if own else Reference(digest, 0, stamp).packed()
                outcomes[pos] = Outcome(pos, "success", body, wall_clock())

        def tell(view: View, change: Change) -> None:
            change.outcomes.extend(outcomes.values())

        self.inner.transact(Reads(self.outbox.group.id), tell)
        self.inner.take_state(mark, table, self.outbox.group.id, rows)

    def take_blobs(self, mark: Mark, rows: Sequence[BlobRow]) -> None:
        """Enter large payloads."""
        self.inner.take_blobs(mark, rows)

    def take_worker_number(self, number: int) -> None:
        """Give out no worker's number up to this one."""
        self.inner.take_worker_number(number)

    def give_names(self, mark: Mark) -> None:
        """Give the incoming streams their names, and drop the mark."""
        self.inner.give_names(mark)
        self.forget()

    def discard(self, stream: Stream, limit: int) -> bool:
        """Remove a stream with all that is known of it, its topics first; not those of another program."""
        stored = self._as_stored(stream)
        kept = stored.settings.get(KEPT)
        if kept is not None and not stored.settings.get("foreign"):
            self._delete_topics({lane_topic(kept["topic"], each) for each in (MIDDLE, *stored.lanes)})
        for log in stored.logs:
            self.outbox.forget_references(log, first_pos(log + 1))
        for hidden in self.moved.streams_of(stored):
            if self.inner.discard(hidden, limit):
                return True
        more = self.inner.discard(stored, limit)
        self.forget()
        return more

    def _delete_topics(self, topics: set[str]) -> None:
        there = [topic for topic in sorted(topics) if self.cluster.describe(topic) is not None]
        if not there:
            return
        asked = self.cluster.admin.delete_topics(
            there, operation_timeout=self.cluster.timeout, request_timeout=self.cluster.timeout
        )
        for topic, future in asked.items():
            try:
                future.result(self.cluster.timeout + 1)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise self.cluster.translated(error.args[0], f"topic {topic}") from None
        deadline = time.monotonic() + self.cluster.timeout
        while any(self.cluster.describe(topic) is not None for topic in there):
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{self.shown}: topics {', '.join(there)} were deleted, and are still there"
                )
            time.sleep(PAUSE)


def _call(log: int, row: RawRecord) -> NewCall:
    return NewCall(log, row.task, row.body, row.meta, id_of(row.head, row.seq), row.micros / h.MICRO)
