"""A queue whose log cannot be read is one line of a listing; the others are as usual."""

import json

import pytest

from respool.engines.sqlite.engine import SQLiteEngine
from respool.errors import StreamBroken, StreamUnavailable


@pytest.fixture(params=[StreamBroken, StreamUnavailable])
def broken(app, request, monkeypatch):
    """The queue fast, once it cannot be read; default holds two calls."""
    app.tasks["add"].delay(1, 2)
    app.tasks["add"].delay(3, 4)
    app.tasks["fetch"].delay("x")
    fast = app.stream_of("queue", "fast")
    bounds, counts, states = SQLiteEngine.bounds, SQLiteEngine.counts, SQLiteEngine.log_states

    def refuse(concerned):
        if concerned:
            raise request.param("topic fast is away")

    def broken_bounds(self, stream):
        refuse(stream.id == fast.id)
        return bounds(self, stream)

    def broken_counts(self, group):
        refuse(group.stream == fast.id)
        return counts(self, group)

    def broken_states(self):
        return [
            state._replace(error="topic fast is away") if state.log in fast.logs else state
            for state in states(self)
        ]

    monkeypatch.setattr(SQLiteEngine, "bounds", broken_bounds)
    monkeypatch.setattr(SQLiteEngine, "counts", broken_counts)
    monkeypatch.setattr(SQLiteEngine, "log_states", broken_states)


def by_name(text):
    return {row["name"]: row for row in map(json.loads, text.splitlines())}


def test_lag(cli, broken):
    rows = by_name(cli("-A", "shop", "lag", "--json", code=1))
    assert (rows["default"]["pending"], rows["default"]["error"]) == (2, None)
    assert (rows["fast"]["pending"], rows["fast"]["error"]) == (None, "topic fast is away")
    assert rows["default"].keys() == rows["fast"].keys()
    text = cli("-A", "shop", "lag", code=1)
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:4]}
    assert lines["default"][:2] == ["main", "2"]
    assert lines["fast"][:3] == ["main", "?", "?"]
    assert "shop/fast cannot be read: topic fast is away" in text
    assert "shop/default: no worker serves it" in text, "the rest as usual"
    assert cli("-A", "shop", "lag", "--queue", "default")


def test_queues(cli, broken):
    rows = by_name(cli("-A", "shop", "queues", "--json", code=1))
    assert (rows["default"]["records"], rows["default"]["error"]) == (2, None)
    assert (rows["fast"]["records"], rows["fast"]["error"]) == (None, "topic fast is away")
    text = cli("-A", "shop", "queues", code=1)
    assert "queue fast cannot be read: topic fast is away" in text
    assert cli("-A", "shop", "streams"), "all of which can be read"


def test_groups(cli, broken):
    rows = by_name(cli("-A", "shop", "groups", "list", "--json", code=1))
    assert (rows["default"]["left"], rows["default"]["error"]) == (2, None)
    assert (rows["fast"]["left"], rows["fast"]["error"]) == (None, "topic fast is away")
    text = cli("-A", "shop", "groups", "list", code=1)
    assert "queue fast cannot be read: topic fast is away" in text
    assert cli("-A", "shop", "groups", "list", "--queue", "default")


def test_check(cli, broken):
    found = cli.data("-A", "shop", "check", code=1)
    assert not found["ok"]
    assert found["problems"] == ["a log cannot be read: topic fast is away"]
    groups = {each["queue"]: each for each in found["groups"] if "queue" in each}
    assert groups["fast"]["problems"] == ["1 part that cannot be read: topic fast is away"]
    assert (groups["default"]["pending"], groups["default"]["problems"]) == (2, [])
    assert "WRONG" in cli("-A", "shop", "check", code=1)
