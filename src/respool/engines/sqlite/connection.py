"""A connection: waiting for the file's lock, doubt after a failed sync, and telling errors apart."""

from __future__ import annotations

import ctypes
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw

from ...errors import (
    AppendUnknown,
    DatabaseGone,
    EngineError,
    EngineUnavailable,
    LogMoved,
)
from ..moving import IS_MOVING, WAS_MOVED
from ..turns import NotMyTurn, Turn, left

PAGE_SIZE = 2048  # bytes: a commit writes pages, and half the bytes are summed, written and synced
FRAME_HEADER = 24  # bytes before each page in the write-ahead log
_LOCK_WAITS = (apsw.BusyError, apsw.LockedError)
_OUT_OF_REACH = (apsw.ReadOnlyError, apsw.CantOpenError, apsw.AuthError, apsw.PermissionsError)
_NOT_OURS = (apsw.NotADBError, apsw.CorruptError)


class Doubt:
    """Whether a sync of the file has failed since the last full checkpoint (S3).

    All connections of an engine share one: the system tells only one of them, and what the failed sync
    left out may stand before what another connection syncs later.
    """

    def __init__(self) -> None:
        self._failed = self._settled = 0

    def __bool__(self) -> bool:
        return self._failed != self._settled

    def rise(self) -> int:
        """Take note that a sync failed."""
        self._failed += 1
        return self._failed

    def count(self) -> int:
        """Return what `settle` is to be told after a checkpoint that begins now."""
        return self._failed

    def settle(self, count: int) -> None:
        """Take note that a full checkpoint has succeeded; syncs that failed meanwhile are still in doubt."""
        self._settled = max(self._settled, count)


class Writing:
    """The block of a write, once it is sure that the file is the one that was opened.

    To be entered with the connection's lock held: `with c.lock, c.writing() as db`. Only C code may take the
    lock: an exception from a signal handler could come between its taking and a `try`. A class of its own,
    since a generator costs an append a tenth of its time.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Any:
        connection = self._connection
        connection._deadline = time.monotonic() + connection._timeout
        if connection._path:
            connection.check_identity()
        if connection._doubt:
            connection._make_sure(connection.db)
        return connection.db

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        connection = self._connection
        if error is not None:
            connection._failed(error)
        elif connection._doubt:  # another connection's sync failed meanwhile
            connection._be_sure_or_say_so()


class Reading:
    """The block of a read; to be entered with the lock held, as `Writing` is."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Any:
        connection = self._connection
        connection._deadline = time.monotonic() + connection._timeout
        if not connection.db.get_autocommit():
            roll_back(connection.db)  # somebody was interrupted within a snapshot
        return connection.db

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        connection = self._connection
        if error is None:
            return
        if not connection.db.get_autocommit():
            roll_back(connection.db)
        if isinstance(error, apsw.Error):
            raise connection._read_failed(error) from error


