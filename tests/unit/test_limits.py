"""Buckets: how much may start, who waits, and when it is worth looking again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from respool import App
from respool.callkeys import CallKey
from respool.delivery.claim import Request, claim
from respool.delivery.death import Cause, bury_lease
from respool.delivery.limits import GATHER, SKEW, Ask, Limit, admit, bucket, opens, refilled
from respool.delivery.model import Bucket, Change, Lease, Limits, Parked, Position, Settlement, View
from respool.delivery.settle import give_back, settle
from respool.delivery.spans import Span
from respool.errors import BadArguments, ConfigError
from respool.units import rate

NOW = 1000.0
TEN = Limit(10.0, 5.0, None)
TWO = Limit(None, 1.0, 2)


def one(limit: Limit, key: str = "", at: float = NOW) -> Bucket:
    return bucket("shop/task send", key, limit, at)


def held(lo: int, hi: int, id: int = 7) -> Lease:
    return Lease(id, 1, 0, [Span(lo, hi)])


def view_of(lease: Lease, *buckets: Bucket, queued: Iterable[int] = ()) -> View:
    view = View()
    view.leases[lease.id] = lease
    view.limits = Limits()
    view.limits.buckets = {each.id: each for each in buckets}
    view.limits.queued = set(queued)
    return view


def asks(positions: Iterable[int], *buckets: Bucket) -> list[Ask]:
    return [Ask(pos, "send", buckets) for pos in positions]


def ask(
    view: View, change: Change, asked: Sequence[Ask], most: int = 100, now: float = NOW, lease: int = 7
) -> Lease:
    after = admit(view, change, lease, 1, asked, most, now)
    assert after is not None
    return after


# Buckets


def test_tokens_come_back_at_the_rate_up_to_the_burst() -> None:
    empty = one(TEN)._replace(tokens=0.0)
    assert refilled(empty, NOW + 0.2).tokens == pytest.approx(2.0)
    assert refilled(empty, NOW + 60).tokens == 5.0


def test_a_clock_that_is_ahead_takes_nothing_and_one_set_back_stops_nothing() -> None:
    empty = one(TEN)._replace(tokens=0.0)
    assert refilled(empty, NOW - 1) == empty
    back = refilled(empty, NOW - SKEW - 1)
    assert back.at == NOW - SKEW - 1
    assert refilled(back, back.at + 0.1).tokens == pytest.approx(1.0)


def test_a_bucket_opens_when_a_batch_of_starts_has_gathered() -> None:
    fast = one(Limit(1000.0, 200.0, None))._replace(tokens=0.0)
    at = opens(fast, set(), NOW)
    assert at is not None
    assert at == pytest.approx(NOW + GATHER + 0.001)
    slow = one(Limit(1 / 60, 1.0, None))._replace(tokens=0.0)
    assert opens(slow, set(), NOW) == pytest.approx(NOW + 60)
    assert opens(one(TWO), {1, 2}, NOW) is None, "a slot must be freed first"
    assert opens(one(TWO), {1}, NOW) == 0


def test_keys_have_buckets_of_their_own() -> None:
    assert one(TEN, "a").id != one(TEN, "b").id
    assert one(TEN, "a").id == one(TWO, "a").id, "whatever the limit is"
    assert 0 <= one(TEN).id < 1 << 63


# Letting in


def test_what_is_over_the_rate_is_parked_in_its_turn() -> None:
    view, change, ten = view_of(held(0, 20)), Change(), one(TEN)
    after = ask(view, change, asks(range(20), ten))
    assert after.spans == [Span(0, 5)], "the burst"
    assert after.admitted == {ten.id: [(0, 5)]}
    assert [(p.pos, p.reason, p.due, p.waits) for p in change.parked] == [
        (pos, "limited", None, ten.id) for pos in range(5, 20)
    ]
    assert change.counted == {"limited": 15}
    assert change.limits is not None
    assert change.limits.next == {ten.id: pytest.approx(NOW + 0.15)}
    assert change.limits.buckets[ten.id].tokens == 0


def test_who_comes_later_does_not_overtake_who_waits() -> None:
    ten = one(TEN)
    view, change = view_of(held(0, 3), ten, queued=[ten.id]), Change()
    after = ask(view, change, asks(range(3), ten))
    assert after.spans == []
    assert change.dropped_leases == [7]
    assert change.limits is not None
    assert change.limits.next == {}, "it is known already when it opens"


def test_a_slot_is_a_lease_however_many_records_it_holds() -> None:
    two = one(TWO)
    view, change = view_of(held(0, 10)), Change()
    assert view.limits is not None
    view.limits.holders = {two.id: {1}}
    assert ask(view, change, asks(range(10), two)).spans == [Span(0, 10)]
    view, change = view_of(held(0, 10)), Change()
    assert view.limits is not None
    view.limits.holders = {two.id: {1, 2}}
    assert ask(view, change, asks(range(10), two)).spans == []
    assert change.limits is not None
    assert change.limits.next == {two.id: None}


def test_no_lease_takes_for_long_what_others_could_run() -> None:
    two = one(TWO)
    view, change = view_of(held(0, 10)), Change()
    assert ask(view, change, asks(range(10), two), most=3).spans == [Span(0, 3)]
    assert change.limits is not None
    assert change.limits.next == {two.id: 0}, "another worker may begin at once"


def test_all_buckets_of_a_record_must_let_it_in() -> None:
    task, queue = one(TEN), bucket("shop/queue q", "", Limit(100.0, 2.0, None), NOW)
    view, change = view_of(held(0, 4)), Change()
    after = ask(view, change, asks(range(4), task, queue))
    assert after.spans == [Span(0, 2)]
    assert {p.waits for p in change.parked} == {queue.id}
    assert change.limits is not None
    assert change.limits.buckets[task.id].tokens == 3, "those that wait have taken nothing"


def test_what_one_bucket_let_in_is_given_back_where_another_does_not() -> None:
    task, queue = one(TEN), bucket("shop/queue q", "", Limit(100.0, 2.0, None), NOW)
    lease = held(0, 1)
    lease.admitted = {task.id: [(0, 1)]}
    view, change = view_of(lease, task._replace(tokens=4.0), queue._replace(tokens=0.0)), Change()
    assert ask(view, change, asks([0], task, queue)).spans == []
    assert change.limits is not None
    assert change.limits.buckets[task.id].tokens == 5
    assert change.limits.freed == [(7, task.id)]
    assert [p.waits for p in change.parked] == [queue.id]


def test_two_records_do_not_send_each_other_behind_for_ever() -> None:
    """Each has waited for one of its two buckets, and for the other waits the other one."""
    task, queue = one(TEN), bucket("shop/queue q", "", Limit(100.0, 2.0, None), NOW)
    lease = held(0, 2)
    lease.admitted = {task.id: [(0, 1)], queue.id: [(1, 2)]}
    view, change = view_of(lease, task, queue, queued=[task.id, queue.id]), Change()
    assert ask(view, change, asks([0, 1], task, queue)).spans == [Span(0, 2)]
    none = [each._replace(tokens=0.0) for each in (task, queue)]
    view, change = view_of(lease, *none, queued=[task.id, queue.id]), Change()
    assert ask(view, change, asks([0, 1], task, queue)).spans == [Span(1, 2)], "with what the first gave up"


def test_a_record_keeps_its_history_and_its_edit_while_it_waits() -> None:
    ten = one(TEN)
    lease = Lease(7, 1, 0, [Span(0, 1, 2, 1, 3, True), Span(5, 6)], {0: b"edited", 5: b"other"})
    view, change = view_of(lease, ten, queued=[ten.id]), Change()
    after = ask(view, change, asks([0], ten))
    assert change.parked[0] == Parked(0, "limited", None, "send", 2, 1, 3, True, b"edited", None, NOW, ten.id)
    assert (after.spans, after.bodies) == ([Span(5, 6)], {5: b"other"})


def test_a_lost_lease_lets_nothing_in() -> None:
    view, change = view_of(held(0, 3)), Change()
    assert admit(view, change, 8, 1, asks([0], one(TEN)), 9, NOW) is None
    assert admit(view, change, 7, 2, asks([0], one(TEN)), 9, NOW) is None
    assert not change.leases
    assert not change.parked


# Waiting


def waiting(ten: Bucket, positions: Iterable[int], asked: int = 50) -> View:
    view = View()
    view.positions = [Position(0, 100, 100)]
    view.limits = Limits()
    view.limits.buckets = {ten.id: ten}
    view.limits.waiting = {ten.id: [Parked(p, "limited", None, "send", waits=ten.id) for p in positions]}
    view.limits.asked = asked
    return view


def test_an_open_bucket_lets_in_what_it_has_tokens_for() -> None:
    ten = one(TEN)
    view, change = waiting(ten, range(8)), Change()
    lease = claim(view, change, Request(20, 1, 0, 7, NOW))
    assert lease is not None
    assert lease.spans == [Span(0, 5)]
    assert lease.admitted == {ten.id: [(0, 5)]}
    assert change.unparked == [0, 1, 2, 3, 4]
    assert change.limits is not None
    assert change.limits.next[ten.id] == pytest.approx(NOW + 0.15)


def test_nobody_waits_any_more() -> None:
    ten = one(TEN)
    view, change = waiting(ten, range(3)), Change()
    assert claim(view, change, Request(20, 1, 0, 7, NOW)) is not None
    assert change.limits is not None
    assert change.limits.passed == [ten.id]
    view, change = waiting(ten, range(3), asked=3), Change()
    assert claim(view, change, Request(20, 1, 0, 7, NOW)) is not None
    assert change.limits is not None
    assert change.limits.passed == [], "there may be more of them"


def test_keys_share_a_claim() -> None:
    a, b = one(Limit(None, 1.0, 1), "a"), one(Limit(None, 1.0, 1), "b")
    view, change = waiting(a, range(50)), Change()
    assert view.limits is not None
    view.limits.buckets[b.id] = b
    view.limits.waiting[b.id] = [Parked(p, "limited", None, "send", waits=b.id) for p in range(50, 100)]
    lease = claim(view, change, Request(20, 1, 0, 7, NOW))
    assert lease is not None
    assert lease.admitted == {a.id: [(0, 10)], b.id: [(50, 60)]}


def test_a_full_bucket_is_not_open_though_its_time_has_come() -> None:
    two = one(TWO)
    view, change = waiting(two, range(3)), Change()
    assert view.limits is not None
    view.limits.holders = {two.id: {1, 2}}
    assert claim(view, change, Request(20, 1, 0, 7, NOW)) is None
    assert change.limits is not None
    assert change.limits.next == {two.id: None}


def test_nothing_new_is_claimed_while_too_much_waits() -> None:
    ten = one(TEN)
    view, change = waiting(ten, range(2)), Change()
    view.positions = [Position(0, 100, 200)]
    lease = claim(view, change, Request(20, 1, 0, 7, NOW, most_new=0))
    assert lease is not None
    assert lease.spans == [Span(0, 2)]
    assert change.cursors == []
    assert claim(waiting(ten, ()), Change(), Request(20, 1, 0, 7, NOW, most_new=0)) is None


# Ending


def admitted(lo: int, hi: int, ten: Bucket) -> View:
    lease = held(lo, hi)
    lease.admitted = {ten.id: [(lo, hi)]}
    return view_of(lease, ten)


def test_a_settled_lease_has_no_slot() -> None:
    ten = one(TEN)
    view, change = admitted(0, 4, ten), Change()
    assert settle(view, change, Settlement(7, 1, [(0, 2)]))
    assert change.leases[0].admitted == {ten.id: [(2, 4)]}
    assert change.limits is None, "there are records left of it"
    view, change = admitted(0, 4, ten), Change()
    assert settle(view, change, Settlement(7, 1, [(0, 4)]))
    assert change.limits is not None
    assert change.limits.freed == [(7, ten.id)]
    assert change.limits.refunds == {}


def test_what_goes_back_took_no_start() -> None:
    ten = one(TEN)
    view, change = admitted(0, 4, ten), Change()
    assert settle(view, change, Settlement(7, 1, [(0, 1)], release=True))
    assert change.leases[0].admitted == {}
    assert change.limits is not None
    assert change.limits.freed == [(7, ten.id)]
    assert change.limits.refunds == {ten.id: 3}
    view, change = admitted(0, 4, ten), Change()
    assert give_back(view, change, 7, 1, [(2, 4)], 8) == 2
    assert [lease.admitted for lease in change.leases] == [{}, {ten.id: [(0, 2)]}]
    assert change.limits is not None
    assert change.limits.refunds == {ten.id: 2}
    assert change.limits.freed == []


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("finished", [None, Settlement(7, 1, [(0, 2)])])
def test_no_death_leaks_a_slot(cause: Cause, finished: Settlement | None) -> None:
    ten = one(TEN)
    view, change = admitted(0, 4, ten), Change()
    assert bury_lease(view, change, 7, 1, cause, finished, (), NOW)
    assert all(lease.admitted == {} for lease in change.leases)
    assert change.limits is not None
    assert set(change.limits.freed) == {(7, ten.id)}


# Declaring


@pytest.mark.parametrize(
    ("said", "a_second"),
    [("100/s", 100), ("10/m", 1 / 6), ("5/h", 5 / 3600), (2, 2), (0.5, 0.5), ("3", 3), ("1.5 / s", 1.5)],
)
def test_rates(said: float | str, a_second: float) -> None:
    assert rate(said) == pytest.approx(a_second)


@pytest.mark.parametrize(
    "options",
    [
        {"rate_limit": 0},
        {"rate_limit": "0/s"},
        {"rate_limit": "fast"},
        {"rate_limit": "10/fortnight"},
        {"rate_limit": True},
        {"rate_limit": -1},
        {"max_concurrency": 0},
        {"max_concurrency": "2"},
        {"rate_limit": 1, "rate_burst": 0},
        {"rate_burst": 3},
        {"limit_key": "tenant"},
        {"rate_limit": 1, "limit_key": 7},
        {"rate_limit": 1, "limit_key": "tenent"},
    ],
)
def test_a_limit_that_cannot_be_is_an_error_at_import(options: dict[str, object]) -> None:
    app = App("shop", url="sqlite:///:memory:")
    with pytest.raises(ConfigError):

        @app.task(**options)
        def send(tenant: str) -> None: ...


@pytest.mark.parametrize("options", [{"rate_limit": "fast"}, {"max_concurrency": 0}, {"rate_burst": 2}])
def test_so_is_one_of_a_queue(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        App("shop", url="sqlite:///:memory:").queue("fast", **options)


def test_a_near_name_is_suggested() -> None:
    app = App("shop", url="sqlite:///:memory:")
    with pytest.raises(ConfigError, match="did you mean 'tenant'"):

        @app.task(rate_limit=1, limit_key="tenent")
        def send(tenant: str) -> None: ...


def test_two_limits_of_one_queue_are_an_error() -> None:
    app = App("shop", url="sqlite:///:memory:")
    app.queue("mail", rate_limit="1/s")
    app.queue("mail")
    app.queue("mail", rate_limit="60/m")
    with pytest.raises(ConfigError, match="two limits"):
        app.queue("mail", rate_limit="2/s")


def send(url: str, tenant: str = "nobody", *more: int, **others: int) -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs", "key"),
    [(("u", "a"), {}, "a"), (("u",), {"tenant": "b"}, "b"), (("u",), {}, "nobody"), (("u", 7), {}, "7")],
)
def test_a_parameter_as_key(args: tuple[object, ...], kwargs: dict[str, object], key: str) -> None:
    assert CallKey("limit_key", "tenant", send, False).of(args, kwargs) == key


@pytest.mark.parametrize("gives", [None, True, 1.5, b"a", "x" * 201])
def test_a_key_that_is_no_key_is_refused(gives: object) -> None:
    with pytest.raises(BadArguments, match="limit_key"):
        CallKey("limit_key", lambda *a, **k: gives, send, False).of(("u",), {})


def test_a_key_function_that_raises_refuses_the_call_and_sends_nothing() -> None:
    app = App("shop", url="sqlite:///:memory:")

    @app.task(rate_limit=1, limit_key=lambda call: call["tenant"])
    def send(call: dict[str, str]) -> None: ...

    with app:
        send.delay({"tenant": "a"})
        for refused in (
            lambda: send.delay({}),
            lambda: send.delay_many([{}]),
            lambda: send.apply_many([(({},), {})]),
            lambda: send.apply_async(({},), countdown=5),
        ):
            with pytest.raises(BadArguments, match=r"limit_key raised KeyError: 'tenant'"):
                refused()
        with pytest.raises(
            BadArguments, match=r"send\(\) misses 'call'"
        ):  # not what the key function says of it
            send.delay()  # type: ignore[call-arg]
        (group,) = app.groups()
        assert app.engine.counts(group).pending == 1
