"""One past call here and now, and past calls as tests of the present code."""

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from tests.cli.support import write_shop

import respool
from respool import App, BadArguments, ConfigError, CorruptBody, NotEncodable, UnknownCall, UnknownName
from respool.replay.capture import capture
from respool.replay.rerun import rerun, run_dry
from respool.testing import captured, work


@pytest.fixture
def app():
    with App("shop", url="sqlite:///:memory:") as app:
        app.version = 1
        events = app.stream("visits")

        @app.task(bind=True)
        def pay(self, amount: int, when: date | None = None):
            self.update_state({"half": amount / 2})
            mail.delay("ada", amount=amount)
            mail.delay_many(["bob", "eve"])
            events.publish({"paid": amount})
            events.publish_many([{"n": 1}, {"n": 2}])
            if amount < 0:
                raise ValueError(f"negative: {amount}")
            return {"paid": amount * app.version, "id": self.request.id, "tags": ("a",)}

        @app.task
        def mail(to, amount=0): ...

        @app.task
        async def later(n):
            return n + 1

        @events.subscribe(group="audit")
        def audit(event):
            return event["paid"]

        yield app


def state(app):
    """All that the log and the groups know."""
    streams = app.engine.streams()
    logs = [app.engine.records(first, end, 1000) for s in streams for _, first, end in app.engine.bounds(s)]
    groups = [
        (g, app.engine.counts(g), app.engine.outcomes(g.id, 0, 1 << 62), app.engine.counters(g.id))
        for g in app.groups()
    ]
    return logs, groups


def test_it_runs_with_its_exact_input_and_changes_nothing(app):
    r = app.tasks["pay"].apply_async((7,), {"when": date(2026, 1, 31)}, task_id="order-7")
    work(app, queues=["default"])
    before = state(app)
    app.version = 10
    done = rerun(app, "order-7")
    assert state(app) == before
    assert done.ok
    assert (done.args, done.kwargs) == ((7,), {"when": date(2026, 1, 31)})
    assert done.value == {"paid": 70, "id": "order-7", "tags": ("a",)}
    assert done.progress == [{"half": 3.5}]
    assert [(each.kind, each.name, each.task) for each in done.sent] == [
        *[("call", "default", "mail")] * 3, *[("event", "visits", "")] * 3,
    ]  # fmt: skip
    assert done.sent[0].input == [["ada"], {"amount": 7}]
    assert done.sent[3].input == {"paid": 7}
    assert r.get(timeout=0)["paid"] == 7


def test_one_that_raises(app):
    r = app.tasks["pay"].delay(-3)
    work(app, queues=["default"])
    before = state(app)
    done = rerun(app, r.id)
    assert not done.ok
    assert str(done.error) == "negative: -3"
    assert state(app) == before
    assert r.state == "FAILURE"
    assert app.dead_letters().count() == 1


def test_a_result_that_cannot_be_stored_is_the_failure_that_it_was(app):
    @app.task
    def odd(n):
        return object()

    @app.task(ignore_result=True)
    def unheard(n):
        return object()

    calls = odd.delay(1), unheard.delay(1)
    work(app, queues=["default"])
    done = [rerun(app, each.id) for each in calls]
    assert isinstance(done[0].error, NotEncodable)
    assert done[1].ok


def test_a_coroutine_and_an_event(app):
    r = app.tasks["later"].delay(1)
    assert rerun(app, r.id).value == 2
    id = app.stream_handles["visits"].publish({"paid": 5})
    assert rerun(app, id).value == 5
    assert rerun(app, id, group="audit").value == 5
    with pytest.raises(UnknownName, match="did you mean 'audit'"):
        rerun(app, id, group="aduit")


def test_a_call_of_a_task_that_takes_batches(app):
    @app.task(batch=10, bind=True)
    def embed(self, texts: list[str]) -> list[object]:
        assert [request.task for request in self.calls] == ["embed"]
        return [ValueError("empty") if not text else len(text) for text in texts]

    done = rerun(app, embed.delay("four").id)
    assert (done.value, done.batch) == (4, True)
    assert not rerun(app, app.tasks["mail"].delay("ada").id).batch
    assert str(rerun(app, embed.delay("").id).error) == "empty"
    assert run_dry(app, "embed", ["abc"], {}).value == 3


