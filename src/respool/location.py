"""Where a log is: URLs taken apart, without showing a password."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from .errors import ConfigError, UnknownName
from .units import duration

if TYPE_CHECKING:
    from urllib.parse import SplitResult


class NothingThere(ConfigError):
    """There is no store at a URL, and none was to be made."""


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
        """The URL for people: with all that says which log it is, and no password nor other option."""
        return file_url(self.path) if self.server is None else self.server.shown


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


def file_url(path: str | os.PathLike[str] | None) -> str:
    """Return the URL of a file, None: of a log in memory. What would end a path in a URL is quoted."""
    if path is None:
        return "sqlite:///:memory:"
    return "sqlite:///" + re.sub(r"[%?#\x00-\x1f]", lambda found: f"%{ord(found[0]):02X}", os.fspath(path))


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
    "schema": r"""[^\0"'\\%]{1,40}""",  # it stands in statements, within quotes of both kinds
    "prepare": "on|off",  # default: on, unless a pooler is between
}
"""Options of ours in a PostgreSQL URL; what else it has is libpq's (sslmode, target_session_attrs, …)."""


_SCHEMA = "respool"
"""Where a URL names no schema."""
_PLACE = ("host", "hostaddr", "port", "dbname", "user", "service")
"""Options of libpq's that say which database it is."""


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
    if parts.scheme in ("postgresql", "postgres", "kafka"):
        _check_login(parts)
    if parts.scheme in ("postgresql", "postgres"):
        return _postgres_location(parts)
    if parts.scheme == "kafka":
        return _kafka_location(parts)
    known = "sqlite:///respool.db, postgresql://user:password@host/database, kafka://host:9092?state=…"
    wrong = repr(without_password(url)) if not parts.scheme else parts.scheme
    raise ConfigError(f"no engine for {wrong}; a URL looks like: {known}")


def without_password(url: str) -> str:
    """Return a URL for people: with … in place of its passwords, that of a state within it, too."""
    from urllib.parse import unquote

    outer, mark, state = url.partition("state=")
    outer = _SECRETS.sub(r"\1…", re.sub(r"((?://|^(?!.*//))[^:/?#@]*):.*@", r"\1:…@", outer))
    if not mark or "://" in state:
        return outer + mark + (without_password(state) if mark else "")
    state, more, rest = state.partition("&")
    return outer + mark + _nested(without_password(unquote(state))) + _SECRETS.sub(r"\1…", more + rest)


_SECRETS = re.compile(r"([?&][\w.]*(?:password|passphrase|secret|key\.pem)=)[^&]*")


def _nested(url: str) -> str:
    """Return a URL as it stands within another's query: readable, but for what would end it there."""
    return re.sub(r"[%&#+]", lambda found: f"%{ord(found[0]):02X}", url)


def _check_login(parts: SplitResult) -> None:
    """Raise ConfigError where a login has characters that end it too early; what it says shows none of it."""
    if "@" in parts.path or "@" in parts.query.partition("=")[0] or "@" in parts.fragment:
        raise ConfigError(
            f"the URL {parts.scheme}://… cannot be read: in a user's name and a password / ? # and the like "
            "are quoted, as by urllib.parse.quote(password, safe='')"
        )


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
    where: dict[str, str] = {name: given[name] for name in _PLACE if name in given}
    if (schema := options.get("schema", _SCHEMA)) != _SCHEMA:
        where["schema"] = schema
    if where:
        shown += "?" + urlencode(where, quote_via=quote, safe="/")
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
    shown = f"{bare}?state={_nested(state.shown)}"
    if prefix := options.get("prefix"):
        shown += f"&prefix={prefix}"
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


def refuse_memory(location: Location, what: str) -> None:
    """Raise ConfigError for a log that no other process can see."""
    if location.in_memory:
        raise ConfigError(
            f"{what} keeps its log in memory, where no other process sees it; give it a file: "
            "sqlite:///respool.db"
        )


def locate(given: str | None, beside: str | None) -> tuple[str, Location]:
    """Return the URL to use, as `find_url`, and what it says. Raises ConfigError, which names RESPOOL_URL."""
    url = find_url(given, beside)
    try:
        return url, parse_url(url)
    except ConfigError as error:
        if given or url != os.environ.get("RESPOOL_URL"):
            raise
        raise ConfigError(f"RESPOOL_URL: {error}") from None


def find_url(given: str | None, beside: str | None) -> str:
    """Return the URL to use: the one given, RESPOOL_URL, or respool.db beside the nearest pyproject.toml.

    `beside` is the file of the module that makes the App; without one the working directory counts.
    """
    if given is not None and not isinstance(given, str):
        kind = type(given).__name__
        raise ConfigError(f"url is {given!r:.80} ({kind}), not text like 'sqlite:///respool.db'")
    if given:
        return given
    if url := os.environ.get("RESPOOL_URL"):
        return url
    from pathlib import Path

    start = Path(beside).resolve().parent if beside and os.path.exists(beside) else Path.cwd()
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").exists():
            return file_url(folder / "respool.db")
    return file_url(Path.cwd() / "respool.db")
