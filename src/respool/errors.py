"""Every error Respool raises, as one tree.

RespoolError
├── ConfigError                 a setting, option, name or URL that cannot be used
│   ├── UnknownName             no such queue, stream, group, task or setting (suggests the near one)
│   └── DeclarationConflict     stored at creation, declared differently now
├── AppendError                 what `delay()` and `publish()` raise
│   ├── Refused                 nothing was sent
│   │   ├── BadArguments        they do not fit the task's signature or types
│   │   ├── NotEncodable        the value would not arrive as it was sent
│   │   ├── RecordTooLarge      over `max_record_size`, or `max_blob_size`
│   │   ├── IdConflict          the id is taken by a record with another body
│   │   ├── QueueFull           the queue has `max_pending` calls to do
│   │   ├── LogMoved            the log is being moved to another URL, or was
│   │   ├── DuplicateCall       a call like it is there already: of a task with `unique=`
│   │   └── EngineUnavailable   locked, full, read-only or out of reach for longer than allowed
│   │       ├── BlobsUnavailable  the same of the store of large payloads
│   │       └── StreamUnavailable the same of one queue or stream; the others can be used
│   └── AppendUnknown           it may have been sent: send the same id again
│       └── PartlyAppended      of many, some are stored; what the others met is `error`
├── EngineError                 the file or server itself
│   ├── EngineTooOld            a library or server version that is not safe to use
│   ├── SchemaTooNew            written by a newer Respool
│   ├── StreamBroken            the log of one queue or stream is gone, or another; others are whole
│   └── DatabaseGone            the file was deleted or replaced while in use
├── CorruptBody                 a record that cannot be decoded
│   └── BlobLost                its payload is gone from the blob store, or damaged there
├── BatchMismatch               a batch function did not return one item for each call
├── ResultError                 what `get()` raises by itself
│   ├── GetTimeout              not finished in time, and why
│   ├── ResultExpired           finished, but the value is past `result_ttl`
│   ├── Revoked                 expired, purged or revoked: it will not run
│   ├── UnknownCall             never appended, past retention, or outside the group
│   ├── GetInsideTask           `get()` within a run would block the worker
│   └── RemoteError             the task's exception, where its own type cannot be had, as SystemExit's
├── Retry                       raised by `self.retry()`: not a failure, run it again later
├── MaxRetriesExceeded          `self.retry()` without an error of its own, once too often
├── SoftTimeLimitExceeded       raised inside a task that ran longer than `soft_time_limit`
├── TimeLimitExceeded           the outcome of a task killed at `time_limit`
└── WorkerLost                  the outcome of a call whose worker process died too often
"""

from __future__ import annotations

from collections.abc import Iterable


class RespoolError(Exception):
    """Base of every error raised by Respool."""


class ConfigError(RespoolError):
    """A setting, option, name or URL that cannot be used; raised as early as it can be seen."""


class UnknownName(ConfigError):
    """A name that nothing was declared under. The message suggests the nearest one, or says `instead`.

    `hint` is always said, `otherwise` where no name is near.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        known: Iterable[str],
        hint: str = "",
        *,
        instead: str = "",
        otherwise: str = "",
    ) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = suggest(name, self.known)
        told = f"unknown {kind} {name!r}" + (f": {instead}" if instead else near)
        if "did you mean" not in near:
            hint = hint or otherwise
        if name in self.known:
            told = f"{kind} {name!r} is there, but {_NOT_HERE.get(kind, 'not here')}"
        super().__init__(f"{told}{hint and f' ({hint})'}")


class DeclarationConflict(ConfigError):
    """A queue or stream declared with other settings than those stored when it was created."""


class AppendError(RespoolError):
    """Sending a call or an event did not succeed; the subclass says whether it may have been sent.

    `stored`: of many that were sent together, how many are known to be stored.
    """

    stored = 0


class Refused(AppendError):
    """Nothing was sent."""


class BadArguments(Refused, TypeError):
    """The arguments do not fit the task's signature or its annotations."""


class NotEncodable(Refused, TypeError):
    """The value cannot be encoded, or would arrive as something else than was sent."""


class RecordTooLarge(Refused, ValueError):
    """The encoded record is larger than `max_record_size`, or its payload than `max_blob_size`."""


class IdConflict(Refused, ValueError):
    """Another record with this id and another body exists."""


