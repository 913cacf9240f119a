"""Calling a task's function for one record, and saying how that ended."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from ..clock import boottime_ns, suspended_ns, uptime_ns
from ..clock import now as wall_clock
from ..delivery.model import Lease, Verdict
from ..delivery.spans import Span
from ..encoding.codec import codec_for
from ..errors import (
    BlobLost,
    BlobsUnavailable,
    ConfigError,
    CorruptBody,
    NotEncodable,
    RecordTooLarge,
    Retry,
    SoftTimeLimitExceeded,
)
from ..record import NO_META, Meta, Row, unpack_meta
from ..reference import is_reference
from . import page as p
from . import verdicts
from .large import LargePayloads
from .run import CurrentRun
from .services import Arguments, Runner, Service
from .telling import Retries, id_at, one_line, whose

log = logging.getLogger("respool.worker")
MOST_UNKNOWN = 100  # tasks that are said to be so: names may be anything


def _misplaced(service: Service, runner: Runner) -> ConfigError:
    return ConfigError(
        f"task {runner.name} has {runner.misplaced}=, and {service.stream.kind} {service.stream.name} is "
        "ordered, where calls run one by one in the order of their keys: send it to another queue"
    )


class EndNow(BaseException):
    """The worker is to end at once: no outcome of the task it is thrown into."""


def _too_long() -> SoftTimeLimitExceeded:
    return SoftTimeLimitExceeded("the task ran longer than its soft_time_limit")


class Caller:
    """Runs single records in this process; the executor's helper for all but the plainest of them."""

    def __init__(self, slot: p.Slot, run: CurrentRun, limited: Callable[[], None]) -> None:
        self.slot, self.run, self._limited = slot, run, limited
        self.encode = codec_for("msgpack").encode
        self.large = LargePayloads()
        self._loop: asyncio.Runner | None = None
        self._task: asyncio.Task[Any] | None = None
        self._thread = threading.get_ident()
        self._coroutine = False  # the running record's code is one: its limit cancels it, and raises nothing
        self._told = 0  # the soft limit that the running code was told of
        self._suspended = suspended_ns()  # … and for how long the machine had been, when the code began
        self.storms: Any = None  # the executor's
        self.retries = Retries()
        self._unknown: set[str] = set()  # tasks that were said to be
        self._began: tuple[int, set[int]] = (0, set())  # of a lease, where a run began before
        run.shield = self.shielded

    def close(self) -> None:
        """Close the event loop, if coroutine tasks have used one; say what is left to be said."""
        self.retries.end()
        if self._loop is not None:
            self._loop.close()
        self.run.close()

    def call_with_care(
        self,
        service: Service,
        lease: Lease,
        runner: Runner | None,
        row: Row,
        span: Span,
        skip: frozenset[int],
        charge: Callable[[int], bool],
    ) -> Verdict | None:
        """Run, park, or leave out a record that has more to it than a body."""
        meta = self.look(service, lease, runner, row, span, skip)
        if not isinstance(meta, Meta):
            return meta
        assert runner is not None
        body = self.body_of(runner, row, span, lease)
        if isinstance(body, Verdict):
            return body
        if runner.max_deliveries == 1 and not charge(row[0]):
            self.slot.words[p.BOUND] = 0  # the lease is lost: nothing more of it is ours to run
            return None
        return self._call(runner, row, span, body, meta)

    def look(
        self,
        service: Service,
        lease: Lease,
        runner: Runner | None,
        row: Row,
        span: Span,
        skip: frozenset[int],
    ) -> Meta | Verdict:
        """Return a record's attributes where it is to be run, else what becomes of it instead."""
        pos, _, _, packed = row
        now = wall_clock()
        if pos in skip:
            return verdicts.skipped(pos)
        if runner is None:
            self._say_unknown(service, row[1])
            return verdicts.unknown(row, now)
        if runner.misplaced is not None:
            return verdicts.unreadable(row, _misplaced(service, runner), now)
        try:
            meta = unpack_meta(packed) if packed is not None else NO_META
        except ValueError as error:
            return verdicts.unreadable(row, CorruptBody(f"its attributes cannot be read: {error}"), now)
        if service.group.kind != "replay":  # a replay runs what was due or expired long ago
            if meta.due is not None and meta.due > now:
                return verdicts.scheduled(row, meta.due, now)
            if meta.expires is not None or meta.latest is not None:
                ended = self._too_late(service, lease, row, span, meta, now)
                if ended is not None:
                    return ended
        if span.deliveries and span.deliveries >= runner.max_deliveries:
            return verdicts.ran_too_often(row, span, now)
        stopped: Verdict | None = self.storms.stopped(service, runner, row) if runner.stormy else None
        return meta if stopped is None else stopped

    def _too_late(
        self, service: Service, lease: Lease, row: Row, span: Span, meta: Meta, now: float
    ) -> Verdict | None:
        """Return the verdict on a call that is not to begin any more; None: it may, or did so before (P3)."""
        pos, ended = row[0], None
        if span.begun or service.does_again(pos):
            return None
        if meta.expires is not None and meta.expires <= now:
            ended = verdicts.expired(row, meta.expires, now)
        elif meta.latest and service.group.kind == "main" and not self.run.is_latest(meta.latest, pos):
            ended = verdicts.replaced(row, now)
        return None if ended is None or self._began_before(service, lease, pos) else ended

    def _began_before(self, service: Service, lease: Lease, pos: int) -> bool:
        """Say whether the journal knows of a run: asked once for all of a lease."""
        if self._began[0] != lease.id:
            ranges = [span[:2] for span in lease.spans if not span.begun]
            self._began = lease.id, self.run.engine.began(service.group.id, ranges)
        return pos in self._began[1]

    def _say_unknown(self, service: Service, task: str) -> None:
        if task in self._unknown:
            return
        if len(self._unknown) < MOST_UNKNOWN:
            self._unknown.add(task)
            app = service.group.app
            log.warning(
                "app %s has no task %s: its calls are kept for a worker that has it", app, one_line(task)
            )

    def body_of(self, runner: Runner, row: Row, span: Span, lease: Lease) -> Any:
        """Return what a record is run with, or what its body refers to; a Verdict where that is away."""
        body: Any = lease.bodies.get(row[0], row[2])
        if not is_reference(body):
            return body
        try:
            return self.large.load(runner, body)
        except BlobLost as error:
            return self.failure(runner, row, span, error)
        except BlobsUnavailable as error:
            now = wall_clock()
            return verdicts.out_of_reach(row, error, self.large.later(now), now)

    def _call(self, runner: Runner, row: Row, span: Span, body: Any, meta: Meta) -> Verdict | None:
        try:
            value = self.perform(runner, lambda: runner.arguments(body, meta))
        except EndNow:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
            return self.failure(runner, row, span, error)
        return self.success(runner, row, span, value)

    def perform(self, runner: Runner, arguments: Callable[[], Arguments]) -> Any:
        """Call a task's function within its limits. Raises whatever that, or `arguments`, raises."""
        words = self.slot.words
        self._set_limits(runner)
        try:
            args, kwargs = arguments()
            self._coroutine = runner.coroutine
            words[p.USER] = 1
            try:
                if not runner.coroutine:
                    self.on_soft_limit()  # where it was over before: the signal has come, and was passed over
                value = runner.fn(*args, **kwargs)
                if runner.coroutine:
                    value = self._run_coroutine(value)
            finally:
                words[p.USER] = 0
        finally:
            words[p.SOFT_AT] = words[p.HARD_AT] = 0
        return value

    def _run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            self._loop = asyncio.Runner()
        return self._loop.get_loop().run_until_complete(self._supervised(coroutine))

    async def _supervised(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        self._task = asyncio.current_task()
        self.on_soft_limit()  # it may have come before there was a task to cancel
        try:
            return await coroutine
        except asyncio.CancelledError:
            if self._told:
                raise _too_long() from None
            raise
        finally:
            self._task = None

    def on_soft_limit(self, *_: Any) -> None:
        """Signal handler: a soft time limit may be over. Acts only while that record's code runs (H17).

        A signal can come late, when another record runs: so the clock decides, and once for each limit.
        A coroutine is cancelled, for what would be raised here could be raised inside asyncio.
        """
        words = self.slot.words
        limit = words[p.SOFT_AT]
        if not words[p.USER] or not limit or self._told == limit:
            return
        if not self.is_over(limit):
            words[p.SOFT_FOR] = 0  # it was for another, or a little early: let there be one for this limit
            return
        if not self._coroutine:
            self._told = limit
            raise _too_long()
        if self._task is not None:  # else it has not begun, and looks itself; or it has ended
            self._told = limit
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    def is_over(self, limit: int) -> bool:
        """Say whether a limit of the running record is over, which has no time while the machine has none."""
        return uptime_ns() + self._suspended >= limit

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Have no soft limit strike within the block, but right after it: it is not the user's code (H17)."""
        words = self.slot.words
        if threading.get_ident() != self._thread:
            yield  # limits strike in the thread that runs the record
            return
        before, words[p.USER] = words[p.USER], 0
        try:
            yield
        finally:
            words[p.USER] = before
        self.on_soft_limit()

    def _set_limits(self, runner: Runner) -> None:
        words, now = self.slot.words, boottime_ns()
        words[p.BEGAN] = now
        self._told = 0
        if runner.soft is not None or runner.hard is not None:
            self._suspended = suspended_ns()
            words[p.SOFT_FOR] = 0
            words[p.SOFT_AT] = now + int(runner.soft * 1e9) if runner.soft else 0
            words[p.HARD_AT] = now + int(runner.hard * 1e9) if runner.hard else 0
            self._limited()

    def plain_failure(self, runner: Runner, row: Row, span: Span, error: BaseException) -> Verdict:
        """Return the verdict on a run that raised, or on a body that was taken apart and is no call."""
        if isinstance(error, TypeError | ValueError):
            try:
                runner.arguments(row[2], NO_META)
            except CorruptBody as corrupt:
                error = corrupt
            except Exception:  # noqa: BLE001 - what it raised before
                return self.failure(runner, row, span, error)
        return self.failure(runner, row, span, error)

    def failure(self, runner: Runner, row: Row, span: Span, error: BaseException) -> Verdict:
        """Return the verdict on a run that raised."""
        now = wall_clock()
        if runner.stormy:
            self.storms.note(self.run.service.group.id, runner, error)
        if isinstance(error, CorruptBody):
            self.run.end()
            return verdicts.unreadable(row, error, now)
        began = now - (boottime_ns() - self.slot.words[p.BEGAN]) / 1e9
        verdict = verdicts.failed(runner, row, span, error, began, now, random.random())
        verdict.calls, verdict.dropped, verdict.progressed = self.run.end()
        service = self.run.service
        of = whose(service.stream, service.group, row[1])
        if verdict.retried and verdict.due is not None:
            note = (verdict.note or "").removeprefix("retry: ")
            number, wait = span.retries + 1, max(verdict.due - now, 0.0)
            most = verdicts.policy_of(runner, error).max_retries
            asked = isinstance(error, Retry) and error.cause is None
            self.retries.tell(of, number, most, wait, note, self._id, asked=asked)
        if verdict.reason == "dead":
            what = of if service.stream.kind == "queue" else f"an event of {of},"
            note = one_line(verdict.note or "")
            log.error("%s is a dead letter: %s; see: respool show %s", what, note, self._id())
        return verdict

    def _id(self) -> str:
        """Return the id of the call that runs, as a shell takes it."""
        assert self.run.row is not None
        return id_at(self.run.engine, self.run.row[0])

    def large_result(self, runner: Runner, row: Row, span: Span, encoded: bytes) -> Verdict:
        """Return the verdict on a plain run whose encoded result is to go to the blob store."""
        try:
            stored, offloaded = self.large.result(runner, encoded, excludes=self.run.excludes)
        except (RecordTooLarge, BlobsUnavailable) as error:
            return self.failure(runner, row, span, error)
        return Verdict(row[0], "success", stored, offloaded=offloaded)

    def success(self, runner: Runner, row: Row, span: Span, value: Any) -> Verdict | None:
        """Return the verdict on a run that returned, None where there is nothing to keep of it."""
        if runner.stormy:
            self.storms.note(self.run.service.group.id, runner, None)
        options = runner.options
        encoded, offloaded = None, False
        if value is not None and not options["ignore_result"]:
            try:
                encoded = self.encode(value, "the result")
                if len(encoded) > runner.over:
                    encoded, offloaded = self.large.result(runner, encoded, excludes=self.run.excludes)
            except (NotEncodable, RecordTooLarge, BlobsUnavailable) as error:
                return self.failure(runner, row, span, error)
        if not self.run.used:
            if encoded is None:
                return None
            return Verdict(row[0], "success", encoded, ttl=options["result_ttl"], offloaded=offloaded)
        calls, dropped, progressed = self.run.end()
        return Verdict(
            row[0],
            "success",
            encoded,
            quiet=encoded is None,
            ttl=options["result_ttl"],
            calls=calls,
            dropped=dropped,
            progressed=progressed,
            offloaded=offloaded,
        )
