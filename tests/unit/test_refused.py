"""What `delay()` and its like refuse, through the public API: early, clearly, and nothing is sent."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import respool
from respool import (
    App,
    AsyncResult,
    BadArguments,
    ConfigError,
    IdConflict,
    NotEncodable,
    RecordTooLarge,
    Refused,
    UnknownName,
    celery_names,
)
from respool.cli import COMMANDS, worker
from respool.config import SETTINGS
from respool.options import OPTIONS
from respool.task import Task
from respool.testing import work
from respool.worker.run import Request

NAIVE = datetime(2026, 1, 31, 14, 0)
NEVER = datetime.max.replace(tzinfo=UTC)


@pytest.fixture
def app() -> Iterator[App]:
    with App("shop", url="sqlite:///:memory:", max_record_size="2KiB", offload_over=None) as app:

        @app.task
        def add(x: int, y: int) -> int:
            return x + y

        @app.task
        def echo(value):
            return value

        app.queue("fast")
        app.stream("visits", key="user")
        yield app
        assert all(app.engine.counts(group).pending == 0 for group in app.groups()), "nothing was sent"


def _loop() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


Call = Callable[[App], Any]
REFUSED: list[tuple[Call, type[Exception], str]] = [
    # A wrong signature or type
    (lambda app: app.tasks["add"].delay(1), BadArguments, "add() misses 'y'"),
    (lambda app: app.tasks["add"].delay(1, 2, 3), BadArguments, "add()"),
    (lambda app: app.tasks["add"].delay(1, z=2), BadArguments, "'z'"),
    (lambda app: app.tasks["add"].delay("x", 2), BadArguments, "argument 'x' should be int, got 'x' (str)"),
    (lambda app: asyncio.run(app.tasks["add"].adelay("x", 2)), BadArguments, "argument 'x' should be int"),
    (lambda app: app.tasks["add"].apply_async(("x", 2)), BadArguments, "argument 'x' should be int"),
    (lambda app: app.tasks["add"].apply_many([((1, "y"), {})]), BadArguments, "argument 'y' should be int"),
    (lambda app: app.send_task("add", ("x", 2)), BadArguments, "argument 'x' should be int"),
    # What cannot be encoded, or would not arrive as it was sent
    (lambda app: app.tasks["echo"].delay(object()), NotEncodable, "object"),
    (lambda app: app.tasks["echo"].delay({"deep": [lambda: 0]}), NotEncodable, "['deep'][0]"),
    (lambda app: app.tasks["echo"].delay(_loop()), NotEncodable, "or contains itself"),
    (lambda app: app.tasks["echo"].delay_many([object()]), NotEncodable, "object"),
    (lambda app: app.stream_handles["visits"].publish({"user": 1, "at": b"x"}), NotEncodable, "value['at']"),
    (lambda app: app.stream_handles["visits"].publish({"prompt": "hi"}), BadArguments, "no 'user'"),
    (lambda app: app.stream_handles["visits"].publish({"user": None}), BadArguments, "neither text nor"),
    # Too large
    (lambda app: app.tasks["echo"].delay("x" * 2100), RecordTooLarge, "max_record_size allows 2,048"),
    (lambda app: app.tasks["echo"].delay_many(["x" * 2100]), RecordTooLarge, "allows 2,048"),
    (
        lambda app: app.tasks["echo"].apply_async((1,), headers={"h": "x" * 2100}),
        RecordTooLarge,
        "allows 2,048",
    ),
    (
        lambda app: app.stream_handles["visits"].publish({"user": 1, "p": "x" * 2100}),
        RecordTooLarge,
        "allows 2,048",
    ),
    # Moments and spans of time
    (lambda app: app.tasks["echo"].apply_async((1,), eta=NAIVE), ConfigError, "eta"),
    (lambda app: app.tasks["echo"].apply_async((1,), expires=NAIVE), ConfigError, "expires"),
    (lambda app: app.tasks["echo"].apply_async((1,), eta=float("nan")), ConfigError, "eta: nan is not an"),
    (
        lambda app: app.stream_handles["visits"].publish_many(5),
        BadArguments,
        "stream visits: 5 is no list or other iterable of events",
    ),
    (lambda app: app.tasks["echo"].apply_async((1,), countdown=-1), ConfigError, "countdown"),
    (lambda app: app.tasks["echo"].apply_async((1,), countdown="soon"), ConfigError, "countdown"),
    (
        lambda app: app.tasks["echo"].apply_async((1,), countdown=1e300),
        ConfigError,
        "1e+300 is more than a th",
    ),
    (lambda app: app.tasks["echo"].apply_async((1,), expires="400000d"), ConfigError, "thousand years"),
    (
        lambda app: app.tasks["echo"].apply_async((1,), eta=NEVER),
        ConfigError,
        "eta: 9999-12-31 23:59:59.999999+",
    ),
    (
        lambda app: app.tasks["echo"].apply_async((1,), expires=NEVER),
        ConfigError,
        "more than a thousand years",
    ),
    (lambda app: app.dead_letters().redrive(rate=1e-300), ConfigError, "less than one in a thousand years"),
    (
        lambda app: app.tasks["echo"].apply_async((1,), countdown=1, eta=NAIVE),
        ConfigError,
        "countdown and eta: give one of them",
    ),
    # Names, and options of a call
    (
        lambda app: app.tasks["echo"].apply_async((1,), queue="fsat"),
        UnknownName,
        "unknown queue 'fsat'; did you mean 'fast'?",
    ),
    (
        lambda app: app.tasks["echo"].apply_async((1,), queue="zzz"),
        UnknownName,
        "unknown queue 'zzz'; known: default, fast (declare it: app.queue('zzz'))",
    ),
    (
        lambda app: app.tasks["echo"].apply_async((1,), count_down=5),
        UnknownName,
        "unknown call option 'count_down'; did you mean 'countdown'?",
    ),
    (
        lambda app: app.tasks["echo"].apply_async((1,), link=app.tasks["echo"]),
        UnknownName,
        "unknown call option 'link': the task calls the next one itself; see docs/celery.md",
    ),
    (lambda app: app.tasks["echo"].apply_async((1,), task_id="x" * 201), BadArguments, "1 to 200 bytes"),
    (lambda app: app.tasks["echo"].apply_async((1,), task_id=""), BadArguments, "1 to 200 bytes"),
    (
        lambda app: app.tasks["echo"].apply_async((1,), task_id="a b\nc"),
        BadArguments,
        "an id is printable text",
    ),
    (
        lambda app: app.stream_handles["visits"].publish({"user": 1}, record_id="a\tb"),
        BadArguments,
        "an id is printable text",
    ),
    (lambda app: app.tasks["echo"].apply_async((1,), headers={"n": 1}), BadArguments, "headers"),
    (lambda app: app.tasks["echo"].apply_async((1,), priority=10), ConfigError, "0 (last) to 9 (first)"),
]


@pytest.mark.parametrize(("call", "kind", "told"), REFUSED)
def test_what_is_refused_is_not_sent(app: App, call: Call, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=re.escape(told)) as caught:
        call(app)
    if kind is not ConfigError and kind is not UnknownName:
        assert isinstance(caught.value, Refused)


DECLARED: list[tuple[Callable[[App], Any], type[Exception], str]] = [
    (
        lambda app: App("other", durabilty="os"),  # type: ignore[call-arg]
        UnknownName,
        "unknown setting 'durabilty'; did you mean 'durability'?",
    ),
    (lambda app: App("other", durability="disk"), ConfigError, "durability"),
    (lambda app: App("other", append_timeout="soon"), ConfigError, "append_timeout"),
    (lambda app: App("other", beat=5, worker_ttl=10), ConfigError, "three beats"),
    (lambda app: App("other", beat=0), ConfigError, "beat: 0 is too short; at least 0.01 seconds"),
    (lambda app: App("other", poll_interval="0s"), ConfigError, "poll_interval: '0s' is too short"),
    (lambda app: App("other", poll_interval=1e-9), ConfigError, "at least 0.01 seconds"),
    (
        lambda app: App("other", task_defaults={"max_retrys": 1}).task(name="f")(print),
        UnknownName,
        "'max_retrys'; did you mean 'max_retries'?",
    ),
    (
        lambda app: app.task(max_retrys=3)(print),
        UnknownName,
        "'max_retrys'; did you mean 'max_retries'?",
    ),
    (
        lambda app: app.task(retry=3)(print),
        UnknownName,
        "unknown task option 'retry': max_retries= says how often; autoretry_for= after which errors; see",
    ),
    (lambda app: app.task(retry_kwargs={"max_retries": 3})(print), UnknownName, ": give max_retries= and"),
    (lambda app: app.task(base=object)(print), UnknownName, "there are no base classes; decorate"),
    (
        lambda app: app.task(track_started=True)(print),
        UnknownName,
        ": STARTED is always told; see docs/celery.md",
    ),
    (
        lambda app: app.task(ttl=60)(print),
        UnknownName,
        "unknown task option 'ttl'; did you mean one of: dead_letter_ttl, result_ttl?",
    ),
    (
        lambda app: App("other", broker="redis://"),  # type: ignore[call-arg]
        UnknownName,
        "unknown setting 'broker': url= says where the log is; there is no broker; see docs/celery.md",
    ),
    (
        lambda app: App("other", include=["shop.tasks"]),  # type: ignore[call-arg]
        UnknownName,
        "unknown setting 'include': import the modules",
    ),
    (lambda app: app.task(time_limit=0)(print), ConfigError, "time_limit"),
    (lambda app: App("c", url=3), ConfigError, "url is 3 (int), not text like 'sqlite:///"),  # type: ignore[arg-type]
    (lambda app: App(3), ConfigError, "3 cannot name an app"),  # type: ignore[arg-type]
    (lambda app: App(), ConfigError, "an app needs a name, that of its project: App('shop')"),
    (lambda app: app.queue("o", ordered="no"), ConfigError, "ordered: 'no' is neither True nor False"),
    (lambda app: app.stream("s", key=3), ConfigError, "stream s: key: 3 is not printable text"),
    (
        lambda app: App("c", task_defaults={"max_retriez": 3}),
        UnknownName,
        "unknown task option 'max_retriez'; did you mean 'max_retries'? (task_defaults)",
    ),
    (lambda app: App("c", task_defaults={"time_limit": "long"}), ConfigError, "task_defaults: time_limit"),
    (
        lambda app: app.queue("mails", retenton="1d"),  # type: ignore[call-arg]
        UnknownName,
        "unknown queue option 'retenton'; did you mean 'retention'?",
    ),
    (
        lambda app: app.stream("visits", retentoin="1d"),  # type: ignore[call-arg]
        UnknownName,
        "unknown stream option 'retentoin'; did you mean 'retention'?",
    ),
    (
        lambda app: app.dead_letters(taks="echo"),  # type: ignore[call-arg]
        UnknownName,
        "unknown filter 'taks'; did you mean 'task'?",
    ),
    (
        lambda app: app.AsyncResult("a").get(interval=1),  # type: ignore[call-arg]
        UnknownName,
        "unknown option of get() 'interval': leave it out: who waits is woken",
    ),
    (lambda app: app.task(time_limit="long")(print), ConfigError, "time_limit"),
    (lambda app: app.task(autoretry_for=("OSError",))(print), ConfigError, "no exception class"),
    (lambda app: app.task(throws=KeyError(1))(print), ConfigError, "no exception class"),
    (lambda app: app.task(name="add")(print), ConfigError, "two tasks are called 'add'"),
    (lambda app: app.task(name="sum", aliases=("add",))(print), ConfigError, "two tasks are called 'add'"),
    (lambda app: app.queue(" fast"), ConfigError, "no blanks around it"),
    (lambda app: app.stream("visits", key="name"), ConfigError, "key"),
    (
        lambda app: app.stream("visits", key="user").subscribe(print, start="begin"),
        UnknownName,
        "unknown start 'begin'",
    ),
    (
        lambda app: app.stream_handles["visits"].subscribe(print, start=NAIVE),
        UnknownName,
        "known: earliest, latest (of a moment: first respool groups create GROUP --stream visits --start",
    ),
]


def test_a_name_is_not_to_be_declared_where_it_is_a_misspelt_one(app: App) -> None:
    for name, declares in (("fsat", False), ("zzz", True)):
        with pytest.raises(UnknownName) as caught:
            app.tasks["echo"].apply_async((1,), queue=name)
        assert ("declare it" in str(caught.value)) == declares


ODD = [3, 0, 1.5, True, False, "", "no", b"x", ["x"], {}, NAIVE, print, object()]
FLAGS = [True, False]


@pytest.mark.parametrize(
    ("declare", "taken"),
    [
        (lambda app, odd: App(odd, url="sqlite:///:memory:"), ["no"]),
        (lambda app, odd: app.queue(odd), ["no"]),
        (lambda app, odd: app.queue("odd", ordered=odd), FLAGS),
        (lambda app, odd: app.queue("odd", ordered=True, partitions=odd), [3]),
        (lambda app, odd: app.queue("odd", max_pending=1, when_full=odd), []),
        (lambda app, odd: app.stream(odd), ["no"]),
        (lambda app, odd: app.stream(f"odd {odd!r}", key=odd), ["no"]),
        (lambda app, odd: app.stream(f"odd {odd!r}", partitions=odd), [3]),
        (lambda app, odd: app.stream("odd", serializer=odd), []),
        (lambda app, odd: app.stream(f"odd {odd!r}", foreign=odd), FLAGS),
        (lambda app, odd: app.stream(f"odd {odd!r}", cloudevents=odd), FLAGS),
        (lambda app, odd: app.stream_handles["visits"].subscribe(print, group=odd), ["no"]),
        (lambda app, odd: app.stream_handles["visits"].subscribe(print, name=odd), ["no"]),
        (lambda app, odd: app.stream_handles["visits"].subscribe(print, start=odd), []),
        (
            lambda app, odd: app.stream_handles["visits"].subscribe(
                lambda event: 0, name=f"n{odd!r}", ordered=odd
            ),
            FLAGS,
        ),
        (lambda app, odd: app.task(name=odd)(print), ["no"]),
        *[(lambda app, odd, flag=flag: app.task(name=f"n{odd!r}", **{flag: odd})(lambda self: 0), FLAGS)
          for flag in ("bind", "ignore_result", "acks_late", "retry_jitter")],
        *[(lambda app, odd, text=text: app.task(name=f"n{odd!r}", **{text: odd})(lambda: 0), taken)
          for text, taken in (("queue", ["no"]), ("serializer", []), ("on_dead", []), ("key", [print]))],
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_where_it_is_declared(
    declare: Callable[[App, Any], Any], taken: list[Any]
) -> None:
    """Not taken for what it might mean, such as ordered="no" for True, nor met by an error of Python's."""
    app, found = App("shop", url="sqlite:///:memory:"), []
    app.stream("visits", key="user")
    for odd in ODD:
        try:
            declare(app, odd)
        except ConfigError:
            continue
        found.append(odd)
    assert [(type(each), each) for each in found] == [(type(each), each) for each in taken]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("queue", "fast"), ("key", "user"), ("priority", 5), ("aliases", ["old"]), ("expires", 60)),
        *(("serializer", "msgpack"), ("unique", True), ("debounce", 5)),
    ],
)
def test_a_subscription_has_no_options_of_calls(app: App, option: str, value: Any) -> None:
    visits = app.stream_handles["visits"]
    with pytest.raises(ConfigError, match=f"subscription seen: {option}= is of calls"):
        visits.subscribe(print, name="seen", **{option: value})
    with App("other", url="sqlite:///:memory:", task_defaults={option: value, "max_retries": 7}) as other:
        seen = other.stream("visits").subscribe(lambda event: 0, name="seen")
        assert seen.options["max_retries"] == 7, "the defaults that are of events, too"


