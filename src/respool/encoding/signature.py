"""A task's parameters: checked where it is called, decoded as declared where it runs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin

from ..errors import BadArguments, ConfigError, suggest
from .kinds import ANY, Kind, Mismatch, hints_of, kind_of, union

_EMPTY: Final = inspect.Parameter.empty
_NOTHING: Final = frozenset[type]()
_ONE: Final = inspect.Parameter.POSITIONAL_ONLY
_ONE_OR_NAMED: Final = inspect.Parameter.POSITIONAL_OR_KEYWORD


class Signature:
    """What a task's function takes, compiled once.

    Args:
        fn: the function.
        bound: whether its first parameter is `self`, which no caller passes.
        name: the task's name, for messages.
        batch: whether it takes the list of many calls' arguments, or of events. Then what is checked and
            converted is one item of that list: `list[str]` takes one text a call, `list[tuple[int, str]]`
            two arguments; events are never taken apart.

    Raises:
        ConfigError: if `bound` and there is no parameter for `self`; for a batch function that takes
            something else than one list.

    Example:
        `Signature(add, bound=False, name="add").check((2, 3), {})`
    """

    needs_convert: bool
    """False where what the codec returns is what was declared, so that a worker may skip `convert`."""

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        bound: bool,
        name: str,
        batch: Literal["no", "calls", "events"] = "no",
    ) -> None:
        self.name = name
        self.tuples = False
        """Whether a batch function is given tuples even of single arguments, as it declares."""
        self._positional: list[_Parameter] = []
        self._by_keyword: dict[str, _Parameter] = {}
        self._more: _Parameter | None = None  # *args
        self._others: _Parameter | None = None  # **kwargs
        found = _parameters(fn, bound, name)
        if batch != "no":
            found, self.tuples = _of_each_call(found, name, batch)
        for parameter in found:
            self._add(parameter)
        self.names = [p.name for p in self._positional] if batch == "no" else []
        """What the arguments are called that are sent by position; of a batch's items nobody knows."""
        named = {*self.names, *self._by_keyword}
        self.accepts = None if self._others is not None or batch != "no" else frozenset(named)
        """What arguments may be called; None where that may be anything."""
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

    def plain(self, name: str, value: Any) -> Any:
        """Return one argument, by its parameter's name, as `check` returns it. Raises BadArguments."""
        named = (each for each in (*self._positional, *self._by_keyword.values()) if each.name == name)
        return self._pass(next(named), "", value, "send")

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
        except Mismatch as mismatch:
            raise BadArguments(f"{where}{mismatch.path} {mismatch}") from mismatch.__cause__
        except RecursionError:
            raise BadArguments(f"{where} is nested too deep, or contains itself") from None


class _Parameter(NamedTuple):
    name: str
    place: Any
    required: bool
    kind: Kind
    hint: Any = _EMPTY

    @property
    def passes(self) -> frozenset[type] | None:
        """The types that need no further look; None for any."""
        return None if self.kind.is_any else self.kind.exact


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
    hints = hints_of(
        inspect.unwrap(fn), {p.name: p.annotation for p in parameters if p.annotation is not _EMPTY}
    )
    return [_parameter(p, hints.get(p.name, _EMPTY)) for p in parameters]


def _parameter(parameter: inspect.Parameter, hint: Any) -> _Parameter:
    kind = ANY if hint is _EMPTY else kind_of(hint)
    if parameter.default is None and type(None) not in kind.exact:
        kind = union("", [kind, kind_of(None)])  # `x: int = None` is common, and wrong only to a type checker
    variadic = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = parameter.default is _EMPTY and not variadic
    return _Parameter(parameter.name, parameter.kind, required, kind, hint)


_LISTS = (list, Sequence, Iterable, Collection)


def _of_each_call(
    found: Sequence[_Parameter], name: str, batch: Literal["calls", "events"]
) -> tuple[list[_Parameter], bool]:
    """Return what each call of a batch function takes, and whether that makes a tuple."""
    if not found or found[0].place not in (_ONE, _ONE_OR_NAMED) or any(each.required for each in found[1:]):
        raise ConfigError(
            f"task {name!r} has batch=, so its function takes one list, with an item for each call: "
            f"def {name}(items): …"
        )
    hint = found[0].hint
    if hint in (_EMPTY, Any, *_LISTS):
        each = [_Parameter("item", _ONE, True, ANY)]
        if batch == "calls":  # several arguments of a call make a tuple
            each.append(_Parameter("items", inspect.Parameter.VAR_POSITIONAL, False, ANY))
        return each, False
    if get_origin(hint) not in _LISTS:
        shown = getattr(hint, "__name__", None) or str(hint)
        raise ConfigError(
            f"task {name!r} has batch=, so its function takes one list: {found[0].name} is declared {shown}; "
            f"write list[{shown}]"
        )
    (item,) = get_args(hint)
    if batch == "events" or get_origin(item) is not tuple:
        return [_Parameter("item", _ONE, True, kind_of(item))], False
    kinds = get_args(item)
    if len(kinds) == 2 and kinds[1] is ...:
        first = _Parameter("item", _ONE, True, kind_of(kinds[0]))
        return [first, first._replace(place=inspect.Parameter.VAR_POSITIONAL, required=False)], True
    return [_Parameter(f"item[{n}]", _ONE, True, kind_of(kind)) for n, kind in enumerate(kinds)], True
