"""Dead letters as a library: finding, counting by cause, editing, giving back, dropping."""

import itertools
import json
import re
import time
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID

import msgspec
import pytest
from tests.cli.support import Worker
from tests.worker.support import eventually

from respool import App, BadArguments, ConfigError, NotEncodable, UnknownCall, UnknownName
from respool.dead import DeadFilter, changed_with, redrive
from respool.dead.find import dead_letters
from respool.engines.base import ParkedFilter
from respool.errors import CorruptBody
from respool.record import new_head
from respool.replay import compare, create_replay
from respool.replay.capture import capture, read_captured
from respool.replay.export import exported
from respool.tagged import from_tagged, to_tagged
from respool.testing import work
from respool.units import rate, share


@pytest.fixture
def app():
    with App("shop", url="sqlite:///:memory:") as app:
        yield app


@pytest.fixture
def fetch(app):
    @app.task(queue="fast")
    def fetch(url: str, tries: int = 1) -> str:
        if url.startswith("slow"):
            raise TimeoutError(f"{url} took 30 s")
        if url.startswith("bad"):
            raise ValueError(f"no such place: {url!r}")
        return url

    return fetch


def group_of(app, queue="fast", name="main"):
    stream = app.stream_of("queue", queue)
    return next(g for g in app.groups() if g.stream == stream.id and g.name == name)


def test_a_cause_in_a_library_is_shown_where_the_task_called_it(app):
    @app.task
    def parse(text):
        return json.loads(text)

    parse.delay("{")
    work(app)
    (cause,) = app.dead_letters().by_error()
    assert cause.error == "json.decoder.JSONDecodeError"
    assert cause.where == "test_dead.py, in parse: return json.loads(text)"
    assert cause.traceback.startswith(f'Traceback (most recent call last):\n  File "{__file__}", line '), (
        "it begins in the task's own code"
    )


def test_what_died_why_where_and_with_which_input(app, fetch):
    r = fetch.apply_async(("bad://1",), headers={"tenant": "acme"})
    work(app)
    (letter,) = app.dead_letters()
    assert (letter.id, letter.task, letter.group.name) == (r.id, "fetch", "main")
    assert letter.error[:2] == ("ValueError", "no such place: 'bad://1'")
    assert "in fetch" in letter.error.traceback
    assert letter.error.worker  # the name of the worker it ran on
    assert letter.record.meta.headers == {"tenant": "acme"}
    assert [entry.how for entry in letter.history()] == ["failed"]
    assert abs(letter.died - time.time()) < 60


@pytest.mark.parametrize(
    ("chosen", "which"),
    [
        ({}, "abcd"),
        ({"task": "fetch"}, "abc"),
        ({"queue": "fast"}, "abc"),
        ({"group": "main"}, "abcd"),
        ({"error": "ValueError"}, "ab"),
        ({"error": "*Timeout*"}, "c"),
        ({"error": "test_dead.Odd*"}, ""),
        ({"error": "Odd"}, "d"),
        ({"message": r"place: 'bad://[2-9]"}, "b"),
        ({"message": "took"}, "c"),
        ({"headers": {"tenant": "acme"}}, "ac"),
        ({"headers": {"tenant": "acme", "x": "1"}}, "c"),
        ({"headers": {"tenant": "acme"}, "error": "ValueError"}, "a"),
        ({"since": datetime.now(UTC) + timedelta(days=1)}, ""),
        ({"until": datetime.now(UTC) + timedelta(days=1)}, "abcd"),
        ({"since": datetime.now(UTC) - timedelta(days=1), "message": "."}, "abc"),
        ({"key": "k"}, ""),
    ],
)
def test_filters(app, fetch, chosen, which):
    class Odd(Exception):
        def __str__(self):
            return ""

    @app.task
    def odd():
        raise Odd

    handles = {
        "a": fetch.apply_async(("bad://1",), headers={"tenant": "acme"}),
        "b": fetch.apply_async(("bad://2",)),
        "c": fetch.apply_async(("slow://1",), headers={"tenant": "acme", "x": "1"}),
        "d": odd.delay(),
    }
    work(app)
    chosen = app.dead_letters(**chosen)
    assert sorted(letter.id for letter in chosen) == sorted(handles[name].id for name in which)
    assert {letter.id for letter in chosen.oldest()} == {handles[name].id for name in which}
    assert chosen.count() == len(which)
    assert sum(cause.count for cause in chosen.by_error()) == len(which)
    assert chosen.redrive() == len(which)
    assert app.dead_letters().count() == 4 - len(which)


