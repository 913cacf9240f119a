"""Producing: idempotent, acknowledged by all replicas that are in sync, and never waited for without end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer

from ...clock import boottime_ns
from ...errors import AppendUnknown, EngineUnavailable, RecordTooLarge, RespoolError
from ..turns import Down, NotMyTurn, Turn, left
from .cluster import Cluster, Place

MANY = 1000  # records between two looks at what was acknowledged
FIRST = 0.05  # seconds without a record that a new client is given: else it gets its number only after 0.5 s
GRACE = 2.0  # seconds that a client may be late to give a record up: it looks about once a second
_MAYBE = (
    KafkaError._MSG_TIMED_OUT,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._PURGE_INFLIGHT,
    KafkaError._DESTROY,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
)
"""Errors after which a record may have been stored."""


class AppendDropped(AppendUnknown):
    """A client has dropped what it held for a topic: a broker told it that the topic is gone."""


Item = tuple[bytes | None, bytes | None, Any]
"""Value, key, headers."""


class Stored(NamedTuple):
    """Where records of one append are, and when the first was stored, in ms; 0 where there were none."""

    offsets: list[int]
    at: int


class _Batch:
    """Records of one append, and what the client has said of them."""

    def __init__(self, producer: Producer, place: Place) -> None:
        self._producer, self._place = producer, place
        self._sent = 0
        self.offsets: list[int] = []
        self.failed: list[KafkaError] = []  # of what was handed over
        self.refused: list[KafkaError] = []  # by the client itself: nothing more was handed over
        self.stored_at = 0  # when the first was, in ms

    def hand_over(self, items: Iterable[Item], deadline: float, until: int | None) -> None:
        """Hand records to the client, until one fails or it is too late."""
        topic, partition = self._place
        produce = self._producer.produce
        offsets, failed, refused = self.offsets, self.failed, self.refused

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is None:
                offsets.append(message.offset())
                if not self.stored_at:
                    self.stored_at = message.timestamp()[1]
            else:
                failed.append(error)

        for value, key, headers in items:
            if until is not None and boottime_ns() > until:
                refused.append(KafkaError(KafkaError._MSG_TIMED_OUT))
                break
            while True:
                try:
                    produce(topic, value, key, partition=partition, headers=headers, on_delivery=delivered)
                    break
                except BufferError:  # full of what is on its way
                    self._poll(0.05)
                    if time.monotonic() > deadline:
                        refused.append(KafkaError(KafkaError._MSG_TIMED_OUT))
                        break
                except KafkaException as error:
                    refused.append(error.args[0])
                    break
            if failed or refused:
                break
            self._sent += 1
            if self._sent % MANY == 0:
                self._poll(0)

    def wait(self, deadline: float) -> None:
        """Wait until the client has spoken of each record."""
        while self.waits() and time.monotonic() < deadline:
            self._poll(0.1)

    def waits(self) -> bool:
        """Say whether there is a record of which nothing is known."""
        return len(self.offsets) + len(self.failed) < self._sent

    def _poll(self, seconds: float) -> None:
        try:
            self._producer.poll(seconds)
        except KafkaException as error:  # fatal: this producer sends nothing any more
            self.failed.append(error.args[0])


class Sender:
    """One producer, used by one thread at a time: who appends is combined with others above."""

    def __init__(self, cluster: Cluster, refused: Callable[[], RespoolError | None]) -> None:
        self._cluster = cluster
        self._refused = refused  # says why a topic takes nothing, where it is not for the size of a record
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._made = 0.0
        self._at_once = Turn(self._lock.acquire, False)
        self._down: dict[str, Down] = {}  # by topic

    def prepare(self) -> None:
        """Begin to connect: what is sent later need not wait for it."""
        try:
            with self._at_once as mine:
                if not mine:
                    raise NotMyTurn
                self._opened()
        except NotMyTurn:
            return  # somebody sends by it

    def _opened(self) -> Producer:
        producer = self._producer
        if producer is None:
            self._made = time.monotonic()
            self._cluster._check_open()
            producer = self._producer = self._cluster.made(
                Producer,
                **{
                    "acks": "all",
                    "enable.idempotence": True,
                    "message.timeout.ms": int(self._cluster.timeout * 1000),
                    "allow.auto.create.topics": False,
                    "linger.ms": 0,
                    "queue.buffering.max.messages": 200_000,
                    "message.max.bytes": 16 << 20,
                },
            )
        return producer

    def append(self, place: Place, items: Iterable[Item], *, until: int | None = None) -> Stored:
        """Append records in their order; return where they are once all are acknowledged.

        Parameters:
            until: hand over none when it is later, in ns since the machine started, sleep included.

        Raises: EngineUnavailable or another refusal where none was stored, AppendUnknown where some may be.
        """
        came = time.monotonic()
        patience = left(self._cluster.timeout)
        try:
            with Turn(self._lock.acquire, True, patience) as mine:
                if not mine:
                    raise NotMyTurn
                batch, silent = self._send(place, items, came, until)
        except NotMyTurn:
            raise EngineUnavailable(
                f"{self._cluster.options.shown} was busy with others of this process for {patience:.3g} s; "
                "nothing was sent"
            ) from None
        failed = [*batch.failed, *batch.refused]
        if silent or failed:
            some = bool(batch.offsets) or silent or any(error.code() in _MAYBE for error in batch.failed)
            raise self._error(failed, maybe=some, topic=place.topic)
        self._cluster.answered()
        return Stored(batch.offsets, batch.stored_at)

    def _send(
        self, place: Place, items: Iterable[Item], came: float, until: int | None
    ) -> tuple[_Batch, bool]:
        """Send, and wait for what becomes of it; say whether the client was silent. The lock must be held."""
        timeout, down = self._cluster.timeout, self._down.get(place.topic)
        if down is not None:
            down.check(came, came + timeout)
        producer = self._opened()
        began = time.monotonic()
        young = FIRST - (began - self._made)
        if young > 0:
            producer.poll(young)
        batch = _Batch(producer, place)
        waited = began - came  # for others: it is of our time
        try:
            batch.hand_over(items, time.monotonic() + timeout - waited, until)
            # The client gives up each record by when it was handed over: what it still holds may go out.
            batch.wait(time.monotonic() + timeout - waited + GRACE)
        except BaseException:
            self._drop(producer)
            raise
        silent = batch.waits()
        if silent:
            self._drop(producer)
        failed = [*batch.failed, *batch.refused]
        if silent or (failed and all(error.code() in _MAYBE for error in failed)):
            self._note_down(place.topic, failed, began)
        return batch, silent

    def _note_down(self, topic: str, failed: list[KafkaError], began: float) -> None:
        """Let those who wait to send to this topic know: it would keep each of them for as long."""
        what = failed[0].str() if failed else "no answer"
        why = f"{self._cluster.options.shown}: topic {topic}: {what}; nothing was sent"
        self._down.setdefault(topic, Down()).note(why, began, time.monotonic())

    def _drop(self, producer: Producer) -> None:
        """Give up a producer with all that it holds: nothing of it is to be stored once it was given up."""
        self._producer = None  # the next append makes another
        producer.purge()

    def _error(self, failed: list[KafkaError], *, maybe: bool, topic: str) -> RespoolError:
        shown = self._cluster.options.shown
        if any(error.fatal() for error in failed):
            self._producer = None  # of no more use; the next append makes another
            return AppendUnknown(
                f"{shown}: topic {topic}: {failed[0].str()}; it is not known whether it was stored"
            )
        for error in failed:
            if error.code() == KafkaError.MSG_SIZE_TOO_LARGE and not maybe:
                return self._refused() or RecordTooLarge(
                    f"{shown}: topic {topic} takes no record of that size: raise its max.message.bytes"
                )
            if error.code() not in _MAYBE and not maybe:
                return self._cluster.translated(error, f"topic {topic}")
        what = failed[0].str() if failed else "no answer"
        dropped = any(error.code() == KafkaError._DESTROY for error in failed)
        kind = AppendDropped if dropped else AppendUnknown
        return kind(f"{shown}: topic {topic}: {what}; it is not known whether it was stored")

    def close(self) -> None:
        """Give the producer up; nothing waits in it, since every append waits for its own."""
        with self._lock:
            self._producer = None
