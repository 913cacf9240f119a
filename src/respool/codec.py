"""Values to bytes and back, under one rule: what is sent is what arrives.

msgspec is fast but generous: it turns a set into a list and an Enum into its value without a word. So a
value is looked through before it is encoded. What msgspec carries exactly goes straight through; what
MessagePack has no type for (dates, UUIDs, sets, …) becomes an extension type; everything else is refused
with the path to it.

A tuple arrives as a list, as in Celery, unless the task's annotation says `tuple` (see `signature.py`) or it
is the key of a dict or an item of a set.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import math
import pickle
import struct
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import is_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from typing import Any, Final, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from msgspec.msgpack import Ext

from .errors import ConfigError, CorruptBody, NotEncodable, RemoteError, suggest

MSGPACK: Final = "msgpack"
JSON: Final = "json"
PICKLE: Final = "pickle"
CONTENT_TYPES: Final = (MSGPACK, JSON, PICKLE)

# A worker decodes deeper in its stack than the producer encoded: the interpreter's limit is no measure.
MAX_DEPTH: Final = 100
MIN_PICKLE_KEY: Final = 16
TRACEBACK_LIMIT: Final = 64 * 1024

_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})
_JSON_ATOMS: Final = frozenset({type(None), bool, int, str})
_STR: Final = frozenset({str})
_LONG: Final = 8  # from this length on, a set's own loop over the types beats ours
# Raised by msgspec for what shows in a value only, not in its type; the careful walk then finds where.
_BY_VALUE: Final = (OverflowError, ValueError, RecursionError)

# The path to a value: the root's name, or (the container's path, step). Made into text only for a message.
_Path = tuple[Any, Any] | str
_Pack = Callable[[Any, _Path, int], Any]


class Codec(ABC):
    """One content type: `encode` and `decode` are exact inverses of each other, or raise."""

    name: str

    @abstractmethod
    def encode(self, value: object, what: str = "value") -> bytes:
        """Return `value` as bytes.

        Args:
            value: what is to arrive.
            what: its name in messages (`args`, `result`).

        Returns:
            The body.

        Raises:
            NotEncodable: for what would not arrive as it was sent, with the path to it.

        Example:
            `codec_for("msgpack").encode({"when": date(2026, 1, 31)}, "kwargs")`
        """

    @abstractmethod
    def decode(self, body: bytes) -> object:
        """Return the value that `encode` was given.

        Args:
            body: what `encode` returned.

        Returns:
            An equal value of the same type (a list for a tuple).

        Raises:
            CorruptBody: for bytes that are damaged, longer than the value, or of an unknown extension.

        Example:
            `codec_for("json").decode(b'{"a": 1}')`
        """


class _MsgpackCodec(Codec):
    """MessagePack with extension types; what tasks use unless told otherwise."""

    name = MSGPACK

    def encode(self, value: object, what: str = "value") -> bytes:
        items: Any = value
        try:
            # The same said twice: for a short list, as the arguments of a call are, the first saves a level.
            if (type(items) is list or type(items) is tuple) and len(items) < _LONG:  # pyright: ignore
                exact = _exact(items, MAX_DEPTH - 2)
            else:
                exact = _exact((value,), MAX_DEPTH - 1)
            if exact:
                return _encode(value)
        except _BY_VALUE:
            pass
        return _encode(_careful(value, what, _pack, _pack_key))

    def decode(self, body: bytes) -> object:
        return _unpacked(body)


class _JsonCodec(Codec):
    """JSON, and only what JSON returns exactly; what streams use unless told otherwise."""

    name = JSON

    def encode(self, value: object, what: str = "value") -> bytes:
        try:
            if _json_exact((value,), MAX_DEPTH):
                return msgspec.json.encode(value)
        except _BY_VALUE:
            pass
        return msgspec.json.encode(_careful(value, what, _json_leaf, _json_key))

    def decode(self, body: bytes) -> object:
        try:
            return _from_json(body)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise CorruptBody(f"this is not one JSON value: {error}") from error


class _PickleCodec(Codec):
    """Pickle behind a signature: 32 bytes of HMAC-SHA256, then the pickle. Who has the key runs code here."""

    name = PICKLE

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encode(self, value: object, what: str = "value") -> bytes:
        try:
            body = pickle.dumps(value, protocol=5)
        except Exception as error:  # any class may fail in its own way while pickled
            raise NotEncodable(f"{what} cannot be pickled: {type(error).__name__}: {error}") from error
        return self._sign(body) + body

    def decode(self, body: bytes) -> object:
        signature, rest = body[:32], body[32:]
        if not hmac.compare_digest(signature, self._sign(rest)):
            raise CorruptBody("the pickle's signature is wrong: damaged, or signed with another pickle_key")
        try:
            return pickle.loads(rest)
        except Exception as error:  # as above, and for classes not importable here
            raise CorruptBody(f"cannot unpickle: {type(error).__name__}: {error}") from error

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)


def codec_for(content_type: str, pickle_key: bytes | None = None) -> Codec:
    """Return the codec of a content type.

    Args:
        content_type: one of `CONTENT_TYPES`.
        pickle_key: the secret that signs pickles.

    Returns:
        The codec; it may be kept and used by several threads.

    Raises:
        ConfigError: for an unknown content type, and for pickle without a key of at least 16 bytes.

    Example:
        `codec_for("msgpack").decode(body)`
    """
    if content_type == MSGPACK:
        return _MSGPACK
    if content_type == JSON:
        return _JSON
    if content_type != PICKLE:
        raise ConfigError(f"unknown content type {content_type!r}{suggest(content_type, CONTENT_TYPES)}")
    if pickle_key is None or len(pickle_key) < MIN_PICKLE_KEY:
        got = "none" if pickle_key is None else f"{len(pickle_key)} bytes"
        wants = f"a signing key of at least {MIN_PICKLE_KEY} bytes, got {got}"
        raise ConfigError(f"content type 'pickle' needs {wants}, for unpickling runs code")
    return _PickleCodec(pickle_key)


def _exact(items: Any, depth: int) -> bool:
    """Whether msgspec carries all of these as they are.

    Hot, so it decides by type alone and calls itself only for a container within a container.
    """
    for item in items:
        kind = type(item)  # pyright: ignore[reportUnknownVariableType]
        if kind is tuple or kind is list:
            if len(item) >= _LONG and _ATOMS.issuperset(map(type, item)):
                continue
            for inner in item:
                if type(inner) not in _ATOMS:
                    if not depth or not _exact(item, depth - 1):
                        return False
                    break
        elif kind is dict:
            if item:  # asking is cheaper than the iterator, and most calls have no kwargs
                for key, inner in item.items():
                    if type(key) is not str and type(key) not in _ATOMS:
                        return False
                    if type(inner) not in _ATOMS and (not depth or not _exact((inner,), depth - 1)):
                        return False
        elif kind not in _ATOMS:
            return False
    return True


def _json_exact(items: Iterable[Any], depth: int) -> bool:
    """The same for JSON, where keys are text and floats are finite."""
    for item in items:
        kind = type(item)  # pyright: ignore[reportUnknownVariableType]
        if kind in _JSON_ATOMS:
            continue
        if kind is float and math.isfinite(item):
            continue
        if kind is list or kind is tuple:
            if not depth or not _json_exact(item, depth - 1):
                return False
        elif (
            kind is not dict
            or not depth
            or not _STR.issuperset(map(type, item))
            or not _json_exact(item.values(), depth - 1)
        ):
            return False
    return True


def _careful(value: Any, what: str, leaf: _Pack, key: _Pack) -> Any:
    try:
        return _rebuild(value, what, MAX_DEPTH, leaf, key)
    except RecursionError:
        raise NotEncodable(f"{what} is nested deeper than the stack that is left here allows") from None


def _rebuild(value: Any, path: _Path, depth: int, leaf: _Pack, key: _Pack) -> Any:
    """The careful walk: `value` with `leaf` and `key` applied, either of which may refuse."""
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is not list and kind is not tuple and kind is not dict:
        return leaf(value, path, depth)
    if value and not depth:
        raise NotEncodable(f"{_shown(path)[:200]}… is nested more than {MAX_DEPTH} deep, or contains itself")
    if kind is dict:
        return {
            key(k, (path, _AT_KEY), depth): _rebuild(v, (path, k), depth - 1, leaf, key)
            for k, v in value.items()
        }
    return [_rebuild(v, (path, i), depth - 1, leaf, key) for i, v in enumerate(value)]


class _Place:
    """A step of a path that is no index."""

    def __init__(self, name: str) -> None:
        self.name = name


_AT_KEY: Final = _Place("<key>")
_AT_ITEM: Final = _Place("<item>")


class _Key:
    """An `Ext` as the key of a dict: `Ext` itself has no hash. The encoder's hook takes it out again."""

    __slots__ = ("ext",)

    def __init__(self, ext: Ext) -> None:
        self.ext = ext


