"""What an engine knows of blobs: which there are, and who refers to each (H18).

A blob is entered before it is stored (`touch_blob`), and referred to in the transaction that writes the
record or the outcome: `append_*` and `transact` enter the reference of whatever body or result is one
(`reference.is_reference`). So a blob without a reference, untouched for longer than a payload can be on its
way, belongs to nobody; and one that is about to be removed takes no reference any more.

The sweep, in small steps: `drop_references` whose record or outcome is gone; `doom_blobs` that nobody refers
to; remove them from their store; `forget_blobs`. It can be killed between any two of these, and several may
be at it.

Where log and state are apart, a reference is entered before its record is appended, and holds the blob even
if that never came to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

PATIENCE = 86_400.0
"""Seconds that a blob, or a reference, is left alone since it was touched last: far longer than any payload
is on its way."""


class BlobKey(NamedTuple):
    """A blob as the engine knows it."""

    digest: bytes
    stamp: int


class ReferenceKey(NamedTuple):
    """Who refers to a blob: the record at a position (`group` 0), or what a group has of its outcome."""

    digest: bytes
    stamp: int
    pos: int
    group: int


class BlobRefs(Protocol):
    """The blobs of a store, and the references to them."""

    def touch_blob(self, digest: bytes, size: int, now: float, connection: Any = None) -> int:
        """Enter a blob that is about to be stored, or to be referred to once more; return its stamp.

        One statement; need not be synced by itself, since the reference will be. A doomed blob is passed
        over: another is entered in its place, with `now` in microseconds as its stamp.

        Parameters:
            connection: what `enlist` returned, where the reference will be written on that: an engine whose
                transactions keep out all other writers uses it.
        """

    def drop_references(
        self, after: ReferenceKey | None, before: float, limit: int
    ) -> tuple[int, ReferenceKey | None]:
        """Drop those of the next `limit` references, older than `before`, whose record or outcome is gone.

        A record below its log's floor is gone unless some group has it parked or leased; an outcome is gone
        with its record, its group or its value, and when another one is in its place.

        Parameters:
            after: where the last step ended; None: from the beginning.

        Returns: how many were dropped, and where to go on; None: that was the end.
        """

    def doom_blobs(self, after: BlobKey | None, before: float, limit: int) -> tuple[int, BlobKey | None]:
        """Doom those of the next `limit` blobs, untouched since `before`, that nobody refers to.

        No transaction that has entered a reference and is still open, be it for days, is overlooked.

        Returns: as `drop_references`.
        """

    def has_blobs(self) -> bool:
        """Say whether there are any. One round trip."""

    def doomed_blobs(self, limit: int) -> list[BlobKey]:
        """Return blobs that are doomed, at most `limit`."""

    def forget_blobs(self, blobs: Sequence[BlobKey]) -> None:
        """Forget doomed blobs that are gone from their store."""

    def unknown_blobs(self, blobs: Sequence[BlobKey]) -> list[BlobKey]:
        """Return those that are not entered: stored for a transaction that was rolled back."""

    def referred(self, digest: bytes) -> list[ReferenceKey]:
        """Return who refers to blobs of a digest, for checks and tests."""
