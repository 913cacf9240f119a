"""What two groups made of the same calls."""

import math
import tracemalloc

import pytest

from respool import App, ConfigError
from respool.replay import Selection, Tolerance, compare, create_replay
from respool.replay.comparing import equal
from respool.testing import work


@pytest.fixture
def app():
    with App("shop", url="sqlite:///:memory:") as app:
        app.version = 1

        @app.task
        def score(n: int) -> object:
            if n == 3 and app.version == 1:
                raise ValueError("v1 fails")
            if n == 4 and app.version == 2:
                raise KeyError("v2 fails")
            if n == 5:
                raise RuntimeError("both fail")
            if n == 6:
                return {"score": 1.0 + app.version / 1000, "tags": ["a", "b"]}
            if n == 7:
                return f"v{app.version}"
            return None if n == 0 else n

        @app.task
        def other(n: int) -> int:
            return n

        yield app


def run(app, **given):
    app.version = 2
    create_replay(app, "default", "v2", None, **given)
    work(app, group="v2")


def compared(app, **given):
    stream = app.stream_of("queue", "default")
    a, b = (next(g for g in app.groups() if g.name == name) for name in ("main", "v2"))
    return compare(app, stream, a, b, **given)


def test_call_by_call(app):
    handles = [app.tasks["score"].delay(n) for n in range(8)]
    work(app)
    run(app)
    app.tasks["score"].delay(9)
    found = compared(app)
    assert found.counts == {
        "same": 3, "failed_a": 1, "failed_b": 1, "failed_both": 1, "different": 2,
    }  # fmt: skip
    assert (found.compared, found.share) == (8, 0.5)
    assert [(each.id, each.verdict) for each in found.sample] == [
        (handles[4].id, "failed_b"),  # what is new and fails comes first
        (handles[6].id, "different"),
        (handles[7].id, "different"),
        (handles[3].id, "failed_a"),
    ]
    assert (found.sample[3].a, found.sample[3].b) == ("ValueError: v1 fails", 3)
    diff = found.sample[1].diff(("main", "v2"))
    assert diff[:2] == ["--- main", "+++ v2"]
    assert "-{'score': 1.001, 'tags': ['a', 'b']}" in diff
    assert "+{'score': 1.002, 'tags': ['a', 'b']}" in diff
    assert found.tasks == {"score": found.counts}


def test_what_one_group_left_out_or_has_not_run_is_apart(app):
    for n in range(1, 3):
        app.tasks["score"].delay(n)
        app.tasks["other"].delay(n)
    work(app)
    app.version = 2
    create_replay(app, "default", "v2", ["score"])
    assert compared(app).counts == {"only_a": 2, "unfinished": 2} or compared(app).counts == {"unfinished": 4}
    work(app, group="v2")
    found = compared(app)
    assert found.counts == {"same": 2, "only_a": 2}
    assert compared(app, tasks=["score"]).counts == {"same": 2}
    assert compared(app, since=1e12).counts == {}


@pytest.mark.parametrize(
    ("tolerance", "different"),
    [
        (Tolerance(), 2),
        (Tolerance(absolute=0.01), 1),
        (Tolerance(relative=0.01), 1),
        (Tolerance(absolute=0.0001), 2),
    ],
)
def test_numbers_within_a_tolerance_are_the_same(app, tolerance, different):
    for n in (6, 7):
        app.tasks["score"].delay(n)
    work(app)
    run(app)
    assert compared(app, tolerance=tolerance).count("different") == different


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (1, 1.0, True), (1, True, False), (math.nan, math.nan, True), (math.inf, math.inf, True),
        ([1, [2.0]], [1, [2.05]], True), ([1], [1, 2], False), ({"a": 1}, {"a": 1.05}, True),
        ({"a": 1}, {"b": 1}, False), ("1", 1, False), (None, None, True), (None, 0, False),
        ({1, 2}, {2, 1}, True), (b"a", b"a", True), (2.0, 2.2, False), ("a", "a", True),
    ],
)  # fmt: skip
def test_what_is_the_same(a, b, same):
    assert equal(a, b, Tolerance(absolute=0.1)) is same
    assert equal(b, a, Tolerance(absolute=0.1)) is same


def test_a_comparator_of_ones_own(app):
    for n in (6, 7):
        app.tasks["score"].delay(n)
    work(app)
    run(app)
    assert compared(app, comparator=lambda a, b: type(a) is type(b)).counts == {"same": 2}
    assert compared(app, comparator=lambda a, b: isinstance(a, dict)).count("different") == 1
    with pytest.raises(ConfigError, match=r"comparator raised ZeroDivisionError.*for call .*'score'"):
        compared(app, comparator=lambda a, b: 1 / 0)
    with pytest.raises(ConfigError, match="returned None"):
        compared(app, comparator=lambda a, b: None)


def test_a_sample_is_drawn_from_all(app, monkeypatch):
    monkeypatch.setattr("respool.replay.comparing.PAGE", 7)

    @app.task(name="v")
    def version(n: int) -> int:
        return n + app.version

    app.tasks["v"].delay_many(range(100))
    work(app)
    run(app)
    told = []
    found = compared(app, sample=5, progress=lambda done, total: told.append((done, total)))
    assert (found.count("different"), found.share, len(found.sample)) == (100, 1.0, 5)
    assert found.sample[-1].a > 10, "not just the first ones"
    assert [each.position for each in found.sample] == sorted(each.position for each in found.sample)
    assert told[-1] == (100, 100)
    assert compared(app, sample=0).sample == []


def test_a_few_new_failures_among_many_differences_are_in_the_sample(app):
    @app.task(name="v")
    def version(n: int) -> int:
        if app.version == 2 and n >= 97:
            raise ValueError("new")
        return n + app.version

    app.tasks["v"].delay_many(range(100))
    work(app)
    run(app)
    kinds = [each.verdict for each in compared(app, sample=5).sample]
    assert kinds == ["failed_b", "failed_b", "failed_b", "different", "different"]
    kinds = [each.verdict for each in compared(app, sample=2).sample]
    assert kinds == ["failed_b", "different"], "one of each kind where there is room"
    assert [each.verdict for each in compared(app, sample=1).sample] == ["failed_b"]


def test_memory_stays_flat(app):
    @app.task(name="large")
    def large(n: int) -> str:
        return str(n) * 3000

    app.tasks["large"].delay_many(range(3000))
    work(app)
    app.version = 2
    create_replay(app, "default", "v2", None, selection=Selection())
    work(app, group="v2")
    tracemalloc.start()
    assert compared(app).counts == {"same": 3000}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000, "not all 60 MB of values at once"