def _pack(value: Any, path: _Path, depth: int) -> Any:
    """A value that is no list and no dict, as MessagePack can carry it."""
    kind = cast(type[object], type(value))
    if kind is str:
        return _checked_text(value, path)
    if kind is int:
        return value if -(2**63) <= value < 2**64 else Ext(_BIGINT, _from_int(value))
    if kind in _ATOMS:
        return value
    if kind is set or kind is frozenset:
        return Ext(_SET if kind is set else _FROZENSET, _from_set(value, path, depth))
    packer = _PACKERS.get(kind)
    if packer is None:
        raise NotEncodable(_refusal(value, path))
    try:
        return Ext(packer[0], packer[1](value))
    except _NoOffset as error:
        said = f"{_shown(path)} has a time zone that gives no offset"
        raise NotEncodable(f"{said}, {error}: use zoneinfo.ZoneInfo") from None


def _pack_key(value: Any, path: _Path, depth: int) -> Any:
    """The same for what must be hashable: keys, and the items of a set. A tuple stays one."""
    if type(value) is tuple:
        if not depth:
            raise NotEncodable(f"{_shown(path)[:200]}… is nested more than {MAX_DEPTH} deep")
        return tuple(_pack_key(item, path, depth - 1) for item in cast(Any, value))
    packed = _pack(value, path, depth)
    return _Key(packed) if type(packed) is Ext else packed


