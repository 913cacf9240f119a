"""A task's parameters: checked where it is called, decoded as declared where it runs.

Each annotation is compiled once into a `_Kind`: how a value of that type is sent, as plain data that the
codec carries, and how it is received. Sending is strict: text is no number, a dict is no dataclass. Receiving
also takes the JSON form of a date, UUID or Decimal, since not every producer is Python.
"""

from __future__ import annotations

import collections.abc as abc
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import InitVar, dataclass, fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache, partial
from pathlib import PurePath
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from .codec import brief, codec_for
from .errors import BadArguments, ConfigError, NotEncodable, suggest

_Convert = Callable[[Any], Any]
_CARRIED: Final = (datetime, date, time, timedelta, UUID, Decimal)
_KEPT: Final = (*_CARRIED, bytes, bytearray, memoryview)  # what `to_builtins` is to leave alone
# What msgspec raises: for a value that does not fit, and for a class whose fields it cannot make sense of.
_NO_STRUCT: Final = (msgspec.ValidationError, NotImplementedError, TypeError, NameError)
_EMPTY: Final = inspect.Parameter.empty
_NOTHING: Final = frozenset[type]()


class Signature:
    """What a task's function takes, compiled once.

    Args:
        fn: the function.
        bound: whether its first parameter is `self`, which no caller passes.
        name: the task's name, for messages.

    Raises:
        ConfigError: if `bound` and there is no parameter for `self`.

    Example:
        `Signature(add, bound=False, name="add").check((2, 3), {})`
    """

    needs_convert: bool
    """False where what the codec returns is what was declared, so that a worker may skip `convert`."""

    def __init__(self, fn: Callable[..., Any], *, bound: bool, name: str) -> None:
        self.name = name
        self._positional: list[_Parameter] = []
        self._by_keyword: dict[str, _Parameter] = {}
        self._more: _Parameter | None = None  # *args
        self._others: _Parameter | None = None  # **kwargs
        for parameter in _parameters(fn, bound, name):
            self._add(parameter)
        self._compile_fast_path()

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the arguments as plain data that the codec carries.

        Args:
            args: the positional arguments of a call.
            kwargs: its keyword arguments.

        Returns:
            The two, unchanged (the same objects) where there is nothing to change.

        Raises:
            BadArguments: for too many, too few, unknown or wrongly typed ones; says which.

        Example:
            `signature.check((Point(1, 2),), {"at": datetime.now(UTC)})`
        """
        if not kwargs and self._fewest <= len(args) <= self._most:  # as in `_fits`, less the call of it
            if not self._exact:
                return args, kwargs
            for exact, value in zip(self._exact, args):  # noqa: B905 - see there
                if exact is not None and type(value) not in exact:
                    break
            else:
                return args, kwargs
        elif self._fits(args, kwargs):
            return args, kwargs
        return self._walk(args, kwargs, "send")

    def convert(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return decoded arguments as the types that the function declares.

        Args:
            args: the positional arguments as the codec returned them.
            kwargs: the keyword arguments likewise.

        Returns:
            The two, to call the function with.

        Raises:
            BadArguments: for what does not fit, as `check` does.

        Example:
            `args, kwargs = signature.convert(*codec.decode(body))`
        """
        if self._fits(args, kwargs):
            return args, kwargs
        return self._walk(args, kwargs, "receive")

    def _add(self, parameter: _Parameter) -> None:
        match parameter.place:
            case inspect.Parameter.VAR_POSITIONAL:
                self._more = parameter
            case inspect.Parameter.VAR_KEYWORD:
                self._others = parameter
            case inspect.Parameter.KEYWORD_ONLY:
                self._by_keyword[parameter.name] = parameter
            case inspect.Parameter.POSITIONAL_ONLY:
                self._positional.append(parameter)
            case _:
                self._positional.append(parameter)
                self._by_keyword[parameter.name] = parameter

    def _compile_fast_path(self) -> None:
        """What `_fits` looks at: the types that pass untouched, None for any, by position and by name."""
        found = [*self._positional, *self._by_keyword.values()]
        found += [parameter for parameter in (self._more, self._others) if parameter]
        self.needs_convert = not all(parameter.kind.identity for parameter in found)
        exact = tuple(parameter.passes for parameter in self._positional)
        self._exact = exact if any(types is not None for types in exact) else ()
        self._exact_by_name = {name: parameter.passes for name, parameter in self._by_keyword.items()}
        keyword = [p for p in self._by_keyword.values() if p.place is inspect.Parameter.KEYWORD_ONLY]
        required = [p.name for p in keyword if p.required]
        self._fewest = sum(p.required for p in self._positional) if not required else sys.maxsize
        self._most = sys.maxsize if self._more and self._more.kind.is_any else len(self._positional)
        # By the number of positional arguments: the names still needed, and those that are taken.
        names = [p.name if p.name in self._by_keyword else "" for p in self._positional]
        needed = [p.name for p in self._positional if p.required]
        places = range(len(names) + 1)
        self._needed = [frozenset(needed[count:] + required) for count in places]
        self._taken = [frozenset(names[:count]) for count in places]

    def _fits(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether all is there and of the very types declared. Hot; False only means: look closely."""
        count = len(args)
        if kwargs:
            if count >= len(self._needed) or not self._needed[count] <= kwargs.keys():
                return False
            if not self._taken[count].isdisjoint(kwargs):
                return False
            for name, value in kwargs.items():
                exact = self._exact_by_name.get(name, _NOTHING)
                if exact is not None and type(value) not in exact:
                    return False
        elif not self._fewest <= count <= self._most:
            return False
        for exact, value in zip(self._exact, args):  # noqa: B905 - saying strict=False costs as much as the rest
            if exact is not None and type(value) not in exact:
                return False
        return True

    def _walk(
        self, args: Iterable[Any], kwargs: dict[str, Any], way: Literal["send", "receive"]
    ) -> tuple[list[Any], dict[str, Any]]:
        args = list(args)
        if len(args) > len(self._positional) and self._more is None:
            most = len(self._positional)
            raise BadArguments(f"{self.name}() takes at most {most} positional argument(s), got {len(args)}")
        out = [
            self._pass(self._positional[i], "", value, way)
            for i, value in enumerate(args[: len(self._positional)])
        ]
        if self._more:
            rest = enumerate(args[len(self._positional) :])
            out += [self._pass(self._more, f"[{i}]", value, way) for i, value in rest]
        named = {name: self._pass_named(name, value, len(args), way) for name, value in kwargs.items()}
        self._refuse_missing(len(args), kwargs)
        return out, named

    def _pass_named(self, name: str, value: Any, given: int, way: Literal["send", "receive"]) -> Any:
        parameter = self._by_keyword.get(name)
        if parameter is None:
            if self._others is None:
                raise BadArguments(f"{self.name}() has no argument {name!r}{suggest(name, self._by_keyword)}")
            return self._pass(self._others, f"[{name!r}]", value, way)
        if parameter in self._positional[:given]:
            raise BadArguments(f"{self.name}() got argument {name!r} twice: by position and by name")
        return self._pass(parameter, "", value, way)

    def _refuse_missing(self, given: int, kwargs: dict[str, Any]) -> None:
        wanted = [*self._positional[given:], *self._by_keyword.values()]
        at_hand = {parameter.name for parameter in self._positional[:given]}
        at_hand.update(name for name in kwargs if name in self._by_keyword)
        missing = dict.fromkeys(p.name for p in wanted if p.required and p.name not in at_hand)
        if missing:
            raise BadArguments(f"{self.name}() misses {', '.join(map(repr, missing))}")

    def _pass(self, parameter: _Parameter, path: str, value: Any, way: Literal["send", "receive"]) -> Any:
        kind = parameter.kind
        if kind.is_any or type(value) in kind.exact:
            return value
        where = f"{self.name}(): argument {parameter.name!r}{path}"
        try:
            return kind.send(value) if way == "send" else kind.receive(value)
        except _Mismatch as mismatch:
            raise BadArguments(f"{where}{mismatch.path} {mismatch}") from mismatch.__cause__
        except RecursionError:
            raise BadArguments(f"{where} is nested too deep, or contains itself") from None


class _Mismatch(Exception):
    """A value that does not fit; the containers it passes on its way up add their step to `path`."""

    def __init__(self, expected: str, value: object, detail: str = "") -> None:
        got = f"got {brief(value)} ({type(value).__name__})"
        super().__init__(f"should be {expected}, {got}{detail and ': ' + detail}")
        self.path = ""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A compiled annotation. `exact`: types that pass both ways. `identity`: receiving changes nothing."""

    name: str
    send: _Convert
    receive: _Convert
    exact: frozenset[type] = frozenset()
    identity: bool = False
    is_any: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Parameter:
    name: str
    place: Any
    required: bool
    kind: _Kind

    @property
    def passes(self) -> frozenset[type] | None:
        """The types that need no further look; None for any."""
        return None if self.kind.is_any else self.kind.exact


def _same(value: Any) -> Any:
    return value


_ANY: Final = _Kind("Any", _same, _same, identity=True, is_any=True)


def _parameters(fn: Callable[..., Any], bound: bool, name: str) -> list[_Parameter]:
    if sys.version_info >= (3, 14):  # where an annotation that names nothing raises only when it is read
        import annotationlib

        found = inspect.signature(fn, annotation_format=annotationlib.Format.FORWARDREF)
    else:
        found = inspect.signature(fn)
    parameters = list(found.parameters.values())
    if bound:
        if not parameters or parameters[0].kind > inspect.Parameter.VAR_POSITIONAL:
            raise ConfigError(
                f"task {name!r} is bound, so its function needs a first parameter for the task: self"
            )
        if parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
            del parameters[0]
    hints = _hints(
        inspect.unwrap(fn), {p.name: p.annotation for p in parameters if p.annotation is not _EMPTY}
    )
    return [_parameter(p, hints.get(p.name, _EMPTY)) for p in parameters]


def _parameter(parameter: inspect.Parameter, hint: Any) -> _Parameter:
    kind = _ANY if hint is _EMPTY else _kind(hint)
    if parameter.default is None:
        kind = _union("", [kind, _kind(None)])  # `x: int = None` is common, and wrong only to a type checker
    variadic = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return _Parameter(parameter.name, parameter.kind, parameter.default is _EMPTY and not variadic, kind)


def _hints(owner: Any, annotations: dict[str, Any]) -> dict[str, Any]:
    """The annotations with names resolved; those that cannot be are left out, and so are not checked."""
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


def _kind(hint: Any) -> _Kind:
    """Compile an annotation. What has no meaning as data (a Protocol, a Callable) is not checked."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _constrained(hint, _kind(args[0]))
    if origin is typing.Union or origin is types.UnionType:
        return _union(_name(hint), [_kind(arg) for arg in args])
    if origin is Literal:
        return _literal(_name(hint), args)
    if origin in (typing.Required, typing.NotRequired):
        return _kind(args[0])
    if isinstance(hint, typing.NewType):
        return _kind(hint.__supertype__)
    if hasattr(hint, "__value__") and hasattr(hint, "__type_params__"):  # `type X = ...`
        return _kind(hint.__value__)
    if hint is None:
        return _kind(type(None))
    cls = origin or hint
    return _class(cls, hint, args) if isinstance(cls, type) and cls is not object else _ANY


def _class(cls: type, hint: Any, args: tuple[Any, ...]) -> _Kind:
    name = _name(hint)
    if cls in _ATOMS:
        return _atom(name, cls)
    if cls in _CARRIED:
        return _carried(name, cls)
    if cls is tuple:
        return _tuple(name, args)
    for ours, accepted in _CONTAINERS.items():
        if cls in accepted:
            return _container(ours, name, args)
    if typing.is_typeddict(cls):
        return _typed_dict(name, cls)
    return _model(name, cls, hint)


def _model(name: str, cls: Any, hint: Any) -> _Kind:
    if issubclass(cls, Enum):
        return _enum(name, cls)
    if hasattr(cls, "model_validate") and hasattr(cls, "model_dump"):
        return _Kind(name, partial(_send_pydantic, name, cls), partial(_receive_pydantic, name, cls))
    if issubclass(cls, msgspec.Struct) or hasattr(cls, "__attrs_attrs__"):
        return _Kind(name, partial(_send_struct, name, cls, hint), partial(_converted, name, hint))
    if _is_record(cls):
        return _Kind(name, partial(_send_record, name, cls), partial(_receive_record, name, cls))
    if hasattr(cls, "_fields") and issubclass(cls, tuple):
        return _Kind(name, partial(_send_named, name, cls), partial(_receive_named, name, cls))
    for base, plain in _BASES.items():
        if issubclass(cls, base):
            return _Kind(name, partial(_send_wrapped, name, cls, plain), partial(_receive_wrapped, name, cls))
    try:
        isinstance(None, cls)
    except TypeError:  # a Protocol
        return _ANY
    return _Kind(name, partial(_instance, name, cls), _same, identity=True)


def _is_record(cls: Any) -> bool:
    """A dataclass that can be made from its fields alone, which an InitVar prevents."""
    return is_dataclass(cls) and not any(isinstance(hint, InitVar) for hint in _hints(cls, {}).values())


def _name(hint: Any) -> str:
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "")


def _instance(name: str, cls: Any, value: Any) -> Any:
    if not isinstance(value, cls):
        raise _Mismatch(name, value)
    return value


def _all(convert: _Convert, values: Iterable[Any]) -> list[Any]:
    out: list[Any] = []
    try:
        for value in values:
            out.append(convert(value))
    except _Mismatch as mismatch:
        mismatch.path = f"[{len(out)}]{mismatch.path}"
        raise
    return out


def _step(convert: _Convert, value: Any, step: str) -> Any:
    try:
        return convert(value)
    except _Mismatch as mismatch:
        mismatch.path = step + mismatch.path
        raise


# What the codec carries by itself. A subclass (an IntEnum, a SafeString) arrives as the type declared.
_ATOMS: Final[dict[type, tuple[tuple[type, ...], _Convert]]] = {
    type(None): ((type(None),), _same),
    bool: ((bool,), _same),
    int: ((int, bool), int.__int__),
    float: ((float, int, bool), float),
    complex: ((complex, float, int, bool), complex),
    str: ((str,), str.__str__),
    bytes: ((bytes,), bytes),
}


def _atom(name: str, cls: type) -> _Kind:
    accepted, plain = _ATOMS[cls]

    def send(value: Any) -> Any:
        return value if type(value) in accepted else plain(_instance(name, accepted, value))

    return _Kind(name, send, send, frozenset(accepted), identity=True)


def _carried(name: str, cls: type) -> _Kind:
    def receive(value: Any) -> Any:
        if type(value) is cls:
            return value
        if type(value) is not str:  # its JSON form
            raise _Mismatch(name, value)
        return _converted(name, cls, value)

    def send(value: Any) -> Any:
        if type(value) is not cls:  # a subclass has more than arrives, and a datetime is no date
            raise _Mismatch(name, value)
        return value

    return _Kind(name, send, receive, frozenset({cls}))


def _converted(name: str, hint: Any, value: Any, strictly: bool = False) -> Any:
    """What msgspec makes of plain data; `strictly`: without the JSON forms of dates and the like."""
    kept = _KEPT if strictly else None
    try:
        return msgspec.convert(value, hint, builtin_types=kept, dec_hook=_decode_foreign)
    except _NO_STRUCT as error:
        raise _Mismatch(name, value, str(error)) from error


def _decode_foreign(cls: Any, value: Any) -> Any:
    """What msgspec does not know, within what it does: pydantic models, complex numbers, ..."""
    return _kind(cls).receive(value)


def _encode_foreign(value: Any) -> Any:
    kind = _kind(type(value))
    plain = kind.send(value)
    if type(plain) is type(value):
        raise NotImplementedError(f"{type(value).__name__} cannot be sent within it")
    return plain


def _constrained(hint: Any, inner: _Kind) -> _Kind:
    """`Annotated[int, msgspec.Meta(gt=0)]`: also checked by msgspec. Other metadata is somebody else's."""
    if inner.is_any or not any(isinstance(m, msgspec.Meta) for m in hint.__metadata__):
        return inner

    def send(value: Any) -> Any:
        plain = inner.send(value)
        _converted(_name(hint), hint, plain, strictly=True)
        return plain

    def receive(value: Any) -> Any:
        value = inner.receive(value)
        _converted(_name(hint), hint, inner.send(value))
        return value

    return _Kind(_name(hint), send, receive)


def _union(name: str, kinds: list[_Kind]) -> _Kind:
    if any(kind.is_any for kind in kinds):
        return _ANY
    name = name or " | ".join(kind.name for kind in kinds)
    exact = frozenset[type]().union(*(kind.exact for kind in kinds))
    member = [kind for kind in kinds if type(None) not in kind.exact]
    identity = all(kind.identity for kind in kinds)

    def accepting(value: Any) -> tuple[int, Any]:
        """The member that receives `value`, -1 for none, and what it makes of it."""
        for i, kind in enumerate(member):
            if type(value) in kind.exact:
                return i, value
        for i, kind in enumerate(member):
            try:
                return i, kind.receive(value)
            except _Mismatch:
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
            except _Mismatch:
                continue
            # Two members may have the same plain form. What would arrive as another one is refused.
            if accepting(plain)[0] != i:
                other = member[accepting(plain)[0]].name
                raise _Mismatch(
                    name, value, f"it would arrive as {other}; tell them apart with tagged msgspec.Structs"
                )
            return plain
        raise _Mismatch(name, value)

    def receive(value: Any) -> Any:
        if type(value) in exact:
            return value
        if len(member) == 1:
            return member[0].receive(value)
        found, received = accepting(value)
        if found < 0:
            raise _Mismatch(name, value)
        return received

    return _Kind(name, send, receive, exact, identity)


def _literal(name: str, values: tuple[Any, ...]) -> _Kind:
    sent = [(value, _kind(type(value)).send(value)) for value in values]

    def send(value: Any) -> Any:
        for ours, plain in sent:
            if type(value) is type(ours) and value == ours:
                return plain
        raise _Mismatch(name, value)

    def receive(value: Any) -> Any:
        for ours, plain in sent:
            if value == plain and type(value) is type(plain):
                return ours
        raise _Mismatch(name, value)

    return _Kind(name, send, receive, identity=all(value is plain for value, plain in sent))


def _tuple(name: str, args: tuple[Any, ...]) -> _Kind:
    if not args or args[-1] is ...:
        every = _kind(args[0]) if args else _ANY
        return _Kind(
            name, partial(_items, name, tuple, every, "send"), partial(_items, name, tuple, every, "receive")
        )
    each = [_kind(arg) for arg in args]

    def pass_all(way: str, value: Any) -> Any:
        _instance(name, (tuple, list), value)
        if len(value) != len(each):
            raise _Mismatch(f"{name} of {len(each)} items", value)
        return tuple(_all(lambda pair: getattr(pair[0], way)(pair[1]), zip(each, value, strict=True)))

    return _Kind(name, partial(pass_all, "send"), partial(pass_all, "receive"))


_CONTAINERS: Final[dict[type, tuple[type, ...]]] = {
    list: (list, abc.Sequence, abc.MutableSequence, abc.Iterable, abc.Collection),
    set: (set, abc.MutableSet, abc.Set),
    frozenset: (frozenset,),
    dict: (dict, abc.Mapping, abc.MutableMapping),
}


def _container(ours: type, name: str, args: tuple[Any, ...]) -> _Kind:
    kinds = [_kind(arg) for arg in args] or [_ANY, _ANY]
    convert: Callable[..., Any] = partial(_items, name, ours, kinds[0])
    if ours is dict:
        convert = partial(_entries, name, kinds[0], kinds[1])
    exact = frozenset[type]({ours} if all(kind.is_any for kind in kinds) else ())
    identity = ours in (list, dict) and all(kind.identity for kind in kinds)
    return _Kind(name, partial(convert, "send"), partial(convert, "receive"), exact, identity)


_ACCEPTED: Final[dict[type, tuple[type, ...]]] = {
    list: (list, tuple),
    tuple: (tuple, list),
    set: (set, frozenset),
    frozenset: (frozenset, set),
}


def _items(name: str, ours: Any, kind: _Kind, way: str, value: Any) -> Any:
    # On arrival a set may be a list: from JSON, or because its items have no hash as plain data.
    _instance(name, _ACCEPTED[ours] if way == "send" else (list, tuple, *_ACCEPTED[ours]), value)
    out: Any = value
    if not _all_exact(kind, value):
        out = _all(getattr(kind, way), value)
    try:
        return out if type(out) is ours else ours(out)
    except TypeError as error:
        if way == "send":
            return out
        raise _Mismatch(name, value, str(error)) from error


def _is_dict(value: Any) -> bool:
    return type(value) is dict


def _all_exact(kind: _Kind, values: Iterable[Any]) -> bool:
    return kind.is_any or kind.exact.issuperset(map(type, values))


def _entries(name: str, key: _Kind, kind: _Kind, way: str, value: Any) -> Any:
    _instance(name, abc.Mapping, value)
    if _all_exact(key, value) and _all_exact(kind, value.values()):
        return value if _is_dict(value) else dict(value)
    keys = [_step(getattr(key, way), k, "<key>") for k in value]
    convert = getattr(kind, way)
    try:
        return {k: _step(convert, v, f"[{k!r}]") for k, v in zip(keys, value.values(), strict=True)}
    except TypeError as error:
        raise _Mismatch(name, value, f"its keys cannot be sent: {error}") from error


@cache
def _fields(cls: type) -> dict[str, _Kind]:
    """The kinds of a class's annotated fields; compiled when first used, for a class may hold itself."""
    return {name: _kind(hint) for name, hint in _hints(cls, inspect.get_annotations(cls)).items()}


@cache
def _required(cls: Any) -> frozenset[str]:
    """The keys that a TypedDict needs; `__required_keys__` is blind to marks in annotations kept as text."""
    marked = {name: typing.get_origin(hint) for name, hint in _hints(cls, {}).items()}
    needed = {name for name in cls.__required_keys__ if marked.get(name) is not typing.NotRequired}
    return frozenset(needed | {name for name, mark in marked.items() if mark is typing.Required})


def _typed_dict(name: str, cls: Any) -> _Kind:
    def pass_all(way: str, value: Any) -> Any:
        _instance(name, dict, value)
        kinds = _fields(cls)
        wrong = [key for key in value if key not in kinds] or sorted(_required(cls) - value.keys())
        if wrong:
            raise _Mismatch(name, value, f"{'unknown' if wrong[0] in value else 'missing'} key {wrong[0]!r}")
        return {key: _step(getattr(kinds[key], way), item, f"[{key!r}]") for key, item in value.items()}

    return _Kind(name, partial(pass_all, "send"), partial(pass_all, "receive"))


def _enum(name: str, cls: Any) -> _Kind:
    by_value = all(type(member.value) in _ATOMS for member in cls)

    def send(value: Any) -> Any:
        _instance(name, cls, value)
        return value.value if by_value else value.name

    def receive(value: Any) -> Any:
        try:
            return value if isinstance(value, cls) else cls(value) if by_value else cls[value]
        except (ValueError, KeyError, TypeError) as error:
            raise _Mismatch(name, value) from error

    return _Kind(name, send, receive)


def _exactly(name: str, cls: type, value: Any) -> None:
    if type(value) is not cls:  # what a subclass adds would not arrive
        raise _Mismatch(name, value)


def _send_record(name: str, cls: Any, value: Any) -> Any:
    _exactly(name, cls, value)
    kinds = _fields(cls)
    names = [field.name for field in fields(cls)]
    return {name: _step(kinds.get(name, _ANY).send, getattr(value, name), f".{name}") for name in names}


def _receive_record(name: str, cls: Any, value: Any) -> Any:
    if isinstance(value, cls):
        return value
    _instance(name, dict, value)
    kinds = _fields(cls)
    found = {f.name: f for f in fields(cls) if f.name in value}
    items = {n: _step(kinds.get(n, _ANY).receive, value[n], f".{n}") for n in found}
    try:
        made = cls(**{n: item for n, item in items.items() if found[n].init})
    except (TypeError, ValueError) as error:
        raise _Mismatch(name, value, str(error)) from error
    for n, item in items.items():  # what __post_init__ derived or changed is as it was sent
        object.__setattr__(made, n, item)
    return made


def _send_named(name: str, cls: type, value: Any) -> Any:
    _exactly(name, cls, value)
    return tuple(_named_items("send", cls, value))


def _receive_named(name: str, cls: Any, value: Any) -> Any:
    _instance(name, (list, tuple), value)
    try:
        return cls(*_named_items("receive", cls, value))
    except TypeError as error:
        raise _Mismatch(name, value, str(error)) from error


def _named_items(way: str, cls: Any, value: Any) -> list[Any]:
    kinds = _fields(cls)
    items = zip(cls._fields, value, strict=False)
    return [_step(getattr(kinds.get(n, _ANY), way), item, f".{n}") for n, item in items]


def _send_struct(name: str, cls: type, hint: Any, value: Any) -> Any:
    _exactly(name, cls, value)
    try:
        plain = msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=_encode_foreign)
        # A Struct does not check its fields when it is made.
        made = msgspec.convert(plain, hint, builtin_types=_KEPT, dec_hook=_decode_foreign)
    except _NO_STRUCT as error:
        raise _Mismatch(name, value, str(error)) from error
    if made != value and repr(made) != repr(value):  # NaN differs from itself, and so may a class without eq
        raise _Mismatch(name, value, f"it would arrive as {brief(made)}")
    return plain


