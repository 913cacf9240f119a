"""Handles of many calls take the memory of few."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import islice

import pytest

from respool import App, ResultSet
from respool.producer import CHUNK_RECORDS
from respool.record import id_of, id_text, new_head


@pytest.fixture
def app() -> Iterator[App]:
    with App("shop", url="sqlite:///:memory:") as app:
        yield app


def test_ten_million_handles_are_made_when_they_are_asked_for(app: App) -> None:
    heads = [new_head(1e9 + n) for n in range(10_000_000 // CHUNK_RECORDS)]
    tracemalloc.start()
    try:
        results: ResultSet[int] = ResultSet(app)
        for head in heads:
            results.add_run(head, CHUNK_RECORDS)
        held, _ = tracemalloc.get_traced_memory()
        assert len(results) == 10_000_000
        assert results[-1].id == id_text(id_of(heads[-1], CHUNK_RECORDS - 1))
        assert [each.id for each in results[CHUNK_RECORDS : CHUNK_RECORDS + 2]] == [
            id_text(id_of(heads[1], seq)) for seq in range(2)
        ]
        assert [each.id for each in islice(results, 3)] == [id_text(id_of(heads[0], n)) for n in range(3)]
        assert sum(1 for _ in islice(results, 100_000)) == 100_000
        after, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 500_000
    assert most < held + 100_000, "what is iterated over is not kept"
    assert after < held + 100_000


def test_calls_that_are_sent_together_are_kept_as_runs(app: App) -> None:
    @app.task
    def square(n: int) -> int:
        return n * n

    results = square.delay_many(iter(range(3 * CHUNK_RECORDS + 7)))
    assert [size for _, size in results._runs] == [CHUNK_RECORDS] * 3 + [7]
    assert len({each.id for each in results}) == len(results) == 3 * CHUNK_RECORDS + 7
    assert results[3 * CHUNK_RECORDS].record().pos == results[0].record().pos + 3 * CHUNK_RECORDS
