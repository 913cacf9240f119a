"""replay, dead, groups, purge."""

import os
import re
import subprocess
import sys
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.cli.support import python, run, write_shop

import respool
from respool import clock
from respool.cli import main, moments, output
from respool.cli.dead import acting
from respool.dead import Edit
from respool.delivery.model import Verdict
from respool.encoding.remote import encode_error


@pytest.fixture
def failed(app, worker):
    """Three dead letters of fetch, one of another task."""
    handles = [app.tasks["fetch"].delay(f"bad://{n}") for n in range(3)]

    @app.task(name="boom", queue="fast")
    def boom():
        raise RuntimeError("boom")

    handles.append(boom.delay())
    worker.work("fast")
    return handles


def test_replay_says_what_it_runs_and_leaves_out(cli, app, worker):
    for n in range(3):
        app.tasks["add"].delay(n, n)
    app.tasks["mail"].delay("me")
    worker.work()
    text = cli(
        "-A", "shop", "replay", "--queue", "default", "--group", "v2", "--task", "add", "--since", "1h"
    )
    assert "Replay v2 runs 3 calls of queue default, from 20" in text
    assert "respool -A shop worker --group v2" in text
    data = cli.data("-A", "shop", "replay", "--queue", "default", "--group", "v3", "--task", "add")
    assert (data["created"], data["runs"], data["run"], data["left_out"]) == (
        True,
        3,
        {"add": 3},
        {"mail": 1},
    )
    assert worker.work(group="v2") == 4
    listed = {g["group"]: g for g in cli.rows("-A", "shop", "groups", "list", "--queue", "default")}
    assert (listed["v2"]["done"], listed["v2"]["skipped"], listed["v2"]["tasks"]) == (3, 1, ["add"])
    assert listed["main"]["done"] == 4
    states = cli.rows("-A", "shop", "calls", "--group", "v2")
    assert [c["state"] for c in states] == ["UNKNOWN", "SUCCESS", "SUCCESS", "SUCCESS"]
    assert cli.data("-A", "shop", "check")["ok"]


def test_replay_twice_is_one_replay(cli, app):
    app.tasks["add"].delay(1, 2)
    given = ("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--all-tasks")
    assert cli.data(*given)["created"]
    assert not cli.data(*given)["created"]
    assert "is there already" in cli(*given)


def test_the_same_replay_with_relative_bounds_is_the_one_there_is(cli, app, monkeypatch):
    app.tasks["add"].delay(1, 2)
    given = ("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--task", "add")
    first = cli.data(*given, "--since", "1d", "--until", "now")
    _later(monkeypatch, 3600)
    for same in (("--since", "1d", "--until", "now"), ("--since", "24h", "--until", "now")):
        again = cli.data(*given, *same)
        assert not again["created"]
        assert (again["since"], again["until"]) == (first["since"], first["until"])
    text = cli(*given, "--since", "1d", "--until", "now")
    assert "is there already and runs 1 call of queue default, from " in text


@pytest.mark.parametrize(
    "other", [("--since", "2d"), ("--since", "2020-01-31"), (), ("--since", "1d", "--until", "now")]
)
def test_a_replay_of_the_same_name_with_another_window_says_what_to_do(cli, app, monkeypatch, other):
    app.tasks["add"].delay(1, 2)
    given = ("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--task", "add")
    first = cli.data(*given, "--since", "1d")
    _later(monkeypatch, 3600)
    text = cli(*given, *other, code=2)
    assert "exists with other bounds: " in text
    assert f"since {first['since'][:10]}" in text or other[:1] != ("--since",) or other[1] == "1d"
    assert "Run that one: respool -A shop worker --group v2; " in text
    assert "or drop it: respool groups drop v2 --queue default; or choose another name with --group" in text


def test_a_replay_since_a_date_is_the_same_on_another_day(cli, app, monkeypatch):
    app.tasks["add"].delay(1, 2)
    given = ("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--task", "add")
    assert cli.data(*given, "--since", "20200131")["created"]
    _later(monkeypatch, 86400)
    assert not cli.data(*given, "--since", "2020-01-31")["created"]


def _later(monkeypatch, seconds):
    """Have command lines be read later, as far as they name moments."""
    real = moments.present
    monkeypatch.setattr(moments, "present", lambda: real() + timedelta(seconds=seconds))
    monkeypatch.setattr(clock, "now", lambda: time.time() + seconds)


def test_replay_dry_run_makes_nothing(cli, app):
    app.tasks["add"].delay(1, 2)
    text = cli("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--all-tasks", "--dry-run")
    assert "Replay v2 would run 1 call of" in text
    assert "worker" not in text
    assert [g["group"] for g in cli.rows("-A", "shop", "groups", "list", "--queue", "default")] == ["main"]


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ("--queue default --group v2", 2, "name the tasks with --task NAME, or give --all-tasks"),
        ("--queue default --group v2 --task add --all-tasks", 2, "not both"),
        ("--group v2 --all-tasks", 2, "Missing option '--queue'"),
        ("--queue default --all-tasks", 2, "Missing option '--group'"),
        ("--queue defualt --group v2 --all-tasks", 2, "unknown queue 'defualt'; did you mean 'default'?"),
        ("--queue inference --group v2 --all-tasks", 2, "inference is a stream of events, not a queue"),
        ("--queue default --group main --all-tasks", 2, "main is the group that ran these calls"),
        ("--queue default --group v2 --task ad", 2, "unknown task 'ad'; did you mean 'add'?"),
        ("--queue default --group v2 --task mail", 2, "has no such calls; it has add (1)"),
        ("--queue default --group v2 --all-tasks --until 1h", 2, "has no calls until "),
        ("--queue fast --group v2 --all-tasks", 2, "it holds none at all"),
        ("--queue default --group v2 --all-tasks --since 1h --until 2h", 2, "must be before the second"),
        ("--queue default --group v2 --all-tasks --since yesterday", 2, "'yesterday' is no moment"),
        ("--queue default --group v2 --all-tasks --outbox keep", 2, "'keep' is not one of"),
    ],
)
def test_replays_that_cannot_be(cli, app, args, code, told):
    app.tasks["add"].delay(1, 2)
    assert told in cli("-A", "shop", "replay", *args.split(), code=code)


