"""Bad input: each is a clear error that says what to do; nothing is moved, and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
from tests.acceptance.stage import Stage

from respool import App, BadArguments, ConfigError, UnknownName
from respool.errors import BatchMismatch

CODE = """
app.queue("orders", ordered=True, partitions=2)
app.queue("short", retention={"count": 3})


@app.task
def fetch(url: str) -> str:
    if url.startswith("bad"):
        raise ValueError(f"no such place: {url}")
    return url


@app.task(batch=5)
def wrong(items: list[int]) -> list[int]:
    return items[1:]


@app.task(queue="short")
def step(n: int) -> int:
    return n


def raises(n):
    raise LookupError(n)


by_key = app.task(name="by_key", queue="orders", key=raises)(lambda n: None)
by_limit = app.task(name="by_limit", rate_limit="5/s", limit_key=raises)(lambda n: None)
by_unique = app.task(name="by_unique", unique=raises)(lambda n: None)
"""
COMMANDS: list[tuple[str, int, str]] = [
    # filters and moments that cannot be parsed
    ("dead list --message (", 2, "is no regular expression"),
    ("dead list --header tenant", 2, "one looks like"),
    ("dead list --since yesterday", 2, "'yesterday' is no moment: try 1h, 30d, 14:00"),
    ("dead redrive --rate fast", 2, "'fast' is no rate"),
    ("dead redrive --rate 0/s", 2, "must be more than 0"),
    ("dead redrive --set url", 2, "it looks like PATH=VALUE"),
    ("replay --queue default --group x --all-tasks --where valeu.n>1", 2, "did you mean 'value'"),
    ("replay --queue default --group x --all-tasks --share 0%", 2, "share"),
    ("replay --queue default --group x --all-tasks --rate 0/s", 2, "must be more than 0"),
    ("replay --queue default --group x --all-tasks --state FAILED", 2, "did you mean 'FAILURE'"),
    ("replay --queue default --group x --all-tasks --from-offset x", 2, "is no offset; one looks like 1000"),
    ("calls --between 14:00 soon", 2, "'soon' is no moment"),
    ("export --queue default --between 2h 3h", 2, "the first moment must be before the second"),
    # groups, queues and tasks that there are not
    ("seek mian --queue default --to 0", 2, "did you mean 'main'"),
    ("compare main v2 --queue default", 2, "unknown group 'v2'"),
    ("dead list --group v9", 2, "unknown group 'v9'; known: main"),
    ("dead redrive --task fecth", 2, "did you mean 'fetch'"),
    ("groups drop v9", 2, "unknown group 'v9'"),
    ("replay --queue defualt --group x --all-tasks", 2, "did you mean 'default'"),
    # a replay onto a group that exists with other bounds
    ("replay --queue default --group there --all-tasks", 2, "exists with other bounds: tasks fetch, now all"),
    ("replay --queue default --group main --all-tasks", 2, "give the replay a name of its own"),
    # a seek past retention, and beyond the end
    ("seek main --queue short --to 0", 2, "is past the retention of queue short: the earliest there is"),
    ("seek main --queue short --to 99", 2, "beyond the end of queue short: the next one is 10"),
    # an edit that does not fit the task's signature
    ("dead redrive --group main --set url=3", 2, "argument 'url' should be str"),
    ("dead redrive --group main --set urll=x", 2, "neither args, kwargs nor a parameter's name (url)"),
    # a comparator that raises, or is none
    ("compare main there --queue default --comparator unfit:bad", 2, "the comparator raised AttributeError"),
    ("compare main there --queue default --comparator unfit:nope", 2, "nope"),
    ("compare main there --queue default --tolerance near", 2, "'near' is no tolerance"),
    ("compare main there --queue default --max-diff two", 2, "'two' is no share"),
    ("capture --task fetch --sample 0", 2, "0 is not in the range"),
]  # fmt: skip


def test_commands_that_cannot_be_say_what_to_do_and_change_nothing(stage: Stage) -> None:
    module = stage.module(CODE)
    (stage.folder / "unfit.py").write_text("def bad(a, b): return a.x\n")
    calls = [module.fetch.delay(url) for url in ("a", "b", "bad://1")]
    steps = [module.step.delay(n) for n in range(10)]
    stage.work()
    stage.cli("replay", "--queue", "default", "--group", "there", "--task", "fetch")
    stage.work(group="there")
    while stage.app.engine.bounds(stage.app.stream_of("queue", "short"))[0][1] & 0xFFFF < 7:
        stage.work()  # a worker keeps house when it starts
    before = stage.rows("groups", "list"), stage.rows("lag"), [call.state for call in calls]
    for command, code, told in COMMANDS:
        assert told in stage.cli(*command.split(), code=code), command
        assert (stage.rows("groups", "list"), stage.rows("lag"), [c.state for c in calls]) == before, command
    assert steps[9].get(timeout=5) == 9
    stage.check()


def test_a_batch_function_that_returns_the_wrong_number_loses_no_call(stage: Stage) -> None:
    module = stage.module(CODE)
    results = module.wrong.delay_many(range(5))
    stage.work()
    assert all(isinstance(value, BatchMismatch) for value in results.iterate(0, propagate=False))
    letters = stage.rows("dead", "list")
    assert len(letters) == 5
    assert "wrong returned 4 items for a batch of 5; it must return one for each call" in letters[0]["error"]
    stage.check()


def test_a_key_function_that_raises_does_so_where_the_call_is_sent(stage: Stage) -> None:
    module = stage.module(CODE)
    for task, what in (("by_key", "its key function"), ("by_limit", "limit_key"), ("by_unique", "unique")):
        for send in (lambda t: t.delay(1), lambda t: t.apply_async((1,)), lambda t: t.delay_many([1])):
            with pytest.raises(BadArguments, match=f"{what} raised LookupError: 1"):
                send(getattr(module, task))
    assert stage.app.lag() == 0, "nothing was sent"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rate_limit": 0}, "more than 0"),
    ({"rate_limit": "fast"}, "is no rate"),
    ({"max_concurrency": 0}, "1 or more"),
    ({"max_concurrency": "fast"}, "whole number"),
    ({"batch": 0}, "1 or more"),
    ({"batch": "fast"}, "whole number"),
    ({"retry_budget": 0}, "more than 0"),
    ({"breaker": "0/1m"}, "1 or more"),
    ({"breaker": "fast"}, "20/1m"),
    ({"unique": True, "unique_for": 0}, "0"),
    ({"debounce": "fast"}, "no duration"),
    ({"time_limit": "fast"}, "no duration"),
    ({"priority": 10}, "from 0"),
    ({"max_deliveries": 0}, "1 or more"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_limits_that_cannot_be_are_errors_at_import(options: dict[str, Any], said: str) -> None:
    app = App("shop", url="sqlite:///:memory:")
    with pytest.raises((ConfigError, UnknownName), match=said):

        @app.task(**options)
        def task(items: list[int]) -> list[int]:
            return items


@pytest.mark.parametrize(
    "options",
    [{"max_pending": 0}, {"max_pending": "fast"}, {"rate_limit": 0}, {"max_concurrency": 0},
     {"retention": "fast"}, {"retention": {"count": 0}}, {"ordered": True, "partitions": 0}],
)  # fmt: skip
def test_so_are_those_of_a_queue(options: dict[str, Any]) -> None:
    app = App("shop", url="sqlite:///:memory:")
    with pytest.raises((ConfigError, UnknownName)):
        app.queue("mails", **options)
