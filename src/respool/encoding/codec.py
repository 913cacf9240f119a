"""Values to bytes and back, under one rule: what is sent is what arrives.

msgspec is fast but generous: it turns a set into a list and an Enum into its value without a word. So a
value is looked through before it is encoded. What msgspec carries exactly goes straight through; what
MessagePack has no type for (dates, UUIDs, sets, …) becomes an extension type; everything else is refused
with the path to it.

A tuple arrives as a list, as in Celery, unless the task's annotation says `tuple` (see `signature.py`) or it
is the key of a dict or an item of a set.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import msgspec

from ..errors import ConfigError, CorruptBody, NotEncodable, suggest
from .extensions import ATOMS, DAMAGED, MAX_DEPTH, PACKERS, from_msgpack, pack, pack_key, to_msgpack
from .refusals import AT_KEY, Path, brief, checked_text, refusal, shown

MSGPACK: Final = "msgpack"
JSON: Final = "json"
PICKLE: Final = "pickle"
CONTENT_TYPES: Final = (MSGPACK, JSON, PICKLE)

MIN_PICKLE_KEY: Final = 16

_JSON_ATOMS: Final = frozenset({type(None), bool, int, str})
_LONG: Final = 8  # from this length on, a set's own loop over the types beats ours
# Raised by msgspec for what shows in a value only, not in its type; the careful walk then finds where.
_BY_VALUE: Final = (OverflowError, ValueError, RecursionError)

_Pack = Callable[[Any, Path, int], Any]


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
        body: Any = value
        kind = type(body)
        try:
            # A call is (args, kwargs), mostly of atoms. That is seen here: to call a function for it would
            # cost as much as encoding does.
            if kind is tuple and len(body) == 2 and type(body[0]) is tuple and type(body[1]) is dict:
                for item in body[0]:
                    if type(item) not in ATOMS and not _exact((item,), MAX_DEPTH - 3):
                        break
                else:
                    if not body[1] or _exact((body[1],), MAX_DEPTH - 2):
                        return to_msgpack(value)
            elif kind in ATOMS or _exact(body if kind is list or kind is tuple else (value,), MAX_DEPTH - 2):
                return to_msgpack(value)
        except _BY_VALUE:
            pass
        return to_msgpack(_careful(value, what, pack, pack_key))

    def decode(self, body: bytes) -> object:
        return _unpacked(body)


class _JsonCodec(Codec):
    """JSON, and only what JSON returns exactly; what streams use unless told otherwise."""

    name = JSON

    def encode(self, value: object, what: str = "value") -> bytes:
        event: Any = value
        try:
            if type(event) is dict:  # as most events are; the same as below, less the calls
                for key, item in event.items():
                    if type(key) is not str:
                        break
                    kind = type(item)
                    if kind is str or kind is int or kind in _JSON_ATOMS:
                        continue
                    if kind is float:
                        if item - item != 0.0:  # infinite, or not a number
                            break
                    elif not _json_exact((item,), MAX_DEPTH - 1):
                        break
                else:
                    return _to_json(value)
            elif _json_exact((value,), MAX_DEPTH):
                return _to_json(value)
        except _BY_VALUE:
            pass
        return _to_json(_careful(value, what, _json_leaf, _json_key))

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
        import pickle

        try:
            body = pickle.dumps(value, protocol=5)
        except Exception as error:  # any class may fail in its own way while pickled
            raise NotEncodable(f"{what} cannot be pickled: {type(error).__name__}: {error}") from error
        return self._sign(body) + body

    def decode(self, body: bytes) -> object:
        import hmac
        import pickle

        signature, rest = body[:32], body[32:]
        if not hmac.compare_digest(signature, self._sign(rest)):
            raise CorruptBody("the pickle's signature is wrong: damaged, or signed with another pickle_key")
        try:
            return pickle.loads(rest)
        except Exception as error:  # as above, and for classes not importable here
            raise CorruptBody(f"cannot unpickle: {type(error).__name__}: {error}") from error

    def _sign(self, body: bytes) -> bytes:
        import hmac

        return hmac.digest(self._key, body, "sha256")


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
            if len(item) >= _LONG and ATOMS.issuperset(map(type, item)):
                continue
            for inner in item:
                if type(inner) not in ATOMS:
                    if not depth or not _exact(item, depth - 1):
                        return False
                    break
        elif kind is dict:
            if item:  # asking is cheaper than the iterator, and most calls have no kwargs
                for key, inner in item.items():
                    if type(key) is not str and type(key) not in ATOMS:
                        return False
                    if type(inner) not in ATOMS and (not depth or not _exact((inner,), depth - 1)):
                        return False
        elif kind not in ATOMS:
            return False
    return True


def _json_exact(items: Iterable[Any], depth: int) -> bool:
    """The same for JSON, where keys are text and floats are finite."""
    for item in items:
        kind = type(item)  # pyright: ignore[reportUnknownVariableType]
        if kind is str or kind is int or kind in _JSON_ATOMS:
            continue
        if kind is float:
            if item - item != 0.0:
                return False
        elif not depth:
            return False
        elif kind is dict:
            for key in item:
                if type(key) is not str:
                    return False
            if not _json_exact(item.values(), depth - 1):
                return False
        elif (kind is not list and kind is not tuple) or not _json_exact(item, depth - 1):
            return False
    return True


def _careful(value: Any, what: str, leaf: _Pack, key: _Pack) -> Any:
    try:
        return _rebuild(value, what, MAX_DEPTH, leaf, key)
    except RecursionError:
        raise NotEncodable(f"{what} is nested deeper than the stack that is left here allows") from None


def _rebuild(value: Any, path: Path, depth: int, leaf: _Pack, key: _Pack) -> Any:
    """The careful walk: `value` with `leaf` and `key` applied, either of which may refuse."""
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is not list and kind is not tuple and kind is not dict:
        return leaf(value, path, depth)
    if value and not depth:
        raise NotEncodable(f"{shown(path)[:200]}… is nested more than {MAX_DEPTH} deep, or contains itself")
    if kind is dict:
        return {
            key(k, (path, AT_KEY), depth): _rebuild(v, (path, k), depth - 1, leaf, key)
            for k, v in value.items()
        }
    return [_rebuild(v, (path, i), depth - 1, leaf, key) for i, v in enumerate(value)]


_NOT_JSON: Final = "which JSON does not have: convert it, or use serializer='msgpack'"


def _json_leaf(value: Any, path: Path, depth: int) -> Any:
    kind = cast(type[object], type(value))
    if kind is str:
        return checked_text(value, path)
    if kind is int:
        return _checked_int(value, path)
    if kind in _JSON_ATOMS or (kind is float and math.isfinite(value)):
        return value
    if kind is float:
        raise NotEncodable(f"{shown(path)} is {value}, {_NOT_JSON}")
    if kind is bytes or kind is set or kind is frozenset or kind in PACKERS:
        raise NotEncodable(f"{shown(path)} is a {kind.__name__}, {_NOT_JSON}")
    raise NotEncodable(refusal(value, path))


def _json_key(value: Any, path: Path, depth: int) -> str:
    if type(value) is not str:
        said = f"{shown(path)} {brief(value)} is a {type(value).__name__}"
        raise NotEncodable(f"{said}, and a key in JSON is text: use str keys, or content type 'msgpack'")
    return checked_text(value, path)


def _checked_int(value: int, path: Path) -> int:
    try:
        msgspec.json.encode(value)
    except (ValueError, OverflowError):  # sys.set_int_max_str_digits
        raise NotEncodable(f"{shown(path)} has too many digits for JSON: use serializer='msgpack'") from None
    return value


def _unpacked(body: bytes) -> object:
    try:
        return from_msgpack(body)
    except CorruptBody:
        raise
    except DAMAGED as error:
        raise CorruptBody(f"this is not one MessagePack value: {type(error).__name__}: {error}") from error


_from_json: Final = msgspec.json.Decoder().decode
_to_json: Final = msgspec.json.Encoder().encode
_MSGPACK: Final = _MsgpackCodec()
_JSON: Final = _JsonCodec()
