"""Blobs are the state's to know: who refers to them, and what nobody refers to any more (H18)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..blobs import BlobKey, ReferenceKey
from ..lent import LendsState
from .outbox import Outbox


class KafkaBlobs:
    """The inner engine's answers. References are entered on the way through the outbox."""

    inner: LendsState
    outbox: Outbox

    def touch_blob(self, digest: bytes, size: int, now: float, connection: Any = None) -> int:
        """Enter a blob that is to be stored or referred to; return its stamp."""
        return self.inner.touch_blob(digest, size, now, connection)

    def drop_references(
        self, after: ReferenceKey | None, before: float, limit: int
    ) -> tuple[int, ReferenceKey | None]:
        """Drop those of the next `limit` references whose record or outcome is gone."""
        return self.inner.drop_references(after, before, limit)

    def doom_blobs(self, after: BlobKey | None, before: float, limit: int) -> tuple[int, BlobKey | None]:
        """Doom those of the next `limit` blobs that nobody refers to."""
        return self.inner.doom_blobs(after, before, limit)

    def has_blobs(self) -> bool:
        """Say whether there are any."""
        return self.inner.has_blobs()

    def doomed_blobs(self, limit: int) -> list[BlobKey]:
        """Return blobs that are doomed."""
        return self.inner.doomed_blobs(limit)

    def forget_blobs(self, blobs: Sequence[BlobKey]) -> None:
        """Forget doomed blobs that are gone from their store."""
        self.inner.forget_blobs(blobs)

    def unknown_blobs(self, blobs: Sequence[BlobKey]) -> list[BlobKey]:
        """Return those that are not entered."""
        return self.inner.unknown_blobs(blobs)

    def referred(self, digest: bytes) -> list[ReferenceKey]:
        """Return who refers to blobs of a digest."""
        known = self.inner.referred(digest)
        relays = {box.group.id for box in self.outbox.boxes}
        return [each._replace(group=0) if each.group in relays else each for each in known]
