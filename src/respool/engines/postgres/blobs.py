"""Blobs in PostgreSQL: who refers to one shares its row until the commit, who dooms it takes all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...clock import now as wall_clock
from ..blobs import BlobKey, ReferenceKey
from ..columns import spans_of
from .connection import Bounded, snapshot
from .part import Part
from .references import columns

_FIRST_BLOB, _FIRST_REFERENCE = BlobKey(b"", 0), ReferenceKey(b"", 0, 0, 0)


class PostgresBlobs(Part):
    """Which blobs there are, and who refers to them."""

    def touch_blob(self, digest: bytes, size: int, now: float, connection: Any = None) -> int:
        """Enter a blob that is to be stored or referred to; return its stamp.

        Never in a transaction of the caller's: all who send the same payload would wait for its end.
        """
        bound = (digest, int(now * 1_000_000), size, now)

        def touch(db: Bounded) -> int:
            row = db.execute(self._sql["touch_blob"], bound).fetchone()
            assert row is not None
            return int(row[0])

        return self._state.append(touch)

    def drop_references(
        self, after: ReferenceKey | None, before: float, limit: int
    ) -> tuple[int, ReferenceKey | None]:
        """Drop those of the next `limit` references whose record or outcome is gone."""
        page, gone = self._reader.read(lambda db: self._gone(db, after, before, limit))
        dropped = 0
        if gone:
            places, groups = [key.pos for key in gone], [key.group for key in gone]
            bound = {**columns(gone), "places": places, "grps": groups, "before": before}
            dropped = self._state.append(lambda db: db.execute(self._sql["drop_references"], bound).rowcount)
        return dropped, page[-1] if len(page) == limit else None

    def _gone(
        self, db: Bounded, after: ReferenceKey | None, before: float, limit: int
    ) -> tuple[list[ReferenceKey], list[ReferenceKey]]:
        """Return a page of references, and those of them that are not needed: from one snapshot.

        What is leased was parked before, or will be: in one snapshot it is in one of the two places (P2).
        """
        with snapshot(db):
            digest, stamp, pos, group = after or _FIRST_REFERENCE
            bound = {
                "digest": digest,
                "stamp": stamp,
                "pos": pos,
                "grp": group,
                "before": before,
                "limit": limit,
            }
            rows = db.execute(self._sql["references"], bound, binary=True).fetchall()
            page, gone = (
                [ReferenceKey(*row[:4]) for row in rows],
                [ReferenceKey(*row[:4]) for row in rows if row[4]],
            )
            if gone:
                leases = db.execute(self._sql["all_leases"], binary=True).fetchall()
                spans = list(spans_of(leases))
                gone = [key for key in gone if not any(span.lo <= key.pos < span.hi for span in spans)]
        return page, gone

    def doom_blobs(self, after: BlobKey | None, before: float, limit: int) -> tuple[int, BlobKey | None]:
        """Doom those of the next `limit` blobs that nobody refers to."""
        digest, stamp = after or _FIRST_BLOB
        bound = {"digest": digest, "stamp": stamp, "before": before, "limit": limit}
        page = self._reader.read(lambda db: db.execute(self._sql["blobs"], bound, binary=True).fetchall())
        lone = [BlobKey(*row[:2]) for row in page if row[2]]
        doomed = self._state.append(lambda db: self._doom(db, lone, before)) if lone else 0
        return doomed, BlobKey(*page[-1][:2]) if len(page) == limit else None

    def _doom(self, db: Bounded, lone: Sequence[BlobKey], before: float) -> int:
        with db.transaction():
            bound = {**columns(lone), "before": before}
            locked = db.execute(self._sql["lock_blobs"], bound, binary=True).fetchall()
            if not locked:
                return 0
            return db.execute(self._sql["doom_blobs"], {**columns(locked), "now": wall_clock()}).rowcount

    def has_blobs(self) -> bool:
        """Say whether there are any."""
        found = self._reader.read(lambda db: db.execute(self._sql["has_blobs"]).fetchone())
        return found == (True,)

    def doomed_blobs(self, limit: int) -> list[BlobKey]:
        """Return blobs that are doomed."""
        found = self._reader.read(
            lambda db: db.execute(self._sql["doomed_blobs"], (limit,), binary=True).fetchall()
        )
        return [BlobKey(*row) for row in found]

    def forget_blobs(self, blobs: Sequence[BlobKey]) -> None:
        """Forget doomed blobs that are gone from their store."""
        self._state.append(lambda db: db.execute(self._sql["forget_blobs"], columns(blobs)))

    def unknown_blobs(self, blobs: Sequence[BlobKey]) -> list[BlobKey]:
        """Return those that are not entered."""
        found = self._reader.read(
            lambda db: db.execute(self._sql["unknown_blobs"], columns(blobs), binary=True).fetchall()
        )
        return [BlobKey(*row) for row in found]

    def referred(self, digest: bytes) -> list[ReferenceKey]:
        """Return who refers to blobs of a digest."""
        found = self._reader.read(
            lambda db: db.execute(self._sql["referred"], (digest,), binary=True).fetchall()
        )
        return [ReferenceKey(*row) for row in found]
