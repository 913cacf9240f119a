"""What a stream's topics are, and whether they are still those that they were (K3).

A stream's own topic holds its common lane; the lane of each other priority is a topic besides. Names are
derived, ids are kept in the stream's settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...delivery.model import MIDDLE
from ...errors import EngineUnavailable
from ..base import Stream
from .cluster import Cluster, Place, TopicGone

KEPT = "kafka"
"""Where a stream's settings keep what its topics are; shown to nobody."""


def lane_topic(topic: str, priority: int) -> str:
    """Return the topic of a lane; the common one is the stream's own."""
    return topic if priority == MIDDLE else f"{topic}--lane--{priority}"


def id_name(priority: int) -> str:
    """Return under what name the id of a lane's topic is kept.

    >>> id_name(MIDDLE), id_name(9)
    ('id', 'id 9')
    """
    return "id" if priority == MIDDLE else f"id {priority}"


def place_of(kept: Mapping[str, Any], partition: int, priority: int) -> Place:
    """Return where a log is. A lane is a topic of its own."""
    return Place(lane_topic(kept["topic"], priority), partition)


def topics_of(stream: Stream) -> dict[int, str]:
    """Return a stream's topics by priority; none where it is not kept in Kafka."""
    kept = stream.settings.get(KEPT)
    return {} if kept is None else {each: lane_topic(kept["topic"], each) for each in (MIDDLE, *stream.lanes)}


def lanes_without_id(stream: Stream) -> dict[int, str]:
    """Return the topics of lanes, by priority, that were made when their ids were not kept yet."""
    kept = stream.settings.get(KEPT, {})
    return {each: topic for each, topic in topics_of(stream).items() if id_name(each) not in kept}


def compare(cluster: Cluster, stream: Stream, priority: int, found: tuple[str, int] | None) -> None:
    """Raise TopicGone where the topic of a priority is not there, or not the one that it was.

    Parameters:
        found: its id and number of partitions, as one broker says; None: that knows of none.

    Raises: EngineUnavailable where others know of it.
    """
    kept = stream.settings[KEPT]
    topic = lane_topic(kept["topic"], priority)
    what = f"{cluster.options.shown}: topic {topic} of {stream.kind} {stream.name}"
    found = found or cluster.described_later(topic)
    if found is None and not cluster.known_to_none(topic):
        raise EngineUnavailable(f"{what}: a broker does not know of it that others know of; nothing was sent")
    if found is None:
        raise TopicGone(
            f"{what} was deleted, and its records with it; the state still has what was known of them. "
            "Declare it under another name, or begin with another state"
        )
    if found[0] != kept.get(id_name(priority), found[0]):
        raise TopicGone(
            f"{what} was deleted and made again: what the state knows is not of its records. "
            "Declare it under another name, or begin with another state"
        )
    if found[1] < kept["partitions"]:
        raise TopicGone(f"{what} has {found[1]} partition(s), and had {kept['partitions']}")


def public(stream: Stream) -> Stream:
    """Return a stream as others know it."""
    if KEPT not in stream.settings:
        return stream
    return msgspec.structs.replace(
        stream, settings={name: value for name, value in stream.settings.items() if name != KEPT}
    )