def test_replay_with_other_bounds(cli, app):
    app.tasks["add"].delay(1, 2)
    cli("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--task", "add")
    text = cli("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--all-tasks", code=2)
    assert "exists with other bounds: tasks add, now all" in text
    assert "respool groups drop v2 --queue default" in text


def test_dead_list_and_filters(cli, failed):
    rows = cli.rows("-A", "shop", "dead", "list")
    assert [row["id"] for row in rows] == [handle.id for handle in failed]
    assert rows[0]["error"] == "ValueError: no such place: bad://0"
    assert [row["task"] for row in cli.rows("-A", "shop", "dead", "list", "--task", "boom")] == ["boom"]
    assert len(cli.rows("-A", "shop", "dead", "list", "--queue", "fast", "--group", "main")) == 4
    assert cli.rows("-A", "shop", "dead", "list", "--queue", "default") == []
    assert [r["id"] for r in cli.rows("-A", "shop", "dead", "list", "--id", failed[1].id)] == [failed[1].id]
    text = cli("-A", "shop", "dead", "list", "--limit", "2")
    assert failed[0].id in text
    assert "2 of 4; --limit shows more" in text
    assert "No dead letters match" in cli("-A", "shop", "dead", "list", "--task", "add")


def test_dead_show(cli, failed, app):
    text = cli("-A", "shop", "dead", "show", failed[0].id)
    assert "fetch('bad://0')" in text
    assert "ValueError: no such place: bad://0" in text
    fine = app.tasks["add"].delay(1, 2)
    assert "is no dead letter; see how it stands: respool show" in cli(
        "-A", "shop", "dead", "show", fine.id, code=1
    )
    assert "no call nope" in cli("-A", "shop", "dead", "show", "nope", code=1)


@pytest.mark.parametrize(
    ("option", "code", "told"),
    [
        (("--queue", "fats"), 2, "unknown queue 'fats'; did you mean 'fast'?"),
        (("--group", "mian"), 2, "unknown group 'mian'; did you mean 'main'?"),
        (("--task", "fecth"), 2, "unknown task 'fecth'; did you mean 'fetch'?"),
        (("--id", "nope"), 1, "no call nope: never appended"),
    ],
)
def test_dead_filters_that_match_nothing_there_is(cli, failed, option, code, told):
    for command in ("list", "redrive"):
        assert told in cli("-A", "shop", "dead", command, *option, code=code)


def test_a_task_is_known_by_its_records_too(cli, failed, app, folder):
    app.send_task("elsewhere")
    url = f"sqlite:///{folder / 'respool.db'}"
    assert "did you mean 'elsewhere'?" in cli("dead", "list", "--task", "elsewere", "--url", url, code=2)
    assert "No dead letters match" in cli("dead", "list", "--task", "elsewhere", "--url", url)
    assert "No dead letters match" in cli("-A", "shop", "dead", "redrive", "--task", "elsewhere")


def test_dead_letters_of_a_subscription_are_called_by_stream_and_group(cli, app, worker):
    for type in ("", "", "order"):
        app.stream_handles["inference"].publish({"user_id": 1}, type=type)
    group, lease = worker.take("inference", "audit", kind="stream")
    told = encode_error(ValueError("no"))
    rows = worker.engine.rows(lease.spans)
    dead = [Verdict(pos, "failure", told, reason="dead", task=type, error=told) for pos, type, _, _ in rows]
    worker.settle(group, lease, verdicts=dead)
    text = cli("-A", "shop", "dead", "list")
    assert len(re.findall(r"  stream inference, group audit  .*ValueError: no", text)) == 2
    assert len(re.findall(r"  order  .*ValueError: no", text)) == 1
    asked = cli("-A", "shop", "dead", "redrive", code=1)
    assert "Run 3 dead letters again: order (1), stream inference, group audit (2)?" in asked


def test_a_replay_has_no_name_of_a_subscription(cli, app, folder):
    app.tasks["add"].delay(1, 2)
    replay = ("-A", "shop", "replay", "--queue", "default", "--all-tasks", "--group")
    assert "audit is a group of app shop already, which reads stream inference" in cli(
        *replay, "audit", code=2
    )
    assert "is the group of a subscription of app shop, to stream inference" in cli(
        "-A", "shop", "groups", "create", "audit", "--queue", "default", code=2
    )
    cli(*replay, "large")
    app.close()
    with (folder / "shop.py").open("a") as file:
        file.write("\n@events.subscribe(group='large')\ndef large(event): ...\n")
    taken = "subscription large of app shop: a replay of queue default has that name"
    refused = run("-A", "shop", "call", "add", "1", "2", cwd=folder)
    assert refused.returncode == 2
    assert taken in refused.stderr
    looked = run("-A", "shop", "lag", cwd=folder)
    assert (looked.returncode, taken in looked.stderr) == (0, True), "it is said, and shown all the same"
    url = f"sqlite:///{folder / 'respool.db'}"
    dropped = run("--url", url, "groups", "drop", "large", "--queue", "default", "--yes", cwd=folder)
    assert dropped.returncode == 0, "the command that the error names does it"
    assert taken not in run("-A", "shop", "lag", cwd=folder).stderr
    assert run("-A", "shop", "call", "add", "1", "2", cwd=folder).returncode == 0


