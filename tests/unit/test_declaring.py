"""What App, its tasks and its streams refuse, and how they say what to write instead."""

import functools
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import respool
from respool import App, BadArguments, ConfigError, DeclarationConflict, UnknownName
from respool.engines.base import Group, Stream
from respool.errors import suggest
from respool.testing import work
from respool.why import how_to_serve


@pytest.fixture
def app():
    with App("shop", url="sqlite:///:memory:") as app:

        @app.task
        def add(x: int, y: int = 0) -> int:
            return x + y

        app.queue("fast")
        yield app


def keyed(app: App, queue: str) -> None:
    app.task(name="book", queue=queue, key="account")(lambda account: None)


def test_a_key_is_refused_where_its_queue_is_declared_without_order(app: App) -> None:
    told = r"task book has key=, and its queue fast is not ordered, .* app\.queue\(…, ordered=True\)"
    with pytest.raises(ConfigError, match=told):
        keyed(app, "fast")
    assert "book" not in app.tasks
    keyed(app, "ledger")
    with pytest.raises(ConfigError, match="task book has key=, and its queue ledger is not ordered"):
        app.queue("ledger")


def test_a_key_is_refused_at_opening_where_its_queue_is_declared_by_the_task_alone(app: App) -> None:
    keyed(app, "ledger")
    with pytest.raises(ConfigError, match="task book has key=, and its queue ledger is not ordered"):
        app.tasks["add"].delay(1)
    app.queue("ledger", ordered=True)  # in whatever order they are declared
    app.tasks["add"].delay(1)
    app.tasks["book"].delay("a")


@pytest.mark.parametrize(
    ("args", "kwargs", "told"),
    [
        (2, None, "add.apply_async(): args 2 is no list or tuple of arguments; one alone is written (2,)"),
        ("ab", None, "add.apply_async(): args 'ab' is no list or tuple of arguments"),
        ({"x": 1}, None, "is no list or tuple of arguments"),
        ((), 5, "add.apply_async(): kwargs 5 is no dict of arguments by name"),
    ],
)
def test_arguments_of_the_wrong_form(app: App, args: Any, kwargs: Any, told: str) -> None:
    with pytest.raises(BadArguments, match=re.escape(told)):
        app.tasks["add"].apply_async(args, kwargs)


def test_arguments_in_other_iterables_are_taken(app: App) -> None:
    handle = app.tasks["add"].apply_async(range(2, 4))
    work(app)
    assert handle.get(timeout=0) == 5


PAIRS = "each item is (args, kwargs), as in ((1, 2), {})"
ONE = "the one argument of each call; for more there is apply_many"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda add: add.delay_many(5), "add.delay_many(): 5 is no list or other iterable"),
        (lambda add: add.apply_many(5), "add.apply_many(): 5 is no list or other iterable"),
        (lambda add: add.apply_many([5]), f"add.apply_many(): 5 is no pair (args, kwargs); {PAIRS}"),
        (
            lambda add: add.apply_many([(5, {})]),
            f"args 5 is no list or tuple of arguments; one alone is written (5,); {PAIRS}",
        ),
        (
            lambda add: add.apply_many([(5, 6)]),
            f"args 5 is no list or tuple of arguments; one alone is written (5,); {PAIRS}",
        ),
        (lambda add: add.apply_many([(5, 6, 7)]), f"(5, 6, 7) is no pair (args, kwargs); {PAIRS}"),
        (
            lambda add: add.apply_many([((5,), 6)]),
            f"add.apply_many(): kwargs 6 is no dict of arguments by name; {PAIRS}",
        ),
        (
            lambda add: add.delay_many([(5, 6), (7, 8)]),
            f"got (5, 6) (tuple); delay_many takes {ONE}: {PAIRS}",
        ),
        (lambda add: add.delay_many([[5, 6]]), f"got [5, 6] (list); delay_many takes {ONE}: {PAIRS}"),
    ],
)
def test_many_calls_of_the_wrong_form(app: App, call: Any, told: str) -> None:
    with pytest.raises(BadArguments, match=re.escape(told)):
        call(app.tasks["add"])


@pytest.mark.parametrize("options", [{}, {"unique": True}])
def test_only_who_seems_to_mean_apply_many_is_told_of_it(app: App, options: Any) -> None:
    mul = app.task(name="mul", **options)(lambda x, y: x * y)
    with pytest.raises(BadArguments, match=re.escape(f"'y'; delay_many takes {ONE}: {PAIRS}")):
        mul.delay_many([(1, 2)])
    with pytest.raises(BadArguments) as caught:
        mul.delay_many([1])
    assert "apply_many" not in str(caught.value)
    double = app.task(name="double", **options)(lambda pair: pair * 2)
    many = double.delay_many([(1, 2)])
    work(app)
    assert many.get(timeout=0) == [[1, 2, 1, 2]], "one argument may be a list"


def test_a_queue_may_be_given_itself(app: App) -> None:
    fast, add = app.queue("fast"), app.tasks["add"]
    handles = [add.apply_async((1,), queue=fast), app.send_task("add", (2,), queue=fast)]
    handles += [add.apply_async((3,), queue="fast")]
    many = add.apply_many([((4,), {})], queue=fast)

    @app.task(queue=fast)
    def double(x: int) -> int:
        return x * 2

    handles.append(double.delay(5))
    work(app, queues=["fast"])
    assert [handle.get(timeout=0) for handle in handles] == [1, 2, 3, 10]
    assert many.get(timeout=0) == [4]


