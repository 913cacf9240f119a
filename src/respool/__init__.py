"""Respool: the task queue you can rewind.

Tasks are written as with Celery, on a durable log that can be replayed, fanned out, audited and compared.
"""

from .app import App
from .errors import (
    AppendError,
    AppendUnknown,
    BadArguments,
    ConfigError,
    EngineError,
    EngineUnavailable,
    GetTimeout,
    NotEncodable,
    Refused,
    RespoolError,
    ResultError,
    ResultExpired,
    Retry,
    Revoked,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    UnknownCall,
    UnknownName,
    WorkerLost,
)
from .result import AsyncResult, ResultSet
from .task import Task

__all__ = [
    "App",
    "AppendError",
    "AppendUnknown",
    "AsyncResult",
    "BadArguments",
    "ConfigError",
    "EngineError",
    "EngineUnavailable",
    "GetTimeout",
    "NotEncodable",
    "Refused",
    "RespoolError",
    "ResultError",
    "ResultExpired",
    "ResultSet",
    "Retry",
    "Revoked",
    "SoftTimeLimitExceeded",
    "Task",
    "TimeLimitExceeded",
    "UnknownCall",
    "UnknownName",
    "WorkerLost",
]
