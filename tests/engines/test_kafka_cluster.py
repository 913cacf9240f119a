"""What a client said of its connections explains what fails then, and nothing after it: without a broker."""

from __future__ import annotations

import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from respool.engines.kafka import cluster as cluster_module
from respool.engines.kafka.cluster import SAID_FOR, Cluster
from respool.engines.kafka.options import KafkaOptions
from respool.errors import ConfigError, EngineUnavailable

REFUSED = KafkaError(KafkaError._AUTHENTICATION, "no token")
NEW_LEADER = KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION))
TIMEOUT = 2.0


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(KafkaOptions({}, "kafka://x", timeout=TIMEOUT))


def answers(*of: Exception | str) -> Any:
    """Return what fails and answers in turn."""
    left = list(of)

    def run(seconds: float) -> str:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return run


def asked(answer: Any) -> Any:
    """Return what the admin client gives for a question that is answered."""
    future: Future[Any] = Future()
    future.set_result(answer)
    return future


def test_a_login_that_is_refused_is_told_at_once(cluster: Cluster) -> None:
    cluster._hear(REFUSED)
    with pytest.raises(ConfigError, match="no token"):
        cluster.again(answers(NEW_LEADER, "never asked"))


@pytest.mark.parametrize("by", ["again", "answer"])
def test_a_login_refused_before_a_broker_answered_is_forgotten(cluster: Cluster, by: str) -> None:
    cluster._hear(REFUSED)
    if by == "again":
        cluster.again(answers("there"))
    else:
        cluster.answer(asked("there"))
    assert cluster.again(answers(NEW_LEADER, "there")) == "there"


def test_a_login_refused_long_ago_is_forgotten(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster._hear(REFUSED)
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + SAID_FOR, sleep=time.sleep)
    monkeypatch.setattr(cluster_module, "time", later)
    assert cluster.again(answers(NEW_LEADER, "there")) == "there"


def test_who_asks_after_a_refused_login_and_an_answer_waits_its_time(cluster: Cluster) -> None:
    cluster._hear(REFUSED)
    cluster.answer(asked("there"))
    began = time.monotonic()
    cluster._admin = SimpleNamespace(poll=lambda seconds: None)  # type: ignore[assignment]
    with pytest.raises(EngineUnavailable, match=f"within {TIMEOUT:g} s"):
        cluster.answer(Future())
    assert time.monotonic() - began >= TIMEOUT
