"""Sets that are sent as lists, since their items as plain data have no hash, or since msgspec makes them so.

A set is gone through in the order of its hashes, and those of text are others in each process. But equal
calls are to be equal bytes: the ids of a run's calls are made of them (H8), and who sends an id again is to
send the same (H20). So the items are put in an order of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any

import msgspec

from .codec import codec_for


def in_order(items: Iterable[Any]) -> list[Any]:
    """Return the items of a set, as plain data, in the order of their bytes. Raises NotEncodable."""
    encode = codec_for("msgpack").encode
    return sorted(items, key=lambda item: encode(item, "an item of a set"))


@cache
def may_hold_sets(hint: Any) -> bool:
    """Whether a value that msgspec makes plain data of may have a set in it, by its annotations."""
    import msgspec.inspect as known  # few tasks take a Struct

    try:
        waiting: list[Any] = [known.type_info(hint)]
    except Exception:  # noqa: BLE001 - evaluating annotations may raise anything; then each value is looked at
        return True
    seen = set[int]()
    while waiting:
        info = waiting.pop()
        if isinstance(info, known.SetType | known.FrozenSetType):
            return True
        if isinstance(info, tuple):
            waiting += info
        elif isinstance(info, known.Type | known.Field) and id(info) not in seen:
            seen.add(id(info))
            waiting += (getattr(info, name) for name in info.__struct_fields__)
    return False


def ordered(value: Any, plain: Any) -> Any:
    """Return the plain data of a value with the items of each of its sets in order. Raises NotEncodable."""
    if isinstance(plain, dict):
        pairs = zip(plain.items(), _values(value, plain), strict=True)
        return {key: ordered(part, item) for (key, item), part in pairs}
    if isinstance(plain, list | tuple):
        items = [ordered(part, item) for part, item in zip(_items(value, plain), plain, strict=False)]
        if isinstance(value, set | frozenset):
            return in_order(items)
        return tuple(items) if isinstance(plain, tuple) else items
    return plain


def without_sets(plain: Any) -> Any:
    """Return plain data with lists in the place of sets. Raises NotEncodable."""
    if isinstance(plain, dict):
        return {key: without_sets(item) for key, item in plain.items()}
    if isinstance(plain, set | frozenset):
        return in_order(without_sets(item) for item in plain)
    if isinstance(plain, list | tuple):
        items = [without_sets(item) for item in plain]
        return tuple(items) if isinstance(plain, tuple) else items
    return plain


def _values(value: Any, plain: dict[Any, Any]) -> Iterable[Any]:
    """Return what the values of a dict have been made of."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, msgspec.Struct):
        names = dict(zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True))
        return [getattr(value, names.get(key, ""), None) for key in plain]  # its tag is no field
    if isinstance(models := getattr(type(value), "model_fields", None), dict):  # pydantic's
        names = {getattr(field, "serialization_alias", None) or name: name for name, field in models.items()}
        return [getattr(value, names.get(key, ""), None) for key in plain]
    if is_dataclass(value) or hasattr(type(value), "__attrs_attrs__"):
        return [getattr(value, key, None) for key in plain]
    return plain.values()  # it is sent as something else, and that in order


def _items(value: Any, plain: Sequence[Any]) -> Iterable[Any]:
    """Return what the items of a list have been made of: as many, or more."""
    if isinstance(value, msgspec.Struct):
        fields = [getattr(value, name) for name in value.__struct_fields__]
        return fields if value.__struct_config__.tag is None else [None, *fields]
    return value if isinstance(value, list | tuple | set | frozenset) else plain
