"""What messages say of a value that cannot be sent: where it is, what it is, what to do instead."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

from ..errors import NotEncodable

# The path to a value: the root's name, or (the container's path, step). Made into text only for a message.
Path = tuple[Any, Any] | str


class _Place:
    """A step of a path that is no index."""

    def __init__(self, name: str) -> None:
        self.name = name


AT_KEY: Final = _Place("<key>")
AT_ITEM: Final = _Place("<item>")


def shown(path: Path) -> str:
    """Return a path as text: `args[0]['when']`."""
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


def refusal(value: object, path: Path) -> str:
    """Return why a value of this type is not sent, and what to send instead."""
    said = f"{shown(path)} is of type {class_name(value)}"
    return f"{said} and would not arrive as it was sent ({brief(value)}): {_advice(value)}"


def _advice(value: object) -> str:
    kind = type(value)
    if isinstance(value, Enum):
        return f"annotate it with {kind.__name__}, or send its .value"
    if isinstance(value, (bytearray, memoryview)):
        return "convert it with bytes()"
    from dataclasses import is_dataclass

    modelled = is_dataclass(value) or hasattr(kind, "__struct_fields__") or hasattr(kind, "__attrs_attrs__")
    if modelled or hasattr(kind, "model_dump") or hasattr(kind, "_fields"):
        return f"annotate it with {kind.__name__}, or convert it to a dict or list"
    for base in (str, bytes, int, float, list, tuple, dict, set, frozenset, datetime, date, Decimal, UUID):
        if isinstance(value, base):
            return f"convert it to a plain {base.__name__}"
    return "convert it to plain data (numbers, text, lists, dicts), or make it a dataclass and annotate it"


def checked_text(value: str, path: Path) -> str:
    """Return text that can be encoded. Raises NotEncodable for a lone surrogate."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        said = f"{shown(path)} holds a lone surrogate at {error.start}, which is not text"
        raise NotEncodable(f"{said}: send bytes (os.fsencode) instead") from None
    return value


def type_name(module: str, qualname: str) -> str:
    """Return a class's name with its module, a builtin's without."""
    return qualname if module == "builtins" else f"{module}.{qualname}"


def class_name(value: object) -> str:
    """Return the name of a value's class."""
    return type_name(type(value).__module__, type(value).__qualname__)
