"""Tables: as wide as the terminal, and in a pipe no wider than they need to be."""

import importlib
import re

import pytest
from tests.cli.support import Worker, write_shop

from respool.cli import output
from respool.errors import GetInsideTask
from respool.replay import create_replay

WIDE = """
from respool import App

app = App("shop")
app.queue("quarterly-reports", ordered=True)
events = app.stream("customer-activity-events", key="customer")

@app.task(max_retries=0)
def import_supplier_catalogue(url: str, options: dict | None = None):
    raise ConnectionError(f"could not reach {url}: closed while its headers were read, " * 3 + "in the end")

@app.task(queue="quarterly-reports", key="customer", autoretry_for=(OSError, ValueError), retry_backoff=30)
def build_report_of_the_quarter(customer: str, year: int):
    raise OSError("disk quota exceeded")

@app.task
def square(x: int):
    return x * x

@events.subscribe(group="audit-trail-writer", start="earliest")
def audit(event): ...
"""
LISTS = [
    "lag",
    "calls",
    "calls --state FAILURE",
    "dead list",
    "dead list --by error",
    "groups list",
    "queues",
    "streams",
    "tasks",
    "workers",
    "check",
    "compare main version-two-of-the-model --queue default --sample 0",
]

REMARK = re.compile(r"\(left out|[\w/-]+( \(.*\))?: |\d.* in sqlite|\d+ shown|The last of the first kind")


@pytest.fixture
def much(folder, monkeypatch):
    """An app with long names, arguments, errors and tracebacks, and large numbers."""
    write_shop(folder, WIDE)
    monkeypatch.syspath_prepend(str(folder))
    app = importlib.import_module("shop").app
    worker = Worker(app, "a-host-with-a-long-name.example.org:12345")
    for n in range(3):
        url = f"https://suppliers.example.org/catalogue/{n}/with/a/rather/long/path.json"
        app.tasks["import_supplier_catalogue"].delay(url, options={"depths": list(range(40))})
    app.send_task("a_task_that_was_renamed_last_week", (1,))
    app.tasks["square"].delay_many(range(1500))
    app.tasks["build_report_of_the_quarter"].delay("ada", 2026)
    while worker.work(want=1000) or worker.work("quarterly-reports"):
        pass
    app.stream_handles["customer-activity-events"].publish({"customer": "ada"})
    create_replay(app, "default", "version-two-of-the-model", None)
    app.tasks["square"].delay_many(range(1500))
    worker.say(groups=[group.id for group in app.groups()], running=[], children=[], pool="processes")
    yield app
    app.close()


def rows(text: str) -> list[str]:
    """The lines of the table, without the remarks below it."""
    found = text.splitlines()
    ends = [n for n, line in enumerate(found) if REMARK.match(line)]
    return found[: min(ends, default=len(found))]


def code_of(command: str) -> int:
    return int(command.startswith("compare"))  # nothing is finished in both groups yet


@pytest.mark.parametrize("command", LISTS)
@pytest.mark.parametrize("columns", [60, 70, 80, 100])
def test_a_table_fits_the_terminal(cli, much, monkeypatch, columns, command):
    monkeypatch.setattr(output, "width", lambda: columns)
    table = rows(cli("-A", "shop", *command.split(), code=code_of(command)))
    assert len(table) >= 2, table
    assert max(map(len, table)) <= columns, "\n".join(table)


@pytest.mark.parametrize("command", ["calls", "dead list", "dead list --by error"])
def test_a_very_narrow_table_is_cut(cli, much, monkeypatch, command):
    monkeypatch.setattr(output, "width", lambda: 40)
    table = rows(cli("-A", "shop", *command.split()))
    assert max(map(len, table)) <= 40, "\n".join(table)


@pytest.mark.parametrize("command", LISTS)
def test_in_a_pipe_nothing_is_left_out_and_no_cell_makes_a_table_wide(cli, much, command):
    text = cli("-A", "shop", *command.split(), code=code_of(command))
    assert "left out for want of width" not in text
    assert max(map(len, rows(text))) <= 260, text


def test_in_a_pipe_names_and_ids_are_whole_and_long_text_ends_with_a_mark(cli, much):
    head, first, *_ = cli("-A", "shop", "dead", "list").splitlines()
    assert head.split() == ["id", "queue", "group", "task", "since", "(UTC)", "error"]
    id = next(iter(much.dead_letters())).id
    assert re.match(
        rf"{id} +default +main +import_supplier_catalogue +[\d:]+ +ConnectionError: could not", first
    )
    assert first.endswith("…")
    assert cli.rows("-A", "shop", "dead", "list")[0]["error"].endswith("in the end"), "--json has all"


def test_the_tasks_with_most_calls_stay_in_a_narrow_comparison(cli, much, monkeypatch):
    monkeypatch.setattr(output, "width", lambda: 60)
    text = cli("-A", "shop", *LISTS[-1].split(), code=1)
    assert "square" in text.splitlines()[0]
    assert "left out for want of width: a_task_that_was_renamed_last_week, import_supplier_catalogue" in text


def test_a_narrow_table_shows_what_an_error_is(cli, much, monkeypatch):
    """Its module would use up the column: ours is left out."""
    monkeypatch.setattr(output, "width", lambda: 80)
    much.task(_stale, name="stale")
    worker = Worker(much, "another")
    much.send_task("stale")
    while worker.work(want=1000):
        pass
    [line] = [line for line in cli("-A", "shop", "dead", "list").splitlines() if " stale " in line]
    assert "GetInsideTask" in line
    assert "respool." not in line
    assert "GetInsideTask" in cli("-A", "shop", "dead", "list", "--by", "error")
    [data] = [each for each in cli.rows("-A", "shop", "dead", "list") if each["task"] == "stale"]
    assert data["error"].startswith("respool.errors.GetInsideTask: "), "--json has all"


def _stale() -> None:
    raise GetInsideTask("its record is beyond retention")


def test_bounds_say_from_when_to_when(cli, much, monkeypatch):
    monkeypatch.setattr(output, "width", lambda: 80)
    since = ("--since", "2025-01-01T10:00")
    cli("-A", "shop", "replay", "--queue", "default", "--group", "noon", "--task", "square", *since)
    line = next(line for line in cli("-A", "shop", "groups", "list").splitlines() if line.startswith("noon"))
    assert line.endswith("square, from 2025-01-01 10:00")


def test_what_is_left_out_first_tells_nothing():
    table = output.Table(*(output.Column(title, drop=n) for n, title in enumerate(("name", "a", "b", "c"))))
    table.add(("1", "–", "2", "·"), {})
    table.add(("2", "–", "·", "·"), {})
    orders = [table._fit(columns)[1] for columns in (13, 12, 9, 6)]
    assert orders == [[], ["c"], ["c", "a"], ["c", "a", "b"]]


def test_whether_a_worker_is_alive_stays_longest_of_what_may_go(cli, much, monkeypatch):
    monkeypatch.setattr(output, "width", lambda: 54)
    text = cli("-A", "shop", "workers")
    assert "state" in rows(text)[0].split()
    assert re.search(r"left out for want of width: done, since \(\w+\);", text), "nothing is done so far"


def test_dashes_are_left_out_before_figures(cli, much, monkeypatch):
    monkeypatch.setattr(output, "width", lambda: 78)
    head = rows(cli("-A", "shop", "lag"))[0].split()
    assert {"retry", "workers"} <= set(head)
    assert "running" not in head