def test_filters_that_cannot_be(app, fetch):
    fetch.delay("bad://1")
    work(app)
    with pytest.raises(UnknownName, match="did you mean 'fast'"):
        app.dead_letters("fsat").count()
    with pytest.raises(UnknownName, match="unknown group"):
        app.dead_letters(group="v2").count()
    with pytest.raises(ConfigError, match="is no regular expression"):
        app.dead_letters(message="(").count()
    with pytest.raises(UnknownCall, match="never appended"):
        app.dead_letters(ids=["nope"]).count()
    with pytest.raises(ConfigError, match="no time zone"):
        app.dead_letters(since=datetime(2026, 1, 31))


def test_causes_are_alike_by_their_code_not_their_message(app, fetch):
    for n in range(3):
        fetch.delay(f"bad://{n}")
    fetch.delay("slow://1")

    @app.task
    def other(n: int):
        if n > 5:
            raise ValueError("large")
        raise ValueError("small")

    for n in (1, 2, 9):
        other.delay(n)
    work(app)
    app.dead_letters(ids=[app.dead_letters(task="fetch", error="ValueError").oldest()[0].id]).redrive()
    work(app)  # one came by another way: a redriven call
    found = [(c.error, c.count, c.tasks) for c in app.dead_letters().by_error()]
    assert found == [
        ("ValueError", 3, {"fetch": 3}),
        ("ValueError", 2, {"other": 2}),
        ("TimeoutError", 1, {"fetch": 1}),
        ("ValueError", 1, {"other": 1}),
    ]
    first = app.dead_letters().by_error()[0]
    assert first.where.startswith("test_dead.py, in fetch: raise ValueError(")
    assert first.message.startswith("no such place")
    assert first.first <= first.last
    assert "Traceback" in first.traceback


def test_causes_without_a_traceback_go_by_the_message(app):
    app.tasks.clear()
    body = b"\xc1"
    for n in range(3):
        app.sender.call("default", "x", body + bytes([n]), __import__("respool").record.NO_META, None)

    @app.task
    def x(): ...

    work(app)
    (cause,) = app.dead_letters().by_error()
    assert (cause.error, cause.count) == ("respool.errors.CorruptBody", 3)


def test_an_edited_call_runs_with_its_new_arguments_and_the_old_are_kept(app, fetch):
    r = fetch.delay("bad://1")
    work(app)
    assert app.dead_letters().redrive(set={"url": "good://1"}) == 1
    work(app)
    assert r.get(timeout=0) == "good://1"
    assert fetch.codec.decode(r.record().body) == [["bad://1"], {}]
    assert [attempt.how for attempt in r.history()] == ["failed", "redriven", "done"]
    assert r.history()[1].note == "redriven: edited args[0] = 'good://1' (was 'bad://1')"


def test_what_came_of_an_edit_is_not_taken_for_what_is_on_record(app, fetch, tmp_path):
    """The audit says what was changed; what sets inputs and outcomes side by side leaves it out."""
    fetch.delay("bad://1")
    fetch.delay("good://2")
    work(app)
    app.dead_letters().redrive(set={"url": "good://1"})
    work(app)
    main, queue = group_of(app), app.stream_of("queue", "fast")
    edited, plain = exported(app, queue, main)
    assert (edited["args"], edited["state"], edited["result"]) == (["bad://1"], "SUCCESS", "good://1")
    assert edited["edits"] == ["edited args[0] = 'good://1' (was 'bad://1')"]
    assert plain["edits"] == []
    captured = capture(app, fetch.name, 10, tmp_path, spec="shop")
    assert [call.args for call in read_captured(captured.data)] == [["good://2"]]
    create_replay(app, "fast", "v2", [fetch.name])
    work(app, group="v2")
    found = compare(app, queue, main, group_of(app, name="v2"))
    assert (found.count("same"), found.count("only_b"), found.differences) == (1, 1, 0)


def test_an_edit_that_fails_again_can_be_edited_again(app, fetch):
    r = fetch.delay("bad://1")
    work(app)
    app.dead_letters().redrive(edit=lambda task, call: {"args": ["bad://2"], "kwargs": {"tries": 2}})
    work(app)
    assert r.state == "FAILURE"
    app.dead_letters().redrive(set={"args[0]": "good://3"})
    work(app)
    assert r.get(timeout=0) == "good://3"
    notes = [attempt.note for attempt in r.history() if attempt.how == "redriven"]
    assert notes == [
        "redriven: edited args[0] = 'bad://2' (was 'bad://1'); kwargs.tries = 2 (was not there)",
        "redriven: edited args[0] = 'good://3' (was 'bad://2')",
    ]
    assert [attempt.how for attempt in r.history()].count("failed") == 2


