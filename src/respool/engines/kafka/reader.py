"""Reading ranges of logs: one consumer, kept on the partitions that it read last (K6).

A range ends at a record at or past its end, which is kept for the next range, or where the partition ends at
or past it; never because nothing came for a while (K2). There is no record where a log was compacted, and
none where a transaction's mark lies.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ...errors import EngineUnavailable, RespoolError
from .cluster import _GONE, _PASSING, GROUP, Cluster, Place

SKIP = 4000  # records that are read over rather than sought past
UNWANTED = 500  # records that are kept of a partition that nobody reads on
AT_ONCE = 1000
MOST = 16  # partitions that are kept at hand
WAIT = 0.2  # seconds of one look
_TRIMMED = (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET)
SLOW = 0.02  # seconds between two reads, from which on a partition is put away while there is …
PLENTY = 50  # … so much of it at hand, and as much as was read last
STUCK = 0.5  # of the time that it waits: so long without a record, partitions are taken up anew, once
IDLE = 1.0  # seconds after which who reads nothing asks the brokers for nothing


class Trimmed(Exception):
    """A range begins below the first record that is left of its partition (K1)."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.place = place


class Came(NamedTuple):
    """What has come of a partition without anybody asking for it."""

    end: int  # one past the last record that came, or was handed out
    epoch: int  # of the leader who gave it; -1 where nothing came


class _Part:
    """One partition that is being read."""

    __slots__ = ("ahead", "away", "ended", "next")

    def __init__(self, at: int) -> None:
        self.away = False  # nothing more of it is fetched for now
        self.next = at  # the offset from which on nothing was handed out
        self.ahead: deque[Any] = deque()  # messages that came, and belong to no range so far
        self.ended = -1  # where the partition ended when that was said last


