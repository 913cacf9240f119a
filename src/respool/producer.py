"""Appending with group commit: callers that arrive while a commit is on its way share the next one."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from .delivery.model import NewCall
from .engines.base import Conflict, Engine
from .engines.turns import GRACE, limited
from .errors import (
    AppendUnknown,
    BlobsUnavailable,
    EngineUnavailable,
    IdConflict,
    PartlyAppended,
    RecordTooLarge,
    RespoolError,
    StreamUnavailable,
)
from .record import RUN_BITS, id_text, new_head

CHUNK_RECORDS = 5000
CHUNK_BYTES = 1 << 20
FIRST_STEP = 16  # bodies taken before it is known how large they are
PATIENCE = 1.0  # seconds after which one who waits looks again whether nobody leads: who led was interrupted
MAX_TOGETHER = 256  # callers whose records are appended in one statement
IN_VAIN = 2  # logs that could not be appended to, after which it is taken to be all of them

_RUN_LENGTH = 1 << RUN_BITS
assert CHUNK_RECORDS < _RUN_LENGTH


class _Pending:
    """One caller's record on its way: `finished` once it is stored, or `error` says why not.

    `wake` is set when it is finished or when its caller should lead; a spurious one does no harm.
    """

    __slots__ = ("came", "error", "finished", "row", "wake")

    def __init__(self, row: NewCall, wake: Any) -> None:
        self.came = time.monotonic()
        self.row = row
        self.wake = wake
        self.finished = False
        self.error: BaseException | None = None


class _LoopEvent:
    """An asyncio event that other threads may set."""

    def __init__(self) -> None:
        import asyncio  # most programs that import respool never need it, and it takes 50 ms

        self.loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self.wait, self.clear = self._event.wait, self._event.clear

    def set(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            if not self.loop.is_closed():  # then nobody waits there any more
                raise


class Producer:
    """Appends single records and runs of records for one engine.

    The first caller to come leads: it takes the lock and appends for all who wait. A leader cannot be
    cancelled in the middle (the append is one call into the engine), and who waits takes over the lead
    when it becomes free (H17).

    Parameters:
        timeout: seconds that a caller waits at most, and a little more, whatever others wait for (P10).
    """

    def __init__(self, engine: Engine, max_record_size: int, timeout: float = math.inf) -> None:
        self._engine = engine
        self._max = max_record_size
        self._timeout = timeout
        self._failed: dict[int, float] = {}  # logs, and when they could not be appended to
        self._why = ""  # the last of them could not be
        self._lead = threading.Lock()
        self._waiting: deque[_Pending] = deque()

    def append(self, row: NewCall) -> int | None:
        """Append one record; returns when it is stored (P1), and where if that is known.

        Raises: Refused, AppendUnknown.
        """
        if len(row.body) > self._max or row.meta is not None:
            self.check_size(row.body, row.meta)
        if self._waiting or self._lead.locked():
            self._append_together(row)
            return None
        try:  # nobody to combine with: alone, or with who came at the same moment right behind
            with self._lead:
                try:
                    done = self._engine.append_row(row)
                except (AppendUnknown, EngineUnavailable) as error:
                    self._note_failed(row.log, error)
                    raise
        except AppendUnknown as error:
            raise _with_ids(error, (row,)) from error.__cause__
        finally:
            if self._waiting:
                self._wake_next()
        if isinstance(done, Conflict):
            raise conflict_error(row)
        return done

    def _append_together(self, row: NewCall) -> None:
        """Append for one of several callers: whoever leads appends for all who wait."""
        mine = _Pending(row, threading.Event())
        self._waiting.append(mine)
        try:
            while not mine.finished:
                if not self._try_lead(mine):
                    mine.wake.wait(PATIENCE)
                    mine.wake.clear()
        except BaseException:
            self._leave(mine)
            raise
        if mine.error is not None:
            raise mine.error

    async def aappend(self, row: NewCall) -> None:
        """Append one record without holding up the event loop; calls made meanwhile are combined."""
        self.check_size(row.body, row.meta)
        wake = _LoopEvent()
        loop = wake.loop
        mine = _Pending(row, wake)
        self._waiting.append(mine)
        try:
            while not mine.finished:
                if self._lead.locked() or not await loop.run_in_executor(None, self._try_lead, mine):
                    await mine.wake.wait()
                    mine.wake.clear()
        except BaseException:
            self._leave(mine)
            raise
        if mine.error is not None:
            raise mine.error

    def _leave(self, mine: _Pending) -> None:
        """Somebody was interrupted: whoever stands behind must not wait for them to lead (H17)."""
        try:
            self._waiting.remove(mine)
        except ValueError:
            return  # appended, or just being appended
        finally:
            self._wake_next()

    def _try_lead(self, mine: _Pending) -> bool:
        """Append all that waits, unless somebody else is at it."""
        if self._lead.locked():
            return False
        try:
            with self._lead:  # only C code takes it: a signal's exception could come before a `try`
                if not mine.finished:
                    self._append_waiting()
        finally:
            self._wake_next()
        return True

    def _wake_next(self) -> None:
        """Where somebody came too late for this commit, make one of them the next leader."""
        try:
            self._waiting[0].wake.set()
        except IndexError:
            return

    def _append_waiting(self) -> None:
        """Append what waits. Popping exactly what is appended loses nobody who joins meanwhile."""
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_TOGETHER))]
        by_log: dict[int, list[_Pending]] = {}
        for pending in batch:
            by_log.setdefault(pending.row.log, []).append(pending)
        for pending in batch:  # holds for each until its append returns
            pending.error = AppendUnknown("the append was interrupted", (id_text(_given(pending.row.id)),))
        try:
            for together in by_log.values():
                self._append_in_time(together)
        finally:
            for pending in batch:
                pending.finished = True
                pending.wake.set()

    def _append_in_time(self, together: list[_Pending]) -> None:
        """Append to one log in what is left of its callers' time: who came before them may have used it up.

        Then there is a moment left, as one log may be away by itself; but none once others have failed, too.
        """
        now, came = time.monotonic(), together[-1].came
        until = came + self._timeout
        if until - now < GRACE:
            if sum(at > came for at in self._failed.values()) >= IN_VAIN:
                error = EngineUnavailable(f"nothing was sent, after what others met: {self._why}")
                for pending in together:
                    pending.error = error
                return
            until = now + GRACE
        with limited(until):
            self._append_to_log(together)

    def _note_failed(self, log: int, error: RespoolError) -> None:
        if not isinstance(error, StreamUnavailable | BlobsUnavailable):
            self._failed[log], self._why = time.monotonic(), str(error)

    def _append_to_log(self, together: list[_Pending]) -> None:
        try:
            conflicts = self._engine.append_rows([pending.row for pending in together])
        except PartlyAppended as error:
            for n, pending in enumerate(together):
                pending.error = None if n in error.places else _with_ids(error.error, (pending.row,))
            return
        except RespoolError as error:
            if isinstance(error, AppendUnknown | EngineUnavailable):
                self._note_failed(together[0].row.log, error)
            for pending in together:
                pending.error = _with_ids(error, (pending.row,))
            return
        self._failed.clear()
        for pending in together:
            pending.error = None
        for conflict in conflicts:
            if not conflict.same:
                together[conflict.row].error = conflict_error(together[conflict.row].row)

    def check_size(self, body: bytes, meta: bytes | None) -> None:
        """Raise RecordTooLarge for a record over `max_record_size`."""
        check_size(body, meta, self._max)

    def append_rows(self, rows: Sequence[NewCall]) -> None:
        """Append records of one log, each with an id of its own. Raises Refused or AppendUnknown."""
        self._engine.append_rows(rows)

    def append_many(self, rows: Sequence[NewCall]) -> None:
        """Append records of any logs, whose ids were made for them.

        Raises: Refused, AppendUnknown; PartlyAppended where some of them are stored.
        """
        self._engine.append_many(rows)

    def append_run(
        self, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, now: float
    ) -> bytes:
        """Append records that share everything but their bodies; return the id of the first.

        The others' ids count up from it. Raises Refused or AppendUnknown for the whole run.
        """
        head = new_head(now)
        try:
            self._engine.append_run(log, task, bodies, meta, head, now)
        except AppendUnknown as error:
            error.ids = (id_text(head),)
            raise
        return head


def check_size(body: bytes, meta: bytes | None, most: int) -> None:
    """Raise RecordTooLarge for a record of more than so many bytes."""
    length = len(body) + len(meta or b"")
    if length > most:
        raise RecordTooLarge(
            f"the record has {length:,} bytes, max_record_size allows {most:,}; "
            "store the data elsewhere and send where it is, or raise max_record_size"
        )


def _with_ids(error: BaseException, rows: Sequence[NewCall]) -> BaseException:
    if isinstance(error, AppendUnknown):
        ids = tuple(id_text(_given(row.id)) for row in rows)
        return AppendUnknown(f"{error}; send it again with the same id: {', '.join(ids)}", ids)
    return error


def _given(id: Any) -> Any:
    return id.partition("\0")[2] if isinstance(id, str) else id


def conflict_error(row: NewCall) -> IdConflict:
    """Return the error for a record whose id is another one's."""
    return IdConflict(
        f"the id {id_text(_given(row.id))} is taken by a record with another body; nothing was sent. "
        "Use another id, or send the same arguments"
    )


def chunks(bodies: Iterator[bytes], over: int) -> Iterator[tuple[bytes, ...]]:
    """Group encoded bodies into chunks of at most 5,000 records and about 1 MiB; a large one stands alone.

    Few are taken at a time where they are large: they may be many times what fits in memory.
    """
    part: list[bytes] = []
    held = 0
    step = FIRST_STEP
    while some := tuple(islice(bodies, min(step, CHUNK_RECORDS - len(part)))):
        total = sum(map(len, some))
        if held + total <= CHUNK_BYTES and (total <= over or max(map(len, some)) <= over):
            part += some
            held += total
        else:
            for body in some:
                if part and (held + len(body) > CHUNK_BYTES or len(body) > over):
                    yield tuple(part)
                    part, held = [], 0
                part.append(body)
                held += len(body)
                if len(body) > over:
                    yield (body,)
                    part, held = [], 0
        if len(part) >= CHUNK_RECORDS:
            yield tuple(part)
            part, held = [], 0
        step = min(4 * len(some), CHUNK_BYTES * len(some) // max(total, 1) + 1, CHUNK_RECORDS)
    if part:
        yield tuple(part)
