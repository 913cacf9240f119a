"""`respool transfer`, as its users run it: between files, to a server and back."""

import json
import os
import re
import shutil
import signal
import urllib.parse
import uuid
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from tests.cli.support import in_terminal, python, run, write_shop
from tests.engines.conftest import session_database as session_database
from tests.services.fixtures import kafka as kafka
from tests.services.fixtures import postgres as postgres
from tests.services.fixtures import services_run as services_run

from respool.cli import main
from respool.cli.transfer import _telling
from respool.engines import is_there
from respool.errors import EngineError
from respool.location import parse_url

FROM, TO = "sqlite:///respool.db", "sqlite:///there.db"


@pytest.fixture
def server(session_database):
    return f"{session_database}?schema=s{uuid.uuid4().hex[:12]}"


@pytest.fixture
def filled(folder, cli):
    """A log with calls that were run, failed, and wait."""
    ids = {
        "sum": cli("-A", "shop", "--url", FROM, "call", "add", "2", "3").strip(),
        "bad": cli("-A", "shop", "--url", FROM, "call", "fetch", "bad://x").strip(),
    }
    run("-A", "shop", "--url", FROM, "worker", "-c", "1", "--burst", cwd=folder)
    ids["later"] = cli("-A", "shop", "--url", FROM, "call", "add", "4", "5").strip()
    return ids


def test_a_dry_run_changes_nothing(cli, filled, folder):
    told = cli("transfer", "--from", FROM, "--to", TO, "--dry-run")
    assert re.search(r"queue shop/default +2 +main", told)
    assert re.search(r"queue shop/fast +1 +main", told)
    assert not (folder / "there.db").exists()
    data = cli.data("transfer", "--from", FROM, "--to", TO, "--dry-run")
    assert (data["records"], data["running"], data["resumes"], data["done"]) == (3, 0, False, False)
    assert told.endswith("Nothing was changed.\n")
    assert cli("-A", "shop", "--url", FROM, "call", "add", "1", "1")


def test_what_is_not_confirmed_makes_nothing(cli, filled, folder, server):
    for target in (TO, server):
        told = cli("transfer", "--from", FROM, "--to", target, code=1)
        assert "Nobody can be asked here" in told
        assert not is_there(parse_url(target))
    assert not (folder / "there.db").exists()
    assert cli("-A", "shop", "--url", FROM, "call", "add", "1", "1"), "the source is open"


def test_from_file_to_file(cli, filled, folder):
    told = cli("transfer", "--from", FROM, "--to", TO, "--yes")
    assert re.search(
        r"Moved 3 records with \d groups to sqlite:////.*there\.db in .* s; checked on both", told
    )
    assert "returned 5" in cli("-A", "shop", "--url", TO, "show", filled["sum"])
    assert filled["bad"] in cli("--url", TO, "dead", "list", "--json")
    assert "in one place" in cli("--url", TO, "check")
    assert "in one place" in cli("--url", FROM, "check")
    refused = cli("-A", "shop", "--url", FROM, "call", "add", "1", "1", code=1)
    assert re.search(r"this log was moved to sqlite:////.*there\.db: set url= or RESPOOL_URL", refused)
    told = run("-A", "shop", "--url", FROM, "worker", cwd=folder)
    assert told.returncode == 1
    assert "this log was moved to" in told.stderr
    assert "already" in cli("transfer", "--from", FROM, "--to", TO, "--yes")
    worked = run("-A", "shop", "--url", TO, "worker", "-c", "1", "--burst", cwd=folder)
    assert "worked through 1 record" in worked.stderr
    assert "returned 9" in cli("-A", "shop", "--url", TO, "show", filled["later"])


def test_each_step_is_told_to_its_end(capsys):
    with _telling(False) as tell:
        for what, parts in (("records", (3, 7, 9)), ("check of the source", (2, 4)), ("rest", (10,))):
            for done in parts:
                tell(what, done, 10)
        tell("rows of groups", 1200, 0)
        tell("more than was there when it began", 12, 10)
        tell("marked as moved", 1, 1)
    assert capsys.readouterr().err.splitlines() == [
        *("records: 30 %", "records: 100 %", "check of the source: 20 %", "check of the source: 100 %"),
        *("rest: 100 %", "rows of groups: 1,200", "more than was there when it began: 100 %"),
        "marked as moved",
    ]