def test_a_queue_that_cannot_be(app: App) -> None:
    with App("other", url="sqlite:///:memory:") as other:
        with pytest.raises(ConfigError, match="queue fast is of app other, not of app shop"):
            app.tasks["add"].apply_async((1,), queue=other.queue("fast"))
        with pytest.raises(ConfigError, match="of app other"):
            app.task(queue=other.queue("fast"))(print)
    for wrong in (5, ""):
        with pytest.raises(ConfigError, match="cannot name a queue"):
            app.tasks["add"].apply_async((1,), queue=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("fn", [lambda event: None, functools.partial(print, "x")])
def test_what_has_no_name_needs_one(app: App, fn: Any) -> None:
    events = app.stream("events")
    for declare in (app.task, events.subscribe):
        with pytest.raises(ConfigError, match=r"has no name .* give it one, name='…', or"):
            declare(fn)
    assert app.task(name="named")(fn).name == "named"
    assert events.subscribe(fn, name="seen").name == "seen"
    with pytest.raises(ConfigError, match="subscribe: 5 is not a function"):
        events.subscribe(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("window", "told"),
    [
        ({"offset": -3}, "offset=-3 is not a number from 0 on"),
        ({"offset": "3"}, "offset='3' is not a number from 0 on"),
        ({"offset": 1 << 40}, "is not a number from 0 on"),
        ({"partition": 2}, "partition=2 is not a number from 0 to 1"),
        ({"partition": -1}, "partition=-1 is not a number from 0 to 1"),
    ],
)
def test_windows_of_a_stream_that_cannot_be(app: App, window: Any, told: str) -> None:
    events = app.stream("events", partitions=2)
    with pytest.raises(ConfigError, match=re.escape(told)):
        events.read(**window)


def test_reading_from_an_offset(app: App) -> None:
    events = app.stream("events")
    events.publish_many(range(5))
    assert [event.value for event in events.read(offset=3)] == [3, 4]
    assert list(events.read(offset=9)) == []


@pytest.mark.parametrize(
    ("seconds", "shown"), [("30d", "30d"), ("36h", "36h"), ("90m", "90m"), (61, "61s"), (0.5, "0.5s")]
)
def test_a_conflict_shows_retention_as_it_is_written(app: App, seconds: Any, shown: str) -> None:
    app.queue("mails", retention=seconds)
    with pytest.raises(
        DeclarationConflict, match=f"was declared with retention={shown}, now with retention=3d;"
    ):
        app.queue("mails", retention="3d")


def test_a_queue_is_declared_bit_by_bit(app: App) -> None:
    first = app.queue("mails", ordered=True, partitions=8, max_pending=5)
    again = app.queue("mails", retention="7d")
    assert again is first
    assert again.settings == {"ordered": True, "partitions": 8, "retention": 7 * 86_400.0}
    assert again.terms == (5, False, None)
    app.queue("calls", rate_limit="10/s")
    assert app.queue("calls", retention="7d").limit is not None
    with pytest.raises(DeclarationConflict, match="partitions=8, now with partitions=64"):
        app.queue("mails", ordered=True)
    with pytest.raises(DeclarationConflict, match="two different max_pending"):
        app.queue("mails", max_pending=6)


def test_who_sends_imports_no_event_loop() -> None:
    """It takes 50 ms, and most programs that import respool never need it."""
    code = (
        "import sys\nfrom respool import App\n"
        "App('t', 'sqlite:///:memory:').task(name='f')(lambda: 0).delay()\n"
        "sys.exit('asyncio' in sys.modules)"
    )
    source = str(Path(respool.__file__).parents[1])
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, timeout=60).returncode == 0
    )


def test_a_name_that_is_there_is_not_suggested_for_itself() -> None:
    told = str(UnknownName("group", "late", ["late", "main"], "see: respool groups list"))
    assert told.startswith("group 'late' is there, but no subscription of the app reads it")
    assert told.endswith("(see: respool groups list)")
    assert "did you mean 'late'?" in suggest("lat", ["late"])


def test_who_can_serve_a_group_of_a_stream(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy_woken: list[bool] = []

    class Lazy:  # as Django's settings are: whoever asks for its class has it set up
        @property
        def __class__(self) -> Any:
            lazy_woken.append(True)
            raise RuntimeError("woken")

    theirs = ModuleType("theirs")
    theirs.settings = Lazy()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    stream = Stream(7, "stream", "", "hits", (1,))
    made = Group(1, 7, "shop", "late", "group")
    write = "write one on its stream 'hits': @hits.subscribe(group='late')"
    told = f"app shop has no subscription of that name; {write}"
    assert how_to_serve(stream, made, app) == told
    assert how_to_serve(stream, made) == told.replace("app shop has no", "its app needs a")
    app.stream("hits").subscribe(print, group="late")
    assert how_to_serve(stream, made, app).startswith("start one: respool ")
    assert not lazy_woken
    app.subscriptions.clear()
    gone = Group(1, 7, "shop", "late", "subscription")
    assert how_to_serve(stream, gone, app) == told


def test_a_bound_task_is_tested_with_a_stand_in(app: App) -> None:
    from types import SimpleNamespace

    @app.task(bind=True)
    def charge(self: Any, order: str) -> str:
        return f"{order}, attempt {self.request.retries + 1}"

    with pytest.raises(ConfigError, match="exists only while a worker runs the task"):
        charge("order-1")
    stand_in = SimpleNamespace(request=SimpleNamespace(retries=2))
    assert charge.fn(stand_in, "order-1") == "order-1, attempt 3"
