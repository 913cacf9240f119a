"""Handles of calls: their state, and waiting for their outcome."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

from . import celery_names
from .clock import now as wall_clock
from .delivery.model import JournalEntry
from .encoding.codec import codec_for
from .encoding.remote import decode_error
from .engines.base import Engine, Group, Record
from .engines.moving import told
from .engines.turns import GRACE, limited
from .errors import (
    BlobLost,
    GetInsideTask,
    GetTimeout,
    LogMoved,
    Refused,
    ResultExpired,
    Revoked,
    UnknownCall,
    unsent,
)
from .misspelt import suggests
from .places import Places
from .record import Id, id_of, id_text
from .running import current_run
from .states import READY, Found, error_of, state_name, state_of
from .units import duration
from .why import explain_waiting

if TYPE_CHECKING:
    from .app import App

R = TypeVar("R")
log = logging.getLogger("respool.worker")
PAGE = 2000  # calls whose results are read together
FEW = 8  # calls that are asked for one by one sooner than for all of their page
HOLDS = 5.0  # seconds that a task may wait for a call before it is told that it holds its process


class AsyncResult(Generic[R]):
    """One call in one group. Cheap to make; asks the engine only when asked."""

    __slots__ = ("_app", "_engine", "_group", "_id", "_namespace", "_place", "_pos", "_unsent")

    def __init__(
        self,
        app: App,
        id: Id,
        group: str = "main",
        namespace: str | None = None,
        unsent: Any = None,
        pos: int | None = None,
        engine: Engine | None = None,
    ):
        self._app, self._id, self._group = app, id, group
        self._namespace = app.name if namespace is None else namespace
        self._pos = pos  # where it is, if the append told
        self._engine = app.engine if engine is None and pos is not None else engine  # whose position that is
        self._place: tuple[int, Group] | None = None
        self._unsent = unsent  # the run whose outbox it waits in

    if not TYPE_CHECKING:  # else any name would do for type checkers

        def __getattr__(self, name):
            return celery_names.missing(self, celery_names.RESULT, name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by its app, which has to be in a module, and its id. Raises PicklingError."""
        if self._unsent is not None:  # who unpickles it would not find the call
            self._unsent.flush()
            self._unsent = None
        return AsyncResult, (self._app, self._id, self._group, self._namespace)

    def __repr__(self) -> str:
        return f"<AsyncResult {self.id}{'' if self._group == 'main' else f' in {self._group}'}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncResult) and (self._id, self._group) == (other._id, other._group)

    def __hash__(self) -> int:
        return hash((self._id, self._group))

    @property
    def id(self) -> str:
        """The call's id."""
        return id_text(self._id)

    task_id = id

    @property
    def group(self) -> str:
        """The consumer group it speaks of."""
        return self._group

    def of(self, group: str) -> AsyncResult[R]:
        """Return the same call in another group, such as a replay's."""
        return AsyncResult(self._app, self._id, group, self._namespace, pos=self._pos)

    @property
    def state(self) -> str:
        """PENDING, SCHEDULED, STARTED, PROGRESS, RETRY, SUCCESS, FAILURE, REVOKED or UNKNOWN."""
        found = self.find()
        if found.state == "PENDING" and found.status is not None and found.status.parked is None:
            due = self.record().meta.due  # no worker has come upon it yet, to park it until then
            if due is not None and due > wall_clock():
                return "SCHEDULED"
        return found.state

    status = state

    def ready(self) -> bool:
        """Say whether the call is finished."""
        return self.state in READY

    def successful(self) -> bool:
        """Say whether it finished without an error."""
        return self.state == "SUCCESS"

    def failed(self) -> bool:
        """Say whether it finished with an error."""
        return self.state == "FAILURE"

    @property
    def info(self) -> Any:
        """What a running task said last by `update_state`; the result or the error once there is one."""
        found = self.find()
        if found.status is None:
            return None
        if found.status.progress is not None:
            return codec_for("msgpack").decode(found.status.progress)
        if found.state in ("FAILURE", "RETRY"):
            body = error_of(found.status)
            return decode_error(body) if body else None
        return self._value(found, propagate=False) if found.state == "SUCCESS" else None

    @suggests("option of get()", celery_names.GET_OPTIONS)
    def get(self, timeout: Any = None, *, propagate: bool = True) -> R:
        """Wait for the call to finish and return what it returned.

        Parameters:
            timeout: seconds at most (or timedelta, "5m"); None waits for ever (Ctrl-C interrupts).
            propagate: False returns the task's exception, or Revoked, instead of raising it.

        Raises: the task's own exception, as its own type where that can be imported, with the remote
            traceback; GetTimeout (which says what it waited for), Revoked, ResultExpired, UnknownCall;
            LogMoved where it waits to be run, and the log is at another URL by now; EngineUnavailable where
            the engine does not answer: about a second after the timeout at the latest; GetInsideTask inside
            a running task.
        """
        if current_run.get() is not None:
            raise GetInsideTask(
                f"get() of {self.id} inside a task would block the process that others wait for, maybe the "
                "only one; let that call call the task that needs its value, or come back by self.retry()"
            )
        deadline = None if timeout is None else time.monotonic() + duration(timeout, "timeout")
        with _limit(self._app, deadline):
            return self._await(deadline, timeout, propagate)

    def _await(self, deadline: float | None, timeout: Any, propagate: bool) -> R:
        pos, group = self._locate()
        with self._app.engine.waiter(pos) as waiter:
            rung = slept = False
            while True:
                if not rung:  # what a ring announces is there already
                    waiter.prepare()
                found = self.find()
                if found.state in READY or found.state == "UNKNOWN":
                    return self._value(found, propagate)
                if slept and not rung:
                    self._refuse_moved()
                if rung:
                    rung = False
                    continue
                wait = _next_wait(deadline, self._app.settings["poll_interval"])
                if wait is None:
                    raise self._timed_out(timeout, found, pos, group)
                rung, slept = waiter.sleep(wait), True

    async def aget(self, timeout: Any = None, *, propagate: bool = True) -> R:
        """Wait for the call to finish without holding up the event loop; else like `get`.

        In a coroutine task it holds the task's process, which runs nothing else meanwhile: where no other
        process is free to run the call, it never ends but by its timeout. That is told after a while.

        Parameters:
            timeout: seconds at most (or timedelta, "5m"); None waits for ever.
            propagate: False returns the task's exception, or Revoked, instead of raising it.

        Raises: as `get`, but for GetInsideTask.
        """
        began = time.monotonic()
        deadline = None if timeout is None else began + duration(timeout, "timeout")
        limit = _limit(self._app, deadline)
        with limit:
            pos, group = self._locate()
        tell_at = None if current_run.get() is None else began + HOLDS
        with self._app.engine.async_waiter(pos) as waiter:
            rung = slept = False
            while True:
                with limit:
                    if not rung:  # as in `get`
                        waiter.prepare()
                    found = self.find()
                    if found.state in READY or found.state == "UNKNOWN":
                        return self._value(found, propagate)
                    if slept and not rung:
                        self._refuse_moved()
                if rung:
                    rung = False
                    continue
                wait = _next_wait(deadline, self._app.settings["poll_interval"])
                if wait is None:
                    with limit:
                        raise self._timed_out(timeout, found, pos, group)
                if tell_at is not None and time.monotonic() >= tell_at:
                    tell_at = None
                    log.warning(
                        "aget() of call %s inside a task has waited %g s: its process runs nothing else "
                        "meanwhile, and where no other is free it never ends; the call waits: %s",
                        *(self.id, HOLDS, _why(self._app, found, pos, group)),
                    )
                if tell_at is not None:
                    wait = min(wait, max(tell_at - time.monotonic(), 0.0))
                rung, slept = await waiter.sleep(wait), True

    @property
    def result(self) -> Any:
        """What it returned, else its exception or Revoked, None where it is not finished; in a task, too."""
        found = self.find()
        return self._value(found, propagate=False) if found.state in READY else None

    @property
    def traceback(self) -> str | None:
        """The remote traceback of a call that failed."""
        found = self.find()
        body = error_of(found.status) if found.status else None
        return getattr(decode_error(body), "remote_traceback", None) if body else None

    def history(self) -> list[Attempt]:
        """Return what happened to the call, the oldest first: when, which worker, how it ended."""
        pos, group = self._locate()
        return [Attempt.of(entry) for entry in self._app.engine.journal(group.id, pos)]

    def record(self) -> Record:
        """Return the call as it was recorded. Raises UnknownCall."""
        pos, _ = self._locate()
        for record in self._app.engine.records(pos, pos + 1, 1):
            return record
        raise UnknownCall(f"the record of call {self.id} is past retention")

    # Looking up

    def _locate(self) -> tuple[int, Group]:
        """Return the call's position and the group. Raises UnknownCall."""
        if self._unsent is not None:
            self._unsent.flush()
            self._unsent = None
        engine = self._app.engine
        if self._place is None or self._engine is not engine:  # else the file was replaced: it is another log
            pos = self._pos if self._engine is engine else engine.find(self._namespace, self._id)
            if pos is None:
                raise UnknownCall(
                    f"no call {self.id} in app {self._app.name}: never appended, or past retention"
                )
            self._pos, self._engine = pos, engine
            self._place = pos, self._app.opened.group_at(pos, self._group)
        return self._place

    def find(self) -> Found:
        """Return the call's state together with what is behind it."""
        try:
            pos, group = self._locate()
        except UnknownCall as error:
            return Found("UNKNOWN", None, str(error))
        engine = self._app.engine
        return state_of(engine.status(group, pos), pos, group, engine.workers)

    def _value(self, found: Found, propagate: bool) -> R:
        status = found.status
        if found.state == "UNKNOWN" or status is None:
            raise UnknownCall(found.reason or f"nothing is known of {self.id}")
        value: Any
        if found.state == "REVOKED":
            value = Revoked(f"call {self.id} was revoked: {found.reason or 'it will not run'}")
            if propagate:
                raise value
            return value  # type: ignore[no-any-return]
        outcome = status.outcome
        if outcome is not None and outcome.expired(wall_clock()):
            raise ResultExpired(f"call {self.id} ended as {found.state}, but its result_ttl is over")
        if found.state == "SUCCESS":
            value = None if outcome is None or outcome.value is None else _decoded(self._app, outcome.value)
            return value  # type: ignore[no-any-return]
        body = error_of(status)
        value = decode_error(body) if body else UnknownCall(f"the error of {self.id} was not kept")
        if propagate:
            raise value
        return value  # type: ignore[no-any-return]

    def _refuse_moved(self) -> None:
        """Raise LogMoved where nothing will finish here any more: asked where nobody rang for a while."""
        engine = self._app.engine
        mark = engine.mark()
        if mark is not None and mark.phase == "moved":
            raise LogMoved(unsent(told(mark, engine.shown)))

    def _timed_out(self, timeout: Any, found: Found, pos: int, group: Group) -> GetTimeout:
        why = _why(self._app, found, pos, group)
        return GetTimeout(f"call {self.id} is {found.state} after {duration(timeout):g} s: {why}")


