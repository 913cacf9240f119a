"""A task's error crosses to the caller as data; its own type is looked up there, never unpickled."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, NamedTuple, cast

import msgspec

from ..errors import CorruptBody, NotEncodable, RemoteError
from .codec import codec_for
from .refusals import class_name, type_name

TRACEBACK_LIMIT: Final = 64 * 1024
_MSGPACK: Final = codec_for("msgpack")
_HERE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_CALLERS: Final = (f"{_HERE}worker{os.sep}", f"{_HERE}replay{os.sep}")
"""Where the code is that calls tasks."""


class RemoteTraceback(Exception):
    """The `__cause__` of an exception that came from a worker: its text is the traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class _Failure(msgspec.Struct, array_like=True):
    """An exception as stored. New fields go last and have a default: old code and records meet new ones."""

    module: str
    qualname: str
    message: str
    args: bytes | None
    state: dict[str, bytes]
    notes: list[str]
    traceback: str
    causes: list[tuple[str, str]] = []
    worker: str = ""

    @property
    def type_name(self) -> str:
        return type_name(self.module, self.qualname)


class StoredError(NamedTuple):
    """An error as it is stored: what can be read of it without importing anything."""

    type: str
    message: str
    traceback: str
    worker: str  # where it was raised; "": not in a worker


_here = ""  # the worker that this process is part of


def raised_in(worker: str) -> str:
    """Have errors encoded from now on name this worker; return what they named before."""
    global _here
    before, _here = _here, worker
    return before


def encode_error(
    exc: BaseException, traceback_limit: int = TRACEBACK_LIMIT, worker: str | None = None
) -> bytes:
    """Return an exception as bytes; never fails, whatever the exception holds.

    Kept: its type's name, its message, notes and traceback, the types and messages of what caused it, and of
    its `args` and attributes what MessagePack can carry in 64 KiB.

    Args:
        exc: any exception.
        traceback_limit: the bytes of traceback kept, of its head and its tail.
        worker: where it was raised; None: in this process's worker.

    Returns:
        The body, for `decode_error` and `error_summary`.

    Example:
        `encode_error(ValueError("no such user"))`
    """
    kind = type(exc)
    failure = _Failure(
        module=_clean(kind.__module__),
        qualname=_clean(kind.__qualname__),
        message=_message(exc),
        args=_args_of(exc),
        state=_state_of(exc),
        notes=[_clean(str(note), 4096) for note in _notes_of(exc)[:100]],
        traceback=_traceback_of(exc, traceback_limit),
        causes=[(class_name(cause), _message(cause, 1024)) for cause in _causes_of(exc)],
        worker=_here if worker is None else worker,
    )
    return msgspec.msgpack.encode(failure)


def decode_error(body: bytes) -> BaseException:
    """Return the exception that `encode_error` was given, or a `RemoteError` where its type is not to be had.

    Nor is one to be had that is no `Exception`, as SystemExit: it would end whoever asks for the call.

    The exception has `remote_traceback` (text), `remote_causes` (pairs of type name and message) and, so that
    the traceback in the worker is printed with it, a `RemoteTraceback` as its `__cause__`.

    Args:
        body: what `encode_error` returned.

    Returns:
        The exception, to be raised.

    Raises:
        CorruptBody: for damaged bytes.

    Example:
        `raise decode_error(body)`
    """
    failure = _stored_failure(body)
    exc = _own_type(failure) or RemoteError(failure.type_name, failure.message)
    if failure.notes:
        _set(exc, "__notes__", list(failure.notes))
    _set(exc, "remote_traceback", failure.traceback)
    _set(exc, "remote_causes", failure.causes)
    _set(exc, "__cause__", RemoteTraceback(failure.traceback))
    return exc


def error_summary(body: bytes) -> tuple[str, str]:
    """Return an encoded exception's type name and message, importing nothing.

    Args:
        body: what `encode_error` returned.

    Returns:
        `("shop.errors.OutOfStock", "none left")`; a builtin's name without its module.

    Raises:
        CorruptBody: for damaged bytes.

    Example:
        `type_name, message = error_summary(body)`
    """
    failure = _stored_failure(body)
    return failure.type_name, failure.message


def stored_error(body: bytes) -> StoredError:
    """Return what can be read of an encoded exception, importing nothing. Raises CorruptBody."""
    failure = _stored_failure(body)
    return StoredError(failure.type_name, failure.message, failure.traceback, failure.worker)


