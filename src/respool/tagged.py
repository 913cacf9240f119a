"""Values as JSON that people can read and change, and back, exactly: what JSON has no form for is tagged.

`{"$bytes": "aGk="}`, `{"$datetime": "2026-01-31T14:00:00+00:00"}`, `{"$set": [1, 2]}`: an object with one key
that begins with a dollar sign. A dict that looks like that, or has keys that are no text, is `{"$dict": …}`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from .errors import CorruptBody

_PLAIN: Final = (type(None), bool, int, str)

_SENT: Final[dict[type, tuple[str, Callable[[Any], Any]]]] = {
    bytes: ("$bytes", lambda v: base64.b64encode(v).decode()),
    bytearray: ("$bytes", lambda v: base64.b64encode(v).decode()),
    datetime: ("$datetime", datetime.isoformat),
    date: ("$date", date.isoformat),
    time: ("$time", time.isoformat),
    timedelta: ("$timedelta", lambda v: [v.days, v.seconds, v.microseconds]),
    UUID: ("$uuid", str),
    Decimal: ("$decimal", str),
    complex: ("$complex", lambda v: [repr(v.real), repr(v.imag)]),
    set: ("$set", lambda v: [to_tagged(each) for each in v]),
    frozenset: ("$frozenset", lambda v: [to_tagged(each) for each in v]),
    tuple: ("$tuple", lambda v: [to_tagged(each) for each in v]),
}
_RECEIVED: Final[dict[str, Callable[[Any], Any]]] = {
    "$bytes": lambda v: base64.b64decode(v, validate=True),
    "$datetime": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
    "$timedelta": lambda v: timedelta(*v),
    "$uuid": UUID,
    "$decimal": Decimal,
    "$complex": lambda v: complex(*map(float, v)),
    "$float": float,
    "$set": lambda v: {from_tagged(each) for each in v},
    "$frozenset": lambda v: frozenset(from_tagged(each) for each in v),
    "$tuple": lambda v: tuple(from_tagged(each) for each in v),
    "$dict": lambda v: {from_tagged(key): from_tagged(each) for key, each in v},
}


def to_tagged(value: Any) -> Any:
    """Return a value as what JSON has forms for; what nobody can carry, as its text.

    >>> to_tagged([1, b"hi", {2: date(2026, 1, 31)}])
    [1, {'$bytes': 'aGk='}, {'$dict': [[2, {'$date': '2026-01-31'}]]}]
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is list:
        return [to_tagged(each) for each in value]
    if kind is dict:
        if all(type(key) is str for key in value) and not (
            len(value) == 1 and next(iter(value)).startswith("$")
        ):
            return {key: to_tagged(each) for key, each in value.items()}
        return {"$dict": [[to_tagged(key), to_tagged(each)] for key, each in value.items()]}
    if kind in _SENT:
        tag, send = _SENT[kind]
        return {tag: send(value)}
    return {"$repr": repr(value)}


def from_tagged(value: Any) -> Any:
    """Return what `to_tagged` was given. Raises CorruptBody for a tag that is none.

    >>> from_tagged({"$set": [1]})
    {1}
    """
    if type(value) is list:
        return [from_tagged(each) for each in value]
    if type(value) is not dict:
        return value
    if len(value) == 1:
        ((tag, held),) = value.items()
        if tag.startswith("$"):
            if tag not in _RECEIVED:
                raise CorruptBody(f"{tag} is no form of a value; there are: {', '.join(_RECEIVED)}")
            try:
                return _RECEIVED[tag](held)
            except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
                raise CorruptBody(f"{json.dumps(held)[:80]} is no {tag}: {error}") from error
    return {key: from_tagged(each) for key, each in value.items()}
