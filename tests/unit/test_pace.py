"""Groups with a rate: a bucket of tokens, filled by clocks that may be apart or set back."""

from __future__ import annotations

import pytest

from respool.delivery.model import Change, View
from respool.delivery.pace import allowed, give_back, spent

RATE = 10.0


class Paced:
    """A group with a rate, asked at one time after another, as its transactions would."""

    def __init__(self) -> None:
        self.settings: dict[str, object] = {"rate": RATE}

    def take(self, now: float, want: int = 1000) -> int:
        """Take all that may be granted, up to `want`; return how many."""
        view, change = View(), Change()
        view.settings = dict(self.settings)
        pace = allowed(view, change, now)
        assert pace is not None
        granted = min(pace[0], want)
        if granted:
            spent(change, pace[1], granted)
        self.settings.update(change.settings)
        return granted


def test_tokens_come_back_at_the_rate_up_to_a_seconds_worth() -> None:
    group = Paced()
    assert [group.take(now) for now in (100.0, 100.0, 100.05, 100.1, 100.65, 900.0)] == [10, 0, 0, 1, 5, 10]


def test_a_group_without_a_rate_has_no_bucket() -> None:
    view, change = View(), Change()
    assert allowed(view, change, 1.0) is None
    give_back(view, change, 5)
    assert not change.settings


@pytest.mark.parametrize("back", [61.0, 3600.0, 1e6])
def test_a_clock_that_was_set_back_stalls_nothing(back: float) -> None:
    group = Paced()
    assert group.take(1e7) == 10
    assert group.take(1e7 - back) == 0, "what was taken is gone"
    assert group.take(1e7 - back + 0.5) == 5, "and time goes on from there"


def test_clocks_that_are_apart_grant_no_more_than_the_rate() -> None:
    """Two machines take turns, one of them half a minute ahead."""
    group = Paced()
    granted = sum(group.take(1000.0 + n * 0.1 + 30 * (1 - n % 2)) for n in range(200))
    assert granted <= 10 + 20 * RATE
    assert granted >= 20 * RATE - 10