def test_dead_redrive_asks_where_there_are_several(cli, failed, worker):
    text = cli("-A", "shop", "dead", "redrive", code=1)
    assert "Run 4 dead letters again: boom (1), fetch (3)?" in text
    assert "give --yes" in text
    assert len(cli.rows("-A", "shop", "dead", "list")) == 4
    assert "Gave back 1 dead letter;" in cli("-A", "shop", "dead", "redrive", "--id", failed[0].id)
    assert cli.data("-A", "shop", "dead", "redrive", "--task", "fetch", "--yes") == {"redriven": 2}
    assert [row["task"] for row in cli.rows("-A", "shop", "dead", "list")] == ["boom"]
    assert failed[0].state == "SCHEDULED"
    (lag,) = cli.rows("-A", "shop", "lag", "--queue", "fast")
    assert (lag["due"], lag["scheduled"], lag["dead"]) == (3, 0, 1), "redriven, they wait for a worker only"
    assert lag["oldest_waiting"] < 30
    assert re.search(r"pending  due .*\nfast +main +· +3 ", cli("-A", "shop", "lag", "--queue", "fast"))
    text = cli("-A", "shop", "show", failed[0].id)
    assert "in group main: SCHEDULED, due since 20" in text
    assert "now: no worker serves shop/fast; start one: respool -A shop worker" in text
    assert text.endswith("  redriven\n"), "what takes no time has no duration"
    worker.work("fast")
    assert len(cli.rows("-A", "shop", "dead", "list")) == 4
    assert "No dead letters match" in cli("-A", "shop", "dead", "redrive", "--task", "add")
    assert cli.data("-A", "shop", "check")["ok"]


def test_dead_letters_by_error(cli, failed):
    (fetch, boom) = cli.rows("-A", "shop", "dead", "list", "--by", "error")
    assert (fetch["count"], fetch["error"], fetch["tasks"]) == (3, "ValueError", {"fetch": 3})
    assert fetch["where"].startswith("shop.py, in fetch: raise ValueError(")
    assert "Traceback" in fetch["traceback"]
    assert (boom["count"], boom["error"]) == (1, "RuntimeError")
    text = cli("-A", "shop", "dead", "list", "--by", "error")
    assert re.search(r"\n +3 +ValueError +shop.py, in fetch: ", text)
    assert f"respool dead show {fetch['example']}" in text
    assert "1 of 2 causes" in cli("-A", "shop", "dead", "list", "--by", "error", "--limit", "1")


def test_dead_filters_by_what_is_inside(cli, failed):
    def ids(*args):
        return [row["id"] for row in cli.rows("-A", "shop", "dead", "list", *args)]

    assert ids("--error", "ValueError", "--message", "bad://[12]") == [failed[1].id, failed[2].id]
    assert ids("--error", "Runtime*") == [failed[3].id]
    assert ids("--since", "1h") == [handle.id for handle in failed]
    assert ids("--until", "1h") == ids("--key", "k") == ids("--header", "tenant=acme") == []
    assert "no regular expression" in cli("-A", "shop", "dead", "list", "--message", "(", code=2)
    assert "is no header" in cli("-A", "shop", "dead", "list", "--header", "tenant", code=2)
    assert "is no moment" in cli("-A", "shop", "dead", "list", "--since", "yesterday", code=2)


def test_a_dry_run_tries_edits_by_the_page(cli, failed, monkeypatch):
    """A million of them, one by one, would take minutes and all of them in memory."""
    pages, bodies = [], Edit.bodies

    def noted(self, engine, stream, page):
        pages.append(len(page))
        return bodies(self, engine, stream, page)

    monkeypatch.setattr(Edit, "bodies", noted)
    monkeypatch.setattr(acting, "SHOWN", 2)
    given = ("-A", "shop", "dead", "redrive", "--task", "fetch", "--set", "args[0]=good://1", "--dry-run")
    text = cli(*given)
    assert pages == [3]
    assert text.count("edited args[0] = 'good://1'") == 2
    assert "and 1 more edits; --json has all" in text
    assert len(cli.data(*given)["edits"]) == 3
    assert len(cli.rows("-A", "shop", "dead", "list", "--task", "fetch")) == 3


def test_dead_redrive_with_other_arguments(cli, failed, worker):
    first = failed[0]
    given = ("-A", "shop", "dead", "redrive", "--id", first.id)
    text = cli(*given, "--set", "url=good://1", "--dry-run")
    assert "It would give back 1: fetch (1)." in text
    assert "edited args[0] = 'good://1' (was 'bad://0')" in text
    assert "argument 'url' should be str" in cli(*given, "--set", "url=3", code=2)
    assert "looks like PATH=VALUE" in cli(*given, "--set", "url", code=2)
    assert len(cli.rows("-A", "shop", "dead", "list")) == 4
    assert cli.data(*given, "--set", "args[0]=good://1") == {"redriven": 1}
    shown = cli("-A", "shop", "show", first.id)
    assert "input as changed: fetch('good://1')" in shown
    assert "redriven: edited args[0] = 'good://1' (was 'bad://0')" in shown
    worker.work("fast")
    assert cli.data("-A", "shop", "check")["ok"]