class Attempt(NamedTuple):
    """One entry of a call's history."""

    started: float
    ended: float
    worker: int | None
    child: int
    how: str  # done, retry, failed, lost, scheduled, expired, purged, redriven, …
    retries: int
    note: str | None

    @classmethod
    def of(cls, entry: JournalEntry) -> Attempt:
        """Return a journal entry without its positions."""
        return cls(entry.started, entry.ended, entry.owner, entry.child, entry.how, entry.retries, entry.note)


class ResultSet(Generic[R]):
    """The handles of calls appended together; kept as one id for each run, made when asked for."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._runs: list[tuple[bytes, int]] = []
        self._size = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by its app, which has to be in a module, and its ids. Raises PicklingError."""
        return _result_set, (self._app, self._runs)

    def add_run(self, head: bytes, size: int) -> None:
        """Take in a run of `size` calls, whose ids count up from `head`."""
        self._runs.append((head, size))
        self._size += size

    def add_call(self, call: AsyncResult[R]) -> None:
        """Take in one call, which may have been there before."""
        if isinstance(call._id, str):
            raise Refused(
                f"call {call.id} is there already, under a given id, which a ResultSet cannot hold. "
                "The calls before it are sent; send the rest one by one"
            )
        self.add_run(call._id, 1)

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"<ResultSet of {self._size:,} calls>"

    def __iter__(self) -> Iterator[AsyncResult[R]]:
        for head, size in self._runs:
            for seq in range(size):
                yield AsyncResult(self._app, id_of(head, seq))

    @overload
    def __getitem__(self, index: int) -> AsyncResult[R]: ...
    @overload
    def __getitem__(self, index: slice) -> list[AsyncResult[R]]: ...
    def __getitem__(self, index: int | slice) -> AsyncResult[R] | list[AsyncResult[R]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        if not -self._size <= index < self._size:
            raise IndexError(f"call {index} of {self._size}")
        index %= self._size
        for head, size in self._runs:
            if index < size:
                return AsyncResult(self._app, id_of(head, index))
            index -= size
        raise AssertionError("runs do not add up")

    def _places(self, *, all_there: bool = True) -> Iterator[tuple[Group, int, int]]:
        """Yield (group, first, one past the last position). Where some are gone: UnknownCall, or without."""
        for head, size in self._runs:
            for group, lo, hi, _ in self._of_run(head, size, all_there=all_there):
                yield group, lo, hi

    def _of_run(self, head: bytes, size: int, *, all_there: bool) -> Iterator[tuple[Group, int, int, int]]:
        """Yield the same of one run, with which of the run comes first."""
        spans = self._app.engine.run_spans(head, size)
        if not spans and all_there:
            raise _cut_off(head)
        seq = 0
        for lo, hi in spans or ():
            yield self._app.opened.group_at(lo, "main"), lo, hi, seq
            seq += hi - lo

    def unfinished(self) -> int:
        """Return how many of the calls are not finished."""
        return self._unfinished(all_there=True)

    def _unfinished(self, *, all_there: bool) -> int:
        places = self._places(all_there=all_there)
        return sum(self._app.engine.unfinished(group, lo, hi) for group, lo, hi in places)

    def ready(self) -> bool:
        """Say whether all calls are finished."""
        return self.unfinished() == 0

    def wait(self, timeout: Any = None) -> None:
        """Wait until all calls are finished.

        Parameters:
            timeout: seconds at most for all of them (or timedelta, "5m"); None waits for ever.

        Raises: GetTimeout, which says how many are not finished; UnknownCall where some are past retention;
            GetInsideTask inside a running task.
        """
        self._wait(timeout)

    def _wait(self, timeout: Any, *, all_there: bool = True) -> None:
        """Wait for all calls, or where not `all_there` for those that are not past retention."""
        if current_run.get() is not None:
            raise GetInsideTask(
                "waiting for calls inside a task would block the process that others wait for, maybe the "
                "only one; come back by self.retry() until all are ready()"
            )
        deadline = None if timeout is None else time.monotonic() + duration(timeout, "timeout")
        with _limit(self._app, deadline):
            for group, lo, hi in self._places(all_there=all_there):
                with self._app.engine.waiter(None) as waiter:
                    while True:
                        waiter.prepare()
                        left = self._app.engine.unfinished(group, lo, hi)
                        wait = _next_wait(deadline, self._app.settings["poll_interval"])
                        if not left:
                            break
                        if wait is None:
                            why, most = _why(self._app, Found("PENDING", None), lo, group), self._size
                            left = self._unfinished(all_there=all_there)
                            raise GetTimeout(f"{left:,} of {most:,} calls are not finished: {why}")
                        waiter.sleep(wait)

    def iterate(self, timeout: Any = None, *, propagate: bool = True) -> Iterator[R]:
        """Wait for all calls, then yield what they returned, in order, reading page by page.

        Parameters:
            timeout: seconds at most for all of them (or timedelta, "5m"); None waits for ever.
            propagate: False yields the exceptions of those that failed instead of raising the first; also
                Revoked, ResultExpired, UnknownCall and BlobLost, of calls of which there is nothing else.

        Raises: as `wait` and `AsyncResult.get`.
        """
        self._wait(timeout, all_there=propagate)
        for head, size in self._runs:
            told = 0
            for group, lo, hi, seq in self._of_run(head, size, all_there=propagate):
                yield from self._values(group, lo, hi, (head, seq), propagate)
                told += hi - lo
            yield from [_cut_off(head)] * (size - told)  # type: ignore[misc]

    def _values(
        self, group: Group, lo: int, hi: int, first: tuple[bytes, int], propagate: bool
    ) -> Iterator[R]:
        """Yield what the calls at lo <= p < hi returned; `first`: their run's head, and which is at `lo`."""
        head, seq = first
        for start in range(lo, hi, PAGE):
            for pos, returned, value in self._page(group, start, min(start + PAGE, hi)):
                if returned:
                    yield value
                else:  # failed, revoked, expired, …: as `get` would have it
                    yield self._one(id_of(head, seq + pos - lo), pos, propagate)

    def _one(self, id: Id, pos: int, propagate: bool) -> R:
        """Return what there is instead of a value: what `get` of that call alone returns or raises."""
        try:
            return AsyncResult[R](self._app, id, pos=pos).get(0, propagate=propagate)
        except (UnknownCall, ResultExpired, BlobLost) as error:
            if propagate:
                raise
            return error  # type: ignore[return-value]

    def _page(self, group: Group, lo: int, hi: int) -> Iterator[tuple[int, bool, Any]]:
        """Yield (position, whether it returned, what) of lo <= p < hi, as far as one look at all tells."""
        engine = self._app.engine
        values = {outcome.pos: outcome for outcome in engine.outcomes(group.id, lo, hi)}
        places = Places(engine.group_page(group, lo, hi)) if hi - lo > len(values) + FEW else None
        for pos in range(lo, hi):
            outcome = values.get(pos)
            if outcome is None:  # it returned None, if it is done
                yield pos, places is not None and state_name(places.status(pos)) == "SUCCESS", None
            elif outcome.ending == "success" and not outcome.expired(wall_clock()):
                try:
                    value = None if outcome.value is None else _decoded(self._app, outcome.value)
                except BlobLost:
                    yield pos, False, None
                else:
                    yield pos, True, value
            else:
                yield pos, False, None

    def get(self, timeout: Any = None, *, propagate: bool = True) -> list[R]:
        """Wait for all calls and return what they returned, in order.

        Parameters:
            timeout: seconds at most for all of them (or timedelta, "5m"); None waits for ever.
            propagate: False returns exceptions in the place of values, as `iterate` does, instead of raising
                the first.

        Raises: as `wait` and `AsyncResult.get`.
        """
        return list(self.iterate(timeout, propagate=propagate))


def _cut_off(head: bytes) -> UnknownCall:
    return UnknownCall(f"calls from {id_text(head)} on are past retention")


def _result_set(app: App, runs: list[tuple[bytes, int]]) -> ResultSet[Any]:
    """Return the handles of some runs, unpickled."""
    found: ResultSet[Any] = ResultSet(app)
    for head, size in runs:
        found.add_run(head, size)
    return found


def _decoded(app: App, value: bytes) -> Any:
    """Return what a task returned. Raises BlobLost, BlobsUnavailable."""
    return codec_for("msgpack").decode(app.payloads.load(value))


def _why(app: App, found: Found, pos: int, group: Group) -> str:
    """Say what an unfinished call waits for."""
    return explain_waiting(app.engine, app.opened.stream_at(pos), group, pos, app)


def why_unfinished(result: AsyncResult[Any]) -> str | None:
    """Say what a call waits for, or who runs it; None where it has ended, or nothing is known of it."""
    found = result.find()
    if found.status is None or found.state in READY:
        return None
    return _why(result._app, found, *result._locate())


def _limit(app: App, deadline: float | None) -> limited:
    """Return a block whose looks end soon after the time is up: a server that is silent is not waited for.

    The engine is opened before: that may take as long as an append, and leaves time for a look nevertheless.
    """
    if deadline is None:
        return limited(None)
    app.engine  # noqa: B018
    return limited(max(deadline, time.monotonic()) + GRACE)


def _next_wait(deadline: float | None, poll: float) -> float | None:
    """Return how long to sleep before looking again, None where the time is up."""
    if deadline is None:
        return poll
    left = deadline - time.monotonic()
    return min(left, poll) if left > 0 else None
