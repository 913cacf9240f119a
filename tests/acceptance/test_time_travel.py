"""Time travel: replays, seeks, comparisons, single calls run again, and the past as a file."""

from __future__ import annotations

import csv
import json
import sys
import time
from typing import Any

import pytest
from tests import warm
from tests.acceptance.stage import Stage
from tests.worker.support import SOURCES, eventually

CODE = """
app.queue("orders", ordered=True, partitions=2)


@app.task
def score(n: int, factor: int = 1) -> float:
    made.delay(n)
    if n == 7:
        raise ValueError("unlucky")
    return n * factor + (0.5 if (HERE / "version2").exists() else 0)


@app.task(queue="sink")
def made(n: int) -> None: ...


@app.task(queue="orders", key="user")
def ship(user: str) -> str:
    return user


@app.task
def mail(to: str) -> str:
    return f"to {to}"
"""
CALLS = 20


def ran(stage: Stage) -> list[Any]:
    """Twenty calls of `score` that ran, one of them a dead letter; after half of them a moment in between."""
    module = stage.module(CODE)
    calls = []
    for n in range(CALLS):
        if n == CALLS // 2:
            stage.moment()
        headers = {"tenant": "acme"} if n % 2 else {}
        calls.append(module.score.apply_async((n,), {"factor": 1 + n % 3}, headers=headers))
    stage.work()
    return calls


def replayed(stage: Stage, name: str, calls: list[Any], *options: str) -> list[int]:
    """Make a replay by command and run it; return which of the calls it ran."""
    stage.cli("replay", "--queue", "default", "--group", name, *options)
    stage.work(group=name)
    return [n for n, call in enumerate(calls) if call.of(name).state in ("SUCCESS", "FAILURE")]


def test_a_replay_runs_what_is_chosen(stage: Stage) -> None:
    calls = ran(stage)
    stage.app.tasks["mail"].delay("ada")
    stage.app.tasks["ship"].apply_async(("ada",), queue="orders")
    stage.app.tasks["ship"].apply_async(("bert",), queue="orders")
    stage.work()
    between = stage.between.isoformat()
    score = ("--task", "score")
    everything = list(range(CALLS))
    for n, (options, expected) in enumerate(
        [
            (score, everything),
            ((*score, "--since", between), everything[10:]),
            ((*score, "--until", between), everything[:10]),
            ((*score, "--from-offset", "5", "--to-offset", "8"), [5, 6, 7]),
            (("--id", calls[3].id, "--id", calls[7].id), [3, 7]),
            ((*score, "--header", "tenant=acme"), everything[1::2]),
            ((*score, "--state", "FAILURE"), [7]),
            ((*score, "--where", "args[0] < 6 and kwargs.factor == 2"), [1, 4]),
        ]
    ):
        assert replayed(stage, f"v{n}", calls, *options) == expected, options
    half = replayed(stage, "half", calls, *score, "--share", "50%")
    assert 0 < len(half) < 20
    assert replayed(stage, "same", calls, *score, "--share", "50%") == half, "by a hash of the id"
    made = stage.data(
        "replay", "--queue", "orders", "--group", "ada", "--all-tasks", "--key", "ada", "--dry-run"
    )
    assert made["runs"] == 1
    assert [call.state for call in calls] == ["SUCCESS"] * 7 + ["FAILURE"] + ["SUCCESS"] * 12, "as they were"
    assert calls_made(stage) == CALLS, "calls of replayed runs are dropped"
    replayed(stage, "sends", calls, *score, "--outbox", "send", "--to-offset", "3")
    eventually(lambda: calls_made(stage) == CALLS + 3)
    stage.check()


def calls_made(stage: Stage) -> int:
    bounds = stage.app.engine.bounds(stage.app.stream_of("queue", "sink"))
    return len({record.id for _, lo, hi in bounds for record in stage.app.engine.records(lo, hi, hi - lo)})