def test_dead_redrive_in_an_editor(cli, failed, folder, monkeypatch):
    def editor(code):
        (folder / "edit.py").write_text(f"import sys\np = sys.argv[1]\ntext = open(p).read()\n{code}\n")
        monkeypatch.setenv("EDITOR", f"{sys.executable} {folder / 'edit.py'}")
        monkeypatch.delenv("VISUAL", raising=False)

    given = ("-A", "shop", "dead", "redrive", "--edit", "--id", failed[0].id)
    editor("")
    assert "nothing was changed in the editor" in cli(*given, code=1)
    editor("open(p, 'w').write('{')")
    assert "is no JSON" in cli(*given, code=1)
    editor("open(p, 'w').write(text.replace('bad://0', 'good://0').replace('[', '[1,'))")
    assert "fetch(): " in cli(*given, code=2), "it does not fit the signature"
    assert "--edit changes one dead letter, and 4 match" in cli(
        "-A", "shop", "dead", "redrive", "--edit", code=2
    )
    assert "--edit or --set, not both" in cli(*given, "--set", "url=x", code=2)
    editor("open(p, 'w').write(text.replace('bad://0', 'good://0'))")
    assert cli.data(*given) == {"redriven": 1}
    assert "input as changed: fetch('good://0')" in cli("-A", "shop", "show", failed[0].id)


def test_dead_redrive_at_a_rate(cli, failed, app):
    text = cli("-A", "shop", "dead", "redrive", "--task", "fetch", "--rate", "2/m", "--yes")
    assert "Gave back 3 dead letters within 1m00s; see: respool lag" in text
    waiting = [h.find().status.parked.due for h in failed[:3]]
    assert [round(b - a) for a, b in pairwise(sorted(waiting))] == [30, 30]
    assert "'fast' is no rate" in cli("-A", "shop", "dead", "redrive", "--rate", "fast", code=2)


def test_dead_drop(cli, failed):
    text = cli("-A", "shop", "dead", "drop", "--task", "fetch", code=1)
    assert "Drop 3 dead letters for good: fetch (3)? Nobody can be asked here" in text
    assert "It would drop 3: fetch (3)." in cli("-A", "shop", "dead", "drop", "--task", "fetch", "--dry-run")
    assert len(cli.rows("-A", "shop", "dead", "list")) == 4
    text = cli("-A", "shop", "dead", "drop", "--task", "fetch", "--yes")
    assert "Dropped 3 dead letters; their records stay." in text
    assert [row["task"] for row in cli.rows("-A", "shop", "dead", "list")] == ["boom"]
    shown = cli("-A", "shop", "show", failed[0].id)
    assert "in group main: FAILURE" in shown
    assert shown.index("failed: ValueError") < shown.index("dropped")
    assert cli.data("-A", "shop", "dead", "drop", "--task", "fetch") == {"dropped": 0}
    assert cli.data("-A", "shop", "check")["ok"]


def test_dead_redrive_without_code(cli, failed, folder):
    (folder / "shop.py").unlink()
    url = f"sqlite:///{folder}/respool.db"
    assert cli.data("--url", url, "dead", "redrive", "--yes") == {"redriven": 4}


def test_groups_create_and_drop(cli, app, worker):
    for n in range(3):
        app.tasks["add"].delay(n, n)
    create = ("-A", "shop", "groups", "create")
    text = cli(*create, "shadow", "--queue", "default", "--start", "earliest")
    assert "reads queue default from earliest on: 3 records" in text
    assert "Run it:  respool -A shop worker --group shadow" in text
    assert cli.data(*create, "tail", "--queue", "default")["left"] == 0
    assert cli.data(*create, "hour", "--queue", "default", "--start", "1h")["left"] == 3
    assert cli.data(*create, "events", "--stream", "inference", "--start", "earliest")["left"] == 0
    assert worker.work(group="shadow") == 3
    assert "has a group shadow already" in cli(*create, "shadow", "--queue", "default", code=2)
    text = cli("-A", "shop", "groups", "drop", "shadow", code=1)
    assert "give --yes" in text
    cli("-A", "shop", "groups", "drop", "shadow", "--yes")
    names = [g["group"] for g in cli.rows("-A", "shop", "groups", "list", "--queue", "default")]
    assert names == ["main", "tail", "hour"]
    assert len(cli.rows("-A", "shop", "calls")) == 3
    assert cli.data("-A", "shop", "check")["ok"]