@pytest.mark.parametrize(
    ("get", "told"),
    [
        (
            lambda app: app.conf,
            "'App' object has no attribute 'conf': settings are arguments of App(…); see docs/",
        ),
        (lambda app: app.control, "'control': respool purge"),
        (
            lambda app: app.tasks["echo"].s,
            "'Task' object has no attribute 's': there is no canvas; a task calls",
        ),
        (lambda app: app.tasks["echo"].apply, "'apply': call the task itself"),
        (lambda app: app.AsyncResult("a").revoke, "'AsyncResult' object has no attribute 'revoke': not yet;"),
        (lambda app: app.AsyncResult("a").forget, "'forget': result_ttl= "),
        (lambda app: app.on_after_configure, "'on_after_configure': there is no beat"),
        (lambda app: app.GroupResult, "'GroupResult': keep the ids of the calls"),
        (lambda app: app.tasks["echo"].signature((1,)), "'signature': there is no canvas"),
        (lambda app: app.tasks["echo"].max_retries, "'max_retries': an option of the task: self.options"),
        (lambda app: app.AsyncResult("a").wait(), "'wait': get(timeout=…) waits"),
        (lambda app: app.AsyncResult("a").collect(), "'collect': get() of each call"),
        (lambda app: app.AsyncResult("a").date_done, "'date_done': history() says when"),
        (lambda app: respool.chain, "module 'respool' has no attribute 'chain': there is no canvas"),
        (lambda app: respool.nonsense, "module 'respool' has no attribute 'nonsense'"),
        (lambda app: app.nonsense, "'App' object has no attribute 'nonsense'"),
    ],
)
def test_an_attribute_that_only_celery_has_says_what_to_use(app: App, get: Any, told: str) -> None:
    with pytest.raises(AttributeError, match=re.escape(told)):
        get(app)


