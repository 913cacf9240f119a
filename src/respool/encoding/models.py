"""Annotations that are classes with fields: dataclasses, Structs, pydantic models, TypedDicts, Enums, …"""

from __future__ import annotations

import inspect
import typing
from dataclasses import InitVar, fields, is_dataclass
from enum import Enum
from functools import cache, partial
from pathlib import PurePath
from typing import Any, Final

import msgspec

from ..errors import NotEncodable
from .codec import codec_for
from .kinds import (
    ANY,
    ATOMS,
    KEPT,
    NO_STRUCT,
    Convert,
    Kind,
    Mismatch,
    converted,
    decode_foreign,
    hints_of,
    instance,
    kind_of,
    same,
    step,
)
from .refusals import brief
from .sets import may_hold_sets, ordered, without_sets


def model(name: str, cls: Any, hint: Any) -> Kind:
    """Return the kind of a class that is no builtin."""
    if typing.is_typeddict(cls):
        return _typed_dict(name, cls)
    if issubclass(cls, Enum):
        return _enum(name, cls)
    if hasattr(cls, "model_validate") and hasattr(cls, "model_dump"):
        return Kind(name, partial(_send_pydantic, name, cls), partial(_receive_pydantic, name, cls))
    if issubclass(cls, msgspec.Struct) or hasattr(cls, "__attrs_attrs__"):
        return Kind(name, partial(_send_struct, name, cls, hint), partial(converted, name, hint))
    if _is_record(cls):
        return Kind(name, partial(_send_record, name, cls), partial(_receive_record, name, cls))
    if hasattr(cls, "_fields") and issubclass(cls, tuple):
        return Kind(name, partial(_send_named, name, cls), partial(_receive_named, name, cls))
    for base, plain in _BASES.items():
        if issubclass(cls, base):
            return Kind(name, partial(_send_wrapped, name, cls, plain), partial(_receive_wrapped, name, cls))
    try:
        isinstance(None, cls)
    except TypeError:  # a Protocol
        return ANY
    return Kind(name, partial(instance, name, cls), same, identity=True)


def _is_record(cls: Any) -> bool:
    """A dataclass that can be made from its fields alone, which an InitVar prevents."""
    return is_dataclass(cls) and not any(isinstance(hint, InitVar) for hint in hints_of(cls, {}).values())


@cache
def _fields(cls: type) -> dict[str, Kind]:
    """The kinds of a class's annotated fields; compiled when first used, for a class may hold itself."""
    return {name: kind_of(hint) for name, hint in hints_of(cls, inspect.get_annotations(cls)).items()}


@cache
def _required(cls: Any) -> frozenset[str]:
    """The keys that a TypedDict needs; `__required_keys__` is blind to marks in annotations kept as text."""
    marked = {name: typing.get_origin(hint) for name, hint in hints_of(cls, {}).items()}
    needed = {name for name in cls.__required_keys__ if marked.get(name) is not typing.NotRequired}
    return frozenset(needed | {name for name, mark in marked.items() if mark is typing.Required})


def _typed_dict(name: str, cls: Any) -> Kind:
    def pass_all(way: str, value: Any) -> Any:
        instance(name, dict, value)
        kinds = _fields(cls)
        wrong = [key for key in value if key not in kinds] or sorted(_required(cls) - value.keys())
        if wrong:
            raise Mismatch(name, value, f"{'unknown' if wrong[0] in value else 'missing'} key {wrong[0]!r}")
        return {key: step(getattr(kinds[key], way), item, f"[{key!r}]") for key, item in value.items()}

    return Kind(name, partial(pass_all, "send"), partial(pass_all, "receive"))


def _enum(name: str, cls: Any) -> Kind:
    by_value = all(type(member.value) in ATOMS for member in cls)

    def send(value: Any) -> Any:
        instance(name, cls, value)
        return value.value if by_value else value.name

    def receive(value: Any) -> Any:
        try:
            return value if isinstance(value, cls) else cls(value) if by_value else cls[value]
        except (ValueError, KeyError, TypeError) as error:
            raise Mismatch(name, value) from error

    return Kind(name, send, receive)


def _exactly(name: str, cls: type, value: Any) -> None:
    if type(value) is not cls:  # what a subclass adds would not arrive
        raise Mismatch(name, value)


