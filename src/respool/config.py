"""Every setting, in one table; durations, moments and URLs as users write them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ConfigError, UnknownName

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)")


def duration(value: float | timedelta | str, what: str = "duration") -> float:
    """Return a duration in seconds, from seconds, a timedelta, or text like "90s", "1h30m", "7d".

    Raises ConfigError for anything else, for NaN and for negative values.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif (
        isinstance(value, str)
        and (parts := _DURATION.findall(value))
        and not _DURATION.sub("", value).strip()
    ):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    elif isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value):
        seconds = float(value)
    else:
        raise ConfigError(
            f'{what}: {value!r} is no duration; give seconds, a timedelta, or text like "90s" or "7d"'
        )
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{what}: {value!r} is negative or not a number")
    return seconds


def rate(value: float | str, what: str = "rate") -> float:
    """Return a rate per second, from a number or text like "50/s", "600/m", "10/h".

    Raises ConfigError for anything else, and for what is not more than 0.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    else:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:/\s*(s|min|m|h|d))?", str(value).strip())
        if match is None:
            raise ConfigError(
                f'{what}: {value!r} is no rate; give a number a second, or text like "50/s", "600/m"'
            )
        found = float(match[1]) / _UNITS[match[2] or "s"]
    if not 0 < found < float("inf"):
        raise ConfigError(f"{what}: {value!r} must be more than 0")
    return found


def share(value: float | str, what: str = "share") -> float:
    """Return a part of 1, from a number or text like "5%". Raises ConfigError unless 0 < part <= 1."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip()) if isinstance(value, str) else None
    try:
        part = float(match[1]) / 100 if match else float(value)
    except ValueError:
        part = 0.0
    if isinstance(value, bool) or not 0 < part <= 1:
        raise ConfigError(f'{what}: {value!r} is no share; give text like "5%", or a number up to 1')
    return part


def moment(value: datetime | float, what: str = "moment") -> float:
    """Return an aware datetime as seconds since 1970. Raises ConfigError for a naive one."""
    if isinstance(value, datetime):
        if value.tzinfo is None or value.utcoffset() is None:
            raise ConfigError(
                f"{what}: {value.isoformat()} has no time zone; take datetime.now(UTC) or .astimezone()"
            )
        return value.timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(f"{what}: {value!r} is not an aware datetime")


def spoken_moment(text: str, now: datetime) -> datetime:
    """Return the moment that a command line names: `1h` (ago), `14:00` (today), an ISO date or time.

    Without a zone it is local time, that of `now`, which must be aware.
    """
    text = text.strip()
    if text == "now":
        return now
    if _DURATION.findall(text) and not _DURATION.sub("", text).strip():
        return now - timedelta(seconds=duration(text))
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text):
            parts = [int(part) for part in text.split(":")]
            return now.replace(hour=parts[0], minute=parts[1], second=(*parts, 0)[2], microsecond=0)
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is no moment: try 1h, 30d, 14:00, 2026-01-31 or 2026-01-31T14:00"
        ) from error
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=now.tzinfo)


def size(value: int | str, what: str = "size") -> int:
    """Return a size in bytes, from a number or text like "64KiB", "1MB"."""
    units = {
        "": 1,
        "b": 1,
        "kb": 1000,
        "mb": 1000**2,
        "gb": 1000**3,
        "kib": 1024,
        "mib": 1024**2,
        "gib": 1024**3,
    }
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", value.lower()) if isinstance(value, str) else None
    if match is None or match[2] not in units or not int(match[1]):
        raise ConfigError(f'{what}: {value!r} is no size; give bytes or text like "1MiB"')
    return int(match[1]) * units[match[2]]


def _flag(value: object, what: str) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{what}: {value!r} is neither True nor False")


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
    "beat": Setting(duration, 1.0, "seconds between a worker's signs of life"),
    "worker_ttl": Setting(
        duration, 10.0, "seconds without a beat after which a worker elsewhere is taken for dead"
    ),
    "poll_interval": Setting(duration, 1.0, "seconds between looks at the log when no doorbell rings"),
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
            raise UnknownName("setting", name, SETTINGS)
    checked = {name: setting.default for name, setting in SETTINGS.items()}
    checked.update({name: SETTINGS[name].check(value, name) for name, value in given.items()})
    if checked["worker_ttl"] < 3 * checked["beat"]:
        raise ConfigError("worker_ttl must be at least three beats")
    return checked


