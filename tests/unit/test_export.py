"""The audit file: exact inputs and outcomes of a window; windows piece by piece."""

import csv
import io
import json
import random
import time
import tracemalloc
from datetime import UTC, date, datetime

import pytest

from respool import App, ConfigError
from respool.record import new_head
from respool.replay import windows as pieces
from respool.replay.export import COLUMNS, WRITERS, Wanted, exported, write_csv, write_jsonl
from respool.tagged import from_tagged
from respool.testing import work


@pytest.fixture
def app():
    with App("shop", url="sqlite:///:memory:") as app:

        @app.task
        def pay(amount, when=None):
            if amount == 13:
                raise ValueError("unlucky")
            return {"paid": amount, "raw": b"\x00"} if amount else None

        yield app


def rows(app, **wanted):
    stream = app.stream_of("queue", "default")
    group = next(g for g in app.groups() if g.stream == stream.id and g.name == "main")
    return list(exported(app, stream, group, Wanted(**wanted), load=app.payloads.load))


def test_what_went_in_and_what_came_out(app):
    pay = app.tasks["pay"]
    first = pay.apply_async((7,), {"when": date(2026, 1, 31)}, task_id="order-7", headers={"tenant": "acme"})
    pay.delay(13)
    pay.delay(0)
    work(app)
    pay.delay(9)
    found = rows(app)
    assert [set(row) for row in found] == [set(COLUMNS)] * 4
    one = found[0]
    assert (one["id"], one["task"], one["state"], one["offset"]) == ("order-7", "pay", "SUCCESS", 0)
    assert (one["headers"], from_tagged(one["args"])) == ({"tenant": "acme"}, [7])
    assert from_tagged(one["kwargs"]) == {"when": date(2026, 1, 31)}
    assert from_tagged(one["result"]) == first.get(timeout=0) == {"paid": 7, "raw": b"\x00"}
    assert datetime.fromisoformat(one["time"]) <= datetime.fromisoformat(one["ended"])
    failed = found[1]
    assert (failed["state"], failed["error_type"], failed["error"]) == ("FAILURE", "ValueError", "unlucky")
    assert "in pay" in failed["traceback"]
    assert (found[2]["state"], found[2]["result"], found[2]["ended"]) == ("SUCCESS", None, None)
    assert (found[3]["state"], found[3]["args"]) == ("PENDING", [9])
    assert [row["args"] for row in rows(app, state="FAILURE")] == [[13]]
    assert rows(app, tasks=["mail"]) == []


def test_each_format_says_the_same(app):
    app.tasks["pay"].delay_many([1, 13, 0])
    work(app)
    found = rows(app)
    text = io.StringIO()
    assert write_jsonl(found, text) == 3
    assert [json.loads(line) for line in text.getvalue().splitlines()] == found
    table = io.StringIO(newline="")
    assert write_csv(found, table) == 3
    table.seek(0)
    read = list(csv.DictReader(table))
    assert [json.loads(row["args"]) for row in read] == [[1], [13], [0]]
    assert read[1]["error_type"] == "ValueError"
    assert from_tagged(json.loads(read[0]["result"])) == {"paid": 1, "raw": b"\x00"}


def test_parquet(app, tmp_path, monkeypatch):
    import pyarrow.parquet as parquet

    monkeypatch.setattr("respool.replay.export.ROWS", 2)
    app.tasks["pay"].delay_many([1, 13, 0])
    work(app)
    path = tmp_path / "calls.parquet"
    with path.open("wb") as out:
        assert WRITERS["parquet"](rows(app), out) == 3
    read = parquet.read_table(path)
    assert read.column_names == list(COLUMNS)
    assert [json.loads(text) for text in read["args"].to_pylist()] == [[1], [13], [0]]
    assert read["offset"].to_pylist() == [0, 1, 2]
    assert read["error_type"].to_pylist() == [None, "ValueError", None]


def test_without_pyarrow_it_says_what_to_install(app, monkeypatch):
    import importlib

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'respool\[parquet\]'"):
        WRITERS["parquet"](iter(()), io.BytesIO())


def test_a_large_payload_and_one_that_cannot_be_read(app):
    app.tasks["pay"].delay("x" * 100_000)
    app.sender.call("default", "pay", b"\xc1", __import__("respool").record.NO_META, None)
    found = rows(app)
    assert found[0]["args"] == ["x" * 100_000]
    assert found[1]["input_error"].startswith("cannot be decoded")


def test_memory_stays_flat(app):
    app.tasks["pay"].delay_many("x" * 3000 + str(n) for n in range(5000))

    class Nowhere:
        size = 0

        def write(self, text):
            self.size += len(text)

    stream = app.stream_of("queue", "default")
    group = next(g for g in app.groups() if g.stream == stream.id)
    out = Nowhere()
    tracemalloc.start()
    assert write_jsonl(exported(app, stream, group), out) == 5000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert out.size > 15_000_000 > peak


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("oldest", [True, False])
def test_windows_piece_by_piece_hold_each_record_once(app, seed, oldest):
    """Whatever the order of times in the log (H19)."""
    chance, now = random.Random(seed), time.time()
    stream = app.stream_of("queue", "default")
    times = [now - chance.choice((10, 100, 5000, 200_000, 4_000_000)) * chance.random() for _ in range(200)]
    for at in times:
        app.engine.append_run(stream.logs[0], "t", [b"x"], None, new_head(at), at)
    for since, until in (
        (None, None), (now - 3000, now - 20), (now - 100_000, None), (None, now - 50), (now - 9e6, now + 9),
        (now, now - 5),
    ):  # fmt: skip
        found, edges = [], []
        for piece in pieces.windows(app.engine, stream, since, until, oldest=oldest):
            for each in piece:
                edges.append((each.since, each.until))
                briefs = app.engine.briefs(each.lo, each.hi, None, each.since, each.until, 0)
                found += [brief.pos for brief in briefs]
        low, high = ((None if at is None else int(at * 1e6)) for at in (since, until))
        expected = [
            (stream.logs[0] << 40) + n
            for n, at in enumerate(int(at * 1e6) for at in times)
            if (low is None or at >= low) and (high is None or at < high)
        ]
        assert sorted(found) == expected
        assert len(edges) < 20
        inner = [at for edge in edges for at in edge if at is not None]
        assert inner == sorted(inner, reverse=not oldest) or not oldest


def test_the_first_page_of_a_long_window_looks_at_a_part_of_it(app, monkeypatch):
    now, stream = time.time(), app.stream_of("queue", "default")
    for n in range(50):
        at = now - 3600 * n
        app.engine.append_run(stream.logs[0], "t", [b"x"], None, new_head(at), at)
    real, asked = app.engine.window, []

    def window(stream, since, until):
        asked.append((since, until))
        return real(stream, since, until)

    monkeypatch.setattr(app.engine, "window", window)
    first = next(pieces.windows(app.engine, stream, now - 86400 * 30, None, oldest=False))
    assert len(asked) == 1
    assert asked[0][0] >= now - 61
    assert first[0].hi - first[0].lo == 1
    assert datetime.fromtimestamp(asked[0][0], UTC) > datetime.fromtimestamp(now - 3600, UTC)
