"""What the outbox keeps: records on their way to Kafka, as they are stored in the state."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ...delivery.model import NewCall
from ...record import Id
from .. import stored_id
from ..base import Group, Stream
from . import header as h
from .moved import outbox_id
from .places import HIDDEN

_pack = msgspec.msgpack.Encoder().encode


class _Packed(msgspec.Struct, array_like=True, omit_defaults=True):
    """What is kept of a record besides task and body."""

    log: int  # where it goes
    header: bytes
    lock: str | None = None  # the key that it has taken


_unpack = msgspec.msgpack.Decoder(_Packed).decode


class Box(NamedTuple):
    """One stream of what is on its way, and the group that relays it."""

    stream: Stream
    log: int
    group: Group
    ordered: bool


class Waiting(NamedTuple):
    """A record on its way."""

    pos: int  # in the outbox
    log: int  # where it goes
    header: bytes
    body: bytes
    tried: bool  # it may have arrived already
    lock: str | None

    @property
    def id(self) -> Id:
        """The id that it was given."""
        return h.id_of(self.header)

    @property
    def time(self) -> float:
        """When it was made."""
        return h.micros_of(self.header) / h.MICRO

    def row(self) -> NewCall:
        """Return it as it was given."""
        task, meta = h.row_of(self.header)
        return NewCall(self.log, task, self.body, meta, self.id, self.time)


def put_by(row: NewCall, box: Box, lock: str | None) -> NewCall:
    """Return a record as a box keeps it, with the key that it takes."""
    header = h.pack(row.id, int(row.time * h.MICRO), row.task, row.meta)
    id = stored_id(HIDDEN, outbox_id(row.id))
    return NewCall(box.log, row.task, row.body, _pack(_Packed(row.log, header, lock)), id, row.time, row.key)


def waiting(pos: int, body: bytes, packed: bytes, *, tried: bool) -> Waiting:
    """Return a record that is on its way from what a box has kept of it."""
    kept = _unpack(packed)
    return Waiting(pos, kept.log, kept.header, body, tried, kept.lock)


def id_from_outbox(id: Id) -> Id:
    """Return an id from how it is stored in the outbox, namespace and all."""
    assert isinstance(id, str)
    kept = id.partition("\0")[2]
    return bytes.fromhex(kept[1:]) if kept[0] == "b" else kept[1:]
