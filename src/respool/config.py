"""Every setting of an app, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import celery_names
from .celery_names import instead
from .errors import ConfigError, UnknownName
from .units import duration, size


def _text(value: object, what: str) -> str:
    if isinstance(value, str) and value:
        return value
    raise ConfigError(f"{what}: {value!r} is not text")


def _choice(*names: str) -> Callable[[Any, str], str]:
    def check(value: object, what: str) -> str:
        if value in names:
            return str(value)
        raise ConfigError(f"{what}: {value!r} is none of {', '.join(names)}")

    return check


def _some_time(value: Any, what: str) -> float:
    seconds = duration(value, what)
    if not seconds:
        raise ConfigError(f"{what}: {value!r} must be more than 0")
    return seconds


SHORTEST = 0.01  # seconds between two looks


def _interval(value: Any, what: str) -> float:
    seconds = duration(value, what)
    if seconds < SHORTEST:
        raise ConfigError(
            f"{what}: {value!r} is too short; at least {SHORTEST:g} seconds, or nothing else is done"
        )
    return seconds


def _count(value: object, what: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ConfigError(f"{what}: {value!r} is not a whole number above 0")


def _maybe(check: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, what: None if value is None else check(value, what)


def _options(value: object, what: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise ConfigError(f"{what}: {value!r} is not a dict of task options")


def _key(value: object, what: str) -> bytes:
    if isinstance(value, bytes) and len(value) >= 16:
        return value
    raise ConfigError(f"{what}: a signing key is at least 16 bytes")


class Setting(NamedTuple):
    """One setting: how it is checked, what it is without being set, what it means."""

    check: Callable[[Any, str], Any]
    default: Any
    meaning: str


SETTINGS: dict[str, Setting] = {
    "url": Setting(
        _maybe(_text), None, "where the log is; else RESPOOL_URL, else a file beside pyproject.toml"
    ),
    "durability": Setting(
        _choice("full", "os"),
        "full",
        '"full": synced to disk; "os": survives a crash of the process, not of the power',
    ),
    "append_timeout": Setting(
        duration, 10.0, "seconds that delay() and publish() wait for the engine at most"
    ),
    "max_record_size": Setting(
        size, 1024**2, "bytes of an encoded call or event, at most, but for what goes to the blob store"
    ),
    "blobs": Setting(
        _maybe(_text),
        None,
        "where large payloads are kept: file:///…, s3://…, gs://…, az://…; else RESPOOL_BLOBS, else a folder "
        "beside the database's file",
    ),
    "offload_over": Setting(
        _maybe(size),
        64 * 1024,
        "bytes of an encoded call, event or result beyond which it goes to the blob store; None: never",
    ),
    "max_blob_size": Setting(size, 256 * 1024**2, "bytes of one payload in the blob store, at most"),
    "blob_timeout": Setting(
        _some_time, 30.0, "seconds that a request to the blob store may take, further tries included"
    ),
    "result_ttl": Setting(
        _maybe(duration), None, "how long outcomes are kept; None: as long as their records"
    ),
    "outbox_hold": Setting(
        _maybe(duration),
        1.0,
        "seconds after which the calls of a run leave before it ends; None: only when it ends",
    ),
    "max_deliveries": Setting(_count, 3, "runs of a call that may end with the death of their process"),
    "beat": Setting(_interval, 1.0, "seconds between a worker's signs of life"),
    "worker_ttl": Setting(
        duration, 10.0, "seconds without a beat after which a worker elsewhere is taken for dead"
    ),
    "poll_interval": Setting(_interval, 1.0, "seconds between looks at the log when no doorbell rings"),
    "max_limited": Setting(
        _count,
        1_000_000,
        "calls of a group that may wait for limits; beyond that, those behind them wait, too",
    ),
    "task_defaults": Setting(_options, {}, "options that hold for every task that does not set them"),
    "pickle_key": Setting(_maybe(_key), None, "signing key that allows serializer='pickle'"),
}


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings, checked. Raises UnknownName, ConfigError."""
    for name in given:
        if name not in SETTINGS:
            raise UnknownName("setting", name, SETTINGS, instead=instead(celery_names.SETTINGS, name))
    checked = {name: setting.default for name, setting in SETTINGS.items()}
    checked.update({name: SETTINGS[name].check(value, name) for name, value in given.items()})
    if checked["worker_ttl"] < 3 * checked["beat"]:
        raise ConfigError("worker_ttl must be at least three beats")
    return checked