def test_what_cannot_be_rerun(app):
    with pytest.raises(UnknownCall, match="no call nope"):
        rerun(app, "nope")
    unknown = app.send_task("elsewhere", (1,))
    with pytest.raises(UnknownName, match="unknown task 'elsewhere'"):
        rerun(app, unknown.id)
    broken = app.sender.call("default", "mail", b"\xc1", respool.record.NO_META, None)
    with pytest.raises(CorruptBody):
        rerun(app, broken.id)
    with pytest.raises(BadArguments):
        run_dry(app, "pay", ["many"], {})

    @app.task(bind=True)
    def own(self):
        with self.transaction():
            pass

    done = rerun(app, own.delay().id)
    assert isinstance(done.error, ConfigError)

    @app.task
    def asks():
        return app.tasks["mail"].delay("x").state

    assert isinstance(rerun(app, asks.delay().id).error, ConfigError)


def test_a_large_call_sends_nothing_to_the_blob_store(app):
    @app.task
    def grow(n):
        app.tasks["mail"].delay("x" * 200_000)
        return n

    r = grow.delay(1)
    done = rerun(app, r.id)
    assert done.sent[0].input.endswith(" bytes)")


SHOP = """
import os
from respool import App

app = App("shop")
FACTOR = int(os.environ.get("FACTOR", "1"))

@app.task
def price(n: int, when=None):
    if n == 13:
        raise ValueError("unlucky") if FACTOR == 1 else KeyError(n)
    if n == 14 and FACTOR != 1:
        raise RuntimeError("new bug")
    price.delay(n)
    return {"price": n * FACTOR, "raw": b"x", "pair": (1, 2)}

@app.task
def nothing(n): ...
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path, SHOP)
    with App("shop", url=f"sqlite:///{tmp_path / 'respool.db'}") as app:

        @app.task
        def price(n: int, when=None):
            if n == 13:
                raise ValueError("unlucky")
            return {"price": n, "raw": b"x", "pair": (1, 2)}

        @app.task
        def nothing(n): ...

        for n in range(20):
            price.delay(n, when=date(2026, 1, 1))
        nothing.delay(1)
        work(app)
        yield app


def pytest_of(folder: Path, factor: str = "1"):
    env = {**os.environ, "FACTOR": factor, "PYTHONPATH": str(Path(respool.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder, env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_captured_calls_are_a_test_of_the_present_code(project, tmp_path):
    made = capture(project, "price", 200, tmp_path, spec="shop")
    assert (made.calls, made.test.name) == (20, "test_captured_price.py")
    before = state(project)
    same = pytest_of(tmp_path)
    assert same.returncode == 0, same.stdout
    assert "20 passed" in same.stdout
    other = pytest_of(tmp_path, factor="2")
    assert other.returncode == 1
    assert "19 failed, 1 passed" in other.stdout, "all but the price of 0"
    assert "it returned {'price': 5" in other.stdout
    assert "it raised ValueError then, and KeyError now" in other.stdout
    assert "RuntimeError: new bug" in other.stdout
    assert state(project) == before, "running them changes nothing"


def test_a_sample_is_drawn_from_all_over(project, tmp_path, monkeypatch):
    monkeypatch.setattr("respool.replay.capture.PAGE", 4)
    made = capture(project, "price", 5, tmp_path, spec="shop", seed=1)
    calls = captured(made.data)
    assert len(calls) == 5
    numbers = [call.args[0] for call in calls]
    assert numbers == sorted(numbers)
    assert max(numbers) - min(numbers) > 5
    again = capture(project, "price", 5, tmp_path, spec="shop", seed=1, force=True)
    assert captured(again.data) == calls
    assert calls[0].kwargs == {"when": date(2026, 1, 1)}


def test_captures_that_cannot_be(project, tmp_path):
    capture(project, "price", 5, tmp_path, spec="shop")
    with pytest.raises(ConfigError, match="is there already; to write it anew: --force"):
        capture(project, "price", 5, tmp_path, spec="shop")
    with pytest.raises(UnknownName, match="did you mean 'price'"):
        capture(project, "prize", 5, tmp_path, spec="shop")
    with pytest.raises(ConfigError, match="has no finished call of nothing there"):
        capture(project, "nothing", 5, tmp_path, spec="shop", until=5.0)
    assert capture(project, "nothing", 5, tmp_path, spec="shop").calls == 1


def test_numbers_within_a_tolerance(project, tmp_path):
    made = capture(project, "price", 50, tmp_path, spec="shop")

    @project.task(name="near")
    def near(n, when=None):
        return {"price": n + 0.4, "raw": b"x", "pair": [1, 2]}

    call = next(call for call in captured(made.data) if call.args[0] == 5)._replace(task="near")
    call.check(project, absolute=0.5)
    with pytest.raises(AssertionError, match=r"it returned .*'price': 5,"):
        call.check(project)
