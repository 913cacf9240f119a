"""Respool: the task queue you can rewind.

Tasks are written as with Celery, on a durable log that can be replayed, fanned out, audited and compared.
"""

from typing import TYPE_CHECKING

from .errors import (
    AppendError,
    AppendUnknown,
    BadArguments,
    BatchMismatch,
    ConfigError,
    CorruptBody,
    DatabaseGone,
    DeclarationConflict,
    DuplicateCall,
    EngineError,
    EngineTooOld,
    EngineUnavailable,
    GetInsideTask,
    GetTimeout,
    IdConflict,
    LogMoved,
    MaxRetriesExceeded,
    NotEncodable,
    QueueFull,
    RecordTooLarge,
    Refused,
    RemoteError,
    RespoolError,
    ResultError,
    ResultExpired,
    Retry,
    Revoked,
    SchemaTooNew,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    UnknownCall,
    UnknownName,
    WorkerLost,
)

if TYPE_CHECKING:
    from .app import App
    from .result import AsyncResult, ResultSet
    from .task import Task

__all__ = [
    "App",
    "AppendError",
    "AppendUnknown",
    "AsyncResult",
    "BadArguments",
    "BatchMismatch",
    "ConfigError",
    "CorruptBody",
    "DatabaseGone",
    "DeclarationConflict",
    "DuplicateCall",
    "EngineError",
    "EngineTooOld",
    "EngineUnavailable",
    "GetInsideTask",
    "GetTimeout",
    "IdConflict",
    "LogMoved",
    "MaxRetriesExceeded",
    "NotEncodable",
    "QueueFull",
    "RecordTooLarge",
    "Refused",
    "RemoteError",
    "RespoolError",
    "ResultError",
    "ResultExpired",
    "ResultSet",
    "Retry",
    "Revoked",
    "SchemaTooNew",
    "SoftTimeLimitExceeded",
    "Task",
    "TimeLimitExceeded",
    "UnknownCall",
    "UnknownName",
    "WorkerLost",
]

_HOMES = {"App": ".app", "AsyncResult": ".result", "ResultSet": ".result", "Task": ".task"}


def _import(name: str) -> object:
    """Import what is asked for when it is asked for: the command's --help needs none of it."""
    home = _HOMES.get(name)
    if home is None:
        _refuse_celerys(name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(home, __name__), name)
    return value


def _refuse_celerys(name: str) -> None:
    """Say what to use instead of a name of Celery's, as the statement that asks for it fails.

    `from respool import chain` takes an AttributeError for an absence, and says nothing of ours.
    """
    import sys

    from .celery_names import refuse_import

    importing = sys._getframe(2).f_code.co_name == "_handle_fromlist"
    refuse_import(__name__, name, importing=importing)


if not TYPE_CHECKING:  # a type checker would take any name for one of ours
    __getattr__ = _import


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