class Location(NamedTuple):
    """A URL taken apart. Printing one shows no password."""

    scheme: str
    path: str | None  # of a file; None: in memory, or on a server
    options: dict[str, str]
    server: Secret | None = None  # what the server's own client library takes
    state: Location | None = None  # where the state is that this log borrows

    @property
    def in_memory(self) -> bool:
        """Whether it lives and dies with the process."""
        return self.path is None and self.server is None

    @property
    def shown(self) -> str:
        """The URL for people: full path, no options, no password."""
        if self.server is not None:
            return self.server.shown
        return "sqlite:///:memory:" if self.path is None else f"sqlite:///{self.path}"


class Secret:
    """A connection string with a password: what is printed of it is `shown`."""

    def __init__(self, value: str, shown: str) -> None:
        self.value, self.shown = value, shown

    def __repr__(self) -> str:
        return f"Secret({self.shown!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


SQLITE_PRAGMAS = {
    "cache_size": r"-?\d{1,9}",
    "mmap_size": "0",  # S2: a mapped file turns I/O errors into crashes
    "journal_size_limit": r"-?\d{1,12}",
    "page_size": r"512|1024|2048|4096|8192|16384|32768|65536",
    "temp_store": r"memory|file|default",
}
"""Pragmas that a URL may set, with the values they may have."""


POSTGRES_OPTIONS = {
    "durability": "full|os",
    "schema": r"[^\0]{1,40}",
    "prepare": "on|off",  # default: on, unless a pooler is between
}
"""Options of ours in a PostgreSQL URL; what else it has is libpq's (sslmode, target_session_attrs, …)."""


def parse_url(url: str) -> Location:
    """Take a URL apart. Raises ConfigError where no engine has it, or an option is misspelt.

    `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite:///:memory:`;
    `postgresql://user:password@host:5432/database?schema=respool`.
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
    except ValueError:  # whose text may repeat it, with its password
        parts = None
    if parts is None:
        raise ConfigError(f"the URL {without_password(url)!r} cannot be read")
    if parts.scheme == "sqlite":
        return _sqlite_location(url, parts)
    if parts.scheme in ("postgresql", "postgres"):
        return _postgres_location(parts)
    if parts.scheme == "kafka":
        return _kafka_location(parts)
    known = "sqlite:///respool.db, postgresql://user:password@host/database, kafka://host:9092?state=…"
    wrong = repr(without_password(url)) if not parts.scheme else parts.scheme
    raise ConfigError(f"no engine for {wrong}; a URL looks like: {known}")


def without_password(url: str) -> str:
    """Return a URL for people: with … in place of its password."""
    return re.sub(r"([?&]\w*password=)[^&]*", r"\1…", re.sub(r":[^@/]*@", ":…@", url))


def _postgres_location(parts: SplitResult) -> Location:
    from urllib.parse import parse_qsl, quote, urlencode

    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    options = {name: given.pop(name) for name in POSTGRES_OPTIONS if name in given}
    userinfo, _, hosts = parts.netloc.rpartition("@")
    user = userinfo.partition(":")[0]
    shown = f"postgresql://{user and f'{user}@'}{hosts}{parts.path}"
    for each in hosts.split(","):
        if not re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?", each):
            raise ConfigError(f"the URL of the server cannot be read: {each!r} is no host:port, in {shown}")
    for name, value in options.items():
        if not re.fullmatch(POSTGRES_OPTIONS[name], value):
            raise ConfigError(f"{shown}: {name} cannot be {value!r}")
    conninfo = f"postgresql://{parts.netloc}{parts.path}"
    if given:
        conninfo += "?" + urlencode(given, quote_via=quote)
    return Location("postgresql", None, options, Secret(conninfo, shown))


KAFKA_OPTIONS = {
    "state": r".+",
    "prefix": r"[A-Za-z0-9._-]{0,100}",  # of the names of topics and consumer groups
    "replication": r"[1-9]\d?",  # copies of each partition; else what the cluster says
    "id_window": r".+",  # how long given and derived ids are known (K4)
    "oauth_cb": r"[\w.]+:[\w.]+",  # module:function, called with the configuration for a token
    "durability": "full|os",  # of the state
}
"""Options of ours in a Kafka URL. `topic.x` sets x for the topics that are made; any other with a dot is
librdkafka's (security.protocol, sasl.mechanism, ssl.ca.location, …)."""