def _send_pydantic(name: str, cls: Any, value: Any) -> Any:
    """Its values as they are where the codec carries them, else their JSON forms."""
    _exactly(name, cls, value)
    plain = value.model_dump(mode="python", by_alias=True)
    try:
        codec_for("msgpack").encode(plain)
    except NotEncodable:
        plain = value.model_dump(mode="json", by_alias=True)
    if _receive_pydantic(name, cls, plain) != value:
        raise _Mismatch(
            name, value, "the model does not read back what it writes (model_validate, model_dump)"
        )
    return plain


def _receive_pydantic(name: str, cls: Any, value: Any) -> Any:
    try:
        return cls.model_validate(value)
    except ValueError as error:  # pydantic's ValidationError is one
        raise _Mismatch(name, value, str(error)) from error


_BASES: Final[dict[type, _Convert]] = {
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


def _send_wrapped(name: str, cls: Any, plain: _Convert, value: Any) -> Any:
    """A subclass of a builtin, and the few others that are made from the plain value they give."""
    out = plain(_instance(name, cls, value))
    if _receive_wrapped(name, cls, out) != value:
        raise _Mismatch(name, value, f"{cls.__name__}() of its plain form is another value")
    return out


def _receive_wrapped(name: str, cls: Any, value: Any) -> Any:
    try:
        return cls(value)
    except (TypeError, ValueError) as error:
        raise _Mismatch(name, value, str(error)) from error
