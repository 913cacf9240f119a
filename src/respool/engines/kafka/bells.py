"""Sleeping beside a log that others write, too: nobody rings for what they append."""

from __future__ import annotations

from ..base import Sleeper
from .reader import Reader

OFTEN = 0.1  # seconds between two looks at topics that other programs write


class KafkaSleeper:
    """The inner engine's sleeper; who sleeps reads nothing meanwhile.

    Parameters:
        unheard: other programs write some of the logs: it comes back to look, and is sure to hear nothing.
    """

    def __init__(self, inner: Sleeper, reader: Reader, *, unheard: bool) -> None:
        self._inner, self._reader, self._unheard = inner, reader, unheard

    @property
    def hears(self) -> bool:
        """Whether few looks of its own are enough."""
        return not self._unheard and bool(getattr(self._inner, "hears", False))

    @property
    def stood_aside(self) -> bool:
        """Whether the last sleep ended since somebody else was rung for."""
        return bool(getattr(self._inner, "stood_aside", False))

    def prepare(self) -> None:
        """Listen from now on, and ask the brokers for nothing where nothing was read for a while."""
        self._reader.rest()
        self._inner.prepare()

    def sleep(self, timeout: float) -> bool:
        """Wait for a ring; not for long where nobody rings."""
        return self._inner.sleep(min(timeout, OFTEN) if self._unheard else timeout)

    def cancel(self) -> None:
        """Stop listening without having slept."""
        self._inner.cancel()

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is a ring; -1: there is none."""
        return self._inner.fileno()

    def close(self) -> None:
        """Give it up."""
        self._inner.close()
