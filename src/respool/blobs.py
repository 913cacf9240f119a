"""Large payloads: kept in a blob store, a small reference in the record.

A blob is named by the digest of its content, so what is sent twice is stored once. The engine knows every
blob before it is stored, and every reference to it in the transaction that writes the record
(`engines/blobs.py`): so nothing that is referenced is ever removed, and what was stored for nothing is found
again (H18).

The store is obstore's: a folder, S3, Google's or Azure's. This module alone imports it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .clock import now as wall_clock
from .errors import BlobLost, BlobsUnavailable, ConfigError, RecordTooLarge
from .location import Location
from .reference import Reference, unpack

if TYPE_CHECKING:
    from .engines.base import Engine

CHUNK = 4 << 20  # bytes taken from the store at a time
SCHEMES = ("file", "memory", "s3", "s3a", "gs", "az", "abfs", "abfss", "azure")
INSTALL = "pip install 'respool[blobs]'"
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")
_runtime: list[int] = []
"""The process in which obstore has begun to work: in one forked from it, its threads are missing."""


def default_url(location: Location) -> str | None:
    """Return where blobs are kept unless that is said: beside the file; None for a server."""
    if location.path is not None:
        from pathlib import Path

        return Path(location.path + "-blobs").as_uri()
    return "memory:///" if location.in_memory else None


def store_of(location: Location, given: str | None, timeout: float, durability: str) -> Store | None:
    """Return the blob store of a log: as given, as RESPOOL_BLOBS says, or by default; None: there is none.

    Raises: ConfigError for one that is asked for and cannot be.
    """
    url = given or os.environ.get("RESPOOL_BLOBS") or None
    if url is None and installed():
        own = default_url(location)
        return None if own is None else Store(own, timeout, synced=durability == "full", own=True)
    return None if url is None else Store(url, timeout, synced=durability == "full")


def installed() -> bool:
    """Say whether obstore is there, without importing it."""
    from importlib.util import find_spec

    return find_spec("obstore") is not None


def unnamed() -> str:
    """Say that a command knows no store of large payloads, and how one is named."""
    return (
        "there is no store of large payloads here: name it in the app that -A names, App(…, blobs='s3://…'), "
        "or by RESPOOL_BLOBS" + ("" if installed() else f"; it needs {INSTALL}")
    )


class Store:
    """A blob store, as a URL names it. Nothing is opened until it is used.

    Parameters:
        timeout: seconds that a request may take, further tries included.
        synced: what is stored is on disk when `put` returns, as far as that is ours to do.
        own: it is a folder of this log's alone.

    Raises: ConfigError for a URL that cannot be used, BlobsUnavailable where the store is out of reach.
    """

    def __init__(self, url: str, timeout: float, *, synced: bool = True, own: bool = False) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise ConfigError(f"blobs: {url!r} names no store: file:///…, s3://…, gs://… or az://…")
        if not installed():
            raise ConfigError(f"blobs={url!r} needs obstore: {INSTALL}")
        self.url, self.own = url, own and parts.scheme == "file"
        self.shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        self._url, self._options = url.partition("?")[0], dict(parse_qsl(parts.query))
        self._timeout, self._synced = timeout, synced
        self._folder = unquote(parts.path) if parts.scheme == "file" else None
        if self._folder is not None and (parts.netloc or not os.path.isabs(self._folder)):
            raise ConfigError(f"blobs: {url!r}: a folder is named by three slashes and its full path")
        self._store: Any = None

    def _opened(self) -> Any:
        if _runtime and _runtime[0] != os.getpid():
            raise BlobsUnavailable(
                f"the blob store {self.shown} cannot be used here: obstore was used before this process was "
                "forked, and does not survive that. Start the process by spawn or forkserver"
            )
        if self._store is None:
            self._store = self._open()
        _runtime[:] = [os.getpid()]
        return self._store

    def _open(self) -> Any:
        from obstore.exceptions import BaseError
        from obstore.store import LocalStore, from_url

        half = timedelta(seconds=self._timeout / 2)  # what one try may take, and when the last may begin
        try:
            if self._folder is not None:
                return LocalStore(self._folder)
            if self._url.startswith("memory:"):
                return from_url(self._url)
            client: Any = {"timeout": half, "connect_timeout": min(half, timedelta(seconds=5))}
            if self._options.get("endpoint", "").startswith("http://"):
                client["allow_http"] = True
            opened: Any = from_url
            return opened(
                self._url,
                config=self._options or None,
                client_options=client,
                retry_config={"max_retries": 5, "retry_timeout": half},
            )
        except OSError as error:
            raise self._unavailable(error) from error
        except (BaseError, ValueError, TypeError) as error:
            raise ConfigError(f"blobs: {self.shown} cannot be opened: {_first_line(error)}") from error

    def _unavailable(self, error: BaseException) -> BlobsUnavailable:
        return BlobsUnavailable(f"the blob store {self.shown} cannot be used: {_first_line(error)}")

    def _run(self, run: Callable[[Any], Any]) -> Any:
        """Run an operation; what obstore raises comes out as an error of ours, but for "not found"."""
        if self._folder is not None and not os.path.isdir(self._folder):  # not made, or not mounted
            raise BlobsUnavailable(f"there is no folder {self._folder} for large payloads here")
        store = self._opened()
        from obstore.exceptions import BaseError

        try:
            return run(store)
        except FileNotFoundError as error:
            if any(said in str(error) for said in _NO_BUCKET):
                raise self._unavailable(error) from error
            raise
        except (BaseError, OSError) as error:
            raise self._unavailable(error) from error

    def put(self, name: str, body: bytes) -> None:
        """Store a blob, on disk when this returns; one that is there already stays as it is."""
        if self._folder is not None:
            self._make_folder()
        if not self.holds(name, len(body)):
            self._run(lambda store: store.put(name, body))
        if self._folder is not None and self._synced:
            self._sync(name)  # whoever has stored it may have died before it was

    def holds(self, name: str, size: int) -> bool:
        """Say whether a blob of this name and size is there."""
        try:
            return bool(self._run(lambda store: store.head(name))["size"] == size)
        except FileNotFoundError:
            return False

    def _make_folder(self) -> None:
        assert self._folder is not None
        try:
            os.makedirs(self._folder, exist_ok=True)
        except OSError as error:
            raise self._unavailable(error) from error

    def _sync(self, name: str) -> None:
        assert self._folder is not None
        path = os.path.join(self._folder, name)
        try:
            for each in (path, os.path.dirname(path), self._folder):
                descriptor = os.open(each, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise self._unavailable(error) from error

    def get(self, name: str, size: int) -> bytearray:
        """Return a blob's content, in memory once. Raises FileNotFoundError, ValueError: of another size."""

        def read(store: Any) -> bytearray:
            found = store.get(name)
            if found.meta["size"] != size:
                raise ValueError(f"it has {found.meta['size']:,} bytes, not {size:,}")
            content, at = bytearray(size), 0
            for chunk in found.stream(min_chunk_size=CHUNK):
                content[at : at + len(chunk)] = chunk
                at += len(chunk)
            if at != size:
                raise ValueError(f"it has {at:,} bytes, not {size:,}")
            return content

        content: bytearray = self._run(read)
        return content

    def remove(self, name: str) -> None:
        """Remove a blob; one that is not there is no error."""
        try:
            self._run(lambda store: store.delete(name))
        except FileNotFoundError:
            return

    def files(self, before: float) -> Iterator[list[str]]:
        """Yield the names of all files in the store's folder older than a moment, folder by folder."""
        assert self._folder is not None
        for place, _, names in os.walk(self._folder):
            relative = os.path.relpath(place, self._folder)
            yield [
                os.path.join(relative, name) for name in names if _is_older(os.path.join(place, name), before)
            ]

    def has_files(self) -> bool:
        """Say whether there is anything in the store's folder."""
        assert self._folder is not None
        try:
            with os.scandir(self._folder) as entries:
                return any(True for _ in entries)
        except FileNotFoundError:
            return False

    def remove_file(self, name: str) -> None:
        """Remove a file of the store's folder, whatever it is."""
        assert self._folder is not None
        try:
            os.unlink(os.path.join(self._folder, name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unavailable(error) from error


def _is_older(path: str, before: float) -> bool:
    try:
        return os.stat(path).st_mtime < before
    except FileNotFoundError:
        return False


class Blobs:
    """Takes large payloads out of records and finds them again, for one engine.

    Parameters:
        max_size: bytes of one payload, at most. over: bytes beyond which `fitted` takes one out.
    """

    def __init__(self, engine: Engine, store: Store, max_size: int, over: int = sys.maxsize) -> None:
        self._engine, self._store, self._max, self._over = engine, store, max_size, over

    def fitted(self, body: bytes) -> bytes:
        """Return a body as it is recorded: where it is large, a reference to it. Raises as `offload`."""
        return self.offload(body) if len(body) > self._over else body

    def offload(self, body: bytes, connection: Any = None, what: str = "the record") -> bytes:
        """Store a payload; return the reference to it, which is to be written within the sweep's patience.

        Parameters:
            connection: what `Engine.enlist` returned, where the reference will be written on that.

        Raises: RecordTooLarge, BlobsUnavailable, and what a write of the engine raises: nothing was sent.
        """
        if len(body) > self._max:
            raise RecordTooLarge(
                f"{what} has {len(body):,} bytes, max_blob_size allows {self._max:,}; "
                "store the data elsewhere and send where it is, or raise max_blob_size"
            )
        digest = hashlib.sha256(body).digest()
        stamp = self._engine.touch_blob(digest, len(body), wall_clock(), connection)
        reference = Reference(digest, len(body), stamp)
        self._store.put(reference.name, body)
        return reference.packed()

    def load(self, body: bytes) -> memoryview:
        """Return the payload that a reference stands for.

        Raises: BlobLost where it is gone, or is not what was stored; BlobsUnavailable.
        """
        reference = unpack(body)
        where = f"the payload of {reference.size:,} bytes, blob {reference.name} of {self._store.shown},"
        try:
            content = self._store.get(reference.name, reference.size)
        except FileNotFoundError:
            raise BlobLost(f"{where} is gone: past retention, or removed by somebody else") from None
        except ValueError as error:
            raise BlobLost(f"{where} is damaged: {error}") from None
        if hashlib.sha256(content).digest() != reference.digest:
            raise BlobLost(f"{where} is damaged: its content is not what was stored")
        return memoryview(content)


def only_named(body: bytes) -> bytes:
    """Return a reference to a payload that is not stored: for a call that is counted and not sent."""
    return Reference(hashlib.sha256(body).digest(), len(body), 0).packed()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
