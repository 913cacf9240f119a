"""Queues and streams that cannot be used now: each rests by itself, and the others go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, TypeVar

from ..errors import OF_ONE_STREAM, RespoolError, StreamUnavailable, unsent

T = TypeVar("T")
log = logging.getLogger("respool.worker")

PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)  # seconds at least, one after the other; …
SHARE = 2.0  # … and so many times as long as the look took, twice that the next time, up to …
MOST_SHARE = 8.0  # … as many: the others have the rest of the time


class Rest(NamedTuple):
    """Why something rests."""

    error: RespoolError
    times: int  # that it was looked at in vain
    until: float  # when it is looked at again (monotonic)


class Resting:
    """Which queues or streams rest, by number; each is said when it begins, changes and ends.

    Parameters:
        what: what becomes of one meanwhile, as the log says it.
        alone: there is one, and nobody whom a look at it holds up.
    """

    def __init__(self, what: str = "rests", *, alone: bool = False) -> None:
        self._what, self._alone = what, alone
        self._rests: dict[int, Rest] = {}

    def __bool__(self) -> bool:
        """Say whether any rests, or was not found to be well again."""
        return bool(self._rests)

    def left(self, id: int) -> float | None:
        """Return for how many seconds one rests yet; None where it does not."""
        rest = self._rests.get(id)
        if rest is None:
            return None
        left = rest.until - time.monotonic()
        return left if left > 0 else None

    def look(self, id: int, shown: str, ask: Callable[[], bool]) -> bool:
        """Ask whether there is work, unless it rests. False, and a rest begins, where that cannot be told."""
        if not self._rests:
            found, _ = self.tried(id, shown, ask)
            return bool(found)
        if self.left(id) is not None:
            return False
        found, error = self.tried(id, shown, ask)
        if error is None and not found:  # else it is well again once something was claimed
            self.over(id, shown)
        return bool(found)

    def tried(self, id: int, shown: str, do: Callable[[], T]) -> tuple[T | None, RespoolError | None]:
        """Return what something gives, and why it rests where that concerns one queue or stream alone."""
        began = time.monotonic()
        try:
            return do(), None
        except OF_ONE_STREAM as error:
            self._begin(id, shown, error, time.monotonic() - began)
            return None, error

    def _begin(self, id: int, shown: str, error: RespoolError, took: float) -> None:
        before = self._rests.get(id)
        times = 1 if before is None else before.times + 1
        pause = PAUSES[min(times, len(PAUSES)) - 1]
        if not self._alone:
            pause = max(pause, took * min(SHARE * 2 ** min(times - 1, 10), MOST_SHARE))
        elif isinstance(error, StreamUnavailable):
            pause = PAUSES[0]
        self._rests[id] = Rest(error, times, time.monotonic() + pause)
        if before is None or (type(before.error), str(before.error)) != (type(error), str(error)):
            log.error("%s %s: %s. It is looked at again, now and then", shown, self._what, unsent(error))

    def over(self, id: int, shown: str) -> None:
        """Note that all went well, unless it rests."""
        if id in self._rests and self.left(id) is None:
            del self._rests[id]
            log.info("%s goes on", shown)


class Apart:
    """Keeps what goes wrong with one queue or stream from holding up what is done for the others after it.

    `with apart:` around each of them; `end` says at last what went wrong first.
    """

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, OF_ONE_STREAM):
            return False
        self._error = self._error or error
        return True

    def end(self) -> None:
        """Raise what went wrong first, if anything did."""
        if self._error is not None:
            raise self._error
