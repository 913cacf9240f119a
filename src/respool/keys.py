"""From a call to its key, and from a key to its partition, as Kafka's Java clients do it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from .errors import BadArguments, ConfigError
from .record import is_text

_MASK = 0xFFFFFFFF
_SEED = 0x9747B28C
_M = 0x5BD1E995


def murmur2(data: bytes) -> int:
    """Return the 32-bit murmur2 hash of `data`, as in Kafka's `Utils.murmur2` (unsigned).

    Source: A. Appleby's MurmurHash2; the seed and the signed-byte details are those of Apache Kafka.
    """
    length = len(data)
    h = (_SEED ^ length) & _MASK
    for at in range(0, length - length % 4, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    rest = data[length - length % 4 :]
    if rest:
        h = ((h ^ int.from_bytes(rest, "little")) * _M) & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


KeyOf = Callable[[tuple[Any, ...], dict[str, Any]], str]
"""Returns the key of a call with these arguments. Raises BadArguments."""


def key_text(key: Any, what: str) -> str:
    """Return a key as it is kept. Raises BadArguments for what is neither text nor a whole number."""
    if isinstance(key, str | int) and not isinstance(key, bool):
        text = str(key)
        if is_text(text):
            return text
    raise BadArguments(f"{what} is {key!r:.80}, neither text nor a whole number; nothing was sent")


def key_function(option: str | Callable[..., Any], fn: Callable[..., Any], bound: bool, name: str) -> KeyOf:
    """Return what finds the key of a call, from a task's `key=`. Raises ConfigError for no such parameter."""
    if callable(option):

        def called(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
            try:
                key = option(*args, **kwargs)
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
                raise BadArguments(f"{name}: its key function raised {told}; nothing was sent") from error
            return key_text(key, f"{name}: what its key function returned")

        return called
    parameters = list(inspect.signature(fn).parameters.values())[bound:]
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind not in kinds]
    if option not in names:
        raise ConfigError(
            f"task {name}: key={option!r} is none of its parameters: {', '.join(names) or 'none'}"
        )
    by_position = parameters[names.index(option)].kind is not inspect.Parameter.KEYWORD_ONLY
    place = names.index(option) if by_position else len(names)
    default = parameters[names.index(option)].default

    def looked_up(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        key = args[place] if place < len(args) else kwargs.get(option, default)
        return key_text(key, f"{name}: its key, the argument {option!r},")

    return looked_up


def key_hash(key: str) -> int:
    """Return what a record is known by that has a key: 31 bits, never 0. Keys that share it are as one."""
    return _hash(key) or 1


def partition_of(key: str, partitions: int) -> int:
    """Return the partition of a key: murmur2 without its sign bit, modulo the number of partitions."""
    return _hash(key) % partitions


@lru_cache(maxsize=65536)  # it is asked for twice, and the keys of a backlog come again and again
def _hash(key: str) -> int:
    return murmur2(key.encode()) & 0x7FFFFFFF
