"""Expressions over a record: `value.amount > 100 and headers["tenant"] in ("acme", "globex")`.

A small part of Python's syntax, taken apart by `ast` and never evaluated: names of what a record has,
attributes and indices into them, constants, comparisons, `in`, `and`, `or`, `not`, `len()`. What is not
there, or cannot be compared, matches nothing.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeGuard

from .errors import ConfigError, suggest

NAMES: Final = ("value", "args", "kwargs", "headers", "key", "task", "time", "id")
"""What an expression can name: of a call `args` and `kwargs`, of an event `value`."""
MAX_LENGTH: Final = 2000
_MAX_DEPTH: Final = 50

Scope = Mapping[str, Any]
Part = Callable[[Scope], Any]


class _Text(ast.Constant):
    value: str


class _Missing:
    """What is not there: equal to nothing, and in nothing."""

    def __bool__(self) -> bool:
        return False


MISSING: Final = _Missing()


class Expression:
    """A compiled expression: called with a scope it says whether a record matches.

    >>> Expression("value.amount > 100")({"value": {"amount": 120}})
    True
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._part = _compiled(text)
        self.names = frozenset(_names(text))
        self.arguments = frozenset(_arguments(text))
        """The arguments of a call that it asks for by name: `x` of `kwargs.x`."""

    def __call__(self, scope: Scope) -> bool:
        """Say whether a record matches. Never raises for what a record holds."""
        return bool(self._part(scope))

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


def _parsed(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"the expression has {len(text):,} characters; {MAX_LENGTH:,} is the most")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(
            f"the expression {text!r} cannot be read{where}: {why}; one looks like "
            'value.amount > 100 and headers["tenant"] == "acme"'
        ) from None


def _names(text: str) -> list[str]:
    return [node.id for node in ast.walk(_parsed(text)) if isinstance(node, ast.Name) and node.id in NAMES]


def _arguments(text: str) -> Iterator[str]:
    for node in ast.walk(_parsed(text)):
        if isinstance(node, ast.Attribute) and _is_kwargs(node.value):
            yield node.attr
        elif isinstance(node, ast.Subscript) and _is_kwargs(node.value) and _is_text(node.slice):
            yield node.slice.value
        elif isinstance(node, ast.Compare) and any(map(_is_kwargs, node.comparators)) and _is_text(node.left):
            yield node.left.value