def test_an_edit_survives_a_retry(app):
    @app.task(bind=True, max_retries=1, default_retry_delay=0)
    def flaky(self, n: int) -> int:
        if n == 0:
            raise ValueError("none")
        if not self.request.retries:
            raise self.retry()
        return n

    r = flaky.delay(0)
    work(app)
    app.dead_letters().redrive(set={"n": 7})
    work(app)
    assert r.get(timeout=0) == 7


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Order:
    id: int
    when: date
    tags: set[str]


class Parcel(msgspec.Struct):
    size: tuple[int, int]
    order: Order | None = None


FIRST = {"id": 1, "when": date(2026, 1, 31), "tags": {"a"}}


@pytest.mark.parametrize(
    ("change", "now"),
    [
        ({"n": 5}, {"n": 5}),
        ({"order.id": 7, "parcel.size[0]": 9}, {"order": FIRST | {"id": 7}, "parcel": (9, 2)}),
        ({"order.when": "2026-02-01"}, {"order": FIRST | {"when": date(2026, 2, 1)}}),
        ({"color": "blue"}, {"color": "blue"}),
        ({"when": date(2026, 2, 1)}, {"when": date(2026, 2, 1)}),
        ({"order": Order(8, date(2026, 1, 31), {"a"}), "color": Color.BLUE},
         {"order": FIRST | {"id": 8}, "color": "blue"}),
        ({"parcel": Parcel((3, 4))}, {"parcel": (3, 4)}),
    ],
)  # fmt: skip
def test_declared_arguments_are_edited_as_they_are_declared(app, change, now):
    seen = []

    @app.task
    def ship(
        order: Order, parcel: Parcel, color: Color, price: Decimal, when: date | None = None, n: int = 0
    ):
        if not seen:
            seen.append(None)
            raise ValueError
        said = {"order": asdict(order), "parcel": parcel.size, "color": color.value}
        seen.append(said | {"price": price, "when": when, "n": n})

    first = Order(1, date(2026, 1, 31), {"a"})
    ship.delay(first, Parcel((1, 2), first), Color.RED, Decimal("1.50"))
    work(app)
    assert app.dead_letters().redrive(set=change) == 1
    work(app)
    was = {"order": FIRST, "parcel": (1, 2), "color": "red", "price": Decimal("1.50"), "when": None, "n": 0}
    assert seen[1] == was | now


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"order.id": "x"}, "argument 'order'.id should be int, got 'x'"),
        ({"parcel.size[0]": "x"}, "argument 'parcel' should be Parcel"),
        ({"color": "green"}, "argument 'color' should be Color"),
        ({"order": {"id": 1}}, "argument 'order' should be Order"),
    ],
)
def test_edits_of_declared_arguments_that_cannot_be(app, change, told):
    @app.task
    def ship(order: Order, parcel: Parcel, color: Color):
        raise ValueError

    ship.delay(Order(1, date(2026, 1, 31), {"a"}), Parcel((1, 2)), Color.RED)
    work(app)
    with pytest.raises(BadArguments, match=re.escape(told)):
        app.dead_letters().redrive(set=change)
    assert app.dead_letters().count() == 1


def test_an_edit_that_changes_nothing_is_none(app):
    """Also where a call of before the task had a new field would be sent with that now."""

    @app.task
    def ship(parcel: Parcel):
        raise ValueError

    log = app.stream_of("queue", "default").logs[0]
    body = b"\x92\x91\x81\xa4size\x92\x01\x02\x80"
    app.engine.append_run(log, "ship", [body], None, new_head(1e9), 1e9)
    work(app)
    assert app.dead_letters().redrive(set={"parcel.size[0]": 1}) == 1
    work(app)
    (letter,) = app.dead_letters()
    assert not any("edited" in (entry.note or "") for entry in letter.history())
    assert letter.history()[1].how == "redriven"


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"url": 3}, BadArguments, "argument 'url' should be str"),
        ({"kwargs.nope": 3}, BadArguments, "unexpected keyword argument 'nope'|nope"),
        ({"urll": "x"}, ConfigError, r"neither args, kwargs nor a parameter's name \(url, tries\)"),
        ({"args[4]": "x"}, BadArguments, "there is no 4 in"),
        ({"args": ["x"]}, ConfigError, "say which of args"),
        ({"args[0": "x"}, ConfigError, "is no path"),
        ({".url": "x"}, ConfigError, "is no path"),
        ({"args[0].a": "x"}, BadArguments, "there is no 'a' in"),
        ({"tries": object()}, BadArguments, "tries"),
    ],
)  # fmt: skip
def test_edits_that_cannot_be_change_nothing(app, fetch, change, error, told):
    fetch.delay("bad://1")
    fetch.delay("bad://2", tries=3)
    work(app)
    with pytest.raises(error, match=told):
        app.dead_letters().redrive(set=change)
    assert app.dead_letters().count() == 2
    assert not any(entry.how == "redriven" for letter in app.dead_letters() for entry in letter.history())


