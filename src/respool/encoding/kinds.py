"""What annotations mean: how a value of each is sent, as plain data that the codec carries, and received.

Each annotation is compiled once into a `Kind`. Sending is strict: text is no number, a dict is no dataclass.
Receiving also takes the JSON form of a date, UUID or Decimal, since not every producer is Python.
"""

from __future__ import annotations

import collections.abc as abc
import sys
import types
import typing
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec

from .refusals import brief
from .sets import in_order

Convert = Callable[[Any], Any]
_CARRIED: Final = (datetime, date, time, timedelta, UUID, Decimal)
KEPT: Final = (*_CARRIED, bytes, bytearray, memoryview)  # what `to_builtins` is to leave alone
# What msgspec raises: for a value that does not fit, and for a class whose fields it cannot make sense of.
NO_STRUCT: Final = (msgspec.ValidationError, NotImplementedError, TypeError, NameError)


class Mismatch(Exception):
    """A value that does not fit; the containers it passes on its way up add their step to `path`."""

    def __init__(self, expected: str, value: object, detail: str = "") -> None:
        got = f"got {brief(value)} ({type(value).__name__})"
        super().__init__(f"should be {expected}, {got}{detail and ': ' + detail}")
        self.path = ""


class Kind(NamedTuple):
    """A compiled annotation. `exact`: types that pass both ways. `identity`: receiving changes nothing.

    `members`: of a union.
    """

    name: str
    send: Convert
    receive: Convert
    exact: frozenset[type] = frozenset()
    identity: bool = False
    is_any: bool = False
    members: tuple[Any, ...] = ()


def same(value: Any) -> Any:
    """Return the value."""
    return value


ANY: Final = Kind("Any", same, same, identity=True, is_any=True)


def hints_of(owner: Any, annotations: dict[str, Any]) -> dict[str, Any]:
    """Return the annotations with names resolved, without those that cannot be: they are not checked."""
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except Exception:  # noqa: BLE001 - evaluating an annotation may raise anything
        return {name: hint for name, text in annotations.items() for hint in _hint(owner, text)}


def _hint(owner: Any, annotation: Any) -> list[Any]:
    module = sys.modules.get(getattr(owner, "__module__", ""))
    names = getattr(owner, "__globals__", None) or vars(module or types.ModuleType("none"))
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return [typing.get_type_hints(holder, names, include_extras=True)["it"]]
    except Exception:  # noqa: BLE001 - as above
        return []


def kind_of(hint: Any) -> Kind:
    """Compile an annotation. What has no meaning as data (a Protocol, a Callable) is not checked."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _constrained(hint, kind_of(args[0]))
    if origin is typing.Union or origin is types.UnionType:
        return union(name_of(hint), [kind_of(arg) for arg in args])
    if origin is Literal:
        return _literal(name_of(hint), args)
    if origin in (typing.Required, typing.NotRequired):
        return kind_of(args[0])
    if isinstance(hint, typing.NewType):
        return kind_of(hint.__supertype__)
    if hasattr(hint, "__value__") and hasattr(hint, "__type_params__"):  # `type X = ...`
        return kind_of(hint.__value__)
    if hint is None:
        return kind_of(type(None))
    cls = origin or hint
    return _class(cls, hint, args) if isinstance(cls, type) and cls is not object else ANY


def _class(cls: type, hint: Any, args: tuple[Any, ...]) -> Kind:
    name = name_of(hint)
    if cls in ATOMS:
        return _atom(name, cls)
    if cls in _CARRIED:
        return _carried(name, cls)
    if cls is tuple:
        return _tuple(name, args)
    for ours, accepted in _CONTAINERS.items():
        if cls in accepted:
            return _container(ours, name, args)
    from .models import model  # which needs `kind_of` for its fields

    return model(name, cls, hint)


def name_of(hint: Any) -> str:
    """Return an annotation as text."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "")


def instance(name: str, cls: Any, value: Any) -> Any:
    """Return a value of this class. Raises Mismatch for another one."""
    if not isinstance(value, cls):
        raise Mismatch(name, value)
    return value


