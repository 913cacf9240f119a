"""An app's large payloads: what is recorded in their place where they are sent, and what that stands for."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from .blobs import INSTALL, Blobs, Store, installed, only_named, store_of
from .errors import BlobsUnavailable, RecordTooLarge
from .record import Meta
from .reference import is_reference
from .running import Run, current_run
from .transaction import enlisted

if TYPE_CHECKING:
    from .app import App
    from .engines.base import Engine

NEVER = sys.maxsize  # bytes beyond which a payload goes to the blob store


class Payloads:
    """The blob store of an app, for whoever sends or reads large bodies and results.

    Raises: ConfigError for a store that is asked for and cannot be.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._max_record: int = app.settings["max_record_size"]
        given, timeout = app.settings["blobs"], app.settings["blob_timeout"]
        self.store: Store | None = store_of(app.location, given, timeout, app.durability)
        self._blobs: tuple[Engine, Blobs] | None = None

    @property
    def blobs(self) -> Blobs:
        """What stores them for the engine that is open. Raises BlobsUnavailable where there is no store."""
        engine = self._app.engine
        if self._blobs is None or self._blobs[0] is not engine:
            if self.store is None:
                raise BlobsUnavailable(f"there is no store of large payloads here; {_how_to_have_one()}")
            blobs = Blobs(engine, self.store, self._app.settings["max_blob_size"], self.over(None))
            self._blobs = engine, blobs
        return self._blobs[1]

    def over(self, given: int | None) -> int:
        """Return the bytes beyond which a payload goes to the blob store."""
        over: int | None = self._app.settings["offload_over"] if given is None else given
        if over is None:
            return NEVER
        return over if self.store is not None else max(over, self._max_record)

    def load(self, body: Any) -> Any:
        """Return a body or a result as it was sent, from the blob store where it is there.

        Raises: BlobLost, BlobsUnavailable.
        """
        return self.blobs.load(body) if is_reference(body) else body

    def offload(self, body: bytes, meta: Meta) -> tuple[bytes, Meta]:
        """Put a large payload into the blob store; return what is recorded in its place.

        Raises: RecordTooLarge, BlobsUnavailable: nothing was sent.
        """
        if self.store is None:
            raise RecordTooLarge(
                f"the record has {len(body):,} bytes, max_record_size allows {self._max_record:,}; larger "
                f"ones go to a blob store, {_how_to_have_one()}"
            )
        run, sender = current_run.get(), enlisted(self._app)
        if run is not None and not run.sends:
            return only_named(body), _described(body, meta)
        if run is not None and sender is None and run.serves(self._app.engine):
            return self._offload_in_run(run, body, meta)
        with nullcontext() if sender is None else sender.in_use() as connection:
            return self._stored(body, connection), _described(body, meta)

    async def aoffload(self, body: bytes, meta: Meta) -> tuple[bytes, Meta]:
        """Do the same without holding up the event loop."""
        import asyncio  # see producer.py

        return await asyncio.to_thread(self.offload, body, meta)

    def _offload_in_run(self, run: Run, body: bytes, meta: Meta) -> tuple[bytes, Meta]:
        if run.excludes:  # it holds the only lock: the payload could not be entered
            if len(body) > self._max_record:
                raise RecordTooLarge(
                    f"the record has {len(body):,} bytes; within self.transaction() no more than "
                    f"max_record_size, {self._max_record:,}, can be sent here: send it before that, or after"
                )
            return body, meta
        with run.shield():
            return self._stored(body, None), _described(body, meta)

    def _stored(self, body: bytes, connection: Any) -> bytes:
        try:
            return self.blobs.offload(body, connection)
        except BlobsUnavailable as error:
            raise BlobsUnavailable(f"{error}; nothing was sent") from error


def _described(body: bytes, meta: Meta) -> Meta:
    return replace(meta, offloaded=len(body))


def _how_to_have_one() -> str:
    return f"to have one: {INSTALL}" if not installed() else "name one: blobs='s3://…' or RESPOOL_BLOBS"
