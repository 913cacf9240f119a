"""Blobs in SQLite. There is one writer at a time: what it has written is seen before another dooms it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw

from ...clock import now as wall_clock
from ...reference import unpack
from ..blobs import BlobKey, ReferenceKey
from .part import Part
from .sql import SQL

_FIRST_BLOB, _FIRST_REFERENCE = (b"", 0), (b"", 0, 0, 0)


class SQLiteBlobs(Part):
    """Which blobs there are, and who refers to them."""

    def touch_blob(self, digest: bytes, size: int, now: float, connection: Any = None) -> int:
        """Enter a blob that is to be stored or referred to; return its stamp.

        On the connection of a caller's transaction, where there is one: that holds the only lock.
        """
        bound = (digest, int(now * 1_000_000), size, now)
        if connection is not None:
            return int(connection.execute(SQL["touch_blob"], bound).get)
        with self._state.lock, self._state.writing() as db:
            return int(db.execute(SQL["touch_blob"], bound).get)

    def drop_references(
        self, after: ReferenceKey | None, before: float, limit: int
    ) -> tuple[int, ReferenceKey | None]:
        """Drop those of the next `limit` references whose record or outcome is gone."""
        with self._reader.lock, self._reader.reading() as db:  # no write lock for nothing
            bound = (*(after or _FIRST_REFERENCE), limit, before)
            page = db.execute(SQL["references"], bound).fetchall()
        gone = [row[:4] for row in page if not row[4]]
        if gone:
            with self._state.lock, self._state.writing() as db:
                db.execute("BEGIN IMMEDIATE")
                db.executemany(SQL["drop_reference"], [(*key, before) for key in gone])
                db.execute("COMMIT")
        return len(gone), ReferenceKey(*page[-1][:4]) if len(page) == limit else None

    def doom_blobs(self, after: BlobKey | None, before: float, limit: int) -> tuple[int, BlobKey | None]:
        """Doom those of the next `limit` blobs that nobody refers to."""
        with self._reader.lock, self._reader.reading() as db:
            page = db.execute(SQL["blobs"], (*(after or _FIRST_BLOB), limit, before)).fetchall()
        lone = [row[:2] for row in page if row[2]]
        doomed = 0
        if lone:
            with self._state.lock, self._state.writing() as db:
                db.execute("BEGIN IMMEDIATE")
                for key in lone:
                    db.execute(SQL["doom_blob"], (*key, before, wall_clock()))
                    doomed += db.changes()
                db.execute("COMMIT")
        return doomed, BlobKey(*page[-1][:2]) if len(page) == limit else None

    def has_blobs(self) -> bool:
        """Say whether there are any."""
        with self._reader.lock, self._reader.reading() as db:
            return bool(db.execute(SQL["has_blobs"]).get)

    def doomed_blobs(self, limit: int) -> list[BlobKey]:
        """Return blobs that are doomed."""
        with self._reader.lock, self._reader.reading() as db:
            return [BlobKey(*row) for row in db.execute(SQL["doomed_blobs"], (limit,))]

    def forget_blobs(self, blobs: Sequence[BlobKey]) -> None:
        """Forget doomed blobs that are gone from their store."""
        with self._state.lock, self._state.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(SQL["forget_blob"], blobs)
            db.execute("COMMIT")

    def unknown_blobs(self, blobs: Sequence[BlobKey]) -> list[BlobKey]:
        """Return those that are not entered."""
        with self._reader.lock, self._reader.reading() as db:
            return [key for key in blobs if db.execute(SQL["blob"], key).get is None]

    def referred(self, digest: bytes) -> list[ReferenceKey]:
        """Return who refers to blobs of a digest."""
        with self._reader.lock, self._reader.reading() as db:
            return [ReferenceKey(*row) for row in db.execute(SQL["referred"], (digest,))]


def put_references(db: apsw.Connection, group: int, references: Sequence[tuple[int, bytes]]) -> None:
    """Enter who refers to blobs from a group's outcomes; group 0: from what is run in place of a body."""
    now = wall_clock()
    for pos, packed in references:
        reference = unpack(packed)
        db.execute(SQL["put_reference"], (reference.digest, reference.stamp, pos, group, now))