def test_a_replay_keeps_its_rate_says_how_far_it_is_stops_and_goes_on(stage: Stage) -> None:
    ran(stage)
    replay = ("replay", "--queue", "default", "--group", "again", "--task", "score")
    assert stage.data(*replay, "--rate", "10/s")["created"]
    told = stage.data(*replay, "--wait", "--timeout", "0.05", code=3)
    assert (told["over"], told["done"], told["runs"]) == (False, 0, CALLS)
    worker = stage.worker(1, group="again")
    far = eventually(lambda: (f := _far(stage)) and f["done"] > 3 and f, "some of it")
    stage.cli("groups", "pause", "again")
    eventually(lambda: not stage.counts("again").leased, "it stands still")
    stopped = _far(stage)
    assert 3 < far["done"] <= stopped["done"] < CALLS
    assert worker.stop() == 0
    stage.work(group="again")
    assert _far(stage)["done"] == stopped["done"], "nothing runs while it is paused"
    stage.cli("groups", "resume", "again")
    assert not stage.data(*replay, "--rate", "1000/s")["created"], "the same, at another rate"
    stage.work(group="again")
    done = stage.data(*replay, "--wait", "--timeout", "20")
    assert (done["over"], done["done"]) == (True, CALLS)
    stage.check()


def _far(stage: Stage) -> Any:
    rows = stage.rows("groups", "list", "--queue", "default")
    return next(row for row in rows if row["group"] == "again")


@pytest.mark.parametrize("to", ["offset", "time"])
def test_a_seek_moves_a_group_itself(stage: Stage, to: str) -> None:
    calls = ran(stage)
    where = "10" if to == "offset" else stage.between.isoformat()
    seek = ("seek", "main", "--queue", "default", "--to", where)
    told = stage.cli(*seek, code=1)
    assert "Group main of queue default: 10 calls will be done again: score (10)." in told
    assert "Move group main of queue default? Nobody can be asked here" in told
    assert {call.state for call in calls} == {"SUCCESS", "FAILURE"}, "nothing was moved"
    assert stage.data(*seek, "--yes")["again"] == {"score": 10}
    assert [call.state for call in calls[10:]] == ["PENDING"] * 10
    stage.check()
    stage.work()
    assert [call.state for call in calls[10:]] == ["SUCCESS"] * 10
    eventually(lambda: calls_made(stage) == CALLS + 10, "its calls are sent again (H8)")
    forth = stage.data("seek", "main", "--queue", "default", "--to", "latest", "--yes")
    assert forth["again"] == {}
    stage.check()


TIMED = """
@app.task
def soon(n: int) -> int:
    note("start", "soon", n)
    return n


@app.task(unique="doc", on_duplicate="replace")
def index(doc: str, version: int) -> int:
    note("start", "index", version)
    return version
"""


