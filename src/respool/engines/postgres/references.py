"""Entering who refers to blobs, in the transaction that writes the record or the outcome (H18)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...clock import now as wall_clock
from ...delivery.model import NewCall
from ...errors import BlobsUnavailable
from ...reference import is_reference, unpack

Key = tuple[bytes, int]


def columns(blobs: Iterable[Sequence[Any]]) -> dict[str, list[Any]]:
    """Return blobs, given by what begins with digest and stamp, as a statement takes them."""
    found = list(blobs)
    return {"digests": [key[0] for key in found], "stamps": [key[1] for key in found]}


def offloaded(rows: Iterable[NewCall]) -> list[NewCall]:
    """Return those rows whose bodies are references."""
    return [row for row in rows if row.meta is not None and is_reference(row.body)]


def _key(row: NewCall) -> Key:
    digest, _, stamp = unpack(row.body)
    return digest, stamp


def hold(db: Any, sql: dict[str, bytes], rows: Sequence[NewCall], *, settling: bool) -> list[NewCall]:
    """Keep the blobs that rows refer to from being removed until the commit; return the rows whose are kept.

    A caller's transaction whose snapshot is older than a blob cannot see it, nor keep it. Nor need it: it was
    entered just now, and the sweep waits for a day.

    Raises: BlobsUnavailable where one was removed; not with `settling`: its run will say so.
    """
    wanted = sorted({_key(row) for row in rows})
    found = db.execute(sql["hold_blobs"], columns(wanted), binary=True).fetchall()
    held = {(bytes(digest), stamp) for digest, stamp in found}
    if len(held) < len(wanted) and not settling:
        if not db.execute(sql["sees_commits"]).fetchone()[0]:
            return list(rows)
        raise BlobsUnavailable(
            "a payload was removed from the blob store before its record was written, more than a day after "
            "it was stored; nothing was sent: send it again"
        )
    return [row for row in rows if _key(row) in held]


def refer(db: Any, sql: dict[str, bytes], rows: Sequence[NewCall], ids: Sequence[bytes]) -> None:
    """Enter the references of rows, by their ids, in the transaction that has appended them."""
    each = dict(zip(ids, rows, strict=True))  # an id only once
    bound = {
        **columns(map(_key, each.values())),
        "ids": list(each),
        "bodies": [row.body for row in each.values()],
        "now": wall_clock(),
    }
    db.execute(sql["refer_to_blobs"], bound)


def put_references(
    db: Any, sql: dict[str, bytes], group: int, references: Sequence[tuple[int, bytes]]
) -> None:
    """Enter who refers to blobs from a group's outcomes; group 0: from what is run in place of a body.

    Of what is doomed by then the reader is told.
    """
    newest = dict(references)
    blobs = columns([(digest, stamp) for digest, _, stamp in map(unpack, newest.values())])
    db.execute(sql["hold_blobs"], blobs)
    db.execute(sql["put_references"], {**blobs, "places": list(newest), "grp": group, "now": wall_clock()})