def _send_record(name: str, cls: Any, value: Any) -> Any:
    _exactly(name, cls, value)
    kinds = _fields(cls)
    names = [field.name for field in fields(cls)]
    return {name: step(kinds.get(name, ANY).send, getattr(value, name), f".{name}") for name in names}


def _receive_record(name: str, cls: Any, value: Any) -> Any:
    if isinstance(value, cls):
        return value
    instance(name, dict, value)
    kinds = _fields(cls)
    found = {f.name: f for f in fields(cls) if f.name in value}
    items = {n: step(kinds.get(n, ANY).receive, value[n], f".{n}") for n in found}
    try:
        made = cls(**{n: item for n, item in items.items() if found[n].init})
    except (TypeError, ValueError) as error:
        raise Mismatch(name, value, str(error)) from error
    for n, item in items.items():  # what __post_init__ derived or changed is as it was sent
        object.__setattr__(made, n, item)
    return made


def _send_named(name: str, cls: type, value: Any) -> Any:
    _exactly(name, cls, value)
    return tuple(_named_items("send", cls, value))


def _receive_named(name: str, cls: Any, value: Any) -> Any:
    instance(name, (list, tuple), value)
    try:
        return cls(*_named_items("receive", cls, value))
    except TypeError as error:
        raise Mismatch(name, value, str(error)) from error


def _named_items(way: str, cls: Any, value: Any) -> list[Any]:
    kinds = _fields(cls)
    items = zip(cls._fields, value, strict=False)
    return [step(getattr(kinds.get(n, ANY), way), item, f".{n}") for n, item in items]


def _send_struct(name: str, cls: type, hint: Any, value: Any) -> Any:
    _exactly(name, cls, value)
    try:
        plain = msgspec.to_builtins(value, builtin_types=KEPT, enc_hook=_encode_foreign)
        # A Struct does not check its fields when it is made.
        made = msgspec.convert(plain, hint, builtin_types=KEPT, dec_hook=decode_foreign)
    except NO_STRUCT as error:
        raise Mismatch(name, value, str(error)) from error
    if made != value and repr(made) != repr(value):  # NaN differs from itself, and so may a class without eq
        raise Mismatch(name, value, f"it would arrive as {brief(made)}")
    return ordered(value, plain) if may_hold_sets(hint) else plain


def _send_pydantic(name: str, cls: Any, value: Any) -> Any:
    """Its values as they are where the codec carries them, else their JSON forms."""
    _exactly(name, cls, value)
    whole = value
    try:
        whole = plain = value.model_dump(mode="python", by_alias=True)
        codec_for("msgpack").encode(plain)
    except (NotEncodable, TypeError):  # it has what only its JSON form carries, or a set of models
        plain = ordered(whole, value.model_dump(mode="json", by_alias=True))
    if _receive_pydantic(name, cls, plain) != value:
        raise Mismatch(
            name, value, "the model does not read back what it writes (model_validate, model_dump)"
        )
    return plain


def _receive_pydantic(name: str, cls: Any, value: Any) -> Any:
    try:
        return cls.model_validate(value)
    except ValueError as error:  # pydantic's ValidationError is one
        raise Mismatch(name, value, str(error)) from error


_BASES: Final[dict[type, Convert]] = {
    PurePath: str,
    str: str.__str__,
    int: int.__int__,
    float: float,
    bytes: bytes,
    bytearray: bytes,
    list: list,
    dict: dict,
    set: set,
    frozenset: frozenset,
}


def _send_wrapped(name: str, cls: Any, plain: Convert, value: Any) -> Any:
    """A subclass of a builtin, and the few others that are made from the plain value they give."""
    out = plain(instance(name, cls, value))
    if _receive_wrapped(name, cls, out) != value:
        raise Mismatch(name, value, f"{cls.__name__}() of its plain form is another value")
    return out


def _receive_wrapped(name: str, cls: Any, value: Any) -> Any:
    try:
        return cls(value)
    except (TypeError, ValueError) as error:
        raise Mismatch(name, value, str(error)) from error


def _encode_foreign(value: Any) -> Any:
    kind = kind_of(type(value))
    plain = kind.send(value)
    if type(plain) is type(value):
        raise NotImplementedError(f"{type(value).__name__} cannot be sent within it")
    return without_sets(plain)