def _kafka_location(parts: SplitResult) -> Location:
    from urllib.parse import parse_qsl, unquote, urlencode

    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    servers = [host if ":" in host else f"{host}:9092" for host in hosts.split(",") if host]
    at = f"{user}@" if user else ""
    bare = f"kafka://{at}{','.join(servers)}"
    if not servers or parts.path.strip("/"):
        raise ConfigError(f"{bare}: a Kafka URL looks like kafka://host:9092,other:9092?state=postgresql://…")
    for name, value in given.items():
        if "." not in name and name not in KAFKA_OPTIONS:
            raise UnknownName("option", name, KAFKA_OPTIONS, f"in {bare}")
        if name in KAFKA_OPTIONS and not re.fullmatch(KAFKA_OPTIONS[name], value) and name != "state":
            raise ConfigError(f"{bare}: {name} cannot be {value!r}")
    if not given.get("state"):
        raise ConfigError(
            f"{bare} names no state: Kafka keeps the log, and what groups know is kept in PostgreSQL (or "
            "SQLite, on one machine); add ?state=postgresql://user:password@host/database "
            "or ?state=sqlite:///respool.db"
        )
    try:
        state = parse_url(given.pop("state"))
    except ConfigError as error:
        raise ConfigError(f"{bare}: state: {error}") from None
    if state.state is not None or state.in_memory:
        raise ConfigError(
            f"{bare}: state cannot be {state.shown}; it is a PostgreSQL database or a SQLite file"
        )
    if "id_window" in given:
        duration(given["id_window"], f"{bare}: id_window")
    options = {name: value for name, value in given.items() if name in KAFKA_OPTIONS}
    client = {name: value for name, value in given.items() if "." in name}
    if user:
        client = {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "PLAIN",
            "sasl.username": unquote(user),
            "sasl.password": unquote(password),
            **client,
        }
    client["bootstrap.servers"] = ",".join(servers)
    shown = f"{bare}?state={state.shown}"
    return Location("kafka", None, options, Secret(urlencode(client), shown), state)


def _sqlite_location(url: str, parts: SplitResult) -> Location:
    from urllib.parse import parse_qsl, unquote

    if parts.netloc or not parts.path.startswith("/") or parts.path == "/":
        raise ConfigError(
            f"{url!r}: three slashes for a relative path (sqlite:///respool.db), four for an absolute one"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = [*SQLITE_PRAGMAS, "durability"]
    for name, value in options.items():
        if name not in known:
            raise UnknownName("option", name, known, f"in {url!r}")
        if name in SQLITE_PRAGMAS and not re.fullmatch(SQLITE_PRAGMAS[name], value.lower()):
            raise ConfigError(f"{url!r}: {name} cannot be {value!r}")
    path = unquote(parts.path[1:])
    return Location("sqlite", None if path == ":memory:" else os.path.abspath(path), options)


def find_url(given: str | None, beside: str | None) -> str:
    """Return the URL to use: the one given, RESPOOL_URL, or respool.db beside the nearest pyproject.toml.

    `beside` is the file of the module that makes the App; without one the working directory counts.
    """
    if given:
        return given
    if url := os.environ.get("RESPOOL_URL"):
        return url
    from pathlib import Path

    start = Path(beside).resolve().parent if beside and os.path.exists(beside) else Path.cwd()
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").exists():
            return f"sqlite:///{folder / 'respool.db'}"
    return f"sqlite:///{Path.cwd() / 'respool.db'}"