class Reader:
    """Reads ranges; used by one thread at a time."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None
        self._parts: dict[Place, _Part] = {}
        self._used = 0.0
        self._met: set[str] = set()  # topics whose metadata the consumer has asked for

    def _opened(self, topic: str) -> Consumer:
        consumer = self._consumer
        if consumer is None:
            self._cluster._check_open()
            consumer = self._cluster.made(
                Consumer,
                **{
                    "fetch.queue.backoff.ms": 1,
                    "fetch.message.max.bytes": 262144,
                    "queued.min.messages": 1000,
                    "queued.max.messages.kbytes": 16384,  # of a partition: what is large fills memory else
                    "fetch.wait.max.ms": 10,
                    **self._cluster.options.client,
                    "group.id": self._cluster.options.prefix + GROUP,
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "error",
                    "isolation.level": "read_committed",
                    "enable.partition.eof": True,
                },
            )
            self._consumer, self._met = consumer, set()
        self._meet(consumer, topic)
        return consumer

    def _meet(self, consumer: Consumer, topic: str) -> None:
        """Ask for a topic's metadata before it is first read; by itself the consumer may be a second late."""
        if topic not in self._met:
            self._met.add(topic)
            self._cluster.meet(consumer, topic)

    def prepare(self, place: Place) -> None:
        """Connect: what is read first need not wait for it."""
        with self._lock:
            self._opened(place.topic)

    def read(self, ranges: Sequence[tuple[Place, int, int]]) -> list[list[Any]]:
        """Return the messages at lo <= offset < hi of each (place, lo, hi); each place at most once.

        Raises: Trimmed; EngineUnavailable where nothing came for too long; TopicGone.
        """
        with self._lock:
            slowly = 0 < self._used < time.monotonic() - SLOW
            try:
                found = self._read(ranges)
                if slowly:
                    self._put_away(ranges)
                return found
            except BaseException:
                self._drop()
                raise
            finally:
                self._used = time.monotonic()

    def _read(self, ranges: Sequence[tuple[Place, int, int]]) -> list[list[Any]]:
        consumer = self._opened(ranges[0][0].topic)
        self._go_to(consumer, ranges)
        wanted: dict[Place, tuple[int, int, list[Any]]] = {place: (lo, hi, []) for place, lo, hi in ranges}
        found: list[list[Any]] = [wanted[place][2] for place, _, _ in ranges]
        open_: set[Place] = {place for place in wanted if not self._served(place, *wanted[place])}
        self._take_up(consumer, open_)
        came, anew = time.monotonic(), False
        size = sum(hi - lo for _, lo, hi in ranges)
        while open_:
            first = consumer.poll(WAIT)
            if first is None:
                self._cluster._check_open()
                now = time.monotonic()
                if now > came + self._cluster.timeout:
                    names = ", ".join(sorted(place.topic for place in open_))
                    raise EngineUnavailable(
                        f"{self._cluster.options.shown}: nothing came of topic {names} for "
                        f"{self._cluster.timeout:g} s; nothing was sent"
                    )
                if now > came + STUCK * self._cluster.timeout and not anew:
                    anew = True  # once: answers may be slow
                    self._take_anew(consumer, open_)
                continue
            more = consumer.consume(min(size, AT_ONCE), 0) if size > 1 else ()
            touched: set[Place | None] = {self._take(message) for message in (first, *more)}
            for each in touched:
                if each is None:
                    continue
                if each in open_:
                    if self._served(each, *wanted[each]):
                        open_.discard(each)
                else:
                    self._leave_unwanted(consumer, each, wanted)
            came, anew = time.monotonic(), False
        return found

    def came(self, place: Place) -> Came | None:
        """Return how far what has come of a place goes; None where it is not read on. Waits for nothing."""
        if not self._lock.acquire(False):
            return None
        try:
            part, consumer = self._parts.get(place), self._consumer
            if part is None or consumer is None or (part.away and not part.ahead):
                return None
            if not part.ahead:
                for each in {self._take(message) for message in consumer.consume(AT_ONCE, 0)}:
                    self._leave_unwanted(consumer, each, {place})
            if not part.ahead:
                return Came(part.next, -1)
            epoch = part.ahead[-1].leader_epoch()
            return Came(_reach(part), -1 if epoch is None else epoch)
        except (Trimmed, RespoolError, KafkaException, RuntimeError):  # who reads there is told
            self._drop()
            return None
        finally:
            self._lock.release()

    def _leave_unwanted(self, consumer: Consumer, place: Place | None, wanted: Collection[Place]) -> None:
        """Read on no more where nobody reads: it must not fill the memory."""
        if place is None or place in wanted or place not in self._parts:
            return
        if len(self._parts[place].ahead) > UNWANTED:
            self._leave(consumer, place)

    def _take(self, message: Any) -> Place | None:
        """Put a message to its partition; return which that is."""
        error = message.error()
        if error is None:
            place = Place(message.topic(), message.partition())
            part = self._parts.get(place)
            if part is not None and message.offset() >= part.next:
                part.ahead.append(message)
            return place
        place = Place(message.topic(), message.partition())
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            part = self._parts.get(place)
            if part is not None:
                part.ended = max(part.ended, message.offset())
            return place
        if code in _TRIMMED:
            raise Trimmed(place)
        if code in _PASSING or code in _GONE:  # whether it is gone is for `check_topic` to say
            return None
        raise self._cluster.translated(error, f"topic {place.topic}")

    def _served(self, place: Place, lo: int, hi: int, found: list[Any]) -> bool:
        """Hand out what has come of a range; say whether that is all of it."""
        part = self._parts[place]
        ahead = part.ahead
        while ahead:
            offset = ahead[0].offset()
            if offset >= hi:
                part.next = hi
                return True
            message = ahead.popleft()
            if offset >= lo:
                found.append(message)
            part.next = offset + 1
        if part.next >= hi or part.ended >= hi:
            part.next = max(part.next, hi)
            return True
        return False

    def _go_to(self, consumer: Consumer, ranges: Sequence[tuple[Place, int, int]]) -> None:
        """See to it that what comes next of each partition is its range, or not far before it."""
        try:
            fresh = []
            for place, lo, _ in ranges:
                part = self._parts.pop(place, None)
                if part is not None and part.away:
                    part = part if part.next <= lo <= _reach(part) else None
                elif part is not None and not self._moved(consumer, place, part, lo):
                    consumer.incremental_unassign([TopicPartition(*place)])
                    part = None
                if part is None:
                    part = _Part(lo)
                    fresh.append(TopicPartition(place.topic, place.partition, lo))
                self._parts[place] = part  # the last: the first of all is the longest unused
            while len(self._parts) > max(MOST, len(ranges)):
                self._leave(consumer, next(iter(self._parts)))
            for each in fresh:
                self._meet(consumer, each.topic)
            if fresh:
                consumer.incremental_assign(fresh)
        except KafkaException as error:
            raise self._cluster.translated(error.args[0]) from None

    @staticmethod
    def _moved(consumer: Consumer, place: Place, part: _Part, lo: int) -> bool:
        """Move on, or back, within a partition; False where it must be taken up anew."""
        if part.next <= lo <= _reach(part) + SKIP:
            return True
        part.ahead.clear()
        part.next, part.ended = lo, -1
        try:
            consumer.seek(TopicPartition(place.topic, place.partition, lo))
        except KafkaException:  # it is not yet being fetched
            return False
        return True

    def _leave(self, consumer: Consumer, place: Place) -> None:
        if not self._parts.pop(place).away:
            consumer.incremental_unassign([TopicPartition(*place)])

    def _put_away(self, ranges: Sequence[tuple[Place, int, int]]) -> None:
        """Fetch no more of partitions that are read slowly, while there is plenty of them at hand.

        Else a broker that has nothing new is asked for it a hundred times a second, by each who reads there.
        """
        consumer = self._consumer
        assert consumer is not None
        for place, lo, hi in ranges:
            part, plenty = self._parts.get(place), max(PLENTY, hi - lo)
            if part is None or part.away:
                continue
            if len(part.ahead) < plenty:
                for each in {self._take(message) for message in consumer.consume(AT_ONCE, 0)}:
                    self._leave_unwanted(consumer, each, {place})
            if len(part.ahead) >= plenty:
                consumer.incremental_unassign([TopicPartition(*place)])
                part.away = True

    def _take_up(self, consumer: Consumer, places: Collection[Place]) -> None:
        """Fetch on of partitions that were put away, and of which more is wanted than is at hand."""
        away = [place for place in places if self._parts[place].away]
        if not away:
            return
        try:
            consumer.incremental_assign([TopicPartition(*place, self._parts[place].next) for place in away])
        except KafkaException as error:
            raise self._cluster.translated(error.args[0]) from None
        for place in away:
            self._parts[place].away = False

    def _take_anew(self, consumer: Consumer, places: Collection[Place]) -> None:
        """Ask who leads partitions of which nothing came: one that lost its leader may not by itself."""
        for topic in {place.topic for place in places}:
            self._cluster.meet(consumer, topic)
        at = [TopicPartition(*place, self._parts[place].next) for place in places]
        try:
            consumer.incremental_unassign(at)
            consumer.incremental_assign(at)
        except KafkaException as error:
            raise self._cluster.translated(error.args[0]) from None

    def forget(self, place: Place) -> None:
        """Forget what is at hand of a partition."""
        with self._lock:
            if self._consumer is not None and place in self._parts:
                self._leave(self._consumer, place)

    def rest(self) -> None:
        """Ask the brokers for nothing any more where nothing was read for a while."""
        if self._consumer is None or time.monotonic() - self._used < IDLE or not self._lock.acquire(False):
            return
        try:
            self._drop()
        finally:
            self._lock.release()

    def _drop(self) -> None:
        """Forget what is being read: the next range begins anew."""
        if self._consumer is not None and self._parts:
            self._parts = {}
            try:
                self._consumer.unassign()
            except (KafkaException, RuntimeError):
                self._consumer = None

    def close(self) -> None:
        """Close the consumer, once nobody reads."""
        with self._lock:
            consumer, self._consumer = self._consumer, None
            if consumer is not None:
                consumer.close()


def _reach(part: _Part) -> int:
    """Return one past the last record of a partition that is at hand."""
    return part.ahead[-1].offset() + 1 if part.ahead else part.next