def test_a_group_of_a_stream_says_what_must_be_written_for_it(cli, folder):
    (folder / "shop.py").write_text(
        "from respool import App\napp = App('shop')\nevents = app.stream('visits', key='who')\n"
    )
    run("-A", "shop", "groups", "list", cwd=folder)
    code = "from shop import events\nevents.publish({'who': 'ada'})\n"
    assert python("-c", code, cwd=folder).returncode == 0
    made = run("-A", "shop", "groups", "create", "seen", "--stream", "visits", "--start", "1h", cwd=folder)
    assert "No worker can serve it yet: app shop has no subscription of that name" in made.stdout
    wanted = "@visits.subscribe(group='seen')"
    assert wanted in made.stdout
    hint = f"app shop has no subscription of that name; write one on its stream 'visits': {wanted}"
    assert hint in run("-A", "shop", "lag", cwd=folder).stdout
    refused = run("-A", "shop", "worker", "-c", "1", "--burst", "--group", "seen", cwd=folder)
    assert "group 'seen' is there, but no subscription of the app reads it" in refused.stderr
    assert "did you mean" not in refused.stderr
    with (folder / "shop.py").open("a") as file:
        file.write(f"visits = events\n{wanted}\ndef seen(event): print('saw', event['who'])\n")
    assert "saw ada" in run("-A", "shop", "worker", "-c", "1", "--burst", cwd=folder).stdout


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ("create g", 2, "say what it reads"),
        ("create g --queue default --stream inference", 2, "say what it reads"),
        ("create g --queue fats", 2, "did you mean 'fast'?"),
        ("create g --queue default --start first", 2, "earliest, latest, or a moment"),
        ("drop mian", 2, "did you mean 'main'?"),
        ("drop main --queue default", 2, "main is the queue's own group"),
        ("drop g --queue fats", 2, "did you mean 'fast'?"),
        ("list --queue fats", 2, "did you mean 'fast'?"),
    ],
)
def test_groups_that_cannot_be(cli, app, args, code, told):
    _ = app.engine
    assert told in cli("-A", "shop", "groups", *args.split(), code=code)


def test_drop_says_who_serves_the_group_and_wants_to_know_which(cli, app, worker):
    app.tasks["add"].delay(1, 2)
    app.tasks["mail"].apply_async(("x",), queue="fast")
    for queue in ("default", "fast"):
        cli("-A", "shop", "groups", "create", "twice", "--queue", queue)
    assert "say which with --queue" in cli("-A", "shop", "groups", "drop", "twice", "--yes", code=2)
    group = next(g for g in app.engine.groups() if g.name == "twice")
    worker.say(groups=[group.id], running=[])
    assert "Worker w1 serves it now" in cli(
        "-A", "shop", "groups", "drop", "twice", "--queue", "default", code=1
    )


def test_purge(cli, app, worker, failed):
    handles = [app.tasks["fetch"].delay("x") for _ in range(3)]
    later = app.tasks["fetch"].apply_async(("y",), countdown=999)
    group, lease = worker.take("fast", want=1)
    assert "End 3 calls of queue fast" in cli("-A", "shop", "purge", "--queue", "fast", code=1)
    assert cli.data("-A", "shop", "purge", "--queue", "fast", "--yes") == {"queue": "fast", "purged": 3}
    assert [handle.state for handle in (*handles[1:], later)] == ["REVOKED"] * 3
    assert handles[0].state == "PENDING"
    worker.settle(group, lease)
    assert handles[0].state == "SUCCESS"
    assert [handle.state for handle in failed] == ["FAILURE"] * 4, "dead letters stay"
    assert "Nothing waits in queue fast" in cli("-A", "shop", "purge", "--queue", "fast", "--yes")
    assert cli.data("-A", "shop", "check")["ok"]


def test_purge_of_what_is_not_there(cli, app):
    _ = app.engine
    assert "did you mean 'fast'?" in cli("-A", "shop", "purge", "--queue", "fats", "--yes", code=2)
    assert "is a stream of events" in cli("-A", "shop", "purge", "--queue", "inference", "--yes", code=2)
    assert "Missing option '--queue'" in cli("-A", "shop", "purge", code=2)


def test_names_with_blanks_are_quoted_where_a_command_is_suggested(cli, app, worker):
    app.tasks["add"].delay(1, 2)
    replay = ("-A", "shop", "replay", "--queue", "default", "--group", "a b", "--all-tasks")
    assert "Run it:  respool -A shop worker --group 'a b'\n" in cli(*replay)
    told = cli(*replay, "--outbox", "send", code=2)
    assert (
        "respool -A shop worker --group 'a b'; or drop it: respool groups drop 'a b' --queue default" in told
    )


def test_replay_by_what_is_in_the_calls(cli, app, worker, failed):
    replay = ("-A", "shop", "replay", "--queue", "fast", "--all-tasks")
    app.tasks["fetch"].apply_async(("good://1",), headers={"tenant": "acme"})
    worker.work("fast")
    planned = cli.data(*replay, "--group", "f", "--state", "failure", "--dry-run")
    assert (planned["runs"], planned["run"], planned["at_most"]) == (4, {"fetch": 3, "boom": 1}, False)
    made = cli.data(*replay, "--group", "f", "--state", "failure", "--rate", "50/s")
    assert (made["runs"], made["at_most"], made["state"]) == (5, True, "FAILURE")
    (line,) = [row for row in cli("-A", "shop", "groups", "list").splitlines() if row.startswith("f ")]
    assert line.endswith("state FAILURE, rate 50/s")
    text = cli(*replay, "--group", "w", "--where", "args[0] == 'good://1'", "--header", "tenant=acme")
    assert "Replay w runs at most 5 calls" in text
    assert "--dry-run counts them now" in text
    (listed,) = [g for g in cli.rows("-A", "shop", "groups", "list", "--queue", "fast") if g["group"] == "w"]
    assert (listed["where"], listed["headers"]) == ("args[0] == 'good://1'", {"tenant": "acme"})
    made = cli.data("-A", "shop", "replay", "--queue", "fast", "--group", "i", "--id", failed[0].id)
    assert made["runs"] == 1
    assert "did you mean 'value'" in cli(*replay, "--group", "x", "--where", "valeu.x == 1", code=2)
    by_name = cli.data(*replay, "--group", "x", "--where", "kwargs.url == 'good://1'", "--dry-run")
    assert by_name["run"] == {"fetch": 1}, "it was sent by position"
    asks = (*replay[:-1], "--task", "fetch", "--where", "kwargs.ulr == 'good://1'")
    told = "no argument of task fetch is called ulr: there are retries, url"
    assert f"Beware: {told}." in cli(*asks, "--group", "none")
    assert told in cli(*asks, "--group", "x", "--dry-run", code=2)
    assert "'half' is no share" in cli(*replay, "--group", "x", "--share", "half", code=2)
    assert "unknown state 'FAILED'; did you mean 'FAILURE'?" in cli(
        *replay, "--group", "x", "--state", "failed", code=2
    )
    assert "unknown" not in cli("-A", "shop", "groups", "list")