@pytest.mark.parametrize(
    "made", [None, {}, {"args": []}, {"args": 3, "kwargs": {}}, {"args": [], "kwargs": []}]
)
def test_an_edit_that_makes_no_call(app, fetch, made):
    fetch.delay("bad://1")
    work(app)
    with pytest.raises(BadArguments, match="the edited arguments must"):
        app.dead_letters().redrive(edit=lambda task, call: made)


def test_an_edit_of_a_task_without_code_is_only_encoded(app, fetch):
    fetch.delay("bad://1")
    work(app)
    with pytest.raises(NotEncodable):
        redrive(app.engine, edit=changed_with({"args[0]": object()}))
    assert redrive(app.engine, edit=changed_with({"args[0]": 3})) == 1


def test_set_or_edit(app):
    with pytest.raises(ConfigError, match="not both"):
        app.dead_letters().redrive(set={"a": 1}, edit=lambda task, call: call)


def test_an_event_is_edited_by_its_value(app):
    events = app.stream("inference")
    seen = []

    @events.subscribe(group="audit", start="earliest")
    def audit(event):
        if "user" not in event:
            raise KeyError("user")
        seen.append(event)

    events.publish({"prompt": "hi"})
    work(app)
    with pytest.raises(ConfigError, match="begins with value"):
        app.dead_letters("inference").redrive(set={"user": 7})
    app.dead_letters("inference").redrive(set={"value.user": 7})
    work(app)
    assert seen == [{"prompt": "hi", "user": 7}]


def test_a_rate_spreads_them_over_time(app, fetch):
    for n in range(5):
        fetch.delay(f"bad://{n}")
    work(app)
    began = time.time()
    assert app.dead_letters().redrive(rate="10/s") == 5
    parked = app.engine.parked(ParkedFilter((group_of(app).id,)), 10)
    dues = sorted(each.due - began for _, each in parked)
    assert [round(b - a, 3) for a, b in itertools.pairwise(dues)] == [0.1] * 4
    assert 0 <= dues[0] < 5


def test_a_rate_goes_on_over_slices(app, fetch, monkeypatch):
    monkeypatch.setattr("respool.dead.find.SLICE", 2)
    for n in range(5):
        fetch.delay(f"bad://{n}")
    work(app)
    app.dead_letters().redrive(rate=10)
    parked = app.engine.parked(ParkedFilter((group_of(app).id,)), 10)
    dues = sorted(each.due for _, each in parked)
    assert [round(b - a, 3) for a, b in itertools.pairwise(dues)] == [0.1] * 4


def test_dropped_letters_are_gone_and_their_state_stands(app, fetch):
    handles = [fetch.delay(f"bad://{n}") for n in range(3)]
    work(app)
    assert app.dead_letters(message="bad://1").drop() == 1
    assert app.dead_letters().count() == 2
    assert handles[1].state == "FAILURE"
    with pytest.raises(ValueError, match="no such place"):
        handles[1].get(timeout=0)
    assert [attempt.how for attempt in handles[1].history()] == ["failed", "dropped"]
    assert app.engine.counters(group_of(app).id) == {"dead letters dropped": 1}
    assert app.dead_letters(ids=[handles[1].id]).redrive() == 0
    assert app.dead_letters().drop() == 2
    from respool.replay import check

    assert check(app).ok


def test_old_dead_letters_are_dropped_by_the_workers(app):
    @app.task(dead_letter_ttl=0.05)
    def short():
        raise ValueError("short")

    @app.task
    def long():
        raise ValueError("long")

    handles = [short.delay() for _ in range(3)]
    long.delay()
    work(app)

    def dropped():
        work(app)  # a worker keeps house as it starts
        return app.dead_letters(task="short").count() == 0

    eventually(dropped)
    assert app.dead_letters().by_task() == {"long": 1}
    assert handles[0].state == "FAILURE"
    assert handles[0].history()[-1].note == "dropped: dead for 0.05 s"
    assert app.engine.counters(group_of(app, "default").id) == {"dead letters dropped": 3}