def test_a_step_that_fails_is_not_told_to_have_ended(capsys):
    def broken():
        with _telling(False) as tell:
            tell("records", 3, 10)
            raise EngineError("the disk is full")

    with pytest.raises(EngineError):
        broken()
    assert capsys.readouterr().err == "records: 30 %\n"


READS = (
    ("lag",), ("workers",), ("check",), ("calls",), ("queues",), ("streams",), ("groups", "list"),
    ("dead", "list"), ("tail", "--timeout", "0.05"), ("export", "--queue", "default"),
    ("seek", "main", "--queue", "default", "--to", "earliest", "--dry-run"),
)  # fmt: skip


@pytest.mark.parametrize("common", [("-A", "shop"), ()], ids=["app", "url"])
def test_who_looks_at_a_log_that_was_moved_is_told_where_it_is(filled, folder, common):
    at = (*common, "--url", FROM)

    def look(*args):
        found = CliRunner().invoke(main, [*at, *args], prog_name="respool")
        assert found.exit_code == 0, found.output
        return found

    looks = (*READS, ("show", filled["sum"]))
    for args in looks:
        assert "moved" not in look(*args).output, args
    assert "no worker serves it; start one" in look("lag").stdout
    assert "Start one: respool" in look("workers").stdout
    moved = CliRunner().invoke(main, ["transfer", "--from", FROM, "--to", TO, "--yes"])
    assert moved.exit_code == 0, moved.output
    for args in looks:
        found = look(*args)
        assert re.fullmatch(
            r"this log was moved to (sqlite:////.*there\.db): set url= or RESPOOL_URL to that\. "
            r"This is what it was then; to see it there: --url \1\n",
            found.stderr,
        ), (args, found.stderr)
        assert "tart one" not in found.stdout
    assert look("workers").stdout == "No workers.\n"
    json.loads(look("show", filled["sum"], "--json").stdout)
    again = CliRunner().invoke(main, ["-A", "shop", "--url", FROM, "call", "add", "1", "1"])
    assert again.exit_code == 1
    assert again.stderr.count("was moved to") == 1, "the error says it"
    there = CliRunner().invoke(main, [*common, "--url", TO, "lag"])
    assert there.stderr == ""


def test_undo(cli, filled):
    cli("transfer", "--from", FROM, "--to", TO, "--yes")
    assert "Open" in cli("transfer", "--undo", "--from", FROM, code=1)
    assert "open again" in cli("transfer", "--undo", "--from", FROM, "--yes")
    assert cli("-A", "shop", "--url", FROM, "call", "add", "1", "1")
    assert "nothing to undo" in cli("transfer", "--undo", "--from", FROM, "--to", TO, "--yes", code=2)


def test_json(cli, filled):
    data = cli.data("transfer", "--from", FROM, "--to", TO, "--yes")
    assert data["moved"] is True
    assert data["records"] == 3
    assert {(each.get("queue"), each["app"]) for each in data["streams"] if "queue" in each} == {
        ("default", "shop"),
        ("fast", "shop"),
    }


def test_on_a_terminal_it_asks_and_shows_how_far_it_is(filled, folder):
    code, told = in_terminal("transfer", "--from", FROM, "--to", TO, "--yes", cwd=folder, columns=120)
    assert code == 0
    assert "Moved 3 records" in told


def test_ctrl_c_while_it_waits_gives_the_claims_back(cli, app, worker, folder):
    app.tasks["add"].delay(1, 2)
    held = worker.take()
    code, told = in_terminal(
        "transfer", "--from", FROM, "--to", TO, "--yes", cwd=folder, columns=120, interrupt="still running"
    )
    assert code == 1
    assert "interrupted: nothing was moved, and the workers of the source go on" in told
    assert app.engine.mark() is None
    worker.settle(*held)
    app.tasks["add"].delay(3, 4)
    assert worker.work() == 1
    assert "Moved 2 records" in cli("transfer", "--from", FROM, "--to", TO, "--yes")


