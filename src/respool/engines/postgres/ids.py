"""Ids in PostgreSQL: how they are stored, and where the record is that has one."""

from __future__ import annotations

from ...record import Id
from .batch import Executes

_TEXT = b"\xff"  # begins an id given as text; no id of ours does before the year 10889


def id_bytes(id: Id) -> bytes:
    """Return how an id is stored."""
    return _TEXT + id.encode() if isinstance(id, str) else id


def id_from(stored: bytes) -> Id:
    """Return an id as the rest of the program knows it."""
    return stored[1:].decode() if stored[:1] == _TEXT else stored


def find(db: Executes, sql: dict[str, bytes], id: Id) -> int | None:
    """Return the position of an id: one given as text, or a member of a run."""
    if isinstance(id, str) or id[13:] == b"\0\0\0":
        row = db.execute(sql["by_id"], (id_bytes(id),)).fetchone()
        return None if row is None else int(row[0])
    entry = db.execute(sql["by_run_id"], (id, id[:13] + b"\0\0\0"), binary=True).fetchone()
    if entry is None:
        return None
    first, last, head = entry
    seq = int.from_bytes(id[13:], "big") - int.from_bytes(head[13:], "big")
    if seq == 0:
        return int(first)
    if first + seq > last:
        return None
    bound = {"lo": first + seq, "hi": last, "seq": seq, "id": head}
    row = db.execute(sql["member"], bound).fetchone()
    return None if row is None else int(row[0])


def may_be_member(id: Id) -> bool:
    """Say whether an id may be that of a run's record that is not the first."""
    return not isinstance(id, str) and id[13:] != b"\0\0\0"