_NOT_JSON: Final = "which JSON does not have: convert it, or use content type 'msgpack'"


def _json_leaf(value: Any, path: _Path, depth: int) -> Any:
    kind = cast(type[object], type(value))
    if kind is str:
        return _checked_text(value, path)
    if kind is int:
        return _checked_int(value, path)
    if kind in _JSON_ATOMS or (kind is float and math.isfinite(value)):
        return value
    if kind is float:
        raise NotEncodable(f"{_shown(path)} is {value}, {_NOT_JSON}")
    if kind is bytes or kind is set or kind is frozenset or kind in _PACKERS:
        raise NotEncodable(f"{_shown(path)} is a {kind.__name__}, {_NOT_JSON}")
    raise NotEncodable(_refusal(value, path))


def _json_key(value: Any, path: _Path, depth: int) -> str:
    if type(value) is not str:
        said = f"{_shown(path)} {brief(value)} is a {type(value).__name__}"
        raise NotEncodable(f"{said}, and a key in JSON is text: use str keys, or content type 'msgpack'")
    return _checked_text(value, path)


def _checked_text(value: str, path: _Path) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        said = f"{_shown(path)} holds a lone surrogate at {error.start}, which is not text"
        raise NotEncodable(f"{said}: send bytes (os.fsencode) instead") from None
    return value


def _checked_int(value: int, path: _Path) -> int:
    try:
        msgspec.json.encode(value)
    except (ValueError, OverflowError):  # sys.set_int_max_str_digits
        raise NotEncodable(f"{_shown(path)} has too many digits for JSON: use 'msgpack'") from None
    return value


def _shown(path: _Path) -> str:
    steps: list[str] = []
    while not isinstance(path, str):
        path, step = path
        steps.append(step.name if isinstance(step, _Place) else f"[{brief(step)}]")
    return path + "".join(reversed(steps))


def brief(value: object, limit: int = 80) -> str:
    """Return a short repr for a message; never fails.

    Args:
        value: anything.
        limit: the most characters.

    Returns:
        The repr, cut at `limit`.

    Example:
        `brief("x" * 1000)`
    """
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide what was wrong
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _refusal(value: object, path: _Path) -> str:
    said = f"{_shown(path)} is of type {_class_name(value)}"
    return f"{said} and would not arrive as it was sent ({brief(value)}): {_advice(value)}"