def convert_all(convert: Convert, values: Iterable[Any]) -> list[Any]:
    """Return the values converted; what does not fit is named by its index."""
    out: list[Any] = []
    try:
        for value in values:
            out.append(convert(value))
    except Mismatch as mismatch:
        mismatch.path = f"[{len(out)}]{mismatch.path}"
        raise
    return out


def step(convert: Convert, value: Any, path: str) -> Any:
    """Return a value converted; where it does not fit, `path` leads to it."""
    try:
        return convert(value)
    except Mismatch as mismatch:
        mismatch.path = path + mismatch.path
        raise


# What the codec carries by itself. A subclass (an IntEnum, a SafeString) arrives as the type declared.
ATOMS: Final[dict[type, tuple[tuple[type, ...], Convert]]] = {
    type(None): ((type(None),), same),
    bool: ((bool,), same),
    int: ((int, bool), int.__int__),
    float: ((float, int, bool), float),
    complex: ((complex, float, int, bool), complex),
    str: ((str,), str.__str__),
    bytes: ((bytes,), bytes),
}


def _atom(name: str, cls: type) -> Kind:
    accepted, plain = ATOMS[cls]

    def send(value: Any) -> Any:
        return value if type(value) in accepted else plain(instance(name, accepted, value))

    return Kind(name, send, send, frozenset(accepted), identity=True)


def _carried(name: str, cls: type) -> Kind:
    def receive(value: Any) -> Any:
        if type(value) is cls:
            return value
        if type(value) is not str:  # its JSON form
            raise Mismatch(name, value)
        return converted(name, cls, value)

    def send(value: Any) -> Any:
        if type(value) is not cls:  # a subclass has more than arrives, and a datetime is no date
            raise Mismatch(name, value)
        return value

    return Kind(name, send, receive, frozenset({cls}))


def converted(name: str, hint: Any, value: Any, strictly: bool = False) -> Any:
    """Return what msgspec makes of plain data; `strictly`: without the JSON forms of dates and the like."""
    kept = KEPT if strictly else None
    try:
        return msgspec.convert(value, hint, builtin_types=kept, dec_hook=decode_foreign)
    except NO_STRUCT as error:
        raise Mismatch(name, value, str(error)) from error


def decode_foreign(cls: Any, value: Any) -> Any:
    """Receive what msgspec does not know, within what it does: pydantic models, complex numbers, ..."""
    return kind_of(cls).receive(value)


def _constrained(hint: Any, inner: Kind) -> Kind:
    """`Annotated[int, msgspec.Meta(gt=0)]`: also checked by msgspec. Other metadata is somebody else's."""
    if inner.is_any or not any(isinstance(m, msgspec.Meta) for m in hint.__metadata__):
        return inner

    def send(value: Any) -> Any:
        plain = inner.send(value)
        converted(name_of(hint), hint, plain, strictly=True)
        return plain

    def receive(value: Any) -> Any:
        value = inner.receive(value)
        converted(name_of(hint), hint, inner.send(value))
        return value

    return Kind(name_of(hint), send, receive)


def union(name: str, kinds: list[Kind]) -> Kind:
    """Return the kind of a value that is of one of these."""
    if any(kind.is_any for kind in kinds):
        return ANY
    name = name or " | ".join(kind.name for kind in kinds)
    exact = frozenset[type]().union(*(kind.exact for kind in kinds))
    each: list[Kind] = [one for kind in kinds for one in (kind.members or (kind,))]
    member = [kind for kind in each if kind.exact != {type(None)}]
    identity = all(kind.identity for kind in kinds)

    def accepting(value: Any) -> tuple[int, Any]:
        """The member that receives `value`, -1 for none, and what it makes of it."""
        for i, kind in enumerate(member):
            if type(value) in kind.exact:
                return i, value
        for i, kind in enumerate(member):
            try:
                return i, kind.receive(value)
            except Mismatch:
                continue
        return -1, None

    def send(value: Any) -> Any:
        if type(value) in exact:
            return value
        if len(member) == 1:
            return member[0].send(value)
        for i, kind in enumerate(member):
            try:
                plain = kind.send(value)
            except Mismatch:
                continue
            # Two members may have the same plain form. What would arrive as another one is refused.
            if accepting(plain)[0] != i:
                other = member[accepting(plain)[0]].name
                raise Mismatch(
                    name, value, f"it would arrive as {other}; tell them apart with tagged msgspec.Structs"
                )
            return plain
        raise Mismatch(name, value)

    def receive(value: Any) -> Any:
        if type(value) in exact:
            return value
        if len(member) == 1:
            return member[0].receive(value)
        found, received = accepting(value)
        if found < 0:
            raise Mismatch(name, value)
        return received

    return Kind(name, send, receive, exact, identity, members=tuple(each))


