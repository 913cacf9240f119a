"""State that is lent to a log which is kept elsewhere.

Such a log has its number, groups and their positions here, and no records but those that a group has parked:
`Change.kept` puts them here with the change that parks them (H15), and `rows` gives them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from .base import Engine
from .things import Stream


class LendsState(Engine, Protocol):
    """An engine whose State another engine borrows."""

    def reserve(self, positions: Iterable[int], *, ahead: bool = False) -> None:
        """Make room for what groups will have to say of these positions. Cheap where there is room.

        Parameters:
            ahead: and of those that will follow soon. It may take a while: not for who is to run some now.
        """

    def forget_below(self, stream: Stream, log: int, end: int) -> int:
        """Forget outcomes and journal of what a log has lost below a position; what is parked stays.

        Nothing that a group has pending or leased lies below it. Returns: how much there is left to do, 0:
        nothing for now.
        """

    def set_within(self, stream: Stream, setting: str, name: str, value: str) -> None:
        """Set one of what a stream's setting holds by name; the rest stays, whatever it has become meanwhile.

        Synced.
        """

    def find_kept(self, begins: bytes) -> int | None:
        """Return where a kept record is whose attributes begin so; None: there is none."""

    def drop_kept(self, stream: Stream, limit: int) -> int:
        """Drop kept records that are parked and leased nowhere any more; return how many."""
