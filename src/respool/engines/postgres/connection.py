"""Connecting, losing the connection, and telling errors apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import errors as pg

from ...errors import (
    AppendUnknown,
    ConfigError,
    EngineError,
    EngineTooOld,
    EngineUnavailable,
    LogMoved,
    RespoolError,
)
from ..turns import GRACE, Down, NotMyTurn, Turn, left, limited
from .batch import NoAnswer
from .bounded import Bounded as Bounded
from .reach import PostgresOptions, away, parameters, resolved, unreachable
from .sql import statements

OLDEST = 140000
"""The oldest server that is supported: PostgreSQL 14."""

MOVED = "RS001"
"""What the triggers of a store that is moved raise: see schema.sql."""

SLOW = 3.0
"""Seconds that an answer may take at least."""
LONG = 3
BAD = int(psycopg.pq.ConnStatus.BAD)
NOTHING_SENT = "; nothing was sent"
T = TypeVar("T")
Db = psycopg.Connection[Any]
"""A connection, whether its waits are bounded or not."""
_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5)  # seconds between tries to connect anew

_BUSY = (pg.LockNotAvailable, pg.DeadlockDetected, pg.SerializationFailure, pg.QueryCanceled)
_FULL = (pg.DiskFull, pg.OutOfMemory, pg.ConfigurationLimitExceeded, pg.TooManyConnections)
_READ_ONLY = (pg.ReadOnlySqlTransaction,)


class Lost(Exception):
    """The connection broke. `sent`: the server may have done what it was told."""

    def __init__(self, error: psycopg.Error, *, sent: bool) -> None:
        super().__init__(_first_line(error))
        self.sent = sent


class Connection:
    """One connection, usable from any thread of its process, one at a time; opened anew when it breaks."""

    def __init__(
        self,
        options: PostgresOptions,
        role: str,
        kind: type[Bounded] | None = None,
        *,
        reached: bool = False,
    ) -> None:
        self.reached = reached  # the server was, before: what connecting meets from now on is an outage
        self.lock = threading.Lock()
        self.options = options
        self.sql = statements(options.schema)
        self._role, self._kind = role, kind or Bounded
        self._db: Bounded | None = None
        self.made = 0  # how often it was opened
        self._down = Down()

    def opened(self) -> Bounded:
        """Return the connection, made where there is none that works. The lock must be held."""
        db = self._db
        if db is None or db.closed:
            began = time.monotonic()
            try:
                db = self._db = connect(self.options, self._role, self._kind, reached=self.reached)
            except EngineUnavailable as error:
                self._down.note(str(error), began, time.monotonic())
                raise
            self.made += 1
            self.reached = True
        return db

    @contextmanager
    def using(self) -> Iterator[Bounded]:
        """Give the connection to this thread; a connection that breaks in the block raises Lost.

        Raises: EngineUnavailable where others of this process have it for too long.
        """
        came = time.monotonic()
        if self.lock.acquire(False):
            try:
                with self._given() as db:
                    yield db
            finally:
                self.lock.release()
            return
        with self._later(came), self._given() as db:
            yield db

    @contextmanager
    def _given(self) -> Iterator[Bounded]:
        db = self.opened()
        try:
            yield db
        except BaseException as error:
            self._failed(db, error)
            raise

    @contextmanager
    def _later(self, came: float) -> Iterator[None]:
        """Wait for others, for as long as an answer may take; what is left then is for the answer."""
        most = left(patience(self.options, self._role))
        until = came + most
        busy = f"{self.options.shown} was busy with others of this process for {most:.3g} s{NOTHING_SENT}"
        try:
            with Turn(self.lock.acquire, True, max(until - time.monotonic(), 0.0)) as mine:
                if not mine:
                    raise NotMyTurn
                self._down.check(came, until)
                with limited(max(until, time.monotonic() + GRACE)):
                    if not left(most):  # it would be given up unasked
                        raise EngineUnavailable(busy)
                    yield
        except NotMyTurn:
            raise EngineUnavailable(busy) from None

    def _failed(self, db: Bounded, error: BaseException) -> None:
        """Leave the connection as it should be after an error. Raises Lost where it broke."""
        if isinstance(error, pg.OperationalError | pg.InterfaceError) and _is_broken(db, error):
            self.drop()
            if isinstance(error, NoAnswer):
                ended = time.monotonic()
                self._down.note(f"{self.options.shown}: {error}{NOTHING_SENT}", ended - error.waited, ended)
            raise Lost(error, sent=True) from error
        self._clean(db)

    def _clean(self, db: Bounded) -> None:
        """Undo what was begun and not committed; a connection that cannot even do that is dropped."""
        if db.closed or db.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            return
        try:
            db.rollback()
        except psycopg.Error:
            self.drop()

    def drop(self) -> None:
        """Close the connection; the next use opens another."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def close(self) -> None:
        """Close the connection, once nobody uses it; one that somebody keeps to himself stays his."""
        try:
            with Turn(self.lock.acquire, True, patience(self.options, self._role)) as mine:
                if not mine:
                    raise NotMyTurn
                self.drop()
        except NotMyTurn:
            return

    def read(self, run: Callable[[Bounded], T]) -> T:
        """Run reads; where the connection breaks, once more on another within the timeout."""
        return self.append(run, self._unread)

    def _unread(self, lost: Lost, then: RespoolError | None) -> RespoolError:
        if then is None or isinstance(then, EngineUnavailable):  # cannot connect at all: say what was lost
            return EngineUnavailable(f"{self.options.shown}: {lost}")
        return then

    def _unknown(self, lost: Lost, then: RespoolError | None) -> RespoolError:
        more = f"; sent again: {str(then).removesuffix(NOTHING_SENT)}" if then is not None else ""
        return AppendUnknown(f"{self.options.shown}: {lost}; it is not known whether it was stored{more}")

    def append(
        self,
        run: Callable[[Bounded], T],
        broken: Callable[[Lost, RespoolError | None], RespoolError] | None = None,
    ) -> T:
        """Run an append that does nothing the second time: where the connection breaks it is sent again.

        Raises: AppendUnknown where it still broke when the time was up, or something else came between:
            the first try may have been stored (H20); where that can do no harm, what `broken` returns.
        """
        broken = broken or self._unknown
        came = first = time.monotonic()
        lock, tries = self.lock, 0
        lost: Lost | None = None
        then: RespoolError | None = None  # what the last try met
        while True:
            try:
                if lock.acquire(False):  # as `using`, without the cost of generators
                    try:
                        db = self._db
                        if db is None or db.pgconn.status == BAD:  # as `closed` says
                            db = self.opened()
                        try:
                            return run(db)
                        except BaseException as error:
                            self._failed(db, error)
                            raise
                    finally:
                        lock.release()
                with self._later(came), self._given() as db:
                    return run(db)
            except Lost as error:
                lost, then = error, None
            except psycopg.Error as error:
                then = self.translated(error)
                if lost is None:
                    raise then from error
            except RespoolError as error:
                then = error
                if lost is None:
                    raise
            assert lost is not None
            if then is not None and not isinstance(then, EngineUnavailable):
                raise broken(lost, then) from then  # only what is away may come back in time
            if left(self.options.timeout + first - time.monotonic()) <= 0:
                raise broken(lost, then) from lost
            time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1
            came = time.monotonic()

    def translated(self, error: psycopg.Error) -> RespoolError:
        """Return one of our errors for one of the server's."""
        where, what = self.options.shown, _first_line(error)
        if error.sqlstate == MOVED:
            return LogMoved(what)
        if isinstance(error, _BUSY):
            return EngineUnavailable(
                f"{where} was busy for more than {self.options.timeout:g} s: {what}{NOTHING_SENT}"
            )
        if isinstance(error, _FULL):
            return EngineUnavailable(f"{where} has no room: {what}{NOTHING_SENT}")
        if isinstance(error, _READ_ONLY):
            return EngineUnavailable(f"{where} is read-only (a standby?): {what}{NOTHING_SENT}")
        if isinstance(error, pg.InsufficientPrivilege):
            return ConfigError(
                f"{where}: {what}; the schema's owner gives a role what it needs to send: respool migrate "
                "--producer ROLE; a worker's role is a member of the owner"
            )
        if isinstance(error, pg.UndefinedTable | pg.InvalidSchemaName):
            return ConfigError(f"{where} has no (or another) schema of Respool: {what}; run: respool migrate")
        if isinstance(error, pg.OperationalError):
            return EngineUnavailable(f"{where}: {what}{NOTHING_SENT}")
        return EngineError(f"{where}: {what}")


