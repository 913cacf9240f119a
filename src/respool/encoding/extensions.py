"""MessagePack's extension types: dates, UUIDs, sets and the like, which it has no types for itself."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID

import msgspec
from msgspec.msgpack import Ext

from ..errors import CorruptBody, NotEncodable
from .refusals import AT_ITEM, Path, checked_text, refusal, shown

# A worker decodes deeper in its stack than the producer encoded: the interpreter's limit is no measure.
MAX_DEPTH: Final = 100
ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})
"""What MessagePack carries as it is."""

# Extension types. The numbers are part of the format: never reuse one.
_DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID, _DECIMAL, _SET, _FROZENSET, _COMPLEX, _BIGINT = range(1, 11)


class _Key:
    """An `Ext` as the key of a dict: `Ext` itself has no hash. The encoder's hook takes it out again."""

    __slots__ = ("ext",)

    def __init__(self, ext: Ext) -> None:
        self.ext = ext


def pack(value: Any, path: Path, depth: int) -> Any:
    """Return a value that is no list and no dict as MessagePack can carry it. Raises NotEncodable."""
    kind = cast(type[object], type(value))
    if kind is str:
        return checked_text(value, path)
    if kind is int:
        return value if -(2**63) <= value < 2**64 else Ext(_BIGINT, _from_int(value))
    if kind in ATOMS:
        return value
    if kind is set or kind is frozenset:
        return Ext(_SET if kind is set else _FROZENSET, _from_set(value, path, depth))
    packer = PACKERS.get(kind)
    if packer is None:
        raise NotEncodable(refusal(value, path))
    try:
        return Ext(packer[0], packer[1](value))
    except _NoOffset as error:
        said = f"{shown(path)} has a time zone that gives no offset"
        raise NotEncodable(f"{said}, {error}: use zoneinfo.ZoneInfo") from None


def pack_key(value: Any, path: Path, depth: int) -> Any:
    """Do the same for what must be hashable: keys, and the items of a set. A tuple stays one."""
    if type(value) is tuple:
        if not depth:
            raise NotEncodable(f"{shown(path)[:200]}… is nested more than {MAX_DEPTH} deep")
        return tuple(pack_key(item, path, depth - 1) for item in cast(Any, value))
    packed = pack(value, path, depth)
    return _Key(packed) if type(packed) is Ext else packed


class _NoOffset(Exception):
    """A tzinfo that cannot say its offset."""


def _from_zone(value: datetime | time) -> object:
    """None for a naive value, a zone's name, or an offset in microseconds and its name."""
    zone = value.tzinfo
    if zone is None:
        return None
    if zone is UTC:
        return 0
    from zoneinfo import ZoneInfo

    if isinstance(zone, ZoneInfo) and zone.key:
        return zone.key
    offset = value.utcoffset()
    if offset is None:
        raise _NoOffset(repr(zone))
    name = value.tzname()
    micros = offset // timedelta(microseconds=1)
    return micros if name in (None, timezone(offset).tzname(None)) else [micros, name]


def _to_zone(stored: Any) -> tzinfo | None:
    if stored is None:
        return None
    if isinstance(stored, str):
        from zoneinfo import ZoneInfo

        return ZoneInfo(stored)
    if isinstance(stored, int):
        return timezone(timedelta(microseconds=stored))
    return timezone(timedelta(microseconds=stored[0]), stored[1])


def _from_moment(value: datetime | time) -> bytes:
    return to_msgpack((value.replace(tzinfo=None).isoformat(), value.fold, _from_zone(value)))


def _to_datetime(data: bytes) -> datetime:
    text, fold, zone = cast(list[Any], from_msgpack(data))
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=_to_zone(zone))


def _to_time(data: bytes) -> time:
    text, fold, zone = cast(list[Any], from_msgpack(data))
    return time.fromisoformat(text).replace(fold=fold, tzinfo=_to_zone(zone))


def _from_int(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _from_set(value: Iterable[Any], path: Path, depth: int) -> bytes:
    """The items as keys, so that tuples stay hashable; sorted, so that equal sets are equal bytes."""
    if not depth:
        raise NotEncodable(f"{shown(path)[:200]}… is nested more than {MAX_DEPTH} deep")
    items = [pack_key(item, (path, AT_ITEM), depth - 1) for item in value]
    return to_msgpack(dict.fromkeys(sorted(items, key=to_msgpack)))


PACKERS: Final[dict[type, tuple[int, Callable[[Any], bytes]]]] = {
    datetime: (_DATETIME, _from_moment),
    date: (_DATE, lambda value: value.isoformat().encode()),
    time: (_TIME, _from_moment),
    timedelta: (_TIMEDELTA, lambda value: to_msgpack((value.days, value.seconds, value.microseconds))),
    UUID: (_UUID, lambda value: value.bytes),
    Decimal: (_DECIMAL, lambda value: str(value).encode()),
    complex: (_COMPLEX, lambda value: struct.pack("<dd", value.real, value.imag)),
}

_UNPACKERS: Final[dict[int, Callable[[bytes], object]]] = {
    _DATETIME: _to_datetime,
    _DATE: lambda data: date.fromisoformat(data.decode()),
    _TIME: _to_time,
    _TIMEDELTA: lambda data: timedelta(*cast(list[int], from_msgpack(data))),
    _UUID: lambda data: UUID(bytes=data),
    _DECIMAL: lambda data: Decimal(data.decode()),
    _SET: lambda data: set(cast(dict[object, None], from_msgpack(data))),
    _FROZENSET: lambda data: frozenset(cast(dict[object, None], from_msgpack(data))),
    _COMPLEX: lambda data: complex(*struct.unpack("<dd", data)),
    _BIGINT: lambda data: int.from_bytes(data, "big", signed=True),
}


def _unpack(code: int, data: memoryview) -> object:
    unpacker = _UNPACKERS.get(code)
    if unpacker is None:
        raise CorruptBody(f"unknown extension type {code}: written by a newer Respool, or damaged")
    return unpacker(bytes(data))


def _unbox(key: _Key) -> Ext:
    return key.ext


# What msgspec and the extensions' constructors raise for bytes that mean nothing (LookupError: a time zone).
DAMAGED: Final = (
    *(ArithmeticError, ValueError, TypeError, LookupError, RecursionError),
    *(struct.error, msgspec.MsgspecError),
)
to_msgpack: Final[Callable[[object], bytes]] = msgspec.msgpack.Encoder(enc_hook=_unbox).encode
from_msgpack: Final[Callable[[bytes], Any]] = msgspec.msgpack.Decoder(ext_hook=_unpack).decode