class Connection:
    """One SQLite connection, usable from any thread of the process that opened it, one at a time.

    `synced` connections sync each commit (P1); the others leave that to the next that does (S4).
    """

    def __init__(
        self,
        target: str,
        *,
        synced: bool,
        timeout: float,
        pragmas: dict[str, str] | None = None,
        doubt: Doubt | None = None,
        look: Callable[[apsw.Connection], None] | None = None,
    ) -> None:
        self.lock = threading.Lock()
        self._writing, self._reading = Writing(self), Reading(self)
        self._timeout = timeout
        self._deadline = 0.0
        self._moved = ctypes.c_int(0)
        self._moved_at = ctypes.addressof(self._moved)
        self._doubt = (
            Doubt() if doubt is None else doubt
        )  # if any, nothing is acknowledged before a full checkpoint (S3)
        self._path = path_of(target)
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        try:
            self.db = apsw.Connection(target, flags=flags, statementcachesize=200)
        except apsw.Error as error:
            raise self.not_opened(error) from error
        try:
            self.db.set_busy_handler(self._wait)
            with self.waiting(timeout):
                while not self._set_up(synced, pragmas or {}, look):
                    time.sleep(random.uniform(0.001, 0.005))
        except apsw.Error as error:
            self.db.close()
            raise self.not_opened(error) from error
        except BaseException:
            self.db.close()
            raise
        self.identity = identity_of(self._path)
        self._frame: int = self.db.execute("PRAGMA page_size").get + FRAME_HEADER

    def _set_up(
        self, synced: bool, pragmas: dict[str, str], look: Callable[[apsw.Connection], None] | None
    ) -> bool:
        """Make the connection ready; False where another that creates the database is in the way.

        SQLite does not ask the busy handler where waiting could deadlock: while it switches to WAL.
        """
        try:
            if self._path:
                self._keep_log()
            if look is not None:
                look(self.db)  # before anything is written: it may be somebody else's file
            self._configure(synced, pragmas)
        except apsw.BusyError:
            if time.monotonic() > self._deadline:
                raise
            return False
        return True

    def _configure(self, synced: bool, pragmas: dict[str, str]) -> None:
        execute = self.db.execute
        if execute("PRAGMA auto_vacuum").get != 2:  # else setting it would be a synced write, with its lock
            execute(f"PRAGMA page_size = {pragmas.get('page_size', PAGE_SIZE)}")
            execute("PRAGMA auto_vacuum = INCREMENTAL")  # only from creation on can space be given back (S5)
        if self._path:
            mode = execute("PRAGMA journal_mode = WAL").get
            if mode != "wal":
                raise EngineError(f"{self._path} cannot use SQLite's WAL (journal mode {mode})")
        execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
        execute("PRAGMA wal_autocheckpoint = 0")
        execute("PRAGMA mmap_size = 0")
        execute("PRAGMA cache_size = -16000")
        execute("PRAGMA temp_store = MEMORY")
        # One plan for all values: SQLite would plan anew for each that a partial index might depend on.
        self.db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        for name, value in pragmas.items():
            execute(f"PRAGMA {name} = {value}")  # names and values were checked against a table

    def _keep_log(self) -> None:
        """Have the log written over rather than cut, which makes a synced commit nearly twice as fast."""
        flag = ctypes.c_int(1)
        self.db.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(flag))

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
    def waiting(self, timeout: float | None = None) -> Iterator[Any]:
        """Give the connection to this thread; locks of others are waited for, at most so long."""
        with self.lock:
            self._deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
            yield self.db

    def reading(self) -> Reading:
        """Run a read in the block; errors come out as EngineUnavailable or EngineError."""
        return self._reading

    def _read_failed(self, error: apsw.Error) -> Exception:
        where = self._path or "the in-memory database"
        if isinstance(error, apsw.CorruptError | apsw.NotADBError):
            return EngineError(f"{where} is damaged: {error}; see: respool check")
        return EngineUnavailable(f"{where} cannot be read: {error}")

    def check_identity(self) -> None:
        """Raise DatabaseGone where the path leads to another file than the open one, or to none."""
        # SQLite looks at the path itself, in half the time that `os.stat` takes.
        if self.db.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, self._moved_at) and self._moved.value:
            raise gone(self._path)

    def writing(self) -> Writing:
        """Run a write in the block; errors come out as Refused (nothing stored) or AppendUnknown (H20).

        What was begun and not committed is undone.
        """
        return self._writing

    @contextmanager
    def writing_in_turn(self) -> Iterator[Any]:
        """Take the lock, and run a write in the block; what was waited for other threads is of its time.

        They may be waiting for the file: with `lock` and `writing` each begins its time after theirs (P10).
        """
        patience = left(self._timeout)
        until = time.monotonic() + patience
        try:
            with Turn(self.lock.acquire, True, patience) as mine:
                if not mine:
                    raise NotMyTurn
                with self._writing as db:
                    self._deadline = until
                    yield db
        except NotMyTurn:
            raise EngineUnavailable(self._was_locked()) from None

    def _was_locked(self) -> str:
        where = self._path or "the in-memory database"
        return f"{where} was locked by somebody else for more than {self._timeout:g} s; nothing was sent"

    def _failed(self, error: BaseException) -> None:
        if not self.db.get_autocommit():
            roll_back(self.db)
        if isinstance(error, apsw.Error):
            raise self._translated(error) from error

    def _be_sure_or_say_so(self) -> None:
        try:
            self._make_sure(self.db)
        except EngineUnavailable as error:
            raise AppendUnknown(f"{error}; it is not known whether it was stored") from error

    def _translated(self, error: apsw.Error) -> Exception:
        where = self._path or "the in-memory database"
        if isinstance(error, _LOCK_WAITS):
            return EngineUnavailable(self._was_locked())
        if isinstance(error, apsw.FullError):
            return EngineUnavailable(f"no space left for {where}; nothing was sent")
        if isinstance(error, _OUT_OF_REACH):
            return EngineUnavailable(f"{where} cannot be written to: {error}; nothing was sent")
        if isinstance(error, apsw.IOError):
            self._doubt.rise()
            return AppendUnknown(f"{where}: {error}; it is not known whether it was stored")
        if is_moved(error):
            return LogMoved(str(error))
        if isinstance(error, _NOT_OURS):
            return EngineError(f"{where} is damaged or not a Respool database: {error}")
        return EngineError(f"{where}: {error}")

    def not_opened(self, error: apsw.Error) -> Exception:
        """Return the error for a file that cannot be opened."""
        where = self._path or "the in-memory database"
        if isinstance(error, _LOCK_WAITS):
            return EngineUnavailable(
                f"{where} was locked for more than {self._timeout:g} s; nothing was sent"
            )
        if isinstance(error, (*_OUT_OF_REACH, apsw.IOError, apsw.FullError)):
            return EngineUnavailable(f"cannot open {where}: {error}; nothing was sent")
        return self._translated(error)

    def _make_sure(self, db: apsw.Connection) -> None:
        """After a failed sync: write everything to the file itself before acknowledging anything (S3).

        The system reports a failed sync once, and a torn frame early in the log hides all later ones.
        """
        count = self._doubt.count()
        try:
            result = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").get
        except apsw.Error as error:
            raise EngineUnavailable(
                f"{self._path} cannot be synced since an earlier error: {error}"
            ) from error
        if result[0]:
            raise EngineUnavailable(
                f"{self._path} cannot be synced while others use it, after an earlier error"
            )
        self._doubt.settle(count)

    def log_size(self) -> int:
        """Return how many bytes the write-ahead log has, 0 where all of it is in the file already.

        A look into shared memory, and only where somebody asks: a hook costs each commit 5 % of its time.
        """
        with self.lock:
            try:
                _, pages, done = self.db.execute("PRAGMA wal_checkpoint(NOOP)").get
            except apsw.Error as error:
                raise self._read_failed(error) from error
        return 0 if pages == done else int(pages) * self._frame

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


