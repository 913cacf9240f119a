"""Commands that only look create nothing, in whatever log they are pointed at."""

import uuid
from contextlib import closing

import pytest
from tests.cli.support import run, write_shop
from tests.engines.conftest import session_database as session_database
from tests.services.fixtures import kafka as kafka
from tests.services.fixtures import postgres as postgres
from tests.services.fixtures import services_run as services_run

from respool import App
from respool.engines import open_engine
from respool.location import parse_url

ZED = """
from respool import App

app = App("zed")
app.queue("urgent")
sales = app.stream("sales", key="shop")

@sales.subscribe(group="zg", start="earliest")
def zg(event): ...

@app.task
def z(): ...
"""
LOOKS = (
    "lag", "calls", "queues", "streams", "tasks", "workers", "check", "groups list", "dead list",
    "export --queue default", "tail --timeout 0.05", "show nothing-of-mine", "rerun nothing-of-mine",
    "replay --queue default --group r --all-tasks --dry-run",
)  # fmt: skip


@pytest.fixture(params=["sqlite", "postgres", "kafka"])
def anothers(request, folder):
    """The URL of a log that another app uses."""
    if request.param == "sqlite":
        url = f"sqlite:///{folder / 'others.db'}"
    elif request.param == "postgres":
        url = request.getfixturevalue("session_database") + f"?schema=s{uuid.uuid4().hex[:12]}"
    else:
        broker = request.getfixturevalue("kafka").url()
        url = f"{broker}?prefix=t{uuid.uuid4().hex[:12]}-&state=sqlite:///{folder / 'state.db'}"
    with App("shop", url=url) as shop:
        shop.send_task("add", (1, 2))
    return url


def test_who_only_looks_makes_nothing(folder, anothers):
    """Where an app has nothing in a log it is told so, by whatever command."""
    write_shop(folder, ZED, "zed")
    others = "app zed has no log yet at "

    def look(*args):
        return run("-A", "zed", "--url", anothers, *args, cwd=folder)

    for command in LOOKS:
        looked = look(*command.split())
        if command == "tasks":
            assert (looked.returncode, "zg" in looked.stdout) == (0, True), looked
        else:
            assert (looked.returncode, looked.stdout) == (2, ""), (command, looked)
            assert others in looked.stderr, command
            assert "what is there is of app shop. Send a call first, or give the right --url" in looked.stderr
    purged = look("purge", "--queue", "default", "--yes")
    assert (purged.returncode, others in purged.stderr) == (2, True), "nor does who would change something"
    assert names_in(anothers) == {("queue", "shop", "default")}


def names_in(url):
    with closing(open_engine(parse_url(url), "full", 10.0)) as engine:
        return {(stream.kind, stream.app, stream.name) for stream in engine.streams()}


def test_what_is_declared_and_not_made_yet_is_not_made_by_looking(folder, cli):
    """Nor does it keep from looking that something is declared otherwise by now."""
    url = f"sqlite:///{folder / 'zed.db'}"
    with App("zed", url=url) as app:
        app.stream("sales", key="till")
        app.send_task("z")
    write_shop(folder, ZED, "zed")
    before = names_in(url)
    for command in LOOKS:
        looked = run("-A", "zed.py", "--url", url, *command.split(), cwd=folder)
        missing = "nothing-of-mine" in command
        assert (looked.returncode != 0) == missing, (command, looked.stderr)
    looked = run("-A", "zed", "lag", cwd=folder, RESPOOL_URL=url)
    assert looked.returncode == 0
    assert "stream sales was declared with key='till', now with key='shop'" in looked.stderr
    assert "default" in looked.stdout
    assert "zg" not in looked.stdout
    assert names_in(url) == before
    refused = run("-A", "zed", "call", "z", cwd=folder, RESPOOL_URL=url)
    assert (refused.returncode, "was declared with" in refused.stderr) == (2, True)