@pytest.mark.parametrize("name", celery_names.MODULE)
def test_an_import_of_what_only_celery_has_says_what_to_use(name: str) -> None:
    with pytest.raises(
        ImportError, match=f"cannot import name '{name}' from 'respool': .*; see docs/celery.md$"
    ):
        exec(f"from respool import {name}")
    assert not hasattr(respool, name)


def test_a_request_says_what_to_use_instead_of_what_celerys_has() -> None:
    told = dict[str, str]()
    with App("shop", url="sqlite:///:memory:") as app:

        @app.task(bind=True)
        def ask(self: Any) -> None:
            for name in celery_names.REQUEST:
                try:
                    getattr(self.request, name)
                except AttributeError as error:
                    told[name] = str(error)

        ask.delay()
        work(app)
    assert told.keys() == celery_names.REQUEST.keys()
    assert told["args"].startswith("'Request' object has no attribute 'args': the function has them as its")


def test_an_error_of_a_property_stays_what_it_is(monkeypatch: pytest.MonkeyPatch, app: App) -> None:
    """What an attribute that is there raises is not taken for its absence."""
    with monkeypatch.context() as patch:
        patch.setattr(App, "engine", property(lambda self: None.missing))
        with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'missing'"):
            _ = app.engine


def test_each_name_of_celerys_is_none_of_ours() -> None:
    for theirs, ours in [
        (celery_names.TASK_OPTIONS, OPTIONS),
        (celery_names.SETTINGS, SETTINGS),
        (celery_names.CALL_OPTIONS, inspect.signature(Task.apply_async).parameters),
        (celery_names.RETRY_OPTIONS, inspect.signature(Task.retry).parameters),
        (celery_names.APP, dir(App)),
        (celery_names.TASK, dir(Task)),
        (celery_names.RESULT, dir(AsyncResult)),
        (celery_names.REQUEST, dir(Request)),
        (celery_names.MODULE, respool.__all__),
        (celery_names.GET_OPTIONS, inspect.signature(AsyncResult.get).parameters),
        (celery_names.COMMANDS, [name for section in COMMANDS.values() for name in section]),
        (celery_names.WORKER_FLAGS, [flag for each in worker.command.params for flag in each.opts]),
    ]:
        assert not set(theirs) & set(ours) - {"args", "kwargs"}


