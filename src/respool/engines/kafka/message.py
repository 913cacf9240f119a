"""Records as Kafka carries them: from what we append to what is sent, and back.

A message with our header is ours. Any other was written by another program: its id is its place, its key and
headers are text as far as they are, and CloudEvents' headers say its id, type and time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from ...delivery.model import NewCall
from ...keys import key_hash
from ...record import NO_META, OFFSET_BITS, Id, Meta, Row, read_meta
from ..base import Record
from . import header as h

TRACE = "traceparent"
TOMBSTONE = b"null"  # what a compacted topic's "deleted" is as JSON
PLACE = "kafka:"  # begins the ids of records that others wrote

Item = tuple[bytes | None, bytes | None, Any]


def item(row: NewCall, events: bool = False) -> Item:
    """Return value, key and headers of a record of ours. `events`: with CloudEvents' headers too."""
    return item_of(row, int(row.time * h.MICRO), events)


def item_of(row: NewCall, micros: int, events: bool = False) -> Item:
    """Return the same of a record with a time in microseconds."""
    packed = h.pack(row.id, micros, row.task, row.meta)
    headers: list[tuple[str, Any]] = [(h.NAME, packed)]
    key = None
    if row.meta is not None:
        meta = read_meta(row.meta)
        key = None if meta.key is None else meta.key.encode()
        headers += _trace(meta)
    if events:
        headers += _event_headers(row)
    return row.body, key, headers


def items_of_run(
    bodies: Sequence[bytes], task: str, meta: bytes | None, head: bytes, now: float, events: bool = False
) -> Iterator[Item]:
    """Yield value, key and headers of the records of a run."""
    micros = int(now * h.MICRO)
    key, more = None, []
    if meta is not None:
        unpacked = read_meta(meta)
        key, more = None if unpacked.key is None else unpacked.key.encode(), _trace(unpacked)
    if events:
        for seq, body in enumerate(bodies):
            id = head[:13] + (int.from_bytes(head[13:], "big") + seq).to_bytes(3, "big")
            yield item(NewCall(0, task, body, meta, id, now), events=True)
        return
    before, behind = h.before_run(head), h.tail(micros, task, meta)
    first, name = int.from_bytes(head[13:], "big"), h.NAME
    for seq, body in enumerate(bodies, first):
        yield body, key, [(name, before + seq.to_bytes(3, "big") + behind), *more]


def _trace(meta: Meta) -> list[tuple[str, Any]]:
    found = (meta.headers or {}).get(TRACE)
    return [] if found is None else [(TRACE, found.encode())]


def _event_headers(row: NewCall) -> list[tuple[str, Any]]:
    """Return the headers of CloudEvents' binding to Kafka, in binary mode."""
    from datetime import UTC

    from ...record import id_text
    from .. import public_id

    at = datetime.fromtimestamp(row.time, UTC).isoformat().replace("+00:00", "Z")
    meta = read_meta(row.meta) if row.meta else NO_META
    kind = "application/json" if meta.content_type in (None, "json") else "application/msgpack"
    said = {
        "ce_specversion": "1.0",
        "ce_id": id_text(public_id(row.id)),
        "ce_source": (meta.headers or {}).get("ce_source", "respool"),
        "ce_type": row.task or "event",
        "ce_time": at,
        "content-type": kind,
    }
    return [(name, value.encode()) for name, value in said.items()]


def key_of(message: Any) -> str | None:
    """Return a message's key; None where it has none."""
    key = message.key()
    return None if key is None else _text(key)


@lru_cache(maxsize=65536)  # the keys of a backlog come again and again
def hash_of(key: bytes) -> int:
    """Return what a message's key is known by in an ordered group."""
    return key_hash(_text(key))


def headers_of(message: Any) -> bytes | None:
    """Return our header, None where the message is another's."""
    for name, value in message.headers() or ():
        if name == h.NAME:
            packed: bytes = value
            return packed
    return None


def row_of(log: int, message: Any) -> Row:
    """Return a message as a worker needs it."""
    ours = headers_of(message)
    pos = log << OFFSET_BITS | message.offset()
    if ours is not None:
        task, meta = h.row_of(ours)
        return Row(pos, task, message.value() or b"", meta)
    task, packed = h.row_of(_header_of_another(message))
    return Row(pos, task, _body(message), packed)


def kept_of(log: int, message: Any) -> tuple[Row, bytes]:
    """Return a message as a worker needs it, and its header: all that is to be known of it."""
    header, body = headers_of(message), message.value()
    if header is None:
        header, body = _header_of_another(message), _body(message)
    task, meta = h.row_of(header)
    return Row(log << OFFSET_BITS | message.offset(), task, body or b"", meta), header


def header_of(message: Any) -> bytes:
    """Return the header of a message: ours, or one made of what another's says."""
    return headers_of(message) or _header_of_another(message)


def record_of(log: int, message: Any) -> Record:
    """Return a message in full."""
    packed = header_of(message)
    body = message.value() or b"" if headers_of(message) is not None else _body(message)
    return record(log << OFFSET_BITS | message.offset(), body, packed)


def record(pos: int, body: bytes, packed: bytes) -> Record:
    """Return a record from its body and its header."""
    task, meta = h.row_of(packed)
    micros = h.micros_of(packed)
    return Record(pos, h.id_of(packed), micros / h.MICRO, task, body, read_meta(meta) if meta else NO_META)


def _body(message: Any) -> bytes:
    value = message.value()
    return TOMBSTONE if value is None else value


def _header_of_another(message: Any) -> bytes:
    said = {name: _text(value) for name, value in message.headers() or ()}
    meta = Meta(key=key_of(message), headers=said or None)
    micros = max(message.timestamp()[1], 0) * 1000
    try:
        micros = int(datetime.fromisoformat(said["ce_time"]).timestamp() * h.MICRO)
    except (KeyError, ValueError):
        pass
    return h.pack(
        place_id(message.topic(), message.partition(), message.offset()),
        micros,
        said.get("ce_type", ""),
        meta.packed(),
    )


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "backslashreplace")


def place_id(topic: str, partition: int, offset: int) -> Id:
    """Return the id of a record that another program wrote."""
    return f"\0{PLACE}{topic}/{partition}/{offset}"  # of no namespace


def place_from(id: Id) -> tuple[str, int, int] | None:
    """Return (topic, partition, offset) that an id names; None where it names no place."""
    if not isinstance(id, str) or not id.startswith(PLACE):
        return None
    topic, _, rest = id.removeprefix(PLACE).partition("/")
    partition, _, offset = rest.partition("/")
    return (topic, int(partition), int(offset)) if partition.isdigit() and offset.isdigit() else None