class LogMoved(Refused):
    """`respool transfer` is moving the log to another URL, or has done so. Nothing was written.

    `final`: it has ended, and the log is there. Else it may still be given up.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.final = " was moved to " in message


class QueueFull(Refused):
    """The queue has as many calls to do as its `max_pending` allows."""


class DuplicateCall(Refused):
    """A call like it is there already, and the task's `on_duplicate` is "raise". Nothing was sent.

    `existing` is the handle of that call.
    """

    def __init__(self, message: str, existing: object = None) -> None:
        super().__init__(message)
        self.existing = existing


class EngineUnavailable(Refused):
    """The engine could not be reached or written to within the time allowed. Nothing was sent."""


class BlobsUnavailable(EngineUnavailable):
    """The blob store that large payloads are kept in cannot be used. Nothing was sent."""


class StreamUnavailable(EngineUnavailable):
    """The log of one queue or stream could not be reached within the time allowed; that of others can be."""


class AppendUnknown(AppendError):
    """The record may or may not have been stored.

    Sending it again with the same id (`self.ids`) is safe: a record that did arrive is not repeated.
    """

    def __init__(self, message: str, ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.ids = ids


class PartlyAppended(AppendUnknown):
    """Of many that were sent together `stored` are stored, and stay. What the others met is `error`.

    Of those nothing was sent, unless `error` is an AppendUnknown: then it may have been.
    """

    def __init__(self, error: RespoolError, stored: int, places: Iterable[int] = ()) -> None:
        super().__init__(f"{error}. That holds for the rest: {stored:,} sent before, or with it, are stored")
        self.error, self.stored = error, stored
        self.places = frozenset(places)  # which those are, among what an engine was given


class EngineError(RespoolError):
    """The file or server that holds the log."""


class EngineTooOld(EngineError):
    """The library or server version has a defect that can lose data."""


class SchemaTooNew(EngineError):
    """The log was written by a newer version of Respool."""


class DatabaseGone(EngineError):
    """The database file was deleted or replaced while it was open."""


class StreamBroken(EngineError):
    """The log of one queue or stream is gone, or is not the one that it was. That of others is whole."""


OF_ONE_STREAM = (StreamBroken, StreamUnavailable)
"""What concerns one queue or stream alone: whoever serves or shows several goes on with the others."""


class CorruptBody(RespoolError):
    """A record's body cannot be decoded: damaged, or of an unknown content type or version."""


class BlobLost(CorruptBody):
    """A record, or a result, whose payload is gone from the blob store, or is not what was stored."""


class BatchMismatch(RespoolError):
    """A batch function returned something else than a list with one item for each call; all of them fail."""


class ResultError(RespoolError):
    """Raised by `get()`, as against errors raised by the task."""


class GetTimeout(ResultError, TimeoutError):
    """The call was not finished in time. The message says what it was waiting for."""


class ResultExpired(ResultError):
    """The call is finished, but what it returned is past its `result_ttl`."""


class Revoked(ResultError):
    """The call was ended without running: expired, purged or revoked."""


class UnknownCall(ResultError, LookupError):
    """No call of this id: never appended, past retention, or outside the group."""


class GetInsideTask(ResultError, RuntimeError):
    """`get()` inside a running task would block the process that other calls wait for."""


class RemoteError(ResultError):
    """A task's exception whose own type cannot be imported or rebuilt here, or would end whoever asks for it.

    `type_name` is its qualified name, `remote_traceback` the traceback in the worker.
    """

    def __init__(self, type_name: str, message: str, remote_traceback: str = "") -> None:
        super().__init__(f"{type_name}: {message}")
        self.type_name, self.message, self.remote_traceback = type_name, message, remote_traceback


class Retry(RespoolError):
    """Raised by `self.retry()` to end this run and have the call run again later.

    `countdown` is in seconds, None for the task's own backoff; `cause` is the error that led to it;
    `max_retries` is how often it may be retried in all, None for what the task says.
    """

    def __init__(
        self,
        message: str = "retry",
        *,
        countdown: float | None = None,
        cause: BaseException | None = None,
        max_retries: int | None = None,
    ):
        super().__init__(message)
        self.countdown, self.cause, self.max_retries = countdown, cause, max_retries


class MaxRetriesExceeded(RespoolError):
    """The outcome of a call that asked for one retry more than `max_retries` allows, for no stated error."""


class SoftTimeLimitExceeded(RespoolError):
    """Raised inside a task that ran longer than its `soft_time_limit`, so that it can clean up."""


class TimeLimitExceeded(RespoolError):
    """The task ran longer than its `time_limit` and its process was killed."""


class WorkerLost(RespoolError):
    """The process that ran the call died, more often than `max_deliveries` allows."""


_NOT_HERE = {"group": "no subscription of the app reads it, and it is of none of the queues served"}
"""Why a name that does exist, of some kind, cannot be used where it was given."""


def _of_one_word(name: str, known: Iterable[str]) -> list[str]:
    """Return the names of which one contains the other; of less than three letters that says nothing."""
    pairs = ((each, *sorted((each, name), key=len)) for each in known)
    return sorted(each for each, short, long in pairs if len(short) > 2 and short in long)[:10]


def suggest(name: object, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or the known names where none is near (at most ten).

    Near are the one that is written alike, else those that contain the word, or are contained in it.
    """
    import difflib

    known, name = list(known), name if isinstance(name, str) else repr(name)
    near = difflib.get_close_matches(name, known, n=1) or _of_one_word(name, known)
    if len(near) > 1:
        return f"; did you mean one of: {', '.join(near)}?"
    if near:
        return f"; did you mean {near[0]!r}?"
    if not known:
        return "; none is declared"
    shown = ", ".join(sorted(known)[:10]) + (", …" if len(known) > 10 else "")
    return f"; known: {shown}"


def unsent(said: RespoolError | str) -> str:
    """Return an error, or what it says, for one who was sending nothing: without that nothing was sent."""
    return str(said).removesuffix("; nothing was sent")
