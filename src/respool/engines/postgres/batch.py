"""Statements that go to the server together, and come back together.

This is the hot path of the engine, so it stands on psycopg's layer of libpq instead of its cursors. Those
cost some 40 µs a statement, and in psycopg's pipeline each statement is a packet by itself, which wakes the
server; a claim has a dozen of them. Values are converted by psycopg's own adapters, and errors are its own.
"""

from __future__ import annotations

import re
import select
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import psycopg
from psycopg import pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result

from ..turns import left

if TYPE_CHECKING:
    from .connection import Bounded

MOST_PREPARED = 300
"""Statements that are kept prepared on a connection: one for each set of types. More go as text."""

_OK = (int(pq.ExecStatus.TUPLES_OK), int(pq.ExecStatus.COMMAND_OK))
_BINARY = pq.Format.BINARY
_PLACE = re.compile(rb"%(?:\((\w+)\))?([sbt%])")


class NoAnswer(psycopg.OperationalError):
    """A server has said nothing for as long as an answer is waited for."""

    def __init__(self, waited: float) -> None:
        super().__init__(f"no answer within {waited:.3g} s")
        self.waited = waited


class Executes(Protocol):
    """What runs statements: a connection, ours or the caller's, or a batch of them."""

    def execute(self, statement: Any, bound: Any = (), /, *, binary: bool = False) -> Any:
        """Run a statement; return what its rows are fetched from."""


class _Numbered(NamedTuple):
    """A statement as the server wants it."""

    text: bytes
    names: tuple[str, ...] | None  # of the values, in order; None: they come as a sequence
    formats: tuple[PyFormat, ...]


@cache
def _numbered(statement: bytes) -> _Numbered:
    """Return a statement with $1, $2… in place of %s and %(name)s."""
    formats: list[PyFormat] = []
    names: dict[str, int] = {}

    def numbered(found: re.Match[bytes]) -> bytes:
        name, kind = found[1], found[2].decode()
        if kind == "%":
            return b"%"
        if name is None or name.decode() not in names:
            formats.append(PyFormat(kind))
            if name is not None:
                names[name.decode()] = len(formats)
        return b"$%d" % (len(formats) if name is None else names[name.decode()])

    text = _PLACE.sub(numbered, statement)
    return _Numbered(text, tuple(names) if names else None, tuple(formats))


class Encoded:
    """A statement whose values come as the server takes them, in binary: nothing is looked up for each.

    Parameters:
        statement: with its places by name, as they are in `types`.
        types: what the server is to take each value for, by its name, in the order of their first places.
    """

    __slots__ = ("formats", "text", "types")

    def __init__(self, statement: bytes, types: Mapping[str, int]) -> None:
        numbered = _numbered(statement)
        if numbered.names != tuple(types):
            raise ValueError(f"the statement's values are {numbered.names}, not {tuple(types)}")
        self.text = numbered.text
        self.types = tuple(types.values())
        self.formats = (_BINARY,) * len(self.types)


class Reply:
    """What a statement gave. Whoever wants to know before the batch was sent has it sent."""

    __slots__ = ("_batch", "_result")

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._result: Any = None

    def _answer(self) -> Any:
        if self._result is None:
            self._batch.sync()
        return self._result

    @property
    def done(self) -> bool:
        """Whether it is known to have succeeded; what fails behind it in a batch does not undo a commit."""
        return self._result is not None and self._result.status in _OK

    @property
    def rowcount(self) -> int:
        """How many rows were given, or changed."""
        result = self._answer()
        return int(result.ntuples or result.command_tuples or 0)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows."""
        result = self._answer()
        return self._batch.load(result, result.ntuples)

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the first row; None where there is none."""
        result = self._answer()
        return self._batch.load(result, 1)[0] if result.ntuples else None


