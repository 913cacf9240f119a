"""How long records stay: what users write, what is stored, how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .errors import ConfigError, UnknownName
from .units import duration, size

DEFAULT_AGE = 30 * 86400.0
HOLD = 2
"""Groups other than a queue's `main` hold records up to so many times the limits; then they lose them."""

KEYS = ("age", "size", "count")
_SIZES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


@dataclass(frozen=True, slots=True)
class Retained:
    """What stays of a stream: records no older, and no more of them, than these. None: no limit."""

    age: float | None = None  # seconds
    size: int | None = None  # bytes of bodies and attributes
    count: int | None = None

    def times(self, factor: float) -> Retained:
        """Return limits that are wider."""
        size = None if self.size is None else int(self.size * factor)
        count = None if self.count is None else int(self.count * factor)
        return Retained(None if self.age is None else self.age * factor, size, count)


class _Unset:
    def __repr__(self) -> str:
        return "30d"


UNSET: Any = _Unset()
"""Stands for a retention that is not said: 30 days for what is new, else what is stored."""


def stored_retention(given: Any, what: str = "retention") -> Any:
    """Return what is stored of a retention: None for ever; seconds, an age alone; else a mapping.

    Raises: ConfigError, UnknownName for what cannot be.

    >>> stored_retention("30d")
    2592000.0
    >>> stored_retention({"count": 1000, "size": "10MiB"})
    {'size': 10485760, 'count': 1000}
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        if isinstance(given, int | float | str | timedelta):
            return duration(given, what)
        raise ConfigError(
            f'{what}: {given!r} is no retention; give an age ("30d"), {{"age": …, "size": …, "count": …}}, '
            "or None: for ever"
        )
    for key in given:
        if key not in KEYS:
            raise UnknownName("limit", str(key), KEYS, f"of {what}")
    kept: dict[str, Any] = {}
    if given.get("age") is not None:
        kept["age"] = duration(given["age"], f"{what}: age")
    if given.get("size") is not None:
        kept["size"] = size(given["size"], f"{what}: size")
    if given.get("count") is not None:
        count = given["count"]
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{what}: count: {count!r} is no number of records from 1 on")
        kept["count"] = count
    if not kept:
        return None
    return kept["age"] if list(kept) == ["age"] else kept


def retained(settings: Mapping[str, Any]) -> Retained | None:
    """Return the limits among a stream's stored settings; None: its records stay for ever."""
    stored = settings.get("retention")
    if stored is None:
        return None
    return Retained(**stored) if isinstance(stored, Mapping) else Retained(float(stored))


def shown_retention(stored: Any) -> str:
    """Return a stored retention for people: as it is written in code, where that is short."""
    if stored is None:
        return "for ever"
    limits = Retained(**stored) if isinstance(stored, Mapping) else Retained(float(stored))
    parts = []
    if limits.age is not None:
        parts.append(shown_age(limits.age))
    if limits.size is not None:
        parts.append(_size(limits.size))
    if limits.count is not None:
        parts.append(f"{limits.count:,} records")
    return ", ".join(parts)


def shown_age(seconds: float) -> str:
    """Return an age as it may be written: "30d", "36h", "61s"."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:g}s"


def _size(value: int) -> str:
    for unit, bytes_ in _SIZES:
        if value >= bytes_:
            return f"{value / bytes_:g}{unit}"
    return f"{value}B"
