"""What is kept of a record beside its body: one header, a MessagePack list of [id, time, task, attributes].

The body stays as it is, so that any consumer reads it. The list begins with a prefix of fixed size where the
id is of ours, so that what the members of a run share is packed once, and told apart without unpacking.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ...record import Id

NAME = "respool"
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[Any, int, str, msgspec.Raw]).decode
_unpack_tail = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw]).decode
_OURS = b"\x94\xc4\x10"  # a list of four that begins with 16 bytes
_TIME = b"\xcf"  # a number of 64 bits follows
_NIL = b"\xc0"
_FIXED = 28  # bytes before the task, where the id is of ours
MICRO = 1_000_000
_MOST = 4096
_tails: dict[bytes, tuple[str, bytes | None]] = {}


def pack(id: Id, micros: int, task: str, meta: bytes | None) -> bytes:
    """Return the header of one record."""
    if isinstance(id, bytes):
        return b"".join((_OURS, id, tail(micros, task, meta)))
    return b"".join((b"\x94", _pack(id), tail(micros, task, meta)))


def up_to_id(id: Id) -> bytes:
    """Return what the header of a record with this id begins with."""
    return _OURS + id if isinstance(id, bytes) else b"\x94" + _pack(id)


def tail(micros: int, task: str, meta: bytes | None) -> bytes:
    """Return what the headers of a run share behind their ids."""
    return b"".join((_TIME, micros.to_bytes(8, "big", signed=False), _pack(task), meta or _NIL))


def before_run(head: bytes) -> bytes:
    """Return what the headers of a run share before the last three bytes of their ids."""
    return _OURS + head[:13]


def row_of(header: bytes) -> tuple[str, bytes | None]:
    """Return task and packed attributes: what a run needs."""
    if header[:3] == _OURS:
        rest = header[_FIXED:]
        known = _tails.get(rest)
        if known is None:
            task, raw = _unpack_tail(b"\x92" + rest)
            known = task, None if bytes(raw) == _NIL else bytes(raw)
            if len(_tails) < _MOST and len(rest) < 256:
                _tails[rest] = known
        return known
    _, _, task, raw = _unpack(header)
    return task, None if bytes(raw) == _NIL else bytes(raw)


def id_of(header: bytes) -> Id:
    """Return the id."""
    if header[:3] == _OURS:
        return header[3:19]
    found: Id = _unpack(header)[0]
    return found


def micros_of(header: bytes) -> int:
    """Return the time in microseconds since 1970."""
    if header[:3] == _OURS:
        return int.from_bytes(header[20:28], "big")
    return _unpack(header)[1]
