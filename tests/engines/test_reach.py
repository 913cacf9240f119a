"""Servers that cannot be reached, or refuse: a clear error, in time, that says what to do and no password."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from tests.services.postgres import PostgresServer

from respool import App, ConfigError
from respool.engines.postgres import connection
from respool.engines.postgres.connection import connect
from respool.engines.postgres.reach import PostgresOptions, hidden, parameters, resolved
from respool.errors import EngineTooOld, EngineUnavailable, RespoolError
from respool.location import parse_url

SECRET = "s3cr%2Ft-w0rd"  # as it is written in a URL
MEANT = "s3cr/t-w0rd"


def failure(url: str, timeout: float = 2.0) -> tuple[RespoolError, str]:
    """Return the error of an app that is used for the first time, with all that a log could show of it."""
    app = App("shop", url=url, append_timeout=timeout)

    @app.task
    def add(x: int) -> None: ...

    began = time.monotonic()
    with pytest.raises(RespoolError) as caught:
        add.delay(1)
    assert time.monotonic() - began < timeout + 1.5
    shown = "".join(traceback.format_exception(caught.value))
    error: BaseException | None = caught.value
    while error is not None:  # whether it is shown or not
        shown += f"{error} {error!r} {error.args} {error.__dict__}"
        error = error.__cause__ or error.__context__
    return caught.value, shown + repr(app) + repr(app.location) + str(app.location)


def swap(url: str, **parts: str) -> str:
    """Return a URL with other parts: user, password, host, port, dbname."""
    told = {**conninfo_to_dict(url), **parts}
    return "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**told)


def test_wrong_password_or_user_or_database(session_database: str) -> None:
    for part, value, said in (
        ("password", SECRET, "check user and password of the URL (url=, RESPOOL_URL)"),
        ("user", "nobody", "check user and password"),
        ("dbname", "nowhere", "check user and database"),
    ):
        parts = {"password": SECRET, part: value} if part == "user" else {part: value}
        error, shown = failure(swap(session_database, **parts))
        assert isinstance(error, ConfigError)
        assert said in str(error)
        for secret in (SECRET, MEANT, conninfo_to_dict(session_database)["password"]):
            assert str(secret) not in shown


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of something that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_unreachable_host(silent: int) -> None:
    for host, said in (
        ("127.0.0.1:1", "Connection refused"),
        (f"127.0.0.1:{silent}", "timeout"),
        ("127.0.0.1:1,127.0.0.1:2", "port 2 failed: Connection refused"),
        ("nowhere.invalid:5432", "check the host of the URL"),
    ):
        error, shown = failure(f"postgresql://me:{SECRET}@{host}/shop")
        assert isinstance(error, EngineUnavailable if "check" not in said else ConfigError), shown
        assert said in str(error)
        assert f"postgresql://me@{host}/shop" in str(error)
        assert SECRET not in shown
        assert MEANT not in shown


def test_resolver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can end a look-up: it is not waited for longer than connecting may take."""
    answers = threading.Event()
    ask = socket.getaddrinfo

    def silent(host: Any, *given: Any, **more: Any) -> Any:
        if host == "silent.example":
            answers.wait(60)
        return ask(host, *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    began = time.monotonic()
    error, shown = failure(f"postgresql://me:{SECRET}@silent.example:5432/shop")
    answers.set()
    assert time.monotonic() - began < 10
    assert isinstance(error, EngineUnavailable)
    assert "postgresql://me@silent.example:5432/shop: silent.example could not be resolved within" in str(
        error
    )
    assert SECRET not in shown
    assert MEANT not in shown


def test_addresses_of_a_host_are_tried_in_turn(
    session_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside others; each with its own port."""
    port = conninfo_to_dict(session_database)["port"]
    addresses = {"first.example": ["127.0.0.3"], "second.example": ["127.0.0.2", "127.0.0.1"]}

    def known(host: Any, *given: Any, **more: Any) -> Any:
        return [(2, 1, 6, "", (address, 0)) for address in addresses[host]]

    monkeypatch.setattr(socket, "getaddrinfo", known)
    url = swap(session_database, host="first.example:1,second.example", port=str(port)) + "?sslmode=disable"
    options = PostgresOptions(url, "shown")
    told = resolved(parameters(options), options)
    assert (told["host"], told["hostaddr"], told["port"]) == (
        "first.example,second.example,second.example",
        "127.0.0.3,127.0.0.2,127.0.0.1",
        f"1,{port},{port}",
    )
    with connect(options, "test") as db:
        assert db.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}%zz@127.0.0.1:1/shop",
        f"postgresql://me:{SECRET}@127.0.0.1:1/shop?sslmod=verify-full",
        f"postgresql://127.0.0.1:1/shop?user=me&password={SECRET}&connect_timeout=x",
        f"postgresql://me:{SECRET}@127.0.0.1:port/shop",
        f"postgresql://me:{SECRET}@127.0.0.1:1/shop?prepare=maybe",
        f"postgresql://me:{SECRET}@[127.0.0.1:1/shop",
        f"postgresql+asyncpg://me:{SECRET}@127.0.0.1:1/shop",
        f"//me:{SECRET}@127.0.0.1:1/shop",
        f"postgresql://me:{SECRET}\u2100@127.0.0.1:1/shop",
    ],
)
def test_url_that_cannot_be_read(url: str) -> None:
    caught: Any
    try:
        caught = failure(url)
    except RespoolError as error:  # when the app is made
        caught = error, "".join(traceback.format_exception(error)) + repr(error.__context__)
    error, shown = caught
    assert isinstance(error, ConfigError)
    assert SECRET not in shown
    assert MEANT not in shown


def test_server_that_is_too_old(session_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "OLDEST", 990000)
    error, shown = failure(session_database)
    assert isinstance(error, EngineTooOld)
    assert "at least 99 is needed: upgrade the server" in str(error)
    assert str(conninfo_to_dict(session_database)["password"]) not in shown


@pytest.mark.parametrize(
    ("driver", "extra", "url"),
    [
        ("psycopg", "postgres", f"postgresql://me:{SECRET}@127.0.0.1:1/shop"),
        ("confluent_kafka", "kafka", f"kafka://me:{SECRET}@127.0.0.1:1?state=sqlite:///s.db"),
    ],
)
def test_extra_that_is_not_installed(tmp_path: Path, driver: str, extra: str, url: str) -> None:
    code = f"import sys\nsys.modules[{driver!r}] = None\nfrom respool.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--url", url, "lag"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert f"pip install 'respool[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_options_show_no_password() -> None:
    location = parse_url(f"postgresql://me:{SECRET}@db.example/shop")
    assert location.server is not None
    options = PostgresOptions(location.server.value, location.shown)
    assert SECRET not in f"{options} {options!r} {location}"
    assert hidden(f"{MEANT} or {SECRET}", location.server.value) == "… or …"


# TLS


def told(url: str, monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, Any]:
    for name in ("PGHOST", "PGSSLMODE", "PGSSLROOTCERT", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", "/nonexistent")
    return parameters(PostgresOptions(url, "shown"))


def test_tls_is_verified_beyond_this_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.touch()
    near = ("127.0.0.1:5432", "localhost", "", "[::1]:5432", "%2Frun%2Fpostgresql", "127.0.0.1,localhost")
    for host in near:
        assert "sslmode" not in told(f"postgresql://me@{host}/shop", monkeypatch), host
    for host in ("db.example", "10.0.0.1", "localhost,db.example", "[fd00::1]"):
        found = told(f"postgresql://me@{host}/shop", monkeypatch, SSL_CERT_FILE=str(bundle))
        assert (found["sslmode"], found["sslrootcert"]) == ("verify-full", str(bundle)), host
    assert told("postgresql:///shop", monkeypatch, PGHOST="db.example")["sslmode"] == "verify-full"
    assert told("postgresql://db.example/shop?sslmode=require", monkeypatch)["sslmode"] == "require"
    assert "sslmode" not in told("postgresql://db.example/shop", monkeypatch, PGSSLMODE="disable")
    own = told("postgresql://db.example/shop?sslrootcert=own.pem", monkeypatch)
    assert (own["sslmode"], own["sslrootcert"]) == ("verify-full", "own.pem")


@pytest.fixture
def with_tls() -> Iterator[tuple[PostgresServer, Path]]:
    """A server with a certificate for `db.example`, and the authority that has signed it."""
    with PostgresServer(fsync=False) as server:
        authority = server.use_tls("db.example")
        server.create_database("shop")
        yield server, authority


@pytest.mark.server
def test_server_proves_who_it_is(
    with_tls: tuple[PostgresServer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, authority = with_tls
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    # The name is of another host; the address is where it is.
    url = server.url("shop").replace("@127.0.0.1:", "@db.example:") + "?hostaddr=127.0.0.1"
    password = str(conninfo_to_dict(url)["password"])
    unknown, shown = failure(url)
    assert isinstance(unknown, ConfigError)
    assert "certificate" in str(unknown)
    assert "sslrootcert=FILE" in str(unknown)
    misnamed, more = failure(url.replace("db.example", "other.example") + f"&sslrootcert={authority}")
    assert "other.example" in str(misnamed)
    assert password not in shown + more
    for how in (f"&sslrootcert={authority}", "&sslmode=require"):
        app = App("shop", url=url + how)
        encrypted = app.engine._reader.read(  # type: ignore[attr-defined]
            lambda db: db.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        )
        assert encrypted == (True,)
        app.close()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    App("shop", url=url).engine.close()


def test_server_without_tls_is_refused_beyond_this_host(session_database: str) -> None:
    away = session_database.replace("@127.0.0.1:", "@db.example:") + "?hostaddr=127.0.0.1"
    error, _ = failure(away)
    assert isinstance(error, ConfigError)
    assert "sslmode=disable" in str(error)
    App("shop", url=away + "&sslmode=disable").engine.close()