def test_replay_waits_no_longer_than_it_should(cli, app, worker):
    app.tasks["add"].delay(1, 2)
    replay = ("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--task", "add", "--wait")
    text = cli(*replay, "--timeout", "0.1", code=3)
    assert "No worker serves it yet; start one: respool -A shop worker --group v2" in text
    assert "replay v2 was not over in time: 0 of 1" in text
    worker.work(group="v2")
    done = cli.data(*replay)
    assert (done["over"], done["done"], done["dead"]) == (True, 1, 0)
    assert cli(*replay).endswith("Replay v2 is over: 1 done, 0 failed.\n")
    assert "makes nothing to --wait for" in cli(*replay, "--dry-run", code=2)


def test_a_replay_is_told_by_what_it_runs(cli, app, worker, monkeypatch):
    """What it passes over is no part of it; in a pipe a line now and then says how far it is."""
    monkeypatch.setattr(output, "SAY_EVERY", 0.0)
    app.tasks["add"].apply_many([((n, n), {}) for n in range(4)])
    app.tasks["mail"].delay_many(["a"] * 9)
    replay = ("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--task", "add", "--wait")
    text = cli(*replay, "--timeout", "0.1", code=3)
    assert "running: 0 of 4" in text
    assert "replay v2 was not over in time: 0 of 4" in text
    worker.work(group="v2", want=2)
    assert "2 of 4" in cli(*replay, "--timeout", "0.1", code=3)
    worker.work(group="v2")
    text = cli(*replay)
    assert "running: 4 of 4" in text
    assert text.endswith("Replay v2 is over: 4 done, 0 failed.\n")
    assert "running" not in CliRunner().invoke(main, [*replay, "--json"]).stderr


def test_a_second_version_on_a_share_of_the_live_calls(cli, app, worker):
    made = cli.data(
        "-A", "shop", "groups", "create", "v2", "--queue", "default", "--start", "now",
        "--task", "add", "--share", "50%",
    )  # fmt: skip
    assert made["left"] == 0
    group = next(g for g in app.groups() if g.name == "v2")
    assert group.settings == {"tasks": ["add"], "share": 0.5, "outbox": "drop"}
    handles = [app.tasks["add"].delay(n, 1) for n in range(200)]
    app.tasks["mail"].delay("me")
    from respool.testing import work

    work(app, group="v2")
    done = [handle for handle in handles if handle.of("v2").state == "SUCCESS"]
    assert 60 < len(done) < 140
    assert handles[0].state == "PENDING", "main is not touched"
    assert "50 %" in cli("-A", "shop", "groups", "list", "--queue", "default")
    assert "unknown task 'ad'; did you mean 'add'?" in cli(
        "-A", "shop", "groups", "create", "v3", "--queue", "default", "--task", "ad", code=2
    )
    from_past = cli.data("-A", "shop", "groups", "create", "v4", "--queue", "default", "--start", "1h")
    assert from_past["left"] == 201


def test_groups_pause_and_resume(cli, app, worker):
    app.tasks["add"].delay(1, 2)
    assert "Group main of default is paused." in cli(
        "-A", "shop", "groups", "pause", "main", "--queue", "default"
    )
    assert worker.work() == 0
    assert "paused" in cli("-A", "shop", "groups", "list", "--queue", "default")
    (listed,) = cli.rows("-A", "shop", "groups", "list", "--queue", "default")
    assert listed["paused"]
    told = "shop/default is paused; to have it go on: respool groups resume main --queue default"
    assert told in cli("-A", "shop", "lag")
    (row,) = cli.rows("-A", "shop", "lag", "--queue", "default")
    assert row["held"] == "paused"
    assert cli.data("-A", "shop", "groups", "resume", "main", "--queue", "default")["paused"] is False
    assert "paused" not in cli("-A", "shop", "lag")
    assert worker.work() == 1
    assert "several groups are called main" in cli("-A", "shop", "groups", "pause", "main", code=2)
    assert "unknown group 'v3'" in cli("-A", "shop", "groups", "pause", "v3", code=2)


