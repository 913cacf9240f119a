"""Opening the file, waiting for its lock, and telling errors apart."""

from __future__ import annotations

import ctypes
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from ...errors import AppendUnknown, ConfigError, DatabaseGone, EngineError, EngineTooOld, EngineUnavailable, SchemaTooNew
from .sql import schema

SCHEMA_VERSION = 1
APPLICATION_ID = 0x5265_7370  # "Resp"
SAFE_SQLITE = 3_051_003
"""Versions 3.7.0 to 3.51.2 can corrupt a WAL database with two checkpointing connections (S2): see
https://sqlite.org/wal.html, "The WAL-reset bug"."""

_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "fuse.sshfs"}
_LOCK_WAITS = (apsw.BusyError, apsw.LockedError)


class Connection:
    """One SQLite connection, usable from any thread of the process that opened it, one at a time.

    `synced` connections sync each commit (P1); the others leave that to the next that does (S4).
    """

    def __init__(self, target: str, *, synced: bool, timeout: float, pragmas: dict[str, str] | None = None):
        self.lock = threading.Lock()
        self._timeout = timeout
        self._deadline = 0.0
        self._unsure = False  # a sync failed: nothing is acknowledged before a full checkpoint (S3)
        self._path = _path_of(target)
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        try:
            self.db = apsw.Connection(target, flags=flags, statementcachesize=200)
        except apsw.CantOpenError as error:
            raise EngineUnavailable(f"cannot open {self._path or target}: {error}") from error
        self.db.set_busy_handler(self._wait)
        with self.waiting(timeout):
            self._configure(synced, pragmas or {})
        self._identity = _identity(self._path)
        self.log_pages = 0
        """Pages in the write-ahead log after this connection's last commit."""
        if self._path:
            self.db.set_wal_hook(self._note_log)

    def _configure(self, synced: bool, pragmas: dict[str, str]) -> None:
        execute = self.db.execute
        execute("PRAGMA auto_vacuum = INCREMENTAL")  # only from creation on can space be given back (S5)
        if self._path:
            mode = execute("PRAGMA journal_mode = WAL").get
            if mode != "wal":
                raise EngineError(f"{self._path} cannot use SQLite's WAL (journal mode {mode})")
            # The log is written over rather than cut, which makes a synced commit nearly twice as fast.
            self._keep_log()
        execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
        execute("PRAGMA wal_autocheckpoint = 0")
        execute("PRAGMA mmap_size = 0")
        execute("PRAGMA cache_size = -16000")
        execute("PRAGMA temp_store = MEMORY")
        for name, value in pragmas.items():
            execute(f"PRAGMA {name} = {value}")  # names and values were checked against a table

    def _keep_log(self) -> None:
        flag = ctypes.c_int(1)
        self.db.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(flag))

    def _note_log(self, db: apsw.Connection, name: str, pages: int) -> int:
        self.log_pages = pages
        return apsw.SQLITE_OK

    def _wait(self, tries: int) -> bool:
        """Busy handler: yield, then short sleeps. SQLite's own backs off so far that it starves some."""
        if time.monotonic() > self._deadline:
            return False
        if tries < 3:
            os.sched_yield()
        else:
            time.sleep(random.uniform(0.0001, 0.0005))
        return True

    @contextmanager
    def waiting(self, timeout: float | None = None) -> Iterator[apsw.Connection]:
        """Give the connection to this thread; locks of others are waited for, at most so long."""
        with self.lock:
            self._deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
            yield self.db

    def check_identity(self) -> None:
        """Raise DatabaseGone where the path leads to another file than the open one, or to none."""
        if self._path and _identity(self._path) != self._identity:
            raise DatabaseGone(
                f"{self._path} was deleted or replaced while in use; what was sent went to the old file. "
                "Restart, or put the file back"
            )

    @contextmanager
    def writing(self) -> Iterator[apsw.Connection]:
        """Run a write in the block; errors come out as Refused (nothing stored) or AppendUnknown (H20)."""
        with self.waiting() as db:
            self.check_identity()
            if self._unsure:
                self._make_sure(db)
            try:
                yield db
            except apsw.Error as error:
                if not db.get_autocommit():
                    _roll_back(db)
                raise self._translated(error) from error
            except BaseException:
                if not db.get_autocommit():
                    _roll_back(db)
                raise

    def _translated(self, error: apsw.Error) -> Exception:
        where = self._path or "the in-memory database"
        if isinstance(error, _LOCK_WAITS):
            return EngineUnavailable(
                f"{where} was locked by another transaction for more than {self._timeout:g} s; nothing was sent"
            )
        if isinstance(error, apsw.FullError):
            return EngineUnavailable(f"no space left for {where}; nothing was sent")
        if isinstance(error, apsw.ReadOnlyError | apsw.CantOpenError | apsw.AuthError | apsw.PermissionsError):
            return EngineUnavailable(f"{where} cannot be written to: {error}; nothing was sent")
        if isinstance(error, apsw.IOError):
            self._unsure = True
            return AppendUnknown(f"{where}: {error}; it is not known whether it was stored")
        if isinstance(error, apsw.NotADBError | apsw.CorruptError):
            return EngineError(f"{where} is damaged or not a Respool database: {error}")
        return EngineError(f"{where}: {error}")

    def _make_sure(self, db: apsw.Connection) -> None:
        """After a failed sync: write everything to the file itself before acknowledging anything (S3).

        The system reports a failed sync once, and a torn frame early in the log hides all later ones.
        """
        try:
            result = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").get
        except apsw.Error as error:
            raise EngineUnavailable(f"{self._path} cannot be synced since an earlier error: {error}") from error
        if result[0]:
            raise EngineUnavailable(f"{self._path} cannot be synced while others use it, after an earlier error")
        self._unsure = False

    def checkpoint(self, mode: str = "PASSIVE") -> int:
        """Copy the log into the file as far as nobody is in the way; return the log's pages left."""
        if not self._path:
            return 0
        with self.waiting(0.2) as db:
            try:
                busy, pages, done = db.execute(f"PRAGMA wal_checkpoint({mode})").get
            except _LOCK_WAITS:
                return -1
            except apsw.Error as error:
                raise self._translated(error) from error
        return -1 if busy else pages - done

    def close(self) -> None:
        """Close the connection."""
        with self.lock:
            self.db.close()


