"""What stands in a record, or in an outcome, in place of a payload that is kept in a blob store."""

from __future__ import annotations

from typing import NamedTuple

MAGIC = b"\xc1respool blob\0\0\1"
"""Begins every reference. No MessagePack and no JSON begins with this byte; a pickle with all of it never."""
LENGTH = len(MAGIC) + 32 + 8 + 8


class Reference(NamedTuple):
    """Names a blob by its content.

    `stamp` tells apart what was stored under one digest at different times: a blob that is about to be
    removed is never taken into use again, so that no late removal can hit what was stored since (H18).
    """

    digest: bytes  # SHA-256
    size: int
    stamp: int  # microseconds since 1970 when it was first asked for

    @property
    def name(self) -> str:
        """The blob's name in its store."""
        text = self.digest.hex()
        return f"{text[:2]}/{text}-{self.stamp:x}"

    def packed(self) -> bytes:
        """Return what is stored in place of the payload."""
        return MAGIC + self.digest + self.size.to_bytes(8, "big") + self.stamp.to_bytes(8, "big")


def is_reference(body: bytes) -> bool:
    """Say whether a body, or a result, is a reference to a blob."""
    return len(body) == LENGTH and body.startswith(MAGIC)


def unpack(body: bytes) -> Reference:
    """Return the reference that a body is; `is_reference` has said that it is one."""
    start = len(MAGIC)
    return Reference(
        body[start : start + 32],
        int.from_bytes(body[start + 32 : start + 40], "big"),
        int.from_bytes(body[start + 40 :], "big"),
    )


def payload_of(name: str) -> tuple[bytes, int] | None:
    """Return (digest, stamp) of a blob by its name in the store; None where that is no blob's name."""
    text, dash, stamp = name.rpartition("/")[2].partition("-")
    try:
        digest, number = bytes.fromhex(text), int(stamp, 16)
    except ValueError:
        return None
    return (digest, number) if dash and len(digest) == 32 else None


def same_payload(body: bytes) -> bytes:
    """Return what of a body tells it from others: of a reference, only what it says of the payload."""
    return body[: len(MAGIC) + 32] if is_reference(body) else body