LOOKS: list[Callable[[App], Any]] = [
    lambda app: app.dead_letters(task="ecoh").count(),
    lambda app: app.dead_letters(task="ecoh").by_task(),
    lambda app: app.dead_letters(task="ecoh").by_error(),
    lambda app: app.dead_letters(task="ecoh").oldest(),
    lambda app: list(app.dead_letters(task="ecoh")),
    lambda app: app.dead_letters(task="ecoh").redrive(set={"args.0": 1}),
    lambda app: app.dead_letters(task="ecoh").drop(),
]


@pytest.mark.parametrize("look", LOOKS)
def test_dead_letters_of_a_task_that_nothing_knows(app: App, look: Callable[[App], Any]) -> None:
    with pytest.raises(UnknownName, match="unknown task 'ecoh'; did you mean 'echo'"):
        look(app)
    assert app.dead_letters(task="echo").count() == 0


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"task": ["echo", "add"]}, "dead_letters: task=['echo', 'add'] is not text"),
        ({"error": TimeoutError}, "dead_letters: error=<class 'TimeoutError'> is not text"),
        ({"queue": 3}, "dead_letters: queue=3 is not text"),
        ({"group": 3}, "dead_letters: group=3 is not text"),
        ({"message": 3}, "dead_letters: message=3 is not text"),
        ({"key": 3}, "dead_letters: key=3 is not text"),
        ({"ids": "order-7"}, "dead_letters: ids='order-7' is no list of ids"),
        ({"ids": 3}, "dead_letters: ids=3 is no list of ids"),
        ({"headers": "tenant=acme"}, "dead_letters: headers='tenant=acme' is no dict of text by name"),
    ],
)
def test_dead_letters_by_what_is_of_another_type(app: App, chosen: Any, told: str) -> None:
    """It would find none, as if there were none."""
    with pytest.raises(ConfigError, match=re.escape(told)):
        app.dead_letters(**chosen)