def _advice(value: object) -> str:
    kind = type(value)
    if isinstance(value, Enum):
        return f"annotate it with {kind.__name__}, or send its .value"
    if isinstance(value, (bytearray, memoryview)):
        return "convert it with bytes()"
    modelled = is_dataclass(value) or hasattr(kind, "__struct_fields__") or hasattr(kind, "__attrs_attrs__")
    if modelled or hasattr(kind, "model_dump") or hasattr(kind, "_fields"):
        return f"annotate it with {kind.__name__}, or convert it to a dict or list"
    for base in (str, bytes, int, float, list, tuple, dict, set, frozenset, datetime, date, Decimal, UUID):
        if isinstance(value, base):
            return f"convert it to a plain {base.__name__}"
    return "convert it to plain data (numbers, text, lists, dicts), or make it a dataclass and annotate it"


# Extension types. The numbers are part of the format: never reuse one.
_DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID, _DECIMAL, _SET, _FROZENSET, _COMPLEX, _BIGINT = range(1, 11)


class _NoOffset(Exception):
    """A tzinfo that cannot say its offset."""


def _from_zone(value: datetime | time) -> object:
    """None for a naive value, a zone's name, or an offset in microseconds and its name."""
    zone = value.tzinfo
    if zone is None:
        return None
    if zone is UTC:
        return 0
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
        return ZoneInfo(stored)
    if isinstance(stored, int):
        return timezone(timedelta(microseconds=stored))
    return timezone(timedelta(microseconds=stored[0]), stored[1])


def _from_moment(value: datetime | time) -> bytes:
    return _encode((value.replace(tzinfo=None).isoformat(), value.fold, _from_zone(value)))


def _to_datetime(data: bytes) -> datetime:
    text, fold, zone = cast(list[Any], _decode(data))
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=_to_zone(zone))


def _to_time(data: bytes) -> time:
    text, fold, zone = cast(list[Any], _decode(data))
    return time.fromisoformat(text).replace(fold=fold, tzinfo=_to_zone(zone))