def milliseconds(options: PostgresOptions) -> str:
    """Return for how long a lock is waited for, as the server's settings have it."""
    return f"{int(options.timeout * 1000)}ms"


def patience(options: PostgresOptions, role: str) -> float:
    """Return for how many seconds an answer is waited for. What asks for long are commands, by the reader.

    What waits for a lock for less than a second may still wait for a disk, or for a slow network.
    """
    return max(options.timeout, SLOW) * (LONG if role == "reader" else 1)


@contextmanager
def moved_told() -> Iterator[None]:
    """Say by an error of ours that the log is moved; others of the driver's come out as they are."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate == MOVED:
            raise LogMoved(_first_line(error)) from error
        raise


def connect(
    options: PostgresOptions, role: str, kind: type[Bounded] = Bounded, *, reached: bool = False
) -> Bounded:
    """Open a connection.

    Parameters:
        reached: the server was, before, with these options: then they are right.

    Raises: ConfigError, EngineTooOld, with `reached` neither; EngineUnavailable. None has the password.
    """
    try:
        return _connected(options, role, kind)
    except EngineUnavailable:
        raise
    except RespoolError as error:
        if not reached:
            raise
        raise away(error) from error


def _connected(options: PostgresOptions, role: str, kind: type[Bounded]) -> Bounded:
    told, failed = resolved(parameters(options), options), None
    if not left(options.timeout):
        raise EngineUnavailable(f"{options.shown}: no time is left to connect{NOTHING_SENT}")
    told["application_name"] = f"respool {role}"
    try:
        db = kind.connect("", autocommit=True, prepare_threshold=kind.driver_prepares, **told)
        db.find_pooler()
        if db.info.server_version >= OLDEST:
            db.end_with_us()
    except psycopg.Error as error:
        failed = unreachable(error, options)
    if failed is not None:  # outside: the driver's error may hold the password, and would be its context
        raise failed
    db.patience = patience(options, role)
    db.prepares = not db.pooled if options.prepare is None else options.prepare
    if not db.prepares:
        db.prepare_threshold = None
    if db.info.server_version < OLDEST:
        version = db.info.server_version // 10000
        db.close()
        raise EngineTooOld(
            f"{options.shown} is PostgreSQL {version}; at least {OLDEST // 10000} is needed: upgrade the "
            "server, or give the app the URL of another (url=, RESPOOL_URL)"
        )
    return db


def _is_broken(db: Bounded, error: psycopg.Error) -> bool:
    """Say whether the connection is of no more use: closed, or ended by the server."""
    return (
        db.closed or db.broken or isinstance(error, pg.AdminShutdown | pg.CrashShutdown | pg.CannotConnectNow)
    )


def _first_line(error: psycopg.Error) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def snapshot(db: Bounded) -> AbstractContextManager[None]:
    """Return a block whose reads all see the same moment."""
    db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    return _Ending(db)


class _Ending(AbstractContextManager[None]):
    def __init__(self, db: Bounded) -> None:
        self._db = db

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self._db.execute("COMMIT")


def one(db: Db, statement: bytes, bound: Any) -> Any:
    """Return the one value that a statement gives, None where it gives no row."""
    return value(db.execute(statement, bound))


def value(given: Any) -> Any:
    """Return the first value of what a statement gave, None where that is no row."""
    row = given.fetchone()
    return None if row is None else row[0]
