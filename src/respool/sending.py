"""What happens to a call or an event once it is encoded: where it goes, and what appends it.

Within a run a call waits in that run's outbox (P4); within `App.transaction` it goes on the caller's own
connection; else to the producer, which has synced it when it returns (P1). Of a run that sends nothing, such
as a replay's, all is taken and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from zlib import crc32

from msgspec.structs import replace

from .clock import now as wall_clock
from .delivery.model import NewCall
from .engines import public_id, stored_id
from .engines.base import Engine, LeaseLost, Stream
from .errors import ConfigError, DatabaseGone, EngineUnavailable, Refused, RespoolError
from .keys import key_hash, partition_of
from .options import out_of_order
from .payloads import NEVER
from .producer import Producer, chunks, conflict_error
from .record import NO_META, Id, Meta, new_head
from .result import AsyncResult, ResultSet
from .running import Run, current_run
from .together import Stored, Together
from .transaction import Collector, Enlisted, enlisted
from .unique import Unique
from .unique import send as send_unique

if TYPE_CHECKING:
    from .app import App
    from .opened import Opened
    from .pressure import Gate
    from .stream import StreamHandle

LARGE_TOGETHER = 64 << 20  # bytes of large payloads that are stored before their calls are appended


class Sender:
    """Sends an app's encoded calls and events.

    A payload of more than `over` bytes (of `offload_over` of its stream) goes to the blob store.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    # Calls

    def call(
        self, queue: str, task: str, body: bytes, meta: Meta, id: Id | None, over: int = NEVER
    ) -> AsyncResult[Any]:
        """Append one call, or put it in the outbox of the present run."""
        app = self._app
        if len(body) > over:
            body, meta = app.payloads.offload(body, meta)
        opened = app.opened
        stream = opened.streams.get(("queue", queue)) or app.stream_of("queue", queue)
        log = stream.logs[0]
        if meta.priority is not None or meta.key is not None or stream.settings.get("ordered"):
            log = self._log_in(stream, task, meta, body)
        run = current_run.get()
        if run is not None and run.serves(opened.engine) and enlisted(app) is None:
            return self._to_outbox(run, log, task, body, meta, id)
        gate = opened.gates.get(queue)
        if gate is not None and (run is None or run.sends):  # not for a task's own calls (H16)
            gate.enter(opened.engine, app.main_of(queue))
        row = new_row(app.name, log, task, body, meta, id)
        pos = self._append(opened, row, run)
        return AsyncResult(
            app, row.id if id is None else public_id(row.id), "main", app.name, None, pos,
            None if pos is None else opened.engine,
        )  # fmt: skip

    async def acall(
        self, queue: str, task: str, body: bytes, meta: Meta, id: Id | None, over: int = NEVER
    ) -> AsyncResult[Any]:
        """Append one call without holding up the event loop."""
        app = self._app
        if len(body) > over:
            body, meta = await app.payloads.aoffload(body, meta)
        log = self._log_in(app.stream_of("queue", queue), task, meta, body)
        run = self._run()
        if run is not None:
            return self._to_outbox(run, log, task, body, meta, id)
        gate = self._gate(queue)
        if gate is not None:
            await gate.aenter(app.engine, app.main_of(queue))
        row = new_row(app.name, log, task, body, meta, id)
        with self._sending() as producer:
            await producer.aappend(row)
        return AsyncResult(app, public_id(row.id))

    def unique_call(
        self, queue: str, rule: Unique, key: str, body: bytes, meta: Meta, id: Id | None
    ) -> AsyncResult[Any]:
        """Append one call unless there is one like it; at once, also within a run (H16)."""
        app = self._app
        engine = app.engine
        log = self._log_in(app.stream_of("queue", queue), rule.task, meta, body)
        run, outer = self._run(), enlisted(app)
        if run is not None and not run.sends:
            return self._to_outbox(run, log, rule.task, body, meta, id)
        app.opened.producer.check_size(body, meta.packed())
        unsent = None if run is not None else self._of_run(engine)
        if isinstance(unsent, Collector):
            row = new_row(app.name, log, rule.task, body, meta, id)
            unsent.append(row)
            return AsyncResult(app, public_id(row.id))
        try:
            if run is not None:
                with run.shield():
                    row, fence = run.call_now(log, rule.task, body, meta, id, app.name)
                    return send_unique(app, rule, key, row, fence, None)
            gate = app.opened.gates.get(queue)
            enter = None if gate is None else lambda: gate.enter(engine, app.main_of(queue))
            row = new_row(app.name, log, rule.task, body, meta, id)
            self._refuse_taken(row, id)
            with nullcontext() if outer is None else outer.in_use() as connection:
                return send_unique(app, rule, key, row, None, connection, enter)
        except LeaseLost:
            raise Refused("the run that made this call has lost its lease; nothing was sent") from None
        except DatabaseGone:
            app.close_lost()
            raise

    def _refuse_taken(self, row: NewCall, id: Id | None) -> None:
        """Raise IdConflict where an id that was given is another record's."""
        engine = self._app.engine
        pos = None if id is None else engine.find(self._app.name, id)
        if pos is not None:
            (record,) = engine.records(pos, pos + 1, 1)
            if (record.task, record.body) != (row.task, row.body):
                raise conflict_error(row)

    @staticmethod
    async def in_thread(send: Callable[..., Any], *args: Any) -> Any:
        """Send without holding up the event loop."""
        import asyncio  # see producer.py

        return await asyncio.to_thread(send, *args)

    def calls(
        self,
        queue: str,
        task: str,
        bodies: Iterator[bytes],
        meta: Meta,
        over: int = NEVER,
        lasts: float | None = None,
    ) -> ResultSet[Any]:
        """Append many calls of one task.

        Parameters:
            lasts: seconds after which each expires, counted from when it is sent.
        """
        app = self._app
        stream = app.stream_of("queue", queue)
        if stream.settings.get("ordered"):
            return self.keyed_calls(queue, task, ((body, meta) for body in bodies), over, lasts)
        log = self._log_in(stream, task, meta, b"")
        results: ResultSet[Any] = ResultSet(app)
        run = self._run()
        if run is not None:
            for body in bodies:
                lasting = _lasting(meta, lasts)
                sent = app.payloads.offload(body, lasting) if len(body) > over else (body, lasting)
                results.add_call(self._to_outbox(run, log, task, *sent, None))
            return results
        self._append_run(log, task, bodies, meta, results, over, queue, lasts)
        return results

    def keyed_calls(
        self,
        queue: str,
        task: str,
        calls: Iterable[tuple[bytes, Meta]],
        over: int = NEVER,
        lasts: float | None = None,
    ) -> ResultSet[Any]:
        """Append many calls of one task, each to the partition of its key; else like `calls`."""
        app = self._app
        stream, run = app.stream_of("queue", queue), self._run()
        results: ResultSet[Any] = ResultSet(app)
        stored = Stored()
        with self._sending(stored) as producer:
            gated = self._gate(queue) is not None
            enter = (lambda calls: self._enter(queue, calls)) if gated else None
            together = Together(producer, stored, enter, lasts)
            for given, described in calls:
                sent = app.payloads.offload(given, described) if len(given) > over else (given, described)
                body, meta = sent
                log = self._log_in(stream, task, meta, body)
                if run is not None:
                    results.add_call(self._to_outbox(run, log, task, body, _lasting(meta, lasts), None))
                    continue
                row = new_row(app.name, log, task, body, meta, None)
                together.add(row)
                results.add_run(row.id, 1)
            together.flush()
        return results

    # Events

    def event(
        self, stream: StreamHandle, partition: int, type: str, body: bytes, meta: Meta, id: Id | None
    ) -> Id:
        """Append one event; return its id."""
        if len(body) > stream.offload_over:
            body, meta = self._app.payloads.offload(body, meta)
        row = self._event_row(stream, partition, type, body, meta, id)
        self._append(self._app.opened, row, current_run.get())
        return public_id(row.id)

    async def aevent(
        self, stream: StreamHandle, partition: int, type: str, body: bytes, meta: Meta, id: Id | None
    ) -> Id:
        """Append one event without holding up the event loop."""
        if len(body) > stream.offload_over:
            body, meta = await self._app.payloads.aoffload(body, meta)
        row = self._event_row(stream, partition, type, body, meta, id)
        with self._sending() as producer:
            await producer.aappend(row)
        return public_id(row.id)

    def _event_row(
        self, stream: StreamHandle, partition: int, type: str, body: bytes, meta: Meta, id: Id | None
    ) -> NewCall:
        log = self._app.stream_of("stream", stream.name).logs[partition]
        return new_row(f"stream:{stream.name}", log, type, body, meta, id)

    def events(self, stream: StreamHandle, type: str, bodies: Iterator[bytes], meta: Meta) -> int:
        """Append many events to a stream without a key; return how many."""
        log = self._app.stream_of("stream", stream.name).logs[0]
        return self._append_run(log, type, bodies, meta, None, stream.offload_over)

    def keyed_events(self, stream: StreamHandle, type: str, events: Iterable[tuple[bytes, Meta, int]]) -> int:
        """Append many events to the partitions of their keys; return how many."""
        logs = self._app.stream_of("stream", stream.name).logs
        sent, stored = 0, Stored()
        with self._sending(stored) as producer:
            together = Together(producer, stored)
            for body, meta, partition in events:
                if len(body) > stream.offload_over:
                    body, meta = self._app.payloads.offload(body, meta)
                together.add(new_row("", logs[partition], type, body, meta, None))
                sent += 1
            together.flush()
        return sent

    # Where to, and by what

    def _log_in(self, stream: Stream, task: str, meta: Meta, body: bytes) -> int:
        """Return the log that a call goes to. Raises ConfigError for a key or priority it cannot have."""
        if not stream.settings.get("ordered"):
            if meta.key is not None:
                raise ConfigError(
                    f"queue {stream.name} is not ordered, and would run calls of one key side by side: "
                    "declare another with app.queue(…, ordered=True); nothing was sent"
                )
            return stream.logs[0] if meta.priority is None else self._lane(stream, meta.priority)
        if meta.priority is not None:
            raise ConfigError(
                f"queue {stream.name} is ordered, and takes no priorities: its calls keep the order of their "
                "keys; nothing was sent"
            )
        known = self._app.tasks.get(task)
        if known is not None and (option := out_of_order(known.options)) is not None:
            raise ConfigError(
                f"task {task} has {option}=, and queue {stream.name} is ordered, where calls run one by one "
                "in the order of their keys: send it to another queue; nothing was sent"
            )
        # Without a key any will do; the same for the same call, so that a rerun makes the same ids.
        partition = crc32(body) % stream.partitions
        return stream.logs[partition if meta.key is None else partition_of(meta.key, stream.partitions)]

    def _lane(self, stream: Stream, priority: int) -> int:
        """Return the log of a priority, made when it is first used."""
        logs = stream.lane(priority)
        if logs is None:
            opened = self._app.opened
            try:
                stream = opened.engine.add_lane(stream, priority)
            except EngineUnavailable as error:
                if enlisted(self._app) is None:
                    raise
                raise EngineUnavailable(
                    f"{error}. Priority {priority} is new to queue {stream.name}: its lane is made in a "
                    "transaction of its own, which may have to wait for yours. Send a first call of that "
                    "priority outside of yours"
                ) from error
            opened.streams[stream.kind, stream.name] = stream
            logs = stream.lanes[priority]
        return logs[0]

    def _run(self) -> Run | None:
        """Return the run whose outbox takes our calls: one that settles on the same log."""
        run = current_run.get()
        if run is None or enlisted(self._app) is not None or not run.serves(self._app.engine):
            return None
        return run

    def _to_outbox(
        self, run: Run, log: int, task: str, body: bytes, meta: Meta, id: Id | None
    ) -> AsyncResult[Any]:
        """Have a call sent with the settlement of the run that makes it. Raises Refused."""
        app = self._app
        app.opened.producer.check_size(body, None)
        return AsyncResult(app, run.send(log, task, body, meta, id, app.name), unsent=run)

    def _append(self, opened: Opened, row: NewCall, run: Run | None) -> int | None:
        """As within `_sending`, without the cost of a generator."""
        producer: Enlisted | Collector | Producer | None = enlisted(self._app)
        if producer is None:
            producer = (run and self._of_run(opened.engine)) or opened.producer
        try:
            return producer.append(row)
        except DatabaseGone:
            self._app.close_lost()
            raise

    @contextmanager
    def _sending(self, stored: Stored | None = None) -> Iterator[Producer | Enlisted | Collector]:
        """Give what appends; where the file is gone, the next call opens what is there then.

        `stored`: of many, how many are stored so far; errors say so.
        """
        opened = self._app.opened
        producer = enlisted(self._app) or self._of_run(opened.engine) or opened.producer
        try:
            yield producer
        except RespoolError as error:
            if isinstance(error, DatabaseGone):
                self._app.close_lost()
            if stored is not None and isinstance(producer, Producer):
                stored.tell(error)
            raise

    def _of_run(self, engine: Engine) -> Enlisted | Collector | None:
        """Return what takes what is not for the outbox of a run with a transaction, or that sends nothing."""
        run = current_run.get()
        if run is None:
            return None
        if not run.sends:  # to whatever log
            return Collector(run.take)
        work = run.enlisted if run.serves(engine) else None
        return None if work is None else Enlisted(engine, work, self._app.settings["max_record_size"])

    def _gate(self, queue: str) -> Gate | None:
        """Return what keeps a queue from getting too full; None: nothing, or nothing is sent."""
        gate = self._app.opened.gates.get(queue)
        run = None if gate is None else current_run.get()
        return gate if run is None or run.sends else None

    def _enter(self, queue: str, calls: int) -> None:
        """Wait for room for so many calls where the queue has a `max_pending`. Raises QueueFull."""
        gate = self._gate(queue)
        if gate is not None:
            gate.enter(self._app.engine, self._app.main_of(queue), calls)

    def _append_run(
        self,
        log: int,
        task: str,
        bodies: Iterator[bytes],
        meta: Meta,
        results: ResultSet[Any] | None,
        over: int,
        queue: str = "",
        lasts: float | None = None,
    ) -> int:
        """Append records that differ in their bodies only, in large chunks; return how many."""
        app, packed, sent, there = self._app, meta.packed(), 0, Stored()
        with self._sending(there) as producer:
            large, stored, gated = Together(producer, there, lasts=lasts), 0, queue in app.opened.gates
            for chunk in chunks(bodies, over):
                self._enter(queue, len(chunk))
                if len(chunk) == 1 and len(chunk[0]) > over:  # it has attributes of its own
                    row = new_row(app.name, log, task, *app.payloads.offload(chunk[0], meta), None)
                    large.add(row)
                    head, stored = row.id, stored + len(chunk[0])
                    if gated or stored >= LARGE_TOGETHER:  # a gate is to see them (H16)
                        large.flush()
                        stored = 0
                else:
                    large.flush()  # in their order
                    if lasts is not None:
                        packed = _lasting(meta, lasts).packed()
                    producer.check_size(max(chunk, key=len), packed)
                    head = producer.append_run(log, task, chunk, packed, wall_clock())
                    there.number += len(chunk)
                sent += len(chunk)
                if results is not None:
                    results.add_run(head, len(chunk))
            large.flush()
        return sent


def new_row(space: str, log: int, task: str, body: bytes, meta: Meta, id: Id | None) -> NewCall:
    """Return a record to append, with a fresh id unless one is given.

    Parameters:
        space: the app's name, or "stream:" and a stream's: ids that are given are unique within it.
    """
    moment = wall_clock()
    stored = new_head(moment) if id is None else stored_id(space, id)
    if meta is NO_META:
        return NewCall(log, task, body, None, stored, moment)
    key = None if meta.key is None else key_hash(meta.key)
    return NewCall(log, task, body, meta.packed(), stored, moment, key)


def _lasting(meta: Meta, lasts: float | None) -> Meta:
    """Return the attributes of what is sent now and expires after so many seconds; None: never."""
    return meta if lasts is None else replace(meta, expires=wall_clock() + lasts)
