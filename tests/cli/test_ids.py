"""Ids given by their beginning."""

import pytest

from respool import UnknownCall
from respool.cli import ids
from respool.cli.ids import window_of
from respool.cli.target import Target


@pytest.fixture
def target(app):
    return Target(app.engine, app, app.name, app.location)


@pytest.mark.parametrize(
    ("beginning", "made", "is_within"),
    [
        ("01a21b", 0x01A21B000000 / 1000, True),
        ("01a21b", 0x01A21BFFFFFF / 1000, True),
        ("01a21b", 0x01A21C100000 / 1000, False),
        ("01a21b56-19a2", 0x01A21B5619A2 / 1000, True),
        ("01A21B56-19a2-73b5-95d5", 0x01A21B5619A2 / 1000, True),
        ("01a21b56-19a2", 0x01A21B563000 / 1000, False),
    ],
)
def test_the_beginning_of_an_id_is_a_time(beginning, made, is_within):
    since, until = window_of(beginning)
    assert (since <= made <= until) is is_within


@pytest.mark.parametrize("beginning", ["order-17", "01a2", "01a21b56_19a2", "0" * 33])
def test_other_texts_tell_no_time(beginning):
    assert window_of(beginning) is None


def test_any_command_that_takes_an_id_takes_its_beginning(cli, app, worker, monkeypatch):
    dead = app.tasks["fetch"].apply_async(("bad://x",), task_id="order-1700").id
    worker.work("fast")
    fine = app.tasks["add"].delay(2, 3).id
    assert cli.data("-A", "shop", "show", fine[:13])["id"] == fine
    assert cli.data("-A", "shop", "show", fine[:-1])["id"] == fine
    assert cli.data("-A", "shop", "show", fine[:20].upper())["id"] == fine
    assert cli.data("-A", "shop", "show", fine.replace("-", "")[:20])["id"] == fine
    assert cli.data("-A", "shop", "show", "order-17")["id"] == dead
    assert cli.data("-A", "shop", "rerun", fine[:13])["value"] == 5
    assert "no such place" in cli("-A", "shop", "dead", "show", "order-17")
    assert [row["id"] for row in cli.rows("-A", "shop", "dead", "list", "--id", "order-17")] == [dead]
    given = ("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--id", fine[:13])
    assert cli.data(*given)["run"] == {"add": 1}
    assert cli.data("-A", "shop", "dead", "redrive", "--id", "order-17")["redriven"] == 1


def test_several_calls_that_begin_so_are_listed_and_nothing_is_done(cli, app, worker):
    for n in range(12):
        app.tasks["fetch"].apply_async(("bad://x",), task_id=f"order-{n:02}")
    worker.work("fast")
    text = cli("-A", "shop", "show", "order-0", code=2)
    assert "order-0 is the beginning of several ids; give more of it:\n  order-00  fetch, sent " in text
    assert text.count("\n  order-0") == 10
    text = cli("-A", "shop", "dead", "drop", "--id", "order-", "--yes", code=2)
    assert "\n  and more" in text
    assert len(cli.rows("-A", "shop", "dead", "list")) == 12


def test_a_whole_id_is_not_taken_for_the_beginning_of_another(cli, app):
    for id in ("order-1", "order-11"):
        app.tasks["add"].apply_async((1, 2), task_id=id)
    assert cli.data("-A", "shop", "show", "order-1")["id"] == "order-1"


def test_an_id_of_many_calls_sent_together(cli, app):
    found = app.tasks["mail"].delay_many(["a", "b", "c"])
    first, *_ = (each.id for each in found)
    text = cli("-A", "shop", "show", first[:20], code=2)
    assert text.count("  mail, sent ") == 3
    assert cli.data("-A", "shop", "show", first)["id"] == first


def test_what_begins_so_is_looked_for_among_the_newest_only_and_that_is_said(target, app, monkeypatch):
    monkeypatch.setattr(ids, "LOOK", 4)
    monkeypatch.setattr(ids, "PAGE", 3)
    for n in range(6):
        app.tasks["add"].apply_async((n, n), task_id=f"{n}-of-six")
    assert target.whole_id("2-of-s") == "2-of-six"
    assert target.whole_id("1-of-s") == "1-of-s", "past the newest four"
    with pytest.raises(UnknownCall, match=r"no call 2-of-: never .*, but 6 characters of it or more"):
        target.whole_id("2-of-")


def test_none_begins_so(cli, app):
    app.tasks["add"].delay(1, 2)
    text = cli("-A", "shop", "show", "0198c1d2-4a", code=1)
    assert "no record 0198c1d2-4a in " in text
    assert "and none of the newest 100,000 begins so" in text
    for command in (("show",), ("rerun",), ("dead", "show"), ("dead", "list", "--id")):
        text = cli("-A", "shop", *command, "0198c", code=1)
        assert "no call 0198c: never appended" in text
        assert "The beginning of an id is enough, but 6 characters of it or more" in text