def test_what_died_stays_known_after_its_log_was_cut(app):
    """H15: one dead letter outlives its log, with input, reason and history."""

    @app.task(queue="kept")
    def boom(n: int) -> int:
        if n == 1:
            raise RuntimeError("boom")
        return n

    handles = [boom.apply_async((n,), headers={"n": str(n)}) for n in range(3)]
    work(app)
    stream = app.stream_of("queue", "kept")
    while app.engine.trim(stream, time.time() + 1, 1000):
        pass
    assert handles[0].state == "UNKNOWN"
    (letter,) = app.dead_letters(headers={"n": "1"}, message="boom")
    assert (letter.id, letter.error.type) == (handles[1].id, "RuntimeError")
    assert [entry.how for entry in letter.history()] == ["failed"]
    assert app.dead_letters().redrive(set={"n": 5}) == 1
    work(app)
    assert handles[1].get(timeout=0) == 5


def test_a_replay_has_dead_letters_of_its_own(app, fetch):
    from respool.replay import create_replay

    fetch.delay("bad://1")
    work(app)
    create_replay(app, "fast", "v2", None)
    work(app, group="v2")
    assert app.dead_letters(group="v2").redrive() == 1
    assert app.dead_letters().by_task() == {"fetch": 1}
    assert app.dead_letters(group="main").count() == 1


def test_a_redrive_passes_over_what_another_edited_meanwhile(app, fetch):
    fetch.delay("bad://1")
    work(app)

    def meddle(task, call):
        if not seen:
            seen.append(task)
            redrive(app, edit=changed_with({"args[0]": "bad://9"}))
            work(app)
        return {"args": ["good://1"], "kwargs": {}}

    seen = []
    pages = iter(list(dead_letters(app.engine)))
    assert next(pages).task == "fetch"
    assert app.dead_letters().redrive(edit=meddle) in (0, 1)
    work(app)
    notes = [a.note for a in app.AsyncResult(next(iter(_ids(app)))).history() if a.how == "redriven"]
    for note, was in zip(notes[1:], notes, strict=False):  # each says what the one before had made
        assert re.search(r"was '(\S+)'", note)[1] == re.search(r"= '(\S+)'", was)[1]


def _ids(app):
    from respool.engines import public_id
    from respool.record import id_text

    return [id_text(public_id(r.id)) for r in app.engine.records(0, 1 << 62, 10)]


def test_an_engine_shows_the_dead_letters_of_all_apps(app, fetch):
    fetch.delay("bad://1")
    Worker(app).work("fast")
    assert len(dead_letters(app.engine)) == 1
    assert len(dead_letters(app.engine, DeadFilter(error="ValueError"), app="blog")) == 0


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -(2**80), "x", 1.5, [1, [2]], {"a": {"b": []}}, {}, b"\0\xff", date(2026, 1, 31),
        datetime(2026, 1, 31, tzinfo=UTC), timedelta(days=-1, seconds=3, microseconds=7), UUID(int=7),
        Decimal("1.10"), {1, 2}, frozenset({3}), (1, "a"), {2: "x", "y": None}, {"$set": [1]},
        {"$x": 1, "b": 2}, float("inf"), 1 + 2j, {"deep": [{"$bytes": b"x"}]}, {(1, 2): {frozenset({1})}},
    ],
)  # fmt: skip
def test_tagged_values_come_back(value):
    import json

    back = from_tagged(json.loads(json.dumps(to_tagged(value))))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "text", [{"$nope": 1}, {"$bytes": "#"}, {"$date": "x"}, {"$set": [[1]]}, {"$uuid": 3}]
)
def test_tags_that_cannot_be(text):
    with pytest.raises(CorruptBody):
        from_tagged(text)


def test_rates_and_shares():
    assert [rate(each) for each in (5, "50/s", "600/m", "3600/h", "2.5")] == [5, 50, 10, 1, 2.5]
    assert [share(each) for each in ("5%", 0.5, "0.25", "100 %")] == [0.05, 0.5, 0.25, 1]
    for bad in ("fast", "0/s", -1, "5/y", True):
        with pytest.raises(ConfigError, match="rate"):
            rate(bad)
    for bad in ("half", "0%", 2, "101%", True):
        with pytest.raises(ConfigError, match="share"):
            share(bad)