def _stored_failure(body: bytes) -> _Failure:
    try:
        return _decode_failure(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptBody(f"this is not an encoded exception: {error}") from error


def _clean(text: str, limit: int = 16 * 1024) -> str:
    """Text that can be encoded and is no longer than `limit` bytes: its head and its tail."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode()
    half = limit // 2
    head, tail = data[:half].decode(errors="ignore"), data[len(data) - half :].decode(errors="ignore")
    return f"{head}\n… {len(data) - 2 * half} bytes left out …\n{tail}"


def _message(exc: BaseException, limit: int = 16 * 1024) -> str:
    try:
        return _clean(str(exc), limit)
    except Exception as error:  # noqa: BLE001 - a broken __str__ must not hide the error itself
        return f"<str() of it failed: {type(error).__name__}>"


def _notes_of(exc: BaseException) -> list[object]:
    notes = getattr(exc, "__notes__", None)
    return cast(list[object], notes) if isinstance(notes, list) else []


def _traceback_of(exc: BaseException, limit: int) -> str:
    try:
        return _clean(own_traceback(exc), limit)
    except Exception as error:  # noqa: BLE001 - it calls into the exception and source loaders
        return f"<no traceback: formatting it failed with {type(error).__name__}>\n"


def own_traceback(exc: BaseException) -> str:
    """Return an exception's traceback as text, from the task's own code on."""
    import traceback

    return "".join(traceback.format_exception(type(exc), exc, from_own_code(exc.__traceback__)))


def from_own_code(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the task's own code on: without the frames of the worker that called it."""
    found = trace
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_CALLERS):
        found = found.tb_next
    return trace if found is None else found


def _causes_of(exc: BaseException) -> list[BaseException]:
    """What led to it, as the traceback shows it: nearest first, at most ten."""
    found: list[BaseException] = []
    cause = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    while cause is not None and cause is not exc and cause not in found and len(found) < 10:
        found.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return found


def _small(value: object) -> bytes | None:
    try:
        body = _MSGPACK.encode(value)
    except NotEncodable:
        return None
    return body if len(body) <= TRACEBACK_LIMIT else None


def _args_of(exc: BaseException) -> bytes | None:
    args: Any = exc.args
    if isinstance(exc, OSError) and type(exc).__reduce__ is OSError.__reduce__:
        args = exc.__reduce__()[1]  # `args` leaves out the file's name
    try:
        hash(args)
    except TypeError:
        return _small(args)
    return _small({args: None})  # as a key its tuples stay tuples


def _state_of(exc: BaseException) -> dict[str, bytes]:
    ours = ("__notes__", "remote_traceback", "remote_causes")
    found = {_clean(name): _small(value) for name, value in vars(exc).items() if name not in ours}
    state = {name: raw for name, raw in found.items() if raw is not None}
    return state if sum(map(len, state.values())) <= TRACEBACK_LIMIT else {}


def _own_type(failure: _Failure) -> BaseException | None:
    kind = _find(failure.module, failure.qualname)
    exc = _rebuilt(kind, failure) if kind else None
    if exc is not None:
        for name, raw in failure.state.items():
            _set(exc, name, _MSGPACK.decode(raw))
    return exc


def _find(module: str, qualname: str) -> type[Exception] | None:
    """The exception class of this name; anything else of this name is left alone."""
    if module == "__main__" or "<locals>" in qualname:
        return None  # another program's
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit):  # noqa: BLE001 - importing runs code, which may do anything
        return None
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    return None  # SystemExit and the like would end, or cancel, who asks for the call


def _rebuilt(kind: type[BaseException], failure: _Failure) -> BaseException | None:
    """The exception as `kind(*args)` makes it, where that gives the same one, else without `__init__`."""
    args: tuple[Any, ...] = (failure.message,)
    if failure.args is not None:
        stored: Any = _MSGPACK.decode(failure.args)
        args = next(iter(cast(Any, stored))) if isinstance(stored, dict) else tuple(stored)
        try:
            exc = kind(*args)
            # An __init__ that made the message from other arguments would now make it from the message.
            if type(exc) is kind and exc.args == args[: len(exc.args)] and _message(exc) == failure.message:
                return exc
        except Exception:  # noqa: BLE001, S110 - an __init__ with other parameters, which may raise anything
            pass
    try:
        exc = kind.__new__(kind)
        _set(exc, "args", args)
    except Exception:  # noqa: BLE001 - a __new__ with other parameters: ExceptionGroup's
        return None
    return exc


def _set(exc: BaseException, name: str, value: object) -> None:
    """Set an attribute past a `__setattr__` that refuses, as a frozen dataclass has."""
    with suppress(AttributeError, TypeError):  # a read-only property
        BaseException.__setattr__(exc, name, value)


_decode_failure: Final = msgspec.msgpack.Decoder(_Failure).decode
