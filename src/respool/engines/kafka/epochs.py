"""Whether a log still holds what groups have read of it: it may have lost its end (K3).

A leader that lacked the last records is elected, or a disk has lost them: what comes next gets their offsets.
A cursor that stands past them would take it for done. So it is kept beside each cursor under which leader's
*epoch* the log was read. With another epoch the leader is asked where that one ended in its log, before
anything is claimed.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable, Mapping

import msgspec
from confluent_kafka import Consumer, KafkaError, TopicPartition

from ...clock import now as wall_clock
from ...delivery.model import Change, Outcome, View
from ...errors import EngineUnavailable, StreamBroken
from ...record import first_pos
from ..base import Engine, Reads
from .cluster import EARLIEST, GROUP, LATEST, Cluster, Place

WAIT = 0.2  # seconds of one look
_AT = re.compile(r"broker end offset is (\d+)")
_LOST = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(int).decode


class LogTruncated(StreamBroken):
    """A topic has lost records that a group had read."""


class Epochs:
    """The epochs in which groups have read logs, kept in the state.

    They are outcomes of the outbox's group, past all positions of a log: one for each group.
    """

    def __init__(self, inner: Engine, cluster: Cluster) -> None:
        self._inner, self._cluster = inner, cluster
        self._known: dict[tuple[int, int], int] = {}  # by group and log: what was looked at

    def forget(self) -> None:
        """Look at all of them anew."""
        self._known.clear()

    def changed(self, group: int, seen: Mapping[int, int]) -> list[int]:
        """Return the logs that are led in another epoch than when they were looked at. Cheap.

        Parameters:
            seen: the epoch of each log's leader now; -1 where it does not say.
        """
        known = self._known
        return [log for log, epoch in seen.items() if epoch >= 0 and known.get((group, log), -1) < epoch]

    def look(self, owner: int, group: int, at: Mapping[int, tuple[Place, int, int]]) -> None:
        """Look whether logs hold what a group has read of them, and keep the epoch.

        Parameters:
            owner: the group whose outcomes the epochs are.
            at: by log its place, the offset below which the group has read it, and its leader's epoch.

        Raises: LogTruncated; EngineUnavailable where no leader answers.
        """
        stored = {log: self._stored(owner, group, log) for log in at}
        ended = {log: epoch for log, epoch in stored.items() if epoch is not None and epoch < at[log][2]}
        lost = lost_of(self._cluster, {at[log][0]: (at[log][1], epoch) for log, epoch in ended.items()})
        if lost:
            raise LogTruncated(self._said(group, lost))
        new = [log for log in at if stored[log] is None or log in ended]
        if new:

            def keep(view: View, change: Change) -> None:
                for log in new:
                    change.outcomes.append(
                        Outcome(_pos(group, log), "success", _pack(at[log][2]), wall_clock())
                    )

            self._inner.transact(Reads(owner), keep)
        self._known.update({(group, log): epoch for log, (_, _, epoch) in at.items()})

    def newest(self, owner: int, groups: Iterable[int], log: int) -> int:
        """Return the newest epoch in which any of the groups has read a log; -1 where none is known."""
        known = (self._stored(owner, group, log) for group in groups)
        return max((epoch for epoch in known if epoch is not None), default=-1)

    def _stored(self, owner: int, group: int, log: int) -> int | None:
        pos = _pos(group, log)
        for outcome in self._inner.outcomes(owner, pos, pos + 1):
            if outcome.value is not None:
                return _unpack(outcome.value)
        return None

    def _said(self, group: int, lost: Mapping[Place, int]) -> str:
        name = next((each.name for each in self._inner.groups() if each.id == group), str(group))
        place, offset = min(lost.items())
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        return (
            f"{self._cluster.options.shown}: topic {place.topic} has lost its records from offset {offset} "
            f"of partition {place.partition}{more} on, which group {name} had read: its leader lacked them. "
            "What comes there now would be taken for done. To have the group go on there, and forget what it "
            f"knew of the lost ones: respool seek {shlex.quote(name)} --to {place.partition}:{offset}"
        )


def _pos(group: int, log: int) -> int:
    """Return where it is kept: no log ever has so many records."""
    return first_pos(log + 1) - 1 - group


def lost_of(cluster: Cluster, read: Mapping[Place, tuple[int, int]]) -> dict[Place, int]:
    """Return where logs end that do not hold what was read of them.

    Parameters:
        read: for each place the offset below which it was read, and its leader's epoch then.
    """
    if not read:
        return {}
    consumer: Consumer = cluster.made(
        Consumer,
        **{
            "group.id": cluster.options.prefix + GROUP,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.message.max.bytes": 4096,
        },
    )
    try:
        consumer.assign(
            [
                TopicPartition(place.topic, place.partition, offset, leader_epoch=epoch)
                for place, (offset, epoch) in read.items()
            ]
        )
        return _answers(cluster, consumer, dict(read))
    finally:
        consumer.close()


def _answers(cluster: Cluster, consumer: Consumer, open_: dict[Place, tuple[int, int]]) -> dict[Place, int]:
    """Wait until each partition has given a record, its end, or said that it has not got so far."""
    lost: dict[Place, int] = {}
    deadline = time.monotonic() + cluster.timeout
    while open_:
        message = consumer.poll(WAIT)
        if time.monotonic() > deadline:
            names = ", ".join(sorted(place.topic for place in open_))
            raise EngineUnavailable(
                f"{cluster.options.shown}: no leader of topic {names} answers within {cluster.timeout:g} s; "
                "nothing was sent"
            )
        if message is None:
            continue
        error = message.error()
        place = Place(message.topic() or "", message.partition() or 0)
        if error is None or error.code() == KafkaError._PARTITION_EOF:
            open_.pop(place, None)
        elif error.code() in _LOST and place in open_:
            offset, _ = open_.pop(place)
            said = _AT.search(error.str())
            if said is not None:
                lost[place] = min(int(said.group(1)), offset)
            elif cluster.offsets([place], EARLIEST)[0][0] <= offset:  # else it was trimmed just now
                lost[place] = min(cluster.offsets([place], LATEST)[0][0], offset)
    return lost
