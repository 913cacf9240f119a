"""Expressions over a record, and which records a group runs."""

import random
import time

import pytest

from respool import App, ConfigError, UnknownCall, UnknownName
from respool.choice import share_of
from respool.expression import MAX_LENGTH, Expression
from respool.record import id_of, new_head
from respool.replay import Selection, create_replay, follow, how_far, plan_replay
from respool.testing import work

SCOPE = {
    "args": [7, {"a": [1, 2]}, "text"],
    "kwargs": {"amount": 120, "user": {"id": 3, "tags": ["new", "vip"]}, "none": None},
    "headers": {"tenant": "acme"},
    "task": "pay",
    "time": 1000.5,
    "id": "0198",
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("kwargs.amount > 100", True),
        ("kwargs.amount > 100 and kwargs.amount < 110", False),
        ("100 < kwargs.amount <= 120", True),
        ("kwargs['amount'] == 120 or nothing", None),
        ("kwargs.user.id == 3", True),
        ("'vip' in kwargs.user.tags", True),
        ("'old' not in kwargs.user.tags", True),
        ("headers['tenant'] in ('acme', 'globex')", True),
        ("headers.tenant == \"acme\"", True),
        ("not headers.tenant == 'acme'", False),
        ("args[0] == 7 and args[1].a[-1] == 2", True),
        ("args[-1] == 'text'", True),
        ("args[9] == 1", False),
        ("not args[9] == 1", True),
        ("kwargs.nope == None", False),
        ("kwargs.none is None", True),
        ("kwargs.none is not None", False),
        ("kwargs.user.id.deep == 3", False),
        ("kwargs.amount < 'text'", False),
        ("len(kwargs.user.tags) == 2", True),
        ("len(kwargs.amount) == 2", False),
        ("task == 'pay' and time >= 1000 and id == '0198'", True),
        ("key == 'x'", False),
        ("value.x == 1", False),
        ("kwargs.amount == -120", False),
        ("args[0]", True),
        ("True", True),
        ("1 in kwargs.amount", False),
        ("[1] in args", False),
    ],
)  # fmt: skip
def test_expressions(text, holds):
    if holds is None:
        with pytest.raises(ConfigError, match="there is no 'nothing'"):
            Expression(text)
    else:
        assert Expression(text)(SCOPE) is holds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kwargs.amount >", "cannot be read"),
        ("", "cannot be read"),
        ("valeu.x == 1", "there is no 'valeu'; did you mean 'value'?"),
        ("__import__('os').system('x')", "only len() is a function"),
        ("len(args, kwargs)", "only len() is a function"),
        ("args[args[0]]", "no index"),
        ("args[0:2]", "no index"),
        ("[x for x in args]", "not allowed here"),
        ("lambda: 1", "not allowed here"),
        ("args if task else kwargs", "not allowed here"),
        ("args * 1000000000", "not allowed here"),
        ("f'{args}'", "not allowed here"),
        ("(task := 'x')", "not allowed here"),
        ("~args[0]", "not allowed here"),
        ("-args[0]", "no number"),
        ("await args", "cannot be read|not allowed"),
        ("...", "no text, number"),
        ("a" * (MAX_LENGTH + 1), "the most"),
        ("(" * 300 + "args" + ")" * 300, "cannot be read"),
        ("not " * 200 + "args", "nested too deeply"),
        ("args[0] == 1\n; x", "cannot be read"),
    ],
)
def test_what_is_no_expression_is_refused(text, told):
    with pytest.raises(ConfigError, match=told.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?")):
        Expression(text)


def test_attributes_are_keys_and_nothing_of_pythons():
    assert not Expression("args.__class__")(SCOPE)
    assert not Expression("kwargs.user.__dict__")(SCOPE)


def test_a_share_is_as_large_as_it_says_and_grows_by_adding():
    head = new_head(time.time())
    ids = [id_of(head, n) for n in range(20_000)] + [new_head(random.random() * 1e9) for _ in range(20_000)]
    for share in (0.05, 0.5):
        found = [share_of(id) < share * (1 << 32) for id in ids]
        assert abs(sum(found[:20_000]) / 20_000 - share) < 0.02
        assert abs(sum(found[20_000:]) / 20_000 - share) < 0.02
    assert share_of(ids[0]) == share_of(ids[0])


@pytest.fixture
def app():
    with App("shop", url="sqlite:///:memory:") as app:
        app.seen = []

        @app.task
        def pay(amount: int, user: str = "ada") -> int:
            app.seen.append(amount)
            if amount < 0:
                raise ValueError("negative")
            return amount

        @app.task
        def mail(to: str) -> None: ...

        for n in (-2, -1, 0, 1, 2):
            pay.apply_async((n,), headers={"tenant": "acme" if n % 2 else "globex"}, task_id=f"pay{n}")
        pay.delay(100, user="bob")
        mail.delay("ada")
        work(app)
        app.seen.clear()
        yield app


@pytest.mark.parametrize(
    ("selection", "ran"),
    [
        (Selection(state="FAILURE"), [-2, -1]),
        (Selection(state="SUCCESS"), [0, 1, 2, 100]),
        (Selection(state="REVOKED"), []),
        (Selection(headers={"tenant": "acme"}), [-1, 1]),
        (Selection(where="args[0] > 0 and task == 'pay'"), [1, 2, 100]),
        (Selection(where="kwargs.user == 'bob'"), [100]),
        (Selection(where="kwargs.amount > 0"), [1, 2, 100]),
        (Selection(where="kwargs['amount'] == 1 or 'user' in kwargs"), [1, 100]),
        (Selection(where="headers.tenant == 'acme'", state="FAILURE"), [-1]),
        (Selection(where="id == 'pay-2'"), [-2]),
        (Selection(where="time > 5"), [-2, -1, 0, 1, 2, 100]),
        (Selection(where="time < 5"), []),
        (Selection(key="k"), []),
        (Selection(ids=["pay1", "pay-1"]), [-1, 1]),
        (Selection(share=1), [-2, -1, 0, 1, 2, 100]),
        (Selection(from_offset=1, to_offset=4), [-1, 0, 1]),
        (Selection(from_offset="0:4"), [2, 100]),
    ],
)
def test_a_replay_runs_what_was_chosen(app, selection, ran):
    if not ran:
        with pytest.raises(ConfigError, match="nothing to run"):
            plan_replay(app, "default", "v2", None, selection=selection)
        made = create_replay(app, "default", "v2", None, selection=selection)
        assert made.at_most
    else:
        planned = plan_replay(app, "default", "v2", None, selection=selection)
        assert planned.run.get("pay", 0) == len(ran)
        made = create_replay(app, "default", "v2", None, selection=selection)
        assert made.total >= planned.total
        assert not create_replay(app, "default", "v2", None, selection=selection).created
    work(app, group="v2")
    assert app.seen == ran
    group = next(g for g in app.groups() if g.name == "v2")
    skipped = app.engine.counters(group.id).get("skipped", 0)
    far = how_far(app.engine, group)
    assert (far.over, far.skipped) == (True, skipped)
    assert far.total == skipped + len(ran) + (1 if selection in (Selection(share=1), Selection(state="SUCCESS"), Selection(from_offset="0:4"), Selection(where="time > 5")) else 0)  # fmt: skip # noqa: E501
    left_out = app.AsyncResult("pay0").of("v2")
    if 0 not in ran:
        assert left_out.state == "UNKNOWN"
    from respool.replay import check

    assert check(app).ok


def test_arguments_asked_for_by_name_are_found_by_whoever_runs_the_replay(app):
    """Where they stand is kept with the group: the code that runs it may call them otherwise."""
    create_replay(app, "default", "v2", ["pay"], selection=Selection(where="kwargs.amount == 2"))
    with App("shop", url=app.url) as later:

        @later.task(name="pay")
        def pay(cents: int, user: str = "ada") -> int:
            app.seen.append(cents)
            return cents

        later._opened = app._opened  # the same log, which is in memory
        work(later, group="v2")
        later._opened = None
    assert app.seen == [2]


def test_an_expression_that_asks_for_what_no_task_has_is_told(app):
    chosen = Selection(where="kwargs.amuont > 1 and kwargs.user == 'ada'")
    told = "no argument of task pay is called amuont: there are amount, user"
    assert create_replay(app, "default", "v2", ["pay"], selection=chosen).hint == told
    with pytest.raises(ConfigError, match=f"nothing to run: .*it has .*; {told}"):
        plan_replay(app, "default", "v3", ["pay"], selection=chosen)
    assert not create_replay(
        app, "default", "v4", None, selection=Selection(where="kwargs.to == 'ada' and kwargs.user == 'x'")
    ).hint, "some task has each of them"

    @app.task
    def any_(**others: int) -> None: ...

    assert not create_replay(app, "default", "v5", None, selection=chosen).hint, "one that takes any"


def test_a_share_is_the_same_in_each_group(app):
    app.tasks["pay"].delay_many(range(1000, 1500))
    runs = []
    for name, share in (("a", "20%"), ("b", 0.2), ("c", "40%")):
        app.seen.clear()
        create_replay(app, "default", name, ["pay"], selection=Selection(share=share))
        work(app, group=name)
        runs.append(set(app.seen))
    assert runs[0] == runs[1] < runs[2]
    assert 60 < len(runs[0]) < 150


@pytest.mark.parametrize(
    ("selection", "error", "told"),
    [
        (Selection(where="amount > 1"), ConfigError, "there is no 'amount'"),
        (Selection(share="half"), ConfigError, "is no share"),
        (Selection(state="FAILED"), UnknownName, "did you mean 'FAILURE'"),
        (Selection(state="FAILURE", of="v9"), UnknownName, "unknown group 'v9'"),
        (Selection(ids=["nope"]), UnknownCall, "no call nope"),
        (Selection(from_offset="x"), ConfigError, "from_offset: 'x' is no offset"),
        (Selection(to_offset="3:1"), ConfigError, "has partitions 0 to 0, no 3"),
        (Selection(from_offset=5, to_offset=2), ConfigError, "nothing to run"),
    ],
)
def test_selections_that_cannot_be_make_nothing(app, selection, error, told):
    with pytest.raises(error, match=told):
        create_replay(app, "default", "v2", None, selection=selection)
    assert [g.name for g in app.groups()] == ["main"]


def test_another_selection_under_the_same_name_is_refused(app):
    create_replay(app, "default", "v2", None, selection=Selection(state="FAILURE", share="50%"))
    for other in (Selection(state="FAILURE"), Selection(state="SUCCESS", share=0.5), Selection()):
        with pytest.raises(ConfigError, match="exists with other bounds"):
            create_replay(app, "default", "v2", None, selection=other)
    assert not create_replay(
        app, "default", "v2", None, selection=Selection(state="FAILURE", share=0.5)
    ).created


def test_a_replay_keeps_to_its_rate_over_all_workers(app):
    """Tokens are State's: what one claim took, the next has not; what is left out costs none."""
    app.tasks["pay"].delay_many(range(10, 130))
    for n in range(200):
        app.tasks["mail"].delay(str(n))
    create_replay(app, "default", "v2", ["pay"], rate="100/s", selection=Selection(where="args[0] >= 10"))
    began = time.monotonic()
    work(app, group="v2")
    took = time.monotonic() - began
    assert len(app.seen) == 121
    assert 0.1 < took < 5.0, "a second's worth at once, then a hundred a second"


def test_another_rate_of_the_same_replay(app):
    create_replay(app, "default", "v2", None, rate=5)
    assert not create_replay(app, "default", "v2", None, rate="600/m").created
    group = next(g for g in app.groups() if g.name == "v2")
    assert group.settings["rate"] == 10
    with pytest.raises(ConfigError, match="rate"):
        create_replay(app, "default", "v3", None, rate="fast")


def test_following_a_group(app):
    create_replay(app, "default", "v2", None)
    group = next(g for g in app.groups() if g.name == "v2")
    told = []
    assert not follow(app.engine, group, told.append, timeout=0).over
    work(app, group="v2")
    assert follow(app.engine, group, told.append).over
    assert [(far.done, far.total, far.dead) for far in told] == [(0, 7, 0), (7, 7, 2)]
    app.engine.drop_group(group)
    with pytest.raises(UnknownName, match="unknown group 'v2'"):
        how_far(app.engine, group)


def test_a_window_in_time_is_kept_whatever_the_order_in_the_log(app):
    """H19: what lies between the first and the last of a window can be of another time."""
    log, now = app.stream_of("queue", "default").logs[0], time.time()
    for n, ago in enumerate((500, 90, 400, 80, 300, 70)):
        body = app.tasks["pay"].codec.encode(((1000 + n,), {}), "args")
        app.engine.append_run(log, "pay", [body], None, new_head(now - ago), now - ago)
    made = create_replay(app, "default", "v2", ["pay"], since=now - 100, until=now - 60)
    assert (made.run, made.outside) == ({"pay": 3}, 2)
    work(app, group="v2")
    assert app.seen == [1001, 1003, 1005]