class Batch:
    """The statements of one connection: `with` it, they wait for each other until `sync`, or the end.

    Example:
        with batch:
            first = batch.execute(b"SELECT %s", (1,))
            batch.sync()
            first.fetchone()
    """

    def __init__(self, db: Bounded) -> None:
        self._db, self._pg = db, db.pgconn
        self._transformer = Transformer(db)
        self._names: dict[tuple[bytes, tuple[int, ...]], bytes] = {}
        self._prepared: set[bytes] = set()
        self._encoded: dict[Encoded, bytes] = {}  # names of those that are prepared for good
        self._asked: deque[Reply | bytes] = deque()  # a name: of what is being prepared
        self._poll = select.poll()
        self._poll.register(self._pg.socket, select.POLLIN)
        self._posted = False  # an answer is on its way that nobody waits for
        self.encoding = db.info.encoding
        """What text is to be encoded in, where that is not left to the driver."""

    def __enter__(self) -> Batch:
        self._take_posted()
        self._pg.enter_pipeline_mode()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._db.closed:
            self._asked.clear()
            return
        try:
            if self._asked and kind is None:
                self.sync()
            elif self._asked:  # what was sent before the error has an answer, too
                self._answers()
        finally:
            if not self._db.closed:
                self._pg.exit_pipeline_mode()

    def run(self, statement: bytes, bound: Any = (), *, binary: bool = False) -> Reply:
        """Run one statement by itself, and wait for it."""
        self._take_posted()
        text, name, dumped, types, formats = self._ready(statement, bound)
        if name is not None and name not in self._prepared:
            with self:
                reply = self._send(text, name, dumped, types, formats, binary)
                self.sync()
            return reply
        reply = Reply(self)
        if name is None:
            self._pg.send_query_params(text, dumped, types, formats, binary)
        else:
            self._pg.send_query_prepared(name, dumped, formats, binary)
        reply._result = self._answer()
        return reply

    def run_encoded(self, statement: Encoded, values: Sequence[bytes | None]) -> Any:
        """Run one statement by itself, and wait for it; return what it gave as libpq has it, in binary."""
        if self._posted:
            self._take_posted()
        name = self._encoded.get(statement)
        if name is None:
            return self._run_first(statement, values)
        self._pg.send_query_prepared(name, values, statement.formats, _BINARY)
        return self._answer()

    def _run_first(self, statement: Encoded, values: Sequence[bytes | None]) -> Any:
        text, types, formats = statement.text, statement.types, statement.formats
        name = self._name(text, types) if self._db.prepares else None
        if name is None:
            self._pg.send_query_params(text, values, types, formats, _BINARY)
            return self._answer()
        with self:
            reply = self._send(text, name, values, types, formats, True)
            self.sync()
        self._encoded[statement] = name
        return reply._result

    def post(self, statement: bytes, bound: Any = ()) -> None:
        """Send one statement that nobody waits for, and whose error is nobody's.

        Its answer is taken by the next batch; until then the connection can do nothing else.
        """
        self._take_posted()
        self._pg.enter_pipeline_mode()
        self.execute(statement, bound)
        self._pg.pipeline_sync()
        self._flush()
        self._posted = True

    def _take_posted(self) -> None:
        if self._posted:
            self._posted = False
            self._received()
            self._pg.exit_pipeline_mode()

    def execute(self, statement: bytes, bound: Any = (), /, *, binary: bool = False) -> Reply:
        """Send a statement along with the next `sync`; what it gives can be fetched after that."""
        return self._send(*self._ready(statement, bound), binary)

    def _ready(self, statement: bytes, bound: Any) -> tuple[bytes, bytes | None, Any, Any, Any]:
        """Return a statement's text, its name if it is to be prepared; values, their types and formats."""
        numbered = _numbered(statement)
        values: Sequence[Any] = bound
        if numbered.names is not None:
            named: Mapping[str, Any] = bound
            values = [named[name] for name in numbered.names]
        transformer = self._transformer
        dumped = transformer.dump_sequence(values, numbered.formats) if values else ()
        types, formats = (transformer.types or (), transformer.formats) if values else ((), None)
        name = self._name(numbered.text, types) if self._db.prepares else None
        return numbered.text, name, dumped, types, formats

    def _send(
        self, text: bytes, name: bytes | None, dumped: Any, types: Any, formats: Any, binary: bool
    ) -> Reply:
        pg, reply = self._pg, Reply(self)
        if name is None:
            pg.send_query_params(text, dumped, types, formats, binary)
        else:
            if name not in self._prepared:
                pg.send_prepare(name, text, types)
                self._prepared.add(name)
                self._asked.append(name)
            pg.send_query_prepared(name, dumped, formats, binary)
        self._asked.append(reply)
        return reply

    def _name(self, text: bytes, types: tuple[int, ...]) -> bytes | None:
        """Return how a statement with values of such types is called once it is prepared."""
        names = self._names
        name = names.get((text, types))
        if name is None and len(names) < MOST_PREPARED:
            name = names[text, types] = b"respool_%d" % len(names)
        return name

    def load(self, result: Any, rows: int) -> list[tuple[Any, ...]]:
        """Return the first rows of a result as Python's values."""
        if not rows:
            return []
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, rows, tuple)

    def sync(self) -> None:
        """Send all, and wait for all. Raises: the driver's error for the first statement that failed."""
        failed = self._answers()
        if failed is not None:
            raise error_from_result(failed, encoding=self.encoding)

    def _answer(self) -> Any:
        """Wait for the answer to a statement that was sent by itself; a wait that breaks is the last.

        Raises: the driver's error for one that failed.
        """
        pg = self._pg
        try:
            if pg.flush():
                self._flush()
            result = self._next()
            if pg.is_busy() or pg.get_result() is not None:  # nearly never: it comes in one packet
                while self._next() is not None:
                    pass
        except BaseException:
            pg.finish()  # nobody can tell what was answered
            raise
        if result.status not in _OK:
            raise error_from_result(result, encoding=self.encoding)
        return result

    def _answers(self) -> Any:
        """Send all, and wait for every answer; return the first error."""
        self._pg.pipeline_sync()
        return self._received()

    def _received(self) -> Any:
        """Wait for every answer; return the first error. A wait that breaks ends the connection."""
        try:
            self._flush()
            failed = None
            while self._asked:
                asked = self._asked.popleft()
                result = self._next()
                self._next()  # None: the end of one statement's results
                if isinstance(asked, Reply):
                    asked._result = result
                elif result.status not in _OK:
                    self._prepared.discard(asked)
                if result.status not in _OK and failed is None:
                    failed = result
            while (result := self._next()) is None or result.status != pq.ExecStatus.PIPELINE_SYNC:
                if result is not None and failed is None:  # of an implicit commit
                    failed = result
        except BaseException:
            self._asked.clear()
            self._pg.finish()  # nobody can tell what was answered
            raise
        return failed

    def _next(self) -> Any:
        pg = self._pg
        if pg.is_busy():
            until = time.monotonic() + (patience := left(self._db.patience))
            while pg.is_busy():
                self._wait(self._poll.poll, until, patience)
                pg.consume_input()
        return pg.get_result()

    def _flush(self) -> None:
        pg = self._pg
        if not pg.flush():
            return
        until = time.monotonic() + (patience := left(self._db.patience))
        both = select.poll()
        both.register(pg.socket, select.POLLIN | select.POLLOUT)
        while pg.flush():  # the server may not read on until its answers are read
            self._wait(both.poll, until, patience)
            pg.consume_input()

    def _wait(self, poll: Callable[[int], list[tuple[int, int]]], until: float, patience: float) -> None:
        more = until - time.monotonic()
        if more <= 0 or not poll(int(more * 1000) + 1):
            raise NoAnswer(patience)