def test_seek(cli, app, worker):
    for n in range(3):
        app.tasks["add"].delay(n, n)
    app.tasks["mail"].delay("me")
    worker.work()
    seek = ("-A", "shop", "seek", "main", "--queue", "default")
    text = cli(*seek, "--to", "1", code=1)
    assert "Group main of queue default: 3 calls will be done again: add (2), mail (1)." in text
    assert "Move group main of queue default? Nobody can be asked here" in text
    assert cli.data(*seek, "--to", "1h", "--dry-run")["again"] == {"add": 3, "mail": 1}
    assert worker.work() == 0, "nothing was moved"
    moved = cli.data(*seek, "--to", "1", "--yes")
    assert (moved["moved"], moved["to"], moved["again"]) == (True, {"0": 1}, {"add": 2, "mail": 1})
    states = [call["state"] for call in cli.rows("-A", "shop", "calls", "--queue", "default", "--oldest")]
    assert states == ["SUCCESS", "PENDING", "PENDING", "PENDING"]
    text = cli(*seek, "--to", "latest", "--yes")
    assert "3 calls not done yet will not be, and end as REVOKED: add (2), mail (1)." in text
    assert "Moved group main; see: respool lag" in text
    assert "it is there already" in cli(*seek, "--to", "latest")
    assert "Group main is not being moved." in cli(*seek, "--resume")
    assert cli.data("-A", "shop", "check")["ok"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("main", "--queue", "default"), "say where: --to WHERE; or --resume"),
        (("main", "--queue", "default", "--to", "1", "--resume"), "not both"),
        (("main", "--queue", "default", "--to", "99"), "beyond the end of queue default: the next one is 1"),
        (("main", "--queue", "default", "--to", "2:1"), "has partitions 0 to 0, no 2"),
        (("main", "--queue", "default", "--to", "soon"), "earliest, latest, an offset, or a moment"),
        (("mian", "--queue", "default", "--to", "1"), "unknown group 'mian'; did you mean 'main'?"),
        (("main", "--to", "1"), "several groups are called main"),
    ],
)
def test_seeks_that_cannot_be(cli, app, args, told):
    app.tasks["add"].delay(1, 2)
    assert told in cli("-A", "shop", "seek", *args, code=2)
    assert cli.data("-A", "shop", "check")["ok"]


@pytest.fixture
def two_versions(cli, app, worker):
    for n in range(10):
        app.tasks["add"].delay(n, n)
    app.tasks["mail"].delay("me")
    worker.work()
    cli("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--task", "add")
    group, lease = worker.take(group="v2")
    codec = app.tasks["add"].codec
    verdicts = []
    for n, row in enumerate(app.engine.rows(lease.spans)):
        if row[1] == "mail":
            verdicts.append(Verdict(row[0], skipped=True))
        else:
            verdicts.append(Verdict(row[0], "success", codec.encode(n * 2 + (0.5 if n == 4 else 0))))
    worker.settle(group, lease, verdicts=verdicts)


def test_compare(cli, two_versions, folder):
    compare = ("-A", "shop", "compare", "main", "v2", "--queue", "default")
    text = cli(*compare)
    assert re.search(r"\nsame +9 ", text)
    assert re.search(r"\ndifferent +1 ", text)
    assert re.search(r"\nonly in main +1 ", text)
    assert "  --- main\n  +++ v2\n" in text
    assert "  - 8\n  + 8.5\n" in text, "the marks are no signs"
    assert "10 % of 10 calls differ." in text
    assert cli.data("-A", "shop", "compare", "main", "v2")["different"] == 1, "one queue has both"
    data = cli.data(*compare, "--tolerance", "1")
    assert (data["same"], data["different"], data["only_a"], data["share"]) == (10, 0, 1, 0.0)
    assert cli.data(*compare, "--tolerance", "10%", "--max-diff", "1%")["passed"]
    gate = cli.data(*compare, "--max-diff", "1%", "--sample", "1", code=1)
    assert (gate["passed"], gate["share"], len(gate["differences"])) == (False, 0.1, 1)
    assert gate["differences"][0]["diff"][-2:] == ["-8", "+8.5"]
    assert ": more than 1 %." in cli(*compare, "--max-diff", "1%", code=1)
    (folder / "checks.py").write_text(
        "def near(a, b): return abs(a - b) < 1\ndef bad(a, b): return a.x\nx = 1\n"
    )
    assert cli.data(*compare, "--comparator", "checks:near")["different"] == 0
    assert "the comparator raised AttributeError" in cli(*compare, "--comparator", "checks:bad", code=2)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("main", "v3", "--queue", "default"), "unknown group 'v3'"),
        (("main", "main"), "several groups are called main"),
        (("main", "v2", "--queue", "default", "--tolerance", "near"), "'near' is no tolerance"),
        (("main", "v2", "--queue", "default", "--max-diff", "two"), "'two' is no share"),
        (("main", "v2", "--queue", "default", "--comparator", "nope:x"), "No module named 'nope'"),
        (
            ("main", "v2", "--queue", "default", "--comparator", "checks"),
            "one looks like checks:close_enough",
        ),
        (("main", "v2", "--queue", "default", "--task", "ad"), "unknown task 'ad'; did you mean 'add'?"),
    ],
)
def test_comparisons_that_cannot_be(cli, two_versions, folder, args, told):
    (folder / "checks.py").write_text("x = 1\n")
    assert told in cli("-A", "shop", "compare", *args, code=2)


def test_a_gate_with_nothing_to_compare_is_shut(cli, app):
    app.tasks["add"].delay(1, 2)
    cli("-A", "shop", "groups", "create", "v2", "--queue", "default")
    text = cli("-A", "shop", "compare", "main", "v2", "--queue", "default", "--max-diff", "1%", code=1)
    assert "No call is finished in both groups yet." in text
    assert cli.data("-A", "shop", "compare", "main", "v2", "--queue", "default", code=1)["passed"] is None


def test_a_comparison_of_one_call(cli, app, worker):
    app.tasks["add"].delay(1, 2)
    cli("-A", "shop", "groups", "create", "v2", "--queue", "default", "--start", "earliest")
    worker.work()
    worker.work(group="v2")
    assert "0 % of 1 call differs." in cli("-A", "shop", "compare", "main", "v2", "--queue", "default")