def _from_int(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _from_set(value: Iterable[Any], path: _Path, depth: int) -> bytes:
    """The items as keys, so that tuples stay hashable; sorted, so that equal sets are equal bytes."""
    if not depth:
        raise NotEncodable(f"{_shown(path)[:200]}… is nested more than {MAX_DEPTH} deep")
    items = [_pack_key(item, (path, _AT_ITEM), depth - 1) for item in value]
    return _encode(dict.fromkeys(sorted(items, key=_encode)))


_PACKERS: Final[dict[type, tuple[int, Callable[[Any], bytes]]]] = {
    datetime: (_DATETIME, _from_moment),
    date: (_DATE, lambda value: value.isoformat().encode()),
    time: (_TIME, _from_moment),
    timedelta: (_TIMEDELTA, lambda value: _encode((value.days, value.seconds, value.microseconds))),
    UUID: (_UUID, lambda value: value.bytes),
    Decimal: (_DECIMAL, lambda value: str(value).encode()),
    complex: (_COMPLEX, lambda value: struct.pack("<dd", value.real, value.imag)),
}

_UNPACKERS: Final[dict[int, Callable[[bytes], object]]] = {
    _DATETIME: _to_datetime,
    _DATE: lambda data: date.fromisoformat(data.decode()),
    _TIME: _to_time,
    _TIMEDELTA: lambda data: timedelta(*cast(list[int], _decode(data))),
    _UUID: lambda data: UUID(bytes=data),
    _DECIMAL: lambda data: Decimal(data.decode()),
    _SET: lambda data: set(cast(dict[object, None], _decode(data))),
    _FROZENSET: lambda data: frozenset(cast(dict[object, None], _decode(data))),
    _COMPLEX: lambda data: complex(*struct.unpack("<dd", data)),
    _BIGINT: lambda data: int.from_bytes(data, "big", signed=True),
}


def _unpack(code: int, data: memoryview) -> object:
    unpacker = _UNPACKERS.get(code)
    if unpacker is None:
        raise CorruptBody(f"unknown extension type {code}: written by a newer Respool, or damaged")
    return unpacker(bytes(data))


def _unpacked(body: bytes) -> object:
    try:
        return _decode(body)
    except CorruptBody:
        raise
    except _DAMAGED as error:
        raise CorruptBody(f"this is not one MessagePack value: {type(error).__name__}: {error}") from error


def _unbox(key: _Key) -> Ext:
    return key.ext


# What msgspec and the extensions' constructors raise for bytes that mean nothing (LookupError: a time zone).
_DAMAGED: Final = (
    *(ArithmeticError, ValueError, TypeError, LookupError, RecursionError),
    *(struct.error, msgspec.MsgspecError),
)
_encode: Final[Callable[[object], bytes]] = msgspec.msgpack.Encoder(enc_hook=_unbox).encode
_decode: Final[Callable[[bytes], Any]] = msgspec.msgpack.Decoder(ext_hook=_unpack).decode
_from_json: Final = msgspec.json.Decoder().decode
_MSGPACK: Final = _MsgpackCodec()
_JSON: Final = _JsonCodec()


# Exceptions. A task's error crosses to the caller as data; its own type is looked up there, never unpickled.
class RemoteTraceback(Exception):
    """The `__cause__` of an exception that came from a worker: its text is the traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class _Failure(msgspec.Struct, array_like=True):
    """An exception as stored. New fields go last and have a default: old code and records meet new ones."""

    module: str
    qualname: str
    message: str
    args: bytes | None
    state: dict[str, bytes]
    notes: list[str]
    traceback: str
    causes: list[tuple[str, str]] = []

    @property
    def type_name(self) -> str:
        return _type_name(self.module, self.qualname)


def encode_error(exc: BaseException, traceback_limit: int = TRACEBACK_LIMIT) -> bytes:
    """Return an exception as bytes; never fails, whatever the exception holds.

    Kept: its type's name, its message, notes and traceback, the types and messages of what caused it, and of
    its `args` and attributes what MessagePack can carry in 64 KiB.

    Args:
        exc: any exception.
        traceback_limit: the bytes of traceback kept, of its head and its tail.

    Returns:
        The body, for `decode_error` and `error_summary`.

    Example:
        `encode_error(ValueError("no such user"))`
    """
    kind = type(exc)
    failure = _Failure(
        module=_clean(kind.__module__),
        qualname=_clean(kind.__qualname__),
        message=_message(exc),
        args=_args_of(exc),
        state=_state_of(exc),
        notes=[_clean(str(note), 4096) for note in _notes_of(exc)[:100]],
        traceback=_traceback_of(exc, traceback_limit),
        causes=[(_class_name(cause), _message(cause, 1024)) for cause in _causes_of(exc)],
    )
    return msgspec.msgpack.encode(failure)


def decode_error(body: bytes) -> BaseException:
    """Return the exception that `encode_error` was given, or a `RemoteError` where its type is not to be had.

    The exception has `remote_traceback` (text), `remote_causes` (pairs of type name and message) and, so that
    the traceback in the worker is printed with it, a `RemoteTraceback` as its `__cause__`.

    Args:
        body: what `encode_error` returned.

    Returns:
        The exception, to be raised.

    Raises:
        CorruptBody: for damaged bytes.

    Example:
        `raise decode_error(body)`
    """
    failure = _stored_failure(body)
    exc = _own_type(failure) or RemoteError(failure.type_name, failure.message)
    if failure.notes:
        _set(exc, "__notes__", list(failure.notes))
    _set(exc, "remote_traceback", failure.traceback)
    _set(exc, "remote_causes", failure.causes)
    _set(exc, "__cause__", RemoteTraceback(failure.traceback))
    return exc


def error_summary(body: bytes) -> tuple[str, str]:
    """Return an encoded exception's type name and message, importing nothing.

    Args:
        body: what `encode_error` returned.

    Returns:
        `("shop.errors.OutOfStock", "none left")`; a builtin's name without its module.

    Raises:
        CorruptBody: for damaged bytes.

    Example:
        `type_name, message = error_summary(body)`
    """
    failure = _stored_failure(body)
    return failure.type_name, failure.message


def _stored_failure(body: bytes) -> _Failure:
    try:
        return _decode_failure(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptBody(f"this is not an encoded exception: {error}") from error


def _clean(text: str, limit: int = 16 * 1024) -> str:
    """Text that can be encoded and is no longer than `limit` bytes: its head and its tail."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode()
    half = limit // 2
    head, tail = data[:half].decode(errors="ignore"), data[len(data) - half :].decode(errors="ignore")
    return f"{head}\n… {len(data) - 2 * half} bytes left out …\n{tail}"


def _message(exc: BaseException, limit: int = 16 * 1024) -> str:
    try:
        return _clean(str(exc), limit)
    except Exception as error:  # noqa: BLE001 - a broken __str__ must not hide the error itself
        return f"<str() of it failed: {type(error).__name__}>"


def _type_name(module: str, qualname: str) -> str:
    return qualname if module == "builtins" else f"{module}.{qualname}"


def _class_name(value: object) -> str:
    return _type_name(type(value).__module__, type(value).__qualname__)


def _notes_of(exc: BaseException) -> list[object]:
    notes = getattr(exc, "__notes__", None)
    return cast(list[object], notes) if isinstance(notes, list) else []


def _traceback_of(exc: BaseException, limit: int) -> str:
    try:
        return _clean("".join(traceback.format_exception(exc)), limit)
    except Exception as error:  # noqa: BLE001 - it calls into the exception and source loaders
        return f"<no traceback: formatting it failed with {type(error).__name__}>\n"


def _causes_of(exc: BaseException) -> list[BaseException]:
    """What led to it, as the traceback shows it: nearest first, at most ten."""
    found: list[BaseException] = []
    cause = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    while cause is not None and cause is not exc and cause not in found and len(found) < 10:
        found.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return found


def _small(value: object) -> bytes | None:
    try:
        body = _MSGPACK.encode(value)
    except NotEncodable:
        return None
    return body if len(body) <= TRACEBACK_LIMIT else None


def _args_of(exc: BaseException) -> bytes | None:
    args: Any = exc.args
    if isinstance(exc, OSError) and type(exc).__reduce__ is OSError.__reduce__:
        args = exc.__reduce__()[1]  # `args` leaves out the file's name
    try:
        hash(args)
    except TypeError:
        return _small(args)
    return _small({args: None})  # as a key its tuples stay tuples


def _state_of(exc: BaseException) -> dict[str, bytes]:
    ours = ("__notes__", "remote_traceback", "remote_causes")
    found = {_clean(name): _small(value) for name, value in vars(exc).items() if name not in ours}
    state = {name: raw for name, raw in found.items() if raw is not None}
    return state if sum(map(len, state.values())) <= TRACEBACK_LIMIT else {}


def _own_type(failure: _Failure) -> BaseException | None:
    kind = _find(failure.module, failure.qualname)
    exc = _rebuilt(kind, failure) if kind else None
    if exc is not None:
        for name, raw in failure.state.items():
            _set(exc, name, _unpacked(raw))
    return exc


def _find(module: str, qualname: str) -> type[BaseException] | None:
    """The exception class of this name; anything else of this name is left alone."""
    if module == "__main__" or "<locals>" in qualname:
        return None  # another program's
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit):  # noqa: BLE001 - importing runs code, which may do anything
        return None
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    return None


def _rebuilt(kind: type[BaseException], failure: _Failure) -> BaseException | None:
    """The exception as `kind(*args)` makes it, where that gives the same one, else without `__init__`."""
    args: tuple[Any, ...] = (failure.message,)
    if failure.args is not None:
        stored: Any = _unpacked(failure.args)
        args = next(iter(cast(Any, stored))) if isinstance(stored, dict) else tuple(stored)
        try:
            exc = kind(*args)
            # An __init__ that made the message from other arguments would now make it from the message.
            if type(exc) is kind and exc.args == args[: len(exc.args)] and _message(exc) == failure.message:
                return exc
        except Exception:  # noqa: BLE001, S110 - an __init__ with other parameters, which may raise anything
            pass
    try:
        exc = kind.__new__(kind)
        _set(exc, "args", args)
    except Exception:  # noqa: BLE001 - a __new__ with other parameters: ExceptionGroup's
        return None
    return exc


def _set(exc: BaseException, name: str, value: object) -> None:
    """Set an attribute past a `__setattr__` that refuses, as a frozen dataclass has."""
    with suppress(AttributeError, TypeError):  # a read-only property
        BaseException.__setattr__(exc, name, value)


_decode_failure: Final = msgspec.msgpack.Decoder(_Failure).decode