def _is_kwargs(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "kwargs"


def _is_text(node: ast.expr) -> TypeGuard[_Text]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _compiled(text: str) -> Part:
    return _Compiler(text).part(_parsed(text), 0)


class _Compiler:
    """Makes functions of the nodes that are allowed. Raises ConfigError for any other."""

    def __init__(self, text: str) -> None:
        self._text = text

    def part(self, node: ast.expr, depth: int) -> Part:
        """Return what gives a node's value in a scope."""
        if depth > _MAX_DEPTH:
            raise ConfigError(f"the expression {self._text!r} is nested too deeply")
        make = getattr(self, f"_{type(node).__name__.lower()}", None)
        if make is None:
            raise self._refused(node, "not allowed here")
        made: Part = make(node, depth + 1)
        return made

    def _refused(self, node: ast.expr, why: str) -> ConfigError:
        shown = ast.get_source_segment(self._text.strip(), node) or type(node).__name__
        return ConfigError(
            f"the expression {self._text!r}: {shown!r} is {why}; there are {', '.join(NAMES)}, "
            "attributes and indices, constants, comparisons, in, and, or, not, len()"
        )

    def _constant(self, node: ast.Constant, depth: int) -> Part:
        value = node.value
        if not isinstance(value, str | int | float | bool | bytes | type(None)):
            raise self._refused(node, "no text, number, True, False or None")
        return lambda scope: value

    def _name(self, node: ast.Name, depth: int) -> Part:
        name = node.id
        if name not in NAMES:
            raise ConfigError(
                f"the expression {self._text!r}: there is no {name!r}{suggest(name, NAMES)}; "
                f"a record has {', '.join(NAMES)}"
            )
        return lambda scope: scope.get(name, MISSING)

    def _attribute(self, node: ast.Attribute, depth: int) -> Part:
        return _within(self.part(node.value, depth), node.attr)

    def _subscript(self, node: ast.Subscript, depth: int) -> Part:
        index = node.slice
        if isinstance(index, ast.UnaryOp) and isinstance(index.op, ast.USub):
            index = ast.Constant(-_number(index.operand, lambda: self._refused(node, "no index")))
        if not isinstance(index, ast.Constant) or not isinstance(index.value, str | int):
            raise self._refused(node, "no index: that is a number or a text")
        return _within(self.part(node.value, depth), index.value)

    def _compare(self, node: ast.Compare, depth: int) -> Part:
        parts = [self.part(each, depth) for each in (node.left, *node.comparators)]
        tests = [_TESTS[type(op)] for op in node.ops]

        def compare(scope: Scope) -> bool:
            values = [part(scope) for part in parts]
            return all(test(values[n], values[n + 1]) for n, test in enumerate(tests))

        return compare

    def _boolop(self, node: ast.BoolOp, depth: int) -> Part:
        parts = [self.part(each, depth) for each in node.values]
        if isinstance(node.op, ast.And):
            return lambda scope: all(part(scope) for part in parts)
        return lambda scope: any(part(scope) for part in parts)

    def _unaryop(self, node: ast.UnaryOp, depth: int) -> Part:
        if isinstance(node.op, ast.Not):
            part = self.part(node.operand, depth)
            return lambda scope: not part(scope)
        if isinstance(node.op, ast.USub):
            number = -_number(node.operand, lambda: self._refused(node, "no number"))
            return lambda scope: number
        raise self._refused(node, "not allowed here")

    def _tuple(self, node: ast.Tuple | ast.List | ast.Set, depth: int) -> Part:
        parts = [self.part(each, depth) for each in node.elts]
        return lambda scope: [part(scope) for part in parts]

    _list = _set = _tuple

    def _call(self, node: ast.Call, depth: int) -> Part:
        if not (isinstance(node.func, ast.Name) and node.func.id == "len" and len(node.args) == 1):
            raise self._refused(node, "not allowed here: only len() is a function")
        if node.keywords or isinstance(node.args[0], ast.Starred):
            raise self._refused(node, "not how len() is called")
        part = self.part(node.args[0], depth)
        return lambda scope: _length(part(scope))


def _number(node: ast.expr, refused: Callable[[], ConfigError]) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    raise refused()


def _within(part: Part, step: Any) -> Part:
    def within(scope: Scope) -> Any:
        held = part(scope)
        try:
            if isinstance(held, Mapping):
                return held[step]
            if isinstance(held, Sequence) and isinstance(step, int):
                return held[step]
        except (KeyError, IndexError):
            pass
        return MISSING

    return within


def _length(value: Any) -> Any:
    return len(value) if isinstance(value, str | bytes | Sequence | Mapping | set | frozenset) else MISSING


def _test(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], bool]:
    def test(left: Any, right: Any) -> bool:
        if left is MISSING or right is MISSING:
            return False
        try:
            return bool(compare(left, right))
        except (TypeError, ValueError):  # a text is not less than a number
            return False

    return test


_TESTS: Final[dict[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: _test(operator.eq),
    ast.NotEq: _test(operator.ne),
    ast.Lt: _test(operator.lt),
    ast.LtE: _test(operator.le),
    ast.Gt: _test(operator.gt),
    ast.GtE: _test(operator.ge),
    ast.In: _test(lambda left, right: left in right),
    ast.NotIn: _test(lambda left, right: left not in right),
    ast.Is: _test(lambda left, right: left is right),
    ast.IsNot: _test(lambda left, right: left is not right),
}
