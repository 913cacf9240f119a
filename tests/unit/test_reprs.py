"""What is shown of the objects that users hold: one short line, and never a password."""

import re

import pytest

from respool import App
from respool.testing import work

SECRET = "hunter2"


@pytest.fixture
def app():
    with App("shop", url="sqlite:///:memory:") as app:

        @app.task
        def fetch(url):
            raise ValueError(f"no such place:\n{url}")

        yield app


def test_a_dead_letter_says_what_died_where_when_and_of_what(app):
    app.tasks["fetch"].delay("x" * 5000)
    work(app)
    (dead,) = app.dead_letters()
    text = repr(dead)
    assert re.fullmatch(
        r"<DeadLetter fetch of queue default, group main, [-0-9]+ [:0-9]+[+-]\d\d:\d\d: "
        r"ValueError: no such place: x{173}>",
        text,
    ), text
    assert repr(app.dead_letters(task="fetch")) == "<DeadLetters of shop: task='fetch'>"


def test_a_cause_is_shown_without_its_traceback(app):
    app.tasks["fetch"].delay("x")
    work(app)
    (cause,) = app.dead_letters().by_error()
    assert repr(cause).startswith("Cause(error='ValueError', where='test_reprs.py, in fetch: raise ")
    assert "Traceback" not in repr(cause)


def test_a_record_is_shown_without_its_body(app):
    named = app.tasks["fetch"].apply_async(("secret words",), task_id="order-1").record()
    other = app.tasks["fetch"].delay("secret words")
    assert re.fullmatch(r"<Record order-1: fetch at offset 0, .*, \d+ bytes>", repr(named))
    assert repr(other.record()).startswith(f"<Record {other.id}: fetch at offset 1, ")
    assert "secret words" not in f"{named!r}{other.record()!r}"


def test_a_result_says_in_which_group(app):
    r = app.tasks["fetch"].apply_async(("x",), task_id="order-1")
    assert repr(r) == "<AsyncResult order-1>"
    assert repr(r.of("v2")) == "<AsyncResult order-1 in v2>"
    assert repr(app.tasks["fetch"].delay_many(["x"] * 2000)) == "<ResultSet of 2,000 calls>"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://ada:{SECRET}@host/db", "postgresql://ada@host/db"),
        (f"postgresql://host/db?user=ada&password={SECRET}", "postgresql://host/db?user=ada"),
        (
            f"kafka://ada:{SECRET}@host?state=postgresql://ada:{SECRET}@host/db&sasl.password={SECRET}",
            "kafka://ada@host:9092?state=postgresql://ada@host/db",
        ),
    ],
)
def test_no_password_is_shown(url, shown):
    app = App("shop", url=url)
    events = app.stream("events")

    @app.task
    def fetch(url): ...

    assert repr(app) == f"<App shop on {shown}>"
    queue = app.queue("fast")
    held = [app, app.location, fetch, events, queue, app.AsyncResult("x"), app.dead_letters(), app.payloads]
    assert SECRET not in " ".join(map(repr, held))
