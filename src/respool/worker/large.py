"""Arguments and results that are in the blob store: between runs, in the child, with no lock held (H1)."""

from __future__ import annotations

import logging
import random
import time
from typing import Any

from ..errors import AppendUnknown, BlobsUnavailable, EngineUnavailable
from .services import Runner

log = logging.getLogger("respool.worker")
PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before a store that is out of reach is tried again


class LargePayloads:
    """The blob store as a worker's process uses it.

    While it is out of reach, what needs it is put off, and does not even try: each try may take long, and
    others wait behind it.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._again = 0.0  # monotonic: when it may be tried again
        self._error: BlobsUnavailable | None = None

    def load(self, runner: Runner, body: bytes) -> Any:
        """Return the arguments that a reference stands for. Raises BlobLost, BlobsUnavailable."""
        if self._error is not None and time.monotonic() < self._again:
            raise self._error
        try:
            payload = runner.task.app.payloads.load(body)
        except BlobsUnavailable as error:
            self._failed(error)
            raise
        self._failures, self._error = 0, None
        return payload

    def _failed(self, error: BlobsUnavailable) -> None:
        if self._error is None:
            log.error("calls with large arguments wait: %s", error)
        self._error = error
        self._again = time.monotonic() + PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1

    def later(self, now: float) -> float:
        """Return when a call may be tried again; they do not all come back at once."""
        wait = max(self._again - time.monotonic(), 0.0)
        return now + wait + random.uniform(0.0, max(wait, 1.0) / 4)

    def result(self, runner: Runner, encoded: bytes, *, excludes: bool) -> tuple[bytes, bool]:
        """Return what is stored of a large result, and whether that is a reference.

        Where the blob store is out of reach, one that is not larger than a record may be is stored as it is;
        where the engine is, any: it is settled when the engine is back.

        Parameters:
            excludes: the run's own transaction holds the only lock, and nothing else can be written: it is
                stored as it is.

        Raises: RecordTooLarge, BlobsUnavailable: it cannot be stored.
        """
        if excludes:
            return encoded, False
        app = runner.task.app
        try:
            return app.payloads.blobs.offload(encoded, None, "the result"), True
        except (EngineUnavailable, AppendUnknown) as error:
            if isinstance(error, BlobsUnavailable) and len(encoded) > app.settings["max_record_size"]:
                raise BlobsUnavailable(
                    f"the result of {len(encoded):,} bytes could not be stored: {error}"
                ) from error
            log.warning("a result of %d bytes is stored in the log: %s", len(encoded), error)
            return encoded, False