def _roll_back(db: apsw.Connection) -> None:
    db.execute("ROLLBACK")


def prepare(target: str, timeout: float) -> None:
    """Create the schema where the database is empty; refuse unsafe places, versions and other files."""
    path = _path_of(target)
    if apsw.sqlite_lib_version() and apsw.SQLITE_VERSION_NUMBER < SAFE_SQLITE:
        raise EngineTooOld(
            f"SQLite {apsw.sqlite_lib_version()} can corrupt a database that several processes write; "
            "at least 3.51.3 is needed: pip install -U apsw"
        )
    if path:
        refuse_network_file_system(Path(path))
    connection = Connection(target, synced=True, timeout=timeout)
    try:
        with connection.waiting() as db:
            _create_or_check(db, path or target)
    except _LOCK_WAITS as error:
        raise EngineUnavailable(f"{path} was locked for more than {timeout:g} s") from error
    except apsw.ReadOnlyError as error:
        raise EngineUnavailable(f"{path} is read-only") from error
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise EngineError(f"{path} is damaged or not a database: {error}") from error
    finally:
        connection.close()


def _create_or_check(db: apsw.Connection, where: str) -> None:
    if _check_version(db, where):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        if not _check_version(db, where):  # nobody was faster
            if db.execute("SELECT count(*) FROM sqlite_schema").get:
                raise ConfigError(f"{where} is a database of something else; give Respool a file of its own")
            db.execute(schema())
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _check_version(db: apsw.Connection, where: str) -> bool:
    version = db.execute("PRAGMA user_version").get
    ours = db.execute("PRAGMA application_id").get == APPLICATION_ID
    if ours and version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{where} was written by a newer Respool (schema {version}, this one knows {SCHEMA_VERSION}): "
            "pip install -U respool"
        )
    return bool(ours and version == SCHEMA_VERSION)


def refuse_network_file_system(path: Path) -> None:
    """Raise ConfigError where the path lies on a file system whose locks cannot be trusted (S2)."""
    kind = file_system(path)
    if kind in _REMOTE:
        raise ConfigError(
            f"{path} is on a network file system ({kind}), where SQLite's locks are not safe; "
            "use a local disk, or another engine's URL"
        )


def file_system(path: Path) -> str | None:
    """Return the kind of file system a path lies on, None where the system does not tell."""
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists():
        return None
    real = os.path.realpath(path)
    best, kind = "", None
    for line in mounts.read_text("utf-8", "surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].encode().decode("unicode_escape")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def _path_of(target: str) -> str | None:
    """Return the file behind a connection target, None for a database in memory."""
    if "vfs=memdb" in target:
        return None
    return target.removeprefix("file:").partition("?")[0]


def _identity(path: str | None) -> Any:
    if path is None:
        return None
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
