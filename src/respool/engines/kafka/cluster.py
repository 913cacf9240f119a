"""The cluster: its clients, made when first used; topics; where logs begin and end; errors told apart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from ...errors import (
    ConfigError,
    EngineError,
    EngineUnavailable,
    RespoolError,
    StreamBroken,
    StreamUnavailable,
)
from ..turns import NotMyTurn, Turn, left
from .options import KafkaOptions

log = logging.getLogger("respool.engine")
_driver = logging.getLogger("respool.engine.kafka")
T = TypeVar("T")

SHORTEST = 2.0  # seconds that an answer may take at least
LATEST, EARLIEST = -1, -2  # as times: the end that readers may see (the last stable offset), the beginning
PAUSE = 0.02
SAID_FOR = 60.0  # seconds that what a client said explains other errors: it says the same again after 30
ONE_TRY = 1.0  # seconds until others are asked who leads, where one answers as fast as that
GROUP = "respool"  # asked for by the client; no offset is ever stored by it

_LOGIN = "check user, password, sasl.mechanism and security.protocol of the URL"
_DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "grant the user READ, WRITE, CREATE, DELETE, DESCRIBE on topics",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "grant the user CREATE on the cluster, or make the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "grant the user READ on its consumer groups",
    KafkaError.POLICY_VIOLATION: "ask who runs the cluster what topics must be like; set topic.… in the URL",
    KafkaError.INVALID_REPLICATION_FACTOR: "set replication=… in the URL to no more than there are brokers",
    KafkaError.INVALID_CONFIG: "mend the topic.… options of the URL",
    KafkaError.INVALID_PARTITIONS: "declare another number of partitions",
    KafkaError.SASL_AUTHENTICATION_FAILED: _LOGIN,
    KafkaError._AUTHENTICATION: _LOGIN,
    KafkaError._SSL: "check security.protocol and ssl.ca.location of the URL; certificates are verified",
}
_UNHEARD = (KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
_SLOW = (KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE, KafkaError.REQUEST_TIMED_OUT)
_GONE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.UNKNOWN_TOPIC_ID)
_PASSING = (
    KafkaError._UNKNOWN_TOPIC,  # so a client says while it has not heard of it from a broker
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._DESTROY_BROKER,
    KafkaError._DESTROY,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._WAIT_COORD,
    *_SLOW,
)


class Place(NamedTuple):
    """Where a log is in Kafka."""

    topic: str
    partition: int


class TopicGone(StreamBroken):
    """A topic that is not there, or not the one that it was (K3)."""


class TopicUnknown(StreamUnavailable):
    """A client has not heard of a topic from any broker: it may be gone (`KafkaPlaces.check_topic`)."""


class Cluster:
    """What talks to the brokers, but for producing and reading records."""

    def __init__(self, options: KafkaOptions) -> None:
        self.options = options
        self.timeout = max(SHORTEST, options.timeout)
        self._lock = threading.RLock()
        self._admin: AdminClient | None = None
        self._looker: Consumer | None = None
        self._said: KafkaError | None = None  # what a client said last of its connections; see `said`
        self._said_at = 0.0
        self._one_try = ONE_TRY
        self._closed = False

    def config(self, **more: Any) -> dict[str, Any]:
        """Return the configuration of a client."""
        milliseconds = int(self.timeout * 1000)
        return {
            "socket.connection.setup.timeout.ms": milliseconds,
            "socket.timeout.ms": milliseconds,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "topic.metadata.propagation.max.ms": 2000,
            "log_level": 2,  # what fails is said by our own errors
            **self.options.client,
            "error_cb": self._hear,
            "logger": _driver,
            **more,
        }

    def made(self, client: Callable[[dict[str, Any]], T], **more: Any) -> T:
        """Make a client. Raises ConfigError for properties that there are not."""
        try:
            return client(self.config(**more))
        except (KafkaException, TypeError, ValueError) as error:
            what = error.args[0].str() if isinstance(error, KafkaException) else str(error)
            raise ConfigError(f"{self.options.shown}: {what}") from None

    def _hear(self, error: KafkaError) -> None:
        self._said_at = time.monotonic()
        self._said = error
        _driver.debug("%s", error)

    @property
    def said(self) -> KafkaError | None:
        """What a client said last of its connections, unless a broker has answered since, or it is long ago.

        A token that was refused once may be renewed: it is no reason for what fails later.
        """
        said = self._said
        return None if said is None or time.monotonic() - self._said_at > SAID_FOR else said

    def answered(self) -> None:
        """Take note that a broker did what it was asked for."""
        self._said = None

    @property
    def admin(self) -> AdminClient:
        """What makes and describes topics."""
        with self._lock:
            self._check_open()
            if self._admin is None:
                self._admin = self.made(AdminClient)
            return self._admin

    @property
    def looker(self) -> Consumer:
        """What is asked for offsets; it reads nothing."""
        with self._lock:
            self._check_open()
            if self._looker is None:
                more = {"group.id": self.options.prefix + GROUP, "isolation.level": "read_committed"}
                self._looker = self.made(Consumer, **more, **{"enable.auto.commit": False})
            return self._looker

    def _check_open(self) -> None:
        if self._closed:
            raise EngineUnavailable(f"{self.options.shown}: the engine was closed; nothing was sent")

    def close(self) -> None:
        """Close the clients."""
        with self._lock:
            self._closed = True
            if self._looker is not None:
                self._looker.close()
            self._looker = self._admin = None

    # Errors

    def translated(self, error: KafkaError, what: str = "") -> RespoolError:
        """Return one of our errors for one of the driver's. Nothing was stored."""
        where = f"{self.options.shown}{what and f': {what}'}"
        code = error.code()
        if code in _DENIED:
            return ConfigError(f"{where}: {error.str()}; {_DENIED[code]}")
        if code in _GONE:
            return TopicGone(f"{where}: {error.str()}")
        said = self.said
        if said is not None and said.code() in _DENIED and code in _PASSING:
            return ConfigError(f"{where}: {said.str()}; {_DENIED[said.code()]}")
        if code in _PASSING or error.retriable():
            why = f" ({said.str()})" if said is not None and code in _PASSING else ""
            kind = TopicUnknown if code in _UNHEARD else EngineUnavailable
            return kind(f"{where} cannot be reached: {error.str()}{why}; nothing was sent")
        return EngineError(f"{where}: {error.str()}")

    def again(
        self,
        run: Callable[[float], T],
        what: str = "",
        waited: float = 0.0,
        *,
        unheard: float | None = None,
    ) -> T:
        """Run something that may be run again, until it is done or the time is up.

        `waited`: how many seconds of it were waited for others.
        `unheard`: seconds after which a topic that the client has not heard of is given up.
        """
        began = time.monotonic()
        deadline = began + left(self.timeout) - waited
        while True:
            tried = time.monotonic()
            try:
                answer = run(max(deadline - tried, 0.1))
                if time.monotonic() - tried < self._one_try / 4:
                    self._one_try = ONE_TRY
                self.answered()
                return answer
            except KafkaException as error:
                failed: KafkaError = error.args[0]
                if failed.code() in _SLOW:  # answers may take longer than that: none would ever come
                    self._one_try = min(2 * self._one_try, max(self.timeout / 2, ONE_TRY))
                said = self.translated(failed, what)
                # A broker that has just started may not know of all its topics yet.
                passes = failed.code() in _PASSING or (
                    failed.code() in _GONE and time.monotonic() < began + SHORTEST
                )
                if unheard is not None and failed.code() in _UNHEARD:
                    passes = passes and time.monotonic() < began + unheard
                if not passes or isinstance(said, ConfigError):
                    raise said from None
                if time.monotonic() > deadline:
                    raise said from None
            except RuntimeError as error:  # "Consumer closed"
                self._check_open()
                raise EngineError(f"{self.options.shown}: {error}") from error
            time.sleep(PAUSE)

    def answer(self, future: Any, what: str = "") -> Any:
        """Wait for what the admin client was asked; no longer where it is plain that nobody answers."""
        deadline = time.monotonic() + left(self.timeout)
        while True:
            try:
                done = future.result(min(0.2, max(deadline - time.monotonic(), 0.01)))
                self.answered()
                return done
            except TimeoutError:
                self.admin.poll(0)  # has it tell us what it met: a password that is wrong, say
                said = self.said
                if said is not None and said.code() in _DENIED:
                    raise self.translated(said, what) from None
                if time.monotonic() > deadline:
                    reason = f": {said.str()}" if said is not None else f" within {self.timeout:g} s"
                    raise EngineUnavailable(
                        f"{self.options.shown} cannot be reached{reason}; nothing was sent"
                    ) from None
            except KafkaException as error:
                raise self.translated(error.args[0], what) from None

    # Topics

    def connect(self) -> None:
        """Look whether there is a cluster. Raises ConfigError, EngineUnavailable."""
        self.answer(self.admin.describe_cluster(request_timeout=self.timeout))

    def describe(self, topic: str) -> tuple[str, int] | None:
        """Return a topic's id and how many partitions it has; None where there is none."""
        return self.describe_all([topic])[topic]

    def describe_all(self, topics: Sequence[str]) -> dict[str, tuple[str, int] | None]:
        """Return the same of several topics, by name: one request."""

        def look(left: float) -> dict[str, tuple[str, int] | None]:
            once = min(left, self._one_try)
            futures = self.admin.describe_topics(TopicCollection(list(topics)), request_timeout=once)
            return {topic: self._described(topic, future, once) for topic, future in futures.items()}

        return self.again(look, f"topic {', '.join(topics)}") if topics else {}

    def _described(self, topic: str, future: Any, timeout: float) -> tuple[str, int] | None:
        try:
            found = future.result(timeout + 1)
        except KafkaException as error:
            if error.args[0].code() in _GONE:
                return None
            self._ask_for_controller(topic)
            raise
        return str(found.topic_id), len(found.partitions)

    def _ask_for_controller(self, topic: str) -> None:
        """Have the admin client ask who the controller is, through a topic's metadata.

        By itself it does so every five minutes, and asks a broker that is gone until then.
        """
        self.meet(self.admin, topic)

    def meet(self, client: AdminClient | Consumer, topic: str) -> None:
        """Have a client ask for a topic's metadata.

        A consumer that does so by itself, while it connects, may be half a second late with its first fetch.
        """
        try:
            client.list_topics(topic, timeout=self._one_try)
        except KafkaException as error:
            _driver.debug("%s", error)  # what the client is asked for besides says what is wrong

    def described_later(self, topic: str) -> tuple[str, int] | None:
        """Look again for a while: a broker that has just started may not know of all its topics yet."""
        deadline = time.monotonic() + SHORTEST
        while (found := self.describe(topic)) is None and time.monotonic() < deadline:
            time.sleep(10 * PAUSE)
        return found

    def known_to_none(self, topic: str) -> bool:
        """Say whether none of the brokers that there are knows of a topic: each is asked by itself.

        One may have just started, or be cut off from who decides. Raises: EngineUnavailable where one does
        not answer.
        """
        try:
            brokers = self.admin.list_topics(timeout=self.timeout).brokers.values()
            return not any(self._knows(broker, topic) for broker in brokers)
        except KafkaException as error:
            raise self.translated(error.args[0], f"topic {topic}") from None

    def _knows(self, broker: Any, topic: str) -> bool:
        """Ask one broker for a topic, by a client that knows of no other yet."""
        host = f"[{broker.host}]" if ":" in broker.host else broker.host
        only = {"bootstrap.servers": f"{host}:{broker.port}", "group.id": self.options.prefix + GROUP}
        client = self.made(Consumer, **only)
        try:
            return client.list_topics(topic, timeout=self.timeout).topics[topic].error is None
        finally:
            client.close()

    def described(self, topic: str) -> tuple[str, int]:
        """Return the same of a topic that was just made, once all brokers know of it."""
        deadline = time.monotonic() + self.timeout
        while (found := self.describe(topic)) is None:
            if time.monotonic() > deadline:
                raise EngineError(f"{self.options.shown}: topic {topic} was made, and is not there")
            time.sleep(PAUSE)
        return found

    def create(self, topic: str, partitions: int, config: dict[str, str]) -> None:
        """Make a topic, unless somebody has."""
        new = NewTopic(
            topic, partitions, self.options.replication, config={**config, **(self.options.topic or {})}
        )
        futures = self.admin.create_topics(
            [new], request_timeout=self.timeout, operation_timeout=self.timeout
        )
        try:
            futures[topic].result(self.timeout + 1)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                if error.args[0].code() in _PASSING:
                    self._ask_for_controller(topic)
                what = f"topic {topic} with {partitions} partition(s) cannot be made"
                raise self.translated(error.args[0], what) from None
        except TimeoutError:
            raise EngineUnavailable(
                f"{self.options.shown}: topic {topic} was not made within {self.timeout:g} s"
            ) from None

    # Offsets

    def offsets(
        self, places: Sequence[Place], moment: int, *, unheard: float | None = None
    ) -> list[tuple[int, int]]:
        """Return (offset, leader's epoch) of each place: of its first record at or after a time in ms.

        LATEST: where it ends, for those who see only what was committed. EARLIEST: where it begins. One
        round trip to each broker; -1 where there is no such record. `unheard`: see `again`.
        """

        def look(left: float) -> list[tuple[int, int]]:
            wanted = [TopicPartition(topic, partition, moment) for topic, partition in places]
            try:
                found = self.looker.offsets_for_times(wanted, timeout=min(left, self._one_try))
                for each in found:
                    if each.error is not None:
                        raise KafkaException(each.error)
            except KafkaException:
                self.looker.list_topics(places[0].topic, timeout=self._one_try)  # who leads may have changed
                raise
            return [
                (each.offset, each.leader_epoch if each.leader_epoch is not None else -1) for each in found
            ]

        if not places:
            return []
        came, patience = time.monotonic(), left(self.timeout)
        try:
            with Turn(self._lock.acquire, True, patience) as mine:
                if not mine:
                    raise NotMyTurn
                waited = time.monotonic() - came
                what = ", ".join(sorted({place.topic for place in places}))
                return self.again(look, what, waited, unheard=unheard)
        except NotMyTurn:
            raise EngineUnavailable(
                f"{self.options.shown} was busy with others of this process for {patience:.3g} s"
            ) from None

    def leaderless(self, places: Sequence[Place]) -> list[Place]:
        """Return those of the places that no broker leads, as brokers say; none where they say nothing."""
        found = []
        for topic in sorted({place.topic for place in places}):
            try:
                partitions = self.looker.list_topics(topic, timeout=self._one_try).topics[topic].partitions
            except KafkaException as error:
                _driver.debug("%s", error)  # that nobody answers is said by who asks for this
                return []
            led = {number for number, each in partitions.items() if each.leader >= 0}
            found += [place for place in places if place.topic == topic and place.partition not in led]
        return found
