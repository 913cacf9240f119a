"""Legal names of topics for streams and queues that may be named by any text, without collisions.

Kafka takes letters, digits, `.`, `_` and `-`, up to 249 of them, and refuses two topics that differ in `.`
and `_` only. A name of letters, digits and single `_` or `-` stays as it is; any other character becomes
`--` and two hexadecimal digits a byte. Nothing else begins with `--`: so the two parts of a queue's name
have a joint.
"""

from __future__ import annotations

from hashlib import blake2b

MOST = 249
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_HASH = 24


def encoded(name: str) -> str:
    """Return text as part of a topic's name."""
    parts = []
    for place, each in enumerate(name):
        around = name[place - 1 : place] + name[place + 1 : place + 2]
        between = each == "-" and len(around) == 2 and _PLAIN.issuperset(around)
        if between or (each in _PLAIN and (each != "_" or place)):
            parts.append(each)
        else:
            parts += [f"--{byte:02x}" for byte in each.encode()]
    return "".join(parts)


def topic_name(prefix: str, kind: str, app: str, name: str) -> str:
    """Return the topic of a stream (`user-events`) or of an app's queue (`shop--queue--default`)."""
    whole = encoded(name) if kind == "stream" else f"{encoded(app)}--queue--{encoded(name)}"
    most = MOST - len(prefix)
    if len(whole) > most:
        digest = blake2b(whole.encode(), digest_size=_HASH // 2).hexdigest()
        whole = f"{whole[: most - _HASH - 4]}--h-{digest}"
    return prefix + whole


def group_name(prefix: str, app: str, name: str) -> str:
    """Return the consumer group that shows how far a group is."""
    return f"{prefix}{encoded(app)}.{encoded(name)}"