def test_rerun(cli, app, worker, failed):
    fine = app.tasks["add"].delay(2, 3)
    text = cli("-A", "shop", "rerun", fine.id)
    assert "add(2, 3)" in text
    assert "returned 5" in text
    assert fine.state == "PENDING", "nothing was changed"
    done = cli.data("-A", "shop", "rerun", failed[0].id, code=1)
    assert (done["ok"], done["error"]) == (False, "ValueError: no such place: bad://0")
    assert "in fetch" in done["traceback"]
    text = cli("-A", "shop", "rerun", failed[0].id, code=1)
    assert "raised ValueError: no such place: bad://0" in text
    for trace in (text, done["traceback"]):
        assert "respool/replay" not in trace, "it begins in the task's own code"
    assert len(cli.rows("-A", "shop", "dead", "list")) == 4
    assert "no call nope" in cli("-A", "shop", "rerun", "nope", code=1)


def test_rerun_says_that_a_call_was_redriven_with_other_arguments(cli, app, worker, failed):
    id = failed[0].id
    assert cli.data("-A", "shop", "rerun", id, code=1)["redriven_with"] == []
    cli("-A", "shop", "dead", "redrive", "--id", id, "--set", "url=better://x", "--yes")
    text = cli("-A", "shop", "rerun", id, code=1)
    assert "redriven since with other arguments: edited args[0] = 'better://x'" in text
    assert "better://x" in text
    worker.work("fast")
    (edit,) = cli.data("-A", "shop", "rerun", id, code=1)["redriven_with"]
    assert "better://x" in edit, "also once it was run with them"


def test_rerun_of_a_call_of_a_batch_says_that_it_is_alone(cli, folder):
    write_shop(
        folder,
        "from respool import App\napp = App('shop')\n@app.task(batch=10)\n"
        "def embed(texts: list[str]) -> list[int]:\n"
        "    assert all(texts), f'{len(texts)} texts, one empty'\n    return [len(text) for text in texts]\n",
        "batches",
    )
    fine, empty = (cli("-A", "batches", "call", "embed", text).strip() for text in ("four", ""))
    text = cli("-A", "batches", "rerun", fine)
    assert "embed('four')\n  as a batch of one: its task takes batches, and this call alone is run\n" in text
    assert "returned 4" in text
    assert cli.data("-A", "batches", "rerun", fine)["batch_of_one"]
    assert "raised AssertionError: 1 texts, one empty" in cli("-A", "batches", "rerun", empty, code=1)


def debugged(folder, typed, *args):
    """Type into a debugger in a process of its own: pytest has one's output for itself."""
    command = [sys.executable, "-m", "respool", "-A", *args]
    env = {**os.environ, "PYTHONPATH": str(Path(respool.__file__).parents[1])}
    done = subprocess.run(
        command, cwd=folder, env=env, input=typed, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    return done.stdout + done.stderr


def test_rerun_in_the_debugger(folder, failed):
    rerun = ("shop", "rerun", failed[0].id)
    text = debugged(folder, "p url\nq\n", *rerun, "--pdb")
    assert "-> raise ValueError" in text
    assert "'bad://0'" in text
    text = debugged(folder, "c\n", *rerun, "--trace")
    assert "-> if url.startswith" in text
    assert "raised ValueError" in text
    assert not re.search(r"(pdb|bdb|rerun)\.py", text), "the traceback is of the task's code alone"
    text = debugged(folder, "q\n", *rerun, "--trace")
    assert "returned" not in text
    assert "Error: the debugger was left before the task came to its end" in text


@pytest.mark.parametrize("kind", ["bind=True", "coroutine", "batch=5"])
def test_a_trace_begins_at_the_first_line_of_any_task(cli, folder, kind):
    option, a = ("", "async ") if kind == "coroutine" else (kind, "")
    parameters = "self, x" if kind == "bind=True" else "x"
    write_shop(
        folder,
        f"from respool import App\napp = App('kinds')\n@app.task({option})\n{a}def t({parameters}):\n"
        "    first = x\n    raise ValueError(first)\n",
        "kinds",
    )
    id = cli("-A", "kinds", "call", "t", "7").strip()
    text = debugged(folder, "n\np first\nc\n", "kinds", "rerun", id, "--trace")
    assert re.match(r"> .*kinds\.py\(5\)t\(\)\n-> first = x\n", text), text
    assert f"(Pdb) {'[7]' if kind == 'batch=5' else '7'}\n" in text
    assert not re.search(r"(pdb|bdb|rerun|services|runners)\.py", text), text
    assert "raised ValueError" in text


def test_capture(cli, app, worker, folder):
    for n in range(3):
        app.tasks["add"].delay(n, 1)
    worker.work()
    made = cli.data("-A", "shop", "capture", "--task", "add", "--sample", "2", "-o", "past")
    assert made == {"test": "past/test_captured_add.py", "data": "past/captured_add.jsonl", "calls": 2}
    assert "Run them:  pytest" in cli("-A", "shop", "capture", "--task", "add", "-o", "past", "--force")
    assert "load_app('shop')" in (folder / "past" / "test_captured_add.py").read_text()
    assert "is there already" in cli("-A", "shop", "capture", "--task", "add", "-o", "past", code=2)
    assert "did you mean 'add'" in cli("-A", "shop", "capture", "--task", "ad", code=2)
