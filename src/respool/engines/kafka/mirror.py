"""Cursors as the offsets of Kafka's consumer groups, so that its own tools see the true lag (K6).

Nobody joins these groups. Each has a consumer that reads nothing and commits: the admin client could do it
for all, but its requests to a group's coordinator abort the process where that broker is lost meanwhile
(librdkafka's issues 3663 and 4605).
"""

from __future__ import annotations

import logging
from collections import OrderedDict

from confluent_kafka import Consumer, KafkaException, TopicPartition

from .cluster import Cluster, Place

log = logging.getLogger("respool.engine")
MOST = 16  # consumers that are kept


class Mirror:
    """Commits offsets for groups; used by one thread."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._consumers: OrderedDict[str, Consumer] = OrderedDict()
        self._shown: dict[tuple[str, Place], int] = {}
        self._refused: set[str] = set()

    def show(self, group: str, offsets: dict[Place, int]) -> None:
        """Commit the offsets that have moved, of a consumer group by its name. What fails is tried again."""
        moved = {place: at for place, at in offsets.items() if self._shown.get((group, place)) != at}
        if not moved or group in self._refused:
            return
        wanted = [TopicPartition(topic, partition, at) for (topic, partition), at in moved.items()]
        try:
            answers = self._consumer(group).commit(offsets=wanted, asynchronous=False) or ()
            for each in answers:
                if each.error is not None:
                    raise KafkaException(each.error)
        except KafkaException as error:
            log.warning("Kafka's consumer group %s cannot show how far it is: %s", group, error.args[0].str())
            if not error.args[0].retriable():
                self._refused.add(group)
            return
        self._shown.update({(group, place): at for place, at in moved.items()})

    def _consumer(self, group: str) -> Consumer:
        found = self._consumers.pop(group, None)
        if found is None:
            while len(self._consumers) >= MOST:
                self._consumers.popitem(last=False)[1].close()
            found = self._cluster.made(Consumer, **{"group.id": group, "enable.auto.commit": False})
        self._consumers[group] = found
        return found

    def close(self) -> None:
        """Close the consumers."""
        while self._consumers:
            self._consumers.popitem()[1].close()