def test_ctrl_c_in_the_middle_says_how_to_go_on_and_how_to_give_up(cli, filled, folder, server, monkeypatch):
    password = urllib.parse.urlsplit(server).password

    @contextmanager
    def interrupted(quiet):
        with _telling(quiet) as tell:

            def first(what, done, total):
                if what == "records":
                    os.kill(os.getpid(), signal.SIGINT)  # it is heeded when it is told the next time
                tell(what, done, total)

            yield first

    with monkeypatch.context() as patched:
        patched.setattr("respool.cli.transfer._telling", interrupted)
        told = cli("transfer", "--from", FROM, "--to", server, "--yes", code=1)
    assert password not in told
    hidden = server.replace(password, "…")
    again = f"respool transfer --from {FROM} --to '{hidden}'"
    assert "respool.db stays stopped, no worker claims a call there, and nobody can send. To go on" in told
    assert told.endswith(f"To go on: {again}; to give it up and have the workers go on: {again} --undo\n")
    told = cli("-A", "shop", "--url", FROM, "lag")
    assert f"is being moved to {parse_url(server).shown}" in told
    assert "?schema=s" in parse_url(server).shown
    assert "open again" in cli("transfer", "--from", FROM, "--to", server, "--undo")
    assert "moved" not in cli("-A", "shop", "--url", FROM, "lag")
    assert "Moved 3 records" in cli("transfer", "--from", FROM, "--to", server, "--yes")


def test_who_follows_what_is_said_is_on_the_same_log(cli, filled, server):
    told = cli("transfer", "--from", FROM, "--to", server, "--yes")
    schema = server.partition("?")[2]
    assert re.search(rf"Moved 3 records with \d groups to postgresql://[^ ]*\?{schema} in", told)
    refused = cli("-A", "shop", "--url", FROM, "call", "add", "1", "1", code=1)
    assert re.search(rf"this log was moved to postgresql://[^ ]*\?{schema}: set url=", refused)
    assert re.search(rf"was moved to postgresql://[^ ]*\?{schema}:", cli("--url", FROM, "lag"))
    nope = server.partition("?")[0] + "?schema=nope"
    assert re.search(r"there is no log at postgresql://[^ ]*\?schema=nope", cli("--url", nope, "lag", code=2))


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--from", FROM), 2, "give both --from URL and --to URL"),
        (("--from", FROM, "--to", FROM), 2, "is the source and the target"),
        (("--from", "sqlite:///none.db", "--to", TO), 2, "--from: there is no log at sqlite:////"),
        (("--from", "sqlite:///:memory:", "--to", TO), 2, "keeps its log in memory"),
        (("--from", FROM, "--to", "mysql://x"), 2, "a URL looks like: sqlite"),
        (("--from", FROM, "--to", TO, "--wait", "soon"), 2, "is no duration"),
        (
            ("--from", FROM, "--to", "postgresql://me:secret@127.0.0.1:1/x"),
            1,
            "cannot connect to postgresql://me@",
        ),
        (("--undo",), 2, "--undo needs --from URL, --to URL, or both"),
        (("--undo", "--from", FROM), 2, "nothing to undo"),
    ],
)
def test_what_cannot_be(cli, filled, args, code, said):
    told = cli("transfer", *args, "--yes", code=code)
    assert said in told
    assert "secret" not in told
    assert cli("-A", "shop", "--url", FROM, "call", "add", "1", "1"), "the source is open"


def test_to_kafka_and_back(cli, filled, folder, kafka):
    """The same command, the same app; offsets are the topics'."""
    state = urllib.parse.quote(f"sqlite:///{folder / 'state.db'}", safe="")
    broker = f"{kafka.url()}?prefix=t{uuid.uuid4().hex[:12]}-&state={state}"
    cli("transfer", "--from", FROM, "--to", broker, "--dry-run")
    cli("transfer", "--from", FROM, "--to", broker, code=1)  # nobody can be asked
    assert not (folder / "state.db").exists()
    assert "no log at kafka://" in cli("transfer", "--from", broker, "--to", TO, "--yes", code=2)
    told = cli("transfer", "--from", FROM, "--to", broker, "--yes")
    assert re.search(r"Moved 3 records with \d groups to kafka://.*; checked on both sides", told)
    assert "returned 5" in cli("-A", "shop", "--url", broker, "show", filled["sum"])
    assert filled["bad"] in cli("--url", broker, "dead", "list", "--json")
    worked = run("-A", "shop", "--url", broker, "worker", "-c", "1", "--burst", cwd=folder)
    assert "worked through 1 record" in worked.stderr
    assert "in one place" in cli("--url", broker, "check")
    assert "Moved 3 records" in cli("transfer", "--from", broker, "--to", TO, "--yes")
    assert "returned 9" in cli("-A", "shop", "--url", TO, "show", filled["later"])
    refused = cli("-A", "shop", "--url", broker, "call", "add", "1", "1", code=1)
    assert "this log was moved to sqlite:////" in refused
    assert "open again" in cli("transfer", "--undo", "--from", broker, "--yes")
    assert cli("-A", "shop", "--url", broker, "call", "add", "1", "1")


