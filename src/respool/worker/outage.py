"""Whether the engine is out of reach, as a supervisor sees it."""

from __future__ import annotations

import logging
import time

from ..errors import RespoolError, unsent

log = logging.getLogger("respool.worker")


class Outage:
    """From the first thing that could not be done to the next that could; told once, and only if it lasts."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._told = False

    def noted(self, what: str, error: RespoolError, *, patience: float) -> None:
        """Note what could not be done; say so where that goes on for longer than `patience` seconds."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        elif not self._told and now - self._since >= patience:
            self._told = True
            log.error("cannot %s for %.1f s: %s", what, now - self._since, unsent(error))

    def over(self) -> None:
        """Note that all could be done."""
        if self._told:
            log.info("the engine is back")
        self._since, self._told = None, False

    def lasts(self) -> float | None:
        """Return for how many seconds it has lasted; None: there is none."""
        return None if self._since is None else time.monotonic() - self._since
