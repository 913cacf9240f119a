"""Dead letters: what died, why, with which input and where is always there; found, mended, given back."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from typing import Any

import pytest
from tests.acceptance.stage import Stage
from tests.worker.support import eventually

from respool import App

CODE = """
app.queue("orders", ordered=True, partitions=2)


@app.task
def fetch(url: str, tries: int = 1) -> str:
    if url.startswith("slow"):
        raise TimeoutError(f"{url} took 30 s")
    if url.startswith("bad"):
        raise ValueError(f"no such place: {url}")
    return url.upper()


@app.task(queue="orders", key="user")
def ship(user: str) -> None:
    raise LookupError(user)


@app.task(max_deliveries=2)
def deadly() -> None:
    note("start", "deadly")
    die()


@app.task(dead_letter_ttl=0.05)
def short() -> None:
    raise ValueError("short")
"""


def died(stage: Stage) -> dict[str, Any]:
    """Five calls that fail, of two queues, two tasks and three errors; the last after a moment in between."""
    module = stage.module(CODE)
    sent = {
        "a": module.fetch.apply_async(("bad://1",), headers={"tenant": "acme"}),
        "b": module.fetch.delay("bad://2"),
        "c": module.fetch.apply_async(("slow://1",), headers={"tenant": "acme"}),
        "d": module.ship.delay("ada"),
    }
    stage.work()
    stage.moment()
    sent["e"] = module.fetch.delay("bad://3")
    stage.work()
    return sent


def test_they_are_found_by_whatever_is_known(stage: Stage) -> None:
    sent = died(stage)
    names = {handle.id: name for name, handle in sent.items()}
    between = stage.between.isoformat()
    for options, found in {
        (): "abcde",
        ("--queue", "default"): "abce",
        ("--queue", "orders", "--group", "main"): "d",
        ("--task", "fetch"): "abce",
        ("--error", "ValueError"): "abe",
        ("--error", "*Error", "--message", "bad://[12]"): "ab",
        ("--until", between): "abcd",
        ("--since", between): "e",
        ("--key", "ada"): "d",
        ("--header", "tenant=acme"): "ac",
        ("--header", "tenant=acme", "--error", "TimeoutError"): "c",
        ("--id", sent["b"].id): "b",
    }.items():
        rows = stage.rows("dead", "list", *options)
        assert "".join(sorted(names[row["id"]] for row in rows)) == found, options
    python = stage.app.dead_letters(task="fetch", error="ValueError", headers={"tenant": "acme"})
    assert [letter.id for letter in python] == [sent["a"].id]
    causes = stage.rows("dead", "list", "--by", "error")
    assert [(cause["count"], cause["error"]) for cause in causes] == [
        (3, "ValueError"), (1, "LookupError"), (1, "TimeoutError"),
    ]  # fmt: skip
    assert "in fetch: raise ValueError(" in causes[0]["where"]


def test_each_says_what_died_why_with_which_input_and_where(stage: Stage) -> None:
    sent = died(stage)
    text = stage.cli("dead", "show", sent["a"].id)
    for told in ("fetch('bad://1')", "ValueError: no such place: bad://1", "in fetch", "tenant", "acme"):
        assert told in text, text
    (letter,) = stage.app.dead_letters(ids=[sent["a"].id])
    assert letter.error.worker in text
    assert "Traceback" in letter.error.traceback


def test_they_are_given_back_as_they_are_or_changed_and_their_history_grows(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = died(stage)
    told = stage.cli("dead", "redrive", "--id", sent["a"].id, "--set", "url=bad://9", "--dry-run")
    assert "It would give back 1: fetch (1)." in told
    assert "edited args[0] = 'bad://9' (was 'bad://1')" in told
    assert stage.app.dead_letters().count() == 5, "nothing was changed"

    stage.cli("dead", "redrive", "--id", sent["a"].id, "--set", "url=bad://9")
    stage.work()
    assert sent["a"].state == "FAILURE", "it failed again"
    editor = stage.folder / "editor.py"
    editor.write_text(
        "import sys\np = sys.argv[1]\nt = open(p).read()\nopen(p, 'w').write(t.replace('bad', 'good'))"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} {editor}")
    assert stage.data("dead", "redrive", "--id", sent["a"].id, "--edit") == {"redriven": 1}
    stage.work()
    assert sent["a"].get(timeout=10) == "GOOD://9"
    history = sent["a"].history()
    assert [attempt.how for attempt in history] == ["failed", "redriven", "failed", "redriven", "done"]
    assert history[1].note == "redriven: edited args[0] = 'bad://9' (was 'bad://1')"
    assert history[3].note == "redriven: edited args[0] = 'good://9' (was 'bad://9')"
    assert stage.data("rerun", sent["a"].id, code=1)["error"].endswith("bad://1"), "the record is as it was"

    told = stage.cli("dead", "redrive", "--id", sent["b"].id, "--set", "url=3", code=2)
    assert "argument 'url' should be str" in told, "it must fit the task"
    assert stage.data("dead", "redrive", "--task", "fetch", "--rate", "10/s", "--yes") == {"redriven": 3}
    waiting = sorted(sent[name].find().status.parked.due for name in "bce")
    assert [round(b - a, 3) for a, b in pairwise(waiting)] == [0.1, 0.1]
    assert stage.data("dead", "drop", "--queue", "orders", "--yes") == {"dropped": 1}
    assert sent["d"].state == "FAILURE"
    assert sent["d"].history()[-1].how == "dropped"
    stage.check()


def test_policies(stage: Stage) -> None:
    """`max_deliveries`: so many deaths of its process; `dead_letter_ttl`: so long it is kept."""
    module = stage.module(CODE)
    call = module.deadly.delay()
    module.short.delay()
    stage.burst()
    assert len(stage.marks("start", "deadly")) == 2
    (letter,) = stage.app.dead_letters(task="deadly")
    assert letter.id == call.id
    assert "SIGKILL" in letter.error.message

    def dropped() -> bool:
        stage.work()  # a worker keeps house when it starts
        return stage.app.dead_letters(task="short").count() == 0

    eventually(dropped)
    assert stage.counters()["dead letters dropped"] == 1


def test_a_tasks_calls_are_found_under_its_former_names(stage: Stage) -> None:
    """A task that was renamed has those calls too, wherever calls are chosen by their task."""
    module = stage.module(
        """
        @app.task(name="new", aliases=["old", "older"])
        def new(n: int) -> None:
            raise ValueError(n)


        @app.task
        def other() -> None:
            raise ValueError("other")
        """
    )
    with App("t", url=module.app.settings["url"]) as before:
        calls = {name: before.send_task(name, (n,)) for n, name in enumerate(("old", "new", "older"))}
    module.other.delay()
    stage.work()
    ids = {call.id for call in calls.values()}
    letters = stage.app.dead_letters(task="new")
    assert {each.id for each in letters} == {each.id for each in letters.oldest()} == ids
    assert (letters.count(), letters.by_task()) == (3, {"old": 1, "new": 1, "older": 1})
    assert stage.app.dead_letters(task="new", message="2").count() == 1
    assert stage.app.dead_letters(task="old").count() == 1, "one of the names alone"
    wanted = ("--task", "new")
    for command in ("dead", "list"), ("calls",), ("tail", "--timeout", "0.1"):
        assert {row["id"] for row in stage.rows(*command, *wanted)} == ids, command
    lines = stage.cli("export", "--queue", "default", *wanted).splitlines()
    assert {json.loads(line)["id"] for line in lines} == ids
    stage.cli("replay", "--queue", "default", "--group", "v2", *wanted)
    stage.work(group="v2")
    compared = stage.data("compare", "main", "v2", "--queue", "default", *wanted)
    assert sum(sum(counts.values()) for counts in compared["tasks"].values()) == 3
    assert letters.redrive() == 6
    stage.work()
    stage.work(group="v2")
    assert stage.data("dead", "drop", *wanted, "--yes") == {"dropped": 6}
    assert stage.app.dead_letters().by_task() == {"other": 1}