def test_a_seek_back_does_again_what_is_past_its_time_by_now(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was expired or replaced before it began, as in a replay; new calls keep to their time."""
    module = stage.module(TIMED)
    soon = [module.soon.apply_async((n,), expires=3600) for n in range(2)]
    indexed = []
    for version in range(2):
        indexed.append(module.index.delay("a", version))
        stage.work()
    soon.append(module.soon.apply_async((2,), expires=3600))
    indexed += [module.index.delay("a", version) for version in (2, 3)]
    monkeypatch.setattr("respool.worker.calling.wall_clock", lambda: time.time() + 7200)
    stage.work()
    states = ["SUCCESS"] * 2 + ["REVOKED"]
    assert [call.state for call in soon] == states
    assert [call.state for call in indexed] == [*states, "SUCCESS"]
    stage.cli("seek", "main", "--queue", "default", "--to", "earliest", "--yes")
    soon.append(module.soon.apply_async((3,), expires=3600))
    indexed.append(module.index.delay("a", 4))
    indexed.append(module.index.delay("a", 5))
    stage.work()
    assert [call.state for call in soon] == ["SUCCESS"] * 3 + ["REVOKED"], "what came after the seek expires"
    assert [call.state for call in indexed] == ["SUCCESS"] * 4 + ["REVOKED", "SUCCESS"]
    assert stage.runs("soon") == {"0": 2, "1": 2, "2": 1}
    assert stage.runs("index") == {"0": 2, "1": 2, "2": 1, "3": 2, "5": 1}
    stage.check()


def test_two_groups_are_compared_call_by_call(stage: Stage) -> None:
    calls = ran(stage)
    stage.touch("version2")
    assert replayed(stage, "v2", calls, "--task", "score") == list(range(CALLS))
    (stage.folder / "checks.py").write_text(
        "def close(a, b): return abs(a - b) < 1\ndef bad(a, b): return a.x\n"
    )
    compare = ("compare", "main", "v2", "--queue", "default")
    data = stage.data(*compare, "--sample", "3")
    assert (data["same"], data["different"], data["failed_both"], data["share"]) == (0, 19, 1, 0.95)
    assert len(data["differences"]) == 3
    for each in data["differences"]:
        first, second = (float(line[1:]) for line in each["diff"][-2:])
        assert second - first == 0.5, "shown as a diff"
    for options, different in (
        (("--tolerance", "0.5"), 0),
        (("--tolerance", "5%"), 7),
        (("--comparator", "checks:close"), 0),
    ):
        assert stage.data(*compare, *options)["different"] == different, options
    assert stage.data(*compare, "--tolerance", "1", "--max-diff", "1%")["passed"]
    assert not stage.data(*compare, "--max-diff", "1%", code=1)["passed"]
    assert "comparator raised AttributeError" in stage.cli(*compare, "--comparator", "checks:bad", code=2)


def test_the_past_in_hand(stage: Stage) -> None:
    """`rerun`, `capture`, `calls --between`, `export`: the same inputs and outcomes; nothing is changed."""
    calls = ran(stage)
    assert stage.data("rerun", calls[5].id)["value"] == 15
    assert "unlucky" in stage.data("rerun", calls[7].id, code=1)["error"]
    assert calls_made(stage) == CALLS
    made = stage.data("capture", "--task", "score", "--sample", "200", "-o", "past")
    assert made["calls"] == CALLS
    for passes in (True, False):
        done = warm.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", made["test"]],
            cwd=stage.folder, env={"PYTHONPATH": f"{SOURCES}:{stage.folder}", "PATH": ""},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode == 0) == passes, done.stdout + done.stderr
        stage.touch("version2")  # the next time the code is another

    window = ("--between", stage.between.isoformat(), "now")
    rows = stage.rows("calls", "--queue", "default", *window, "--oldest")
    assert [row["id"] for row in rows] == [call.id for call in calls[10:]]
    for form in ("jsonl", "csv", "parquet"):
        stage.cli("export", "--queue", "default", *window, "-o", f"audit.{form}")
    lines = [json.loads(line) for line in (stage.folder / "audit.jsonl").read_text().splitlines()]
    with (stage.folder / "audit.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(stage.folder / "audit.parquet").to_pylist()
    for n, (line, row, column) in enumerate(zip(lines, table, columns, strict=True), 10):
        assert line["id"] == row["id"] == column["id"] == calls[n].id
        assert (line["args"], line["kwargs"], line["result"]) == ([n], {"factor": 1 + n % 3}, n * (1 + n % 3))
        assert json.loads(row["args"]) == json.loads(column["args"]) == [n]
        assert json.loads(row["result"]) == json.loads(column["result"]) == line["result"]
        assert line["headers"] == ({"tenant": "acme"} if n % 2 else {})
    assert len(lines) == 10
    everything = stage.cli("export", "--queue", "default", "--state", "FAILURE")
    assert json.loads(everything)["error"] == "unlucky"


def test_another_version_runs_a_share_of_the_live_calls(stage: Stage) -> None:
    """Live A/B: a second group from now on, served by a worker with the other code; both are compared."""
    module = stage.module(CODE)
    before = module.score.delay(1)
    stage.cli(
        "groups", "create", "v2", "--queue", "default", "--start", "now", "--task", "score", "--share", "50%"
    )
    stage.cli("groups", "create", "past", "--queue", "default", "--start", "earliest", "--task", "score")
    live = [module.score.delay(n) for n in range(100, 160)]
    other = module.mail.delay("ada")
    stage.work()
    v2 = stage.folder / "shop_v2.py"
    v2.write_text(stage.path.read_text().replace("return n * factor", "return 1 + n * factor"))
    for group in ("v2", "past"):
        done = warm.run(
            [sys.executable, "-m", "respool", "-A", str(v2), "worker", "--group", group, "--burst"],
            cwd=stage.folder, env={"PYTHONPATH": SOURCES, "PATH": ""},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    ran_by_v2 = [call for call in live if call.of("v2").state == "SUCCESS"]
    assert 10 < len(ran_by_v2) < 50
    assert [call.of("v2").get(timeout=0) - call.get(timeout=0) for call in ran_by_v2] == [1] * len(ran_by_v2)
    assert before.of("v2").state == "UNKNOWN", "it was there before the group"
    assert other.of("v2").state == "UNKNOWN", "not of the chosen task"
    assert {call.of("past").state for call in (before, *live)} == {"SUCCESS"}
    data = stage.data("compare", "main", "v2", "--queue", "default")
    assert (data["different"], data["same"], data["share"]) == (len(ran_by_v2), 0, 1.0)
    assert calls_made(stage) == 61, "the other version's calls are dropped"
    stage.check()
