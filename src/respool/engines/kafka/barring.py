"""Topics that take no record any more: so a log in Kafka is closed to all producers, of any version.

The brokers themselves refuse what is larger than `max.message.bytes`, and every record is larger than
`BARRED`; the marks by which Kafka ends transactions are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
)

from ...errors import EngineUnavailable
from .cluster import LATEST, PAUSE, Cluster, Place

SIZE = "max.message.bytes"
BARRED = "78"
QUIET = (
    0.5  # seconds that the ends must stand still, once the brokers know: what was on its way has come then
)


def sizes(cluster: Cluster, topics: Collection[str]) -> dict[str, str | None]:
    """Return how large a record of each topic may be; None: as large as the cluster says."""
    found: dict[str, str | None] = {}
    for topic, entries in _described(cluster, topics).items():
        entry = entries[SIZE]
        found[topic] = entry.value if entry.source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value else None
    return found


def bar(cluster: Cluster, places: Collection[Place]) -> None:
    """Have topics take nothing any more. When it returns, nothing comes.

    Raises: ConfigError where we may not; EngineUnavailable.
    """
    topics = sorted({place.topic for place in places})
    _set(cluster, dict.fromkeys(topics, BARRED))
    _await_quiet(cluster, list(places))


def unbar(cluster: Cluster, before: Mapping[str, str | None]) -> None:
    """Have topics take what they took before."""
    _set(cluster, before)


def _set(cluster: Cluster, values: Mapping[str, str | None]) -> None:
    """Set how large records may be, and wait until that is so."""
    deadline = time.monotonic() + cluster.timeout
    there = sizes(cluster, list(values))
    resources = []
    for topic, value in values.items():
        if there[topic] != value:
            what = AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
            entry = ConfigEntry(SIZE, value or "", incremental_operation=what)
            resources.append(ConfigResource("topic", topic, incremental_configs=[entry]))
    if resources:
        asked = cluster.admin.incremental_alter_configs(resources, request_timeout=cluster.timeout)
        for resource, future in asked.items():
            cluster.answer(future, f"{SIZE} of topic {resource.name}")
    _await(lambda: sizes(cluster, list(values)) == dict(values), deadline, cluster, "the brokers do not keep")


def _await_quiet(cluster: Cluster, places: list[Place]) -> None:
    deadline = time.monotonic() + QUIET + cluster.timeout
    ends, since = cluster.offsets(places, LATEST), time.monotonic()

    def quiet() -> bool:
        nonlocal ends, since
        now = cluster.offsets(places, LATEST)
        if now != ends:
            ends, since = now, time.monotonic()
        return time.monotonic() - since >= QUIET

    _await(quiet, deadline, cluster, "records come though no broker should take them:")


def _await(holds: Callable[[], bool], deadline: float, cluster: Cluster, what: str) -> None:
    while not holds():
        if time.monotonic() > deadline:
            raise EngineUnavailable(f"{cluster.options.shown}: {what} {SIZE} of a topic; nothing was moved")
        time.sleep(PAUSE)


def _described(cluster: Cluster, topics: Collection[str]) -> dict[str, Any]:
    if not topics:
        return {}
    resources = [ConfigResource("topic", topic) for topic in topics]
    asked = cluster.admin.describe_configs(resources, request_timeout=cluster.timeout)
    return {
        resource.name: cluster.answer(future, f"topic {resource.name}") for resource, future in asked.items()
    }