def is_moved(error: apsw.Error) -> bool:
    """Say whether a trigger refused a write since the log is moved."""
    if not isinstance(error, apsw.ConstraintError):
        return False
    return f"this log {IS_MOVING}" in str(error) or f"this log {WAS_MOVED}" in str(error)


@contextmanager
def moved_told() -> Iterator[None]:
    """Say by an error of ours that the log is moved; others of the driver's come out as they are."""
    try:
        yield
    except apsw.ConstraintError as error:
        if is_moved(error):
            raise LogMoved(str(error)) from error
        raise


def roll_back(db: apsw.Connection) -> None:
    """Undo the transaction that is open."""
    db.execute("ROLLBACK")


def path_of(target: str) -> str | None:
    """Return the file behind a connection target, None for a database in memory."""
    if not target.startswith("file:"):
        return target
    path, _, options = target.removeprefix("file:").partition("?")
    return None if "vfs=memdb" in options.split("&") else path


def gone(path: object) -> DatabaseGone:
    """Return the error for a file that is not the one that was opened."""
    return DatabaseGone(
        f"{path} was deleted or replaced while in use; what was sent went to the old file. "
        "Restart, or put the file back"
    )


def identity_of(path: str | None) -> Any:
    """Return what tells a file from any other that takes its place; None where there is none."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