def test_a_target_in_use(cli, filled):
    assert cli("-A", "shop", "--url", TO, "call", "add", "1", "1")
    assert "is not empty: it holds queue shop/default" in cli(
        "transfer", "--from", FROM, "--to", TO, "--yes", code=2
    )
    assert "two logs cannot become one" in cli(
        "transfer", "--from", FROM, "--to", TO, "--into", "--yes", code=2
    )


LARGE = """
from respool import App

app = App("films")

@app.task
def twice(text: str) -> str:
    return text + text
"""


def test_large_payloads_come_along(cli, folder, server):
    """Beside the file from file to file; to a server they stay where they are, unless one is named."""
    write_shop(folder, LARGE, "films")
    films = "from films import twice; r = twice.delay('x' * 200_000); print(r.id)"
    id = python("-c", films, cwd=folder, RESPOOL_URL=FROM).stdout.strip()
    assert run("-A", "films", "worker", "-c", "1", "--burst", cwd=folder, RESPOOL_URL=FROM).returncode == 0
    waits = python("-c", films, cwd=folder, RESPOOL_URL=FROM).stdout.strip()

    def length(url, id, **env):
        code = f"from films import app; print(len(app.AsyncResult({id!r}).get(timeout=0)))"
        ran = python("-c", code, cwd=folder, RESPOOL_URL=url, **env)
        assert ran.returncode == 0, ran.stderr
        return int(ran.stdout)

    assert "Copied 2 large payloads" in cli("transfer", "--from", FROM, "--to", TO, "--yes")
    shutil.rmtree(folder / "respool.db-blobs")
    assert length(TO, id) == 400_000
    told = cli("transfer", "--from", TO, "--to", server, "--yes")
    assert re.search(r"Large payloads stay in file://.*/there\.db-blobs: set blobs= or RESPOOL_BLOBS", told)
    blobs = {"RESPOOL_BLOBS": f"file://{folder}/there.db-blobs"}
    assert length(server, id, **blobs) == 400_000
    worked = run("-A", "films", "worker", "-c", "1", "--burst", cwd=folder, RESPOOL_URL=server, **blobs)
    assert "worked through 1 call" in worked.stderr
    assert length(server, waits, **blobs) == 400_000
    back = f"sqlite:///{folder / 'back.db'}"
    assert "say where they are" in cli("transfer", "--from", server, "--to", back, "--yes", code=2)
    told = cli("transfer", "--from", server, "--to", back, "--yes", "--blobs-from", blobs["RESPOOL_BLOBS"])
    assert "Copied" in told
    assert length(back, waits) == 400_000


def test_the_tutorials_move_to_postgresql(cli, folder, filled, server):
    """The last page of the tutorial: one transfer, one variable; the app is as it was."""
    password = urllib.parse.urlsplit(server).password

    def shell(*args, code=0, url=server):
        ran = run(*args, cwd=folder, RESPOOL_URL=url)
        assert ran.returncode == code, ran.stderr
        assert password not in ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    told = shell("transfer", "--from", FROM, "--to", server, "--yes", url="")
    assert "Moved 3 records with" in told
    assert "checked on both sides" in told
    assert "returned 5" in shell("-A", "shop", "show", filled["sum"])
    assert "worked through 1 record" in shell("-A", "shop", "worker", "-c", "2", "--burst")
    assert "returned 9" in shell("-A", "shop", "show", filled["later"])
    assert filled["bad"] in shell("-A", "shop", "dead", "list")
    lag = [json.loads(line) for line in shell("-A", "shop", "lag", "--json").splitlines()]
    assert {(row["name"], row["dead"]) for row in lag if row["group"] == "main"} == {
        ("default", 0),
        ("fast", 1),
    }
    assert "in one place" in shell("-A", "shop", "check")
    told = shell("-A", "shop", "call", "add", "1", "2", code=1, url=FROM)
    assert "this log was moved to postgresql://" in told
    assert "moved to" in shell("-A", "shop", "worker", code=1, url=FROM)
    back = f"sqlite:///{folder / 'back.db'}"
    assert "Moved 3 records" in shell("transfer", "--from", server, "--to", back, "--yes")
    assert "returned 9" in shell("-A", "shop", "show", filled["later"], url=back)
