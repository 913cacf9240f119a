"""What a producer still holds once an append has given up: nothing (P1). By a client and a clock of ours."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, Producer

from respool import AppendUnknown
from respool.engines.kafka import sender as sender_module
from respool.engines.kafka.cluster import Place
from respool.engines.kafka.sender import AppendDropped, Sender
from respool.errors import EngineUnavailable

TIMEOUT = 10.0
Delivered = Callable[[KafkaError | None, Any], None]


class Client:
    """Gives records up as librdkafka does: each some time after it was handed over, and a second late."""

    def __init__(self, clock: list[float], *, silent: bool) -> None:
        self.held: list[tuple[float, Delivered]] = []
        self.purged = False
        self.errors: list[int] = []  # of the first ones; of the others that they timed out
        self.stored_at: list[int] = []  # when the first ones were, in ms
        self._clock, self._silent = clock, silent

    def produce(self, *given: Any, on_delivery: Delivered, **more: Any) -> None:
        self._clock[0] += TIMEOUT / 4
        self.held.append((self._clock[0] + TIMEOUT + 1.0, on_delivery))

    def poll(self, seconds: float) -> None:
        self._clock[0] += seconds
        late = [each for each in self.held if each[0] <= self._clock[0] and not self._silent]
        self.held = [each for each in self.held if each not in late]
        for _, delivered in late:
            if self.stored_at:
                at = self.stored_at.pop(0)
                delivered(None, SimpleNamespace(offset=lambda: 7, timestamp=lambda at=at: (2, at)))
                continue
            code = self.errors.pop(0) if self.errors else KafkaError._MSG_TIMED_OUT
            delivered(KafkaError(code), None)

    def purge(self) -> None:
        self.purged = True
        self.held.clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(sender_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def sender_of(made: Callable[..., Any], timeout: float = TIMEOUT) -> Sender:
    cluster: Any = SimpleNamespace(
        timeout=timeout,
        made=made,
        options=SimpleNamespace(shown="kafka://x"),
        _check_open=lambda: None,
        answered=lambda: None,
        translated=lambda error, what: EngineUnavailable(f"{what}: {error.str()}; nothing was sent"),
    )
    return Sender(cluster, lambda: None)


def items(amount: int) -> Iterator[Any]:
    return ((b"%d" % n, None, []) for n in range(amount))


def test_an_append_waits_until_its_last_record_is_given_up(clock: list[float]) -> None:
    """Each has its own time, from when it was handed over."""
    client = Client(clock, silent=False)
    sender = sender_of(lambda *given, **more: client)
    with pytest.raises(AppendUnknown, match="timed out"):
        sender.append(Place("t", 0), items(3))
    assert client.held == []
    assert not client.purged, "it said all, and is of use"
    assert clock[0] < 1000 + 2 * TIMEOUT + 2


def test_what_timed_out_beside_what_was_refused_is_unknown(clock: list[float]) -> None:
    """One record that is refused does not mean that the other was not stored (P1, H20)."""
    client = Client(clock, silent=False)
    client.errors = [KafkaError._MSG_TIMED_OUT, KafkaError.TOPIC_AUTHORIZATION_FAILED]
    sender = sender_of(lambda *given, **more: client)
    with pytest.raises(AppendUnknown):
        sender.append(Place("t", 0), items(2))


def test_what_was_dropped_may_have_been_stored(clock: list[float]) -> None:
    """A client that hears that a topic is gone drops what it holds, retries of what was stored among it."""
    client = Client(clock, silent=False)
    client.errors = [KafkaError._DESTROY, KafkaError._DESTROY]
    sender = sender_of(lambda *given, **more: client)
    with pytest.raises(AppendDropped):
        sender.append(Place("t", 0), items(2))


def test_each_append_is_told_when_it_was_stored(clock: list[float]) -> None:
    """Not what the producer stored last: that may be another thread's."""
    client = Client(clock, silent=False)
    client.stored_at = [1234, 1235, 5678]
    sender = sender_of(lambda *given, **more: client)
    first = sender.append(Place("t", 0), items(2))
    assert sender.append(Place("t", 0), items(1)) == ([7], 5678)
    assert first == ([7, 7], 1234)


def test_a_client_that_says_nothing_more_sends_nothing_more(clock: list[float]) -> None:
    clients: list[Client] = []

    def made(*given: Any, **more: Any) -> Client:
        clients.append(Client(clock, silent=not clients))
        return clients[-1]

    sender = sender_of(made)
    with pytest.raises(AppendUnknown, match="no answer"):
        sender.append(Place("t", 0), items(2))
    assert clients[0].purged
    with pytest.raises(AppendUnknown, match="timed out"):
        sender.append(Place("t", 0), items(1))
    assert len(clients) == 2


def test_an_append_that_is_interrupted_leaves_nothing_to_be_sent(clock: list[float]) -> None:
    client = Client(clock, silent=True)

    def interrupted() -> Iterator[Any]:
        yield from items(2)
        raise KeyboardInterrupt

    sender = sender_of(lambda *given, **more: client)
    with pytest.raises(KeyboardInterrupt):
        sender.append(Place("t", 0), interrupted())
    assert client.purged


def test_a_real_client_gives_all_up_in_time() -> None:
    """Nobody listens where it is to connect to."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    clients: list[Producer] = []

    def made(kind: Any, **more: Any) -> Producer:
        clients.append(kind({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 2, **more}))
        return clients[-1]

    began = time.monotonic()
    with pytest.raises(AppendUnknown, match="timed out"):
        sender_of(made, 1.0).append(Place("t", 0), items(3))
    clients[0].poll(0)  # counted like records: what it has to say of a port where nobody listens
    assert len(clients[0]) == 0, "it holds none"
    assert time.monotonic() - began < 30


def test_what_is_stored_shows_that_a_broker_answers(clock: list[float]) -> None:
    client = Client(clock, silent=False)
    client.stored_at = [5]
    answered: list[bool] = []
    sender = sender_of(lambda *given, **more: client)
    sender._cluster.answered = lambda: answered.append(True)  # type: ignore[method-assign]
    sender.append(Place("t", 0), items(1))
    assert answered
