"""The same app and the same commands, unchanged, on a server: RESPOOL_URL names it."""

import json
import re
import urllib.parse
import uuid
from pathlib import Path

import psycopg
import pytest
from tests.cli.support import run
from tests.engines.conftest import session_database as session_database
from tests.engines.test_postgres import Reader
from tests.services.fixtures import postgres as postgres
from tests.services.fixtures import services_run as services_run

from respool import App
from respool.engines.postgres import connection
from respool.testing import work


@pytest.fixture
def url(session_database):
    return f"{session_database}?schema=s{uuid.uuid4().hex[:12]}"


@pytest.fixture
def shop(folder, cli, url):
    """Runs a command on the shop; returns what it printed, where no password may be."""
    password = urllib.parse.urlsplit(url).password

    def command(*args):
        if args[0] == "worker":
            result = run("-A", "shop", *args, cwd=folder, RESPOOL_URL=url)
            assert result.returncode == 0, result.stderr
            told = result.stdout + result.stderr
        else:
            told = cli("-A", "shop", "--url", url, *args)
        assert password not in told
        return told

    return command


@pytest.mark.parametrize("whose", [("-A", "shop"), ()])
def test_a_command_that_looks_connects_once(folder, cli, shop, url, whose, monkeypatch):
    """A connection is a process of the server's."""
    shop("call", "add", "2", "3")
    roles, connect = [], connection.connect

    def counted(options, role, *args, **more):
        roles.append(role)
        return connect(options, role, *args, **more)

    monkeypatch.setattr(connection, "connect", counted)
    for command in ("lag", "groups list", "queues", "streams", "calls", "workers", "check", "dead list"):
        roles.clear()
        cli(*whose, "--url", url, *command.split())
        assert roles == ["reader"], command


def test_calls_from_their_sending_to_a_replay(shop, folder):
    sum_ = shop("call", "add", "2", "3").strip()
    bad = shop("call", "fetch", "bad://x").strip()
    later = shop("call", "mail", "me", "--countdown", "1h").strip()
    assert "worked through 2 records; left: 1 scheduled, 1 dead" in shop("worker", "-c", "2", "--burst")
    assert "returned 5" in shop("show", sum_)
    (row,) = [json.loads(line) for line in shop("dead", "list", "--json").splitlines()]
    assert row["id"] == bad
    assert "bad://x" in shop("show", bad)
    assert sum_ in shop("calls")
    shop("dead", "redrive", "--yes")
    shop("worker", "-c", "1", "--burst", "-P", "solo")
    assert "failed" in shop("show", bad)
    assert "1 call" in shop("purge", "--queue", "default", "--yes")
    assert "REVOKED" in shop("show", later)
    shop("replay", "--queue", "default", "--group", "v2", "--task", "add")
    assert "worked through" in shop("worker", "-c", "1", "--burst", "--group", "v2")
    assert "v2" in shop("groups", "list")
    lag = [json.loads(line) for line in shop("lag", "--json").splitlines()]
    assert {row["group"] for row in lag} >= {"main", "v2", "audit"}
    assert re.search(
        r"records in postgresql://\w+@[\d.:]+/\w+\?schema=\w+: each is in one place", shop("check")
    )
    assert shop("workers").startswith("No workers.")
    assert not list(folder.glob("respool.db*"))


def test_lag_shows_who_holds_numbers_and_that_the_group_waits(shop, url, monkeypatch):
    """G4: beyond the cap the cursor waits, visibly."""
    from respool.engines.postgres import gaps

    shop("call", "add", "1", "1")
    app = App("shop", url=url)
    app.task(name="add")(lambda x, y: x + y)
    work(app)
    monkeypatch.setattr(gaps, "MAX_GAPS", 3)
    main = next(group for group in app.groups() if group.name == "main" and group.app == "shop")
    with psycopg.connect(url.partition("?")[0]) as held:
        for _ in range(5):
            app.tasks["add"].apply_async((1, 1), connection=held)
            app.tasks["add"].delay(2, 2)
        reader = Reader(app.engine, main)
        assert len(reader.drain()) == 3
        (row,) = [json.loads(line) for line in shop("lag", "--queue", "default", "--json").splitlines()]
        assert (row["pending"], row["gaps"]["numbers"], row["gaps"]["ranges"]) == (2, 3, 3)
        said = " ".join(shop("lag").split())
        assert "3 numbers in 3 of at most 3 gaps may yet come" in said
        assert "it waits, for there is no room for more" in said
        held.commit()
    assert len(reader.drain()) == 7
    assert "gaps" not in shop("lag")
    app.close()


def test_commands_that_are_suggested_hold_no_password(folder, url):
    """Nor does the error of one who waits in vain."""
    password = urllib.parse.urlsplit(url).password
    shop = ("-A", "shop", "--url", url)
    waited = run(*shop, "call", "add", "1", "2", "--wait", "--timeout", "0.2", cwd=folder)
    told = run(*shop, "lag", cwd=folder)
    for result in (waited, told):
        assert "worker" in result.stdout + result.stderr
        assert password not in result.stdout + result.stderr


def test_server_that_cannot_be_reached(folder, url):
    away = re.sub(r":\d+/", ":1/", url)
    for args in (
        ("-A", "shop", "lag"),
        ("--url", away, "lag"),
        ("-A", "shop", "--debug", "call", "add", "1", "2"),
    ):
        result = run(*args, cwd=folder, RESPOOL_URL=away)
        assert result.returncode == 1
        assert "cannot connect to postgresql://" in result.stderr
        assert urllib.parse.urlsplit(url).password not in result.stdout + result.stderr
        assert ("nothing was sent" in result.stderr) == ("call" in args)
    worker = run("-A", "shop", "worker", "--burst", cwd=folder, RESPOOL_URL=away)
    assert worker.returncode == 1
    assert worker.stderr.endswith("Connection refused\n"), "a worker sends nothing"


def test_a_command_that_looks_makes_no_schema(folder, cli, url, monkeypatch):
    schema, password = url.partition("schema=")[2], urllib.parse.urlsplit(url).password
    told = [cli("--url", url, "lag", code=2), cli("-A", "shop", "--url", url, "rerun", "0" * 32, code=2)]
    monkeypatch.setenv("RESPOOL_URL", url)
    told += [cli("-A", "shop", "lag", code=2), cli("queues", code=2)]
    for each in told:
        assert "no log" in each
        assert password not in each
    with psycopg.connect(url.partition("?")[0]) as db:
        assert db.execute("SELECT to_regnamespace(%s)", (schema,)).fetchone() == (None,)


def test_queries_of_the_operations_page(shop, url):
    shop("call", "add", "1", "1")
    page = Path(__file__).parents[2] / "docs/operations.md"
    (block,) = re.findall(r"^```sql\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    schema = url.partition("schema=")[2]
    found = []
    with psycopg.connect(url.partition("?")[0]) as db:
        for query in filter(str.strip, block.replace("'respool'", f"'{schema}'").split(";\n")):
            found.append(db.execute(query).fetchall())
    assert found[1][0][0] == "record_1_0"
    assert len(found) == 4