def _literal(name: str, values: tuple[Any, ...]) -> Kind:
    sent = [(value, kind_of(type(value)).send(value)) for value in values]

    def send(value: Any) -> Any:
        for ours, plain in sent:
            if type(value) is type(ours) and value == ours:
                return plain
        raise Mismatch(name, value)

    def receive(value: Any) -> Any:
        for ours, plain in sent:
            if value == plain and type(value) is type(plain):
                return ours
        raise Mismatch(name, value)

    return Kind(name, send, receive, identity=all(value is plain for value, plain in sent))


def _tuple(name: str, args: tuple[Any, ...]) -> Kind:
    if not args or args[-1] is ...:
        every = kind_of(args[0]) if args else ANY
        return Kind(
            name, partial(_items, name, tuple, every, "send"), partial(_items, name, tuple, every, "receive")
        )
    each = [kind_of(arg) for arg in args]

    def pass_all(way: str, value: Any) -> Any:
        instance(name, (tuple, list), value)
        if len(value) != len(each):
            raise Mismatch(f"{name} of {len(each)} items", value)
        return tuple(convert_all(lambda pair: getattr(pair[0], way)(pair[1]), zip(each, value, strict=True)))

    return Kind(name, partial(pass_all, "send"), partial(pass_all, "receive"))


_CONTAINERS: Final[dict[type, tuple[type, ...]]] = {
    list: (list, abc.Sequence, abc.MutableSequence, abc.Iterable, abc.Collection),
    set: (set, abc.MutableSet, abc.Set),
    frozenset: (frozenset,),
    dict: (dict, abc.Mapping, abc.MutableMapping),
}


def _container(ours: type, name: str, args: tuple[Any, ...]) -> Kind:
    kinds = [kind_of(arg) for arg in args] or [ANY, ANY]
    convert: Callable[..., Any] = partial(_items, name, ours, kinds[0])
    if ours is dict:
        convert = partial(_entries, name, kinds[0], kinds[1])
    exact = frozenset[type]({ours} if all(kind.is_any for kind in kinds) else ())
    identity = ours in (list, dict) and all(kind.identity for kind in kinds)
    return Kind(name, partial(convert, "send"), partial(convert, "receive"), exact, identity)


_ACCEPTED: Final[dict[type, tuple[type, ...]]] = {
    list: (list, tuple),
    tuple: (tuple, list),
    set: (set, frozenset),
    frozenset: (frozenset, set),
}


def _items(name: str, ours: Any, kind: Kind, way: str, value: Any) -> Any:
    # On arrival a set may be a list: from JSON, or because its items have no hash as plain data.
    instance(name, _ACCEPTED[ours] if way == "send" else (list, tuple, *_ACCEPTED[ours]), value)
    out: Any = value
    if not _all_exact(kind, value):
        out = convert_all(getattr(kind, way), value)
    try:
        return out if type(out) is ours else ours(out)
    except TypeError as error:
        if way == "send":
            return in_order(out) if ours in (set, frozenset) else out
        raise Mismatch(name, value, str(error)) from error


def _is_dict(value: Any) -> bool:
    return type(value) is dict


def _all_exact(kind: Kind, values: Iterable[Any]) -> bool:
    return kind.is_any or kind.exact.issuperset(map(type, values))


def _entries(name: str, key: Kind, kind: Kind, way: str, value: Any) -> Any:
    instance(name, abc.Mapping, value)
    if _all_exact(key, value) and _all_exact(kind, value.values()):
        return value if _is_dict(value) else dict(value)
    keys = [step(getattr(key, way), k, "<key>") for k in value]
    convert = getattr(kind, way)
    try:
        return {k: step(convert, v, f"[{k!r}]") for k, v in zip(keys, value.values(), strict=True)}
    except TypeError as error:
        raise Mismatch(name, value, f"its keys cannot be sent: {error}") from error