def test_a_redrive_by_what_is_of_another_type(app: App) -> None:
    with pytest.raises(ConfigError, match="redrive: set='x' is no dict of values by path"):
        app.dead_letters().redrive(set="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="redrive: edit='x' is not a function"):
        app.dead_letters().redrive(edit="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(("declare", "kind", "told"), DECLARED)
def test_what_cannot_be_declared(app: App, declare: Any, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=re.escape(told)):
        declare(app)


def test_an_id_that_is_taken_by_another_call(app: App) -> None:
    echo = app.tasks["echo"]
    first = echo.apply_async((1,), task_id="mine")
    assert echo.apply_async((1,), task_id="mine") == first, "the same call again"
    with pytest.raises(IdConflict, match="mine is taken by a record with another body; nothing was sent"):
        echo.apply_async((2,), task_id="mine")
    (group,) = [group for group in app.groups() if group.stream == app.stream_of("queue", "default").id]
    assert app.engine.counts(group).pending == 1
    app.close()


def test_naive_moments_are_refused_by_readers_too(app: App) -> None:
    visits = app.stream("visits", key="user")
    for window in ({"since": NAIVE}, {"until": NAIVE}):
        with pytest.raises(ConfigError, match="zone"):
            visits.read(**window)
    with pytest.raises(ConfigError, match="zone"):
        app.dead_letters(since=NAIVE)
    aware = NAIVE.astimezone() + timedelta(days=1)
    assert list(visits.read(since=aware)) == []
