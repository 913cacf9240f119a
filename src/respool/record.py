"""What is kept of a call or an event: positions, ids and the rarely used attributes.

A *position* names a record in one integer: the number of its log (a stream's partition in one lane)
in the upper bits, its offset in that log in the lower 40.

An *id* is a uuid7. Records appended together share a *head*: the ids of a run of n records are the
head's id, then the head's id plus 1, plus 2, … Only the head is indexed, which makes bulk appends
about twice as fast and lets ten million handles be kept as a few thousand heads.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from .errors import BadArguments

OFFSET_BITS = 40
MAX_OFFSET = (1 << OFFSET_BITS) - 1
RUN_BITS = 24  # a run shares all but the last 24 bits of its ids
MAX_ID_BYTES = 200

Id = bytes | str
"""16 bytes where Respool made the id, text where the user gave it."""


def first_pos(log: int) -> int:
    """Return the position of offset 0 of a log."""
    return log << OFFSET_BITS


def log_of(pos: int) -> int:
    """Return the number of the log that a position lies in."""
    return pos >> OFFSET_BITS


def offset_of(pos: int) -> int:
    """Return the offset of a position within its log."""
    return pos & MAX_OFFSET


class Row(NamedTuple):
    """A record as the worker reads it: no more than a run needs."""

    pos: int
    task: str
    body: bytes
    meta: bytes | None


class Meta(msgspec.Struct, omit_defaults=True):
    """The attributes of a record that most records do not have; stored only where there is one."""

    key: str | None = None
    headers: dict[str, str] | None = None
    due: float | None = None
    expires: float | None = None
    priority: int | None = None
    content_type: str | None = None  # None: msgpack for calls, json for events
    version: int = 1  # of the body's form
    parent: Any = None  # an id; lineage: the record whose run made this one
    root: Any = None  # the id of the first of its ancestors
    parent_group: str | None = None  # which group's run made it, and of which generation
    generation: int = 0
    offloaded: int | None = None  # bytes of a payload in the blob store: the body is a reference to it
    latest: str | None = None  # the key of which it must be the latest call when its turn comes
    damaged: str | None = None  # why some cannot be read; never stored

    def packed(self) -> bytes | None:
        """Return the attributes as bytes, None where all have their defaults."""
        data = _encode_meta(self)
        return None if data == b"\x80" else data


_encode_meta = msgspec.msgpack.Encoder().encode
unpack_meta = msgspec.msgpack.Decoder(Meta).decode
NO_META = Meta()


def read_meta(packed: bytes) -> Meta:
    """Return attributes to be looked at: where some are not as they should be, the others, and `damaged`.

    One such record is not to hide all those beside it. What runs a record takes `unpack_meta`, which raises.
    """
    try:
        return unpack_meta(packed)
    except ValueError as error:
        found = Meta(damaged=f"{error}")
    try:
        stored = msgspec.msgpack.decode(packed)
    except ValueError:
        return found
    for name, value in stored.items() if isinstance(stored, dict) else ():
        if name in Meta.__struct_fields__:
            try:
                setattr(found, name, getattr(msgspec.convert({name: value}, Meta), name))
            except ValueError:
                continue  # told already
    return found


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers to be sent. Raises BadArguments for what is not text by name."""
    if not isinstance(headers, Mapping):
        raise BadArguments(f"headers: {headers!r:.80} is no dict of text by name; nothing was sent")
    for name, value in headers.items():
        if not (is_text(name) and is_text(value)):
            raise BadArguments(f"headers: {name!r:.80}: {value!r:.80} is not text by name; nothing was sent")
    return dict(headers)


def checked_type(type: str) -> str:
    """Return an event's type. Raises BadArguments for what is no text, or cannot be kept."""
    if not is_text(type) or "\0" in type:
        raise BadArguments(f"type: {type!r:.80} is not text without a NUL character; nothing was sent")
    return type


def is_text(value: object) -> bool:
    """Say whether it is text that can be encoded; a lone surrogate, as in some files' names, cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


_random_bits = random.Random().getrandbits  # seeded by the system, whatever the user's code seeds


def _seed_anew() -> None:
    """A forked child must not make its parent's ids."""
    global _random_bits
    _random_bits = random.Random().getrandbits


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_seed_anew)


def new_head(now: float) -> bytes:
    """Return a fresh uuid7 whose last 24 bits are zero, so that a run can count up from it."""
    bits = _random_bits(50)  # 12 beside the version, 38 beside the variant
    high = int(now * 1000) << 16 | 0x7000 | bits >> 38
    low = 0x80_0000_0000 | bits & 0x3F_FFFF_FFFF
    return (high << 64 | low << 24).to_bytes(16, "big")


def is_fresh(id: Id, time: float) -> bool:
    """Say whether an id was made for this very append, so that nobody else can have it."""
    return isinstance(id, bytes) and id[13:] == b"\0\0\0" and id[:6] == int(time * 1000).to_bytes(6, "big")


def derived_id(time: float, *parts: bytes) -> bytes:
    """Return the uuid7 of a call that a run makes: the same for the same run and parts (H8).

    `time` is the parent record's, so that derived ids sort beside the others made at that time.
    """
    from hashlib import blake2b  # loads OpenSSL

    digest = blake2b(digest_size=10)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    tail = digest.digest()
    return bytes(
        (
            *int(time * 1000).to_bytes(6, "big"),
            0x70 | tail[0] & 0x0F,
            tail[1],
            0x80 | tail[2] & 0x3F,
            *tail[3:],
        )
    )


def id_of(head: Id, seq: int | None) -> Id:
    """Return the id of the record that stands `seq` places after the head of its run."""
    if not seq or isinstance(head, str):
        return head
    return head[:13] + (int.from_bytes(head[13:], "big") + seq).to_bytes(3, "big")


def id_text(id: Id) -> str:
    """Return an id as users see it."""
    if isinstance(id, str):
        return id
    text = id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_id(text: str) -> Id:
    """Return the stored form of an id given as text. Raises BadArguments where it cannot be one."""
    if not is_text(text) or not text.isprintable() or not 0 < len(text.encode()) <= MAX_ID_BYTES:
        raise BadArguments(f"an id is printable text of 1 to {MAX_ID_BYTES} bytes, not {text!r:.80}")
    if len(text) == 36 and text[14] == "7":
        try:
            parsed = bytes.fromhex(text.replace("-", ""))
        except ValueError:
            return text
        if len(parsed) == 16 and id_text(parsed) == text:
            return parsed
    return text
