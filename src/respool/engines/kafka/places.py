"""Streams and their topics: which log is where, and whether it is still the topic that it was (K3)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from ...errors import ConfigError, EngineError, EngineUnavailable, StreamUnavailable
from ...record import first_pos
from ..base import Group, GroupKind, Stream, StreamKind
from ..lent import LendsState
from ..moving import INCOMING
from .cluster import EARLIEST, LATEST, SHORTEST, Cluster, Place, TopicGone, TopicUnknown
from .names import topic_name
from .topics import KEPT, compare, id_name, lane_topic, lanes_without_id, place_of, public, topics_of

HIDDEN = "\x01kafka"
"""The app of what is stored for our own use: no app of a user can have that name."""

AGAIN = 1.0  # seconds at least before a topic that is gone is looked at again

_NO_LOG = "log {} does not exist: its stream was dropped"

FOR_GOOD = {
    "retention.ms": "-1",  # workers trim, or what `main` has not done would be deleted (K4)
    "retention.bytes": "-1",
    "cleanup.policy": "delete",
    "message.timestamp.type": "LogAppendTime",  # K5: the time of a record is in its header
    "max.message.bytes": str(8 << 20),
}


class Gone(NamedTuple):
    """Why a topic cannot be used, and until when (monotonic) nobody looks again."""

    said: str
    until: float


class KafkaPlaces:
    """The registry: it is the inner engine's, with a topic to each stream."""

    inner: LendsState
    cluster: Cluster

    def __init__(self) -> None:
        self._places: dict[int, Place] = {}
        self._stored: dict[int, Stream] = {}  # as they are stored, by number
        self._of_log: dict[int, Stream] = {}
        self._logs_of_group: dict[int, tuple[int, ...]] = {}
        self._groups_at = 0.0  # when that was read
        self._checked: set[int] = set()  # streams whose topics were looked at
        self._gone: dict[tuple[int, int], Gone] = {}  # by stream and priority: gone, or other topics
        self._ends_seen: dict[int, int] = {}
        self._ends_at: dict[int, float] = {}  # when they were asked for
        self._epochs_seen: dict[int, int] = {}  # of the leaders that said so
        self._known = threading.Lock()

    # Which log is where

    def refresh(self) -> list[Stream]:
        """Read the registry anew; return all streams as they are stored, the hidden one among them."""
        return self._read_anew()[0]

    def _read_anew(self) -> tuple[list[Stream], dict[int, Place], dict[int, Stream]]:
        """Return what was read, too: another thread may have it forgotten at once."""
        stored = self.inner.streams()
        places: dict[int, Place] = {}
        of_log: dict[int, Stream] = {}
        for stream in stored:
            kept = stream.settings.get(KEPT)
            if kept is None:
                continue
            for log in stream.logs:
                places[log] = place_of(kept, *stream.place(log))
                of_log[log] = stream
        with self._known:
            self._places, self._of_log = places, of_log
            self._stored = {stream.id: stream for stream in stored}
        return stored, places, of_log

    def forget(self) -> None:
        """Forget what is known of streams and groups."""
        with self._known:
            self._places, self._of_log, self._stored, self._logs_of_group = {}, {}, {}, {}
            self._checked.clear()

    def place(self, log: int) -> Place:
        """Return where a log is. Raises EngineError where there is no such log, or its topic is gone."""
        if self._gone:
            self._refuse_gone(log)
        return self.known_place(log)

    def _refuse_gone(self, log: int) -> None:
        """Raise TopicGone where that was found of a log's topic: nothing is read or written there (K3).

        Now and then it is looked again.
        """
        stream = self.stream_of_log(log)
        gone = self._gone.get((stream.id, stream.place(log)[1]))
        if gone is None:
            return
        if time.monotonic() < gone.until:
            raise TopicGone(gone.said)
        self.check_log(log)

    def known_place(self, log: int) -> Place:
        """Return where a log is, or was. Raises EngineError where there is no such log."""
        found = self._places.get(log)
        if found is None:
            found = self._read_anew()[1].get(log)
        if found is None:
            raise EngineError(_NO_LOG.format(log))
        return found

    def stream_of_log(self, log: int) -> Stream:
        """Return the stream of a log, as it is stored. Raises EngineError where there is no such log."""
        found = self._of_log.get(log)
        if found is None:
            found = self._read_anew()[2].get(log)
        if found is None:
            raise EngineError(_NO_LOG.format(log))
        return found

    def known_logs(self, logs: Sequence[int]) -> list[int]:
        """Return those of the logs that exist."""
        if any(log not in self._places for log in logs):
            self.refresh()
        return [log for log in logs if log in self._places]

    def logs_of(self, group: int, fresh: float | None = None) -> tuple[int, ...]:
        """Return the logs that a group reads, as of `fresh` seconds ago; none where there is no group."""
        found = self._logs_of_group.get(group)
        if found is None or (fresh is not None and time.monotonic() - self._groups_at > fresh):
            self._groups_at = time.monotonic()
            streams = {stream.id: stream for stream in self.refresh()}
            groups = {g.id: streams[g.stream].logs for g in self.inner.groups() if g.stream in streams}
            with self._known:
                self._logs_of_group = groups
            found = groups.get(group, ())
        return found

    # Where logs begin and end

    def ends(self, logs: Sequence[int]) -> dict[int, int]:
        """Return one past the last record of each log that readers may see."""
        now = time.monotonic()
        found = self._offsets(logs, LATEST)
        ends = {log: first_pos(log) + offset for log, (offset, _) in zip(logs, found, strict=True)}
        self._ends_seen |= ends
        self._ends_at |= dict.fromkeys(logs, now)
        self._epochs_seen |= {log: epoch for log, (_, epoch) in zip(logs, found, strict=True)}
        return ends

    def starts(self, logs: Sequence[int]) -> dict[int, int]:
        """Return where each log begins now."""
        found = self._offsets(logs, EARLIEST)
        return {log: first_pos(log) + offset for log, (offset, _) in zip(logs, found, strict=True)}

    def _offsets(self, logs: Sequence[int], moment: int) -> list[tuple[int, int]]:
        """Ask for offsets of logs. Raises TopicGone, StreamUnavailable where that is all that is wrong."""
        for log in logs:  # once in each process: who only reads has declared nothing
            stream = self._of_log.get(log) or self.stream_of_log(log)
            if stream.id not in self._checked and not stream.app.startswith(INCOMING):
                self._check_topic(stream)
        places = [self.place(log) for log in logs]
        try:
            return self.cluster.offsets(places, moment, unheard=SHORTEST)
        except TopicUnknown as error:  # it may be gone: nobody waits for that
            for stream in {self.stream_of_log(log).id: self.stream_of_log(log) for log in logs}.values():
                self.check_topic(stream)
            if self.cluster.timeout <= SHORTEST:
                self._say_leaderless(places, error)
                raise
        except EngineUnavailable as error:
            self._say_leaderless(places, error)
            raise
        try:
            return self.cluster.offsets(places, moment)
        except EngineUnavailable as error:
            self._say_leaderless(places, error)
            raise

    def _say_leaderless(self, places: Sequence[Place], error: EngineUnavailable) -> None:
        """Raise StreamUnavailable where there are brokers, and none of them leads a partition."""
        found = self.cluster.leaderless(places)
        if found:
            which = ", ".join(str(place.partition) for place in found[:5])
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise StreamUnavailable(
                f"{self.cluster.options.shown}: no broker leads partition {which}{more} of topic "
                f"{found[0].topic}; nothing was sent"
            ) from error

    def bounds(self, stream: Stream) -> list[tuple[int, int, int]]:
        """Return (log, first, one past the last) position there is."""
        logs = self.known_logs(stream.logs)
        starts, ends = self.starts(logs), self.ends(logs)
        return [(log, starts[log], max(starts[log], ends[log])) for log in logs]

    # Streams and groups

    def create_stream(
        self, kind: StreamKind, app: str, name: str, partitions: int, settings: dict[str, Any]
    ) -> Stream:
        """Create a stream with its topic, or check that the topic is the one it was; return it as stored.

        One whose topic is gone is returned, too: it is refused to who uses it, and others can be used.
        """
        for stream in self.refresh():
            if (stream.kind, stream.app, stream.name) == (kind, app, name):
                self._check_topic(stream)
                return public(stream)
        kept = self._make_topic(kind, app, name, partitions, settings)
        stream = self.inner.create_stream(kind, app, name, kept["partitions"], {**settings, KEPT: kept})
        self.forget()
        self.refresh()
        self._check_topic(stream)
        return public(stream)

    def _make_topic(
        self, kind: str, app: str, name: str, partitions: int, settings: dict[str, Any]
    ) -> dict[str, Any]:
        what = f"{kind} {name}"
        if settings.get("foreign"):
            found = self.cluster.described_later(name)  # it may have been made just now
            if found is None:
                raise ConfigError(
                    f"{self.cluster.options.shown}: {what} is declared as foreign, but there is no topic "
                    f"{name!r}; whoever writes it has to make it, or leave foreign=True out"
                )
            return {"topic": name, "id": found[0], "partitions": found[1]}
        topic = topic_name(self.cluster.options.prefix, kind, app, name)
        id = self._take_topic(topic, partitions, what, lambda: self._just_made(kind, app, name))
        return {"topic": topic, "id": id, "partitions": partitions}

    def _take_topic(self, topic: str, partitions: int, what: str, just_made: Callable[[], bool]) -> str:
        """Make a topic, or see that it is one that nobody uses; return its id.

        Parameters:
            just_made: says whether another process has, and appended to it, since we looked.
        """
        found = self.cluster.describe(topic)
        if found is None:
            self.cluster.create(topic, partitions, FOR_GOOD)
            found = self.cluster.described(topic)
        id, there = found
        if there != partitions:
            raise ConfigError(
                f"{self.cluster.options.shown}: {what} wants {partitions} partition(s), topic {topic} has "
                f"{there}; declare it with partitions={there}, or delete the topic"
            )
        places = [Place(topic, partition) for partition in range(partitions)]
        used = any(offset for offset, _ in self.cluster.offsets(places, LATEST))
        if used and not just_made():
            raise ConfigError(
                f"{self.cluster.options.shown}: topic {topic} holds records, but the state knows no {what}: "
                "it belongs to another state; set prefix=… in the URL to keep them apart, or name that state"
            )
        return id

    def _just_made(self, kind: str, app: str, name: str) -> bool:
        """Say whether another process has made the stream, and appended to it, since we looked."""
        return any((s.kind, s.app, s.name) == (kind, app, name) for s in self.refresh())

    def _check_topic(self, stream: Stream) -> None:
        """Look whether a stream's topics are those that they were (K3); once in each process."""
        if stream.id not in self._checked:
            with suppress(TopicGone):  # it is kept, and said to who uses it
                self.check_topic(stream)
            self._checked.add(stream.id)

    def check_topic(self, stream: Stream) -> None:
        """Raise TopicGone where a topic of a stream is not there, or another one; that holds for a while."""
        self._check(stream, topics_of(stream))

    def check_log(self, log: int) -> None:
        """Raise TopicGone where the topic of a log is not there, or another one: whatever others there are.

        What is sent to one lane is not lost since that of another is gone.
        """
        stream = self.stream_of_log(log)
        priority = stream.place(log)[1]
        self._check(stream, {each: topic for each, topic in topics_of(stream).items() if each == priority})

    def _check(self, stream: Stream, topics: dict[int, str]) -> None:
        if lanes_without_id(stream):  # somebody may have kept them since it was read
            self.refresh()
            stream = self._stored.get(stream.id, stream)
        began, first = time.monotonic(), None
        found = self.cluster.describe_all(list(topics.values()))
        for priority, topic in topics.items():
            try:
                compare(self.cluster, stream, priority, found[topic])
            except TopicGone as error:
                ended = time.monotonic()
                until = ended + max(AGAIN, 2 * (ended - began))
                self._gone[stream.id, priority] = Gone(str(error), until)
                first = first or error
            else:
                self._gone.pop((stream.id, priority), None)
        if first is not None:
            raise first

    def is_gone(self, stream: Stream) -> bool:
        """Say whether a topic of a stream was found to be gone, or another one."""
        return any((stream.id, priority) in self._gone for priority in topics_of(stream))

    def keep_ids(self, stream: Stream) -> None:
        """Keep what the topics of a stream's lanes are, where that was not done when they were made."""
        new = lanes_without_id(stream)
        for priority, topic in new.items():
            found = self.cluster.describe(topic)
            if found is not None:
                self.inner.set_within(stream, KEPT, id_name(priority), found[0])

    def set_retention(self, stream: Stream, retention: Any) -> None:
        """Change how long a stream's records stay: workers see to that, its topic is told nothing (K4)."""
        self.inner.set_retention(stream, retention)
        self.forget()

    def add_lane(self, stream: Stream, priority: int) -> Stream:
        """Make the lane of a priority: a topic, then its logs, read from 0 by the stream's groups (H10)."""
        stored = next(each for each in self.refresh() if each.id == stream.id)
        kept = stored.settings[KEPT]
        topic = lane_topic(kept["topic"], priority)
        if stored.lane(priority) is None:
            what = f"priority {priority} of {stored.kind} {stored.name}"
            just_made = partial(self._has_lane, stream.id, priority)
            id = self._take_topic(topic, kept["partitions"], what, just_made)
            self.inner.set_within(stored, KEPT, id_name(priority), id)
        made = self.inner.add_lane(stored, priority)
        self.forget()
        self.refresh()
        return public(made)

    def _has_lane(self, stream: int, priority: int) -> bool:
        return any(s.id == stream and s.lane(priority) is not None for s in self.refresh())

    def streams(self) -> list[Stream]:
        """Return all streams."""
        return [public(stream) for stream in self.refresh() if stream.app != HIDDEN]

    def groups(self) -> list[Group]:
        """Return all groups."""
        hidden = {stream.id for stream in self._streams_stored() if stream.app == HIDDEN}
        found = self.inner.groups()
        return [group for group in found if group.stream not in hidden]

    def _streams_stored(self) -> list[Stream]:
        return list(self._stored.values()) or self.refresh()

    def create_group(
        self,
        stream: Stream,
        app: str,
        name: str,
        kind: GroupKind,
        settings: dict[str, Any],
        bounds: Sequence[tuple[int, int, int | None]],
    ) -> Group | None:
        """Create a group that reads lo <= p < hi (None: no end) of each log; None where it exists."""
        return self.inner.create_group(stream, app, name, kind, settings, bounds)
