"""Moments as people name them."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from respool.errors import ConfigError
from respool.units import spoken_moment


@pytest.fixture
def zone(monkeypatch):
    """Live in a zone with summer time."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone()


@pytest.mark.parametrize(
    ("text", "now", "meant"),
    [
        ("14:00", "2026-03-10T15:00", "2026-03-10T14:00"),
        ("15:00", "2026-03-10T15:00", "2026-03-10T15:00"),
        ("15:01", "2026-03-10T15:00", "2026-03-09T15:01"),
        ("23:00:30", "2026-03-01T10:00", "2026-02-28T23:00:30"),
        ("9:05", "2026-03-10T10:00", "2026-03-10T09:05"),
        ("12:00", "2026-03-29T11:00", "2026-03-28T12:00"),  # the day on which summer time begins
        ("2026-07-01", "2026-01-15T10:00", "2026-07-01T00:00"),
        ("2026-07-01T14:00", "2026-01-15T10:00", "2026-07-01T14:00"),
    ],
)
def test_local_times(zone, text, now, meant):
    assert spoken_moment(text, at(now)) == at(meant)


def test_a_date_has_the_offset_of_its_own_day(zone):
    winter = at("2026-01-15T10:00")
    assert spoken_moment("2026-07-01T14:00", winter) == datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert spoken_moment("2026-07-01T14:00+00:00", winter) == datetime(2026, 7, 1, 14, tzinfo=UTC)


def test_spans_of_time_are_ago(zone):
    now = at("2026-03-10T15:00")
    assert spoken_moment("now", now) == now
    assert spoken_moment("1h30m", now) == now - timedelta(hours=1.5)


@pytest.mark.parametrize(
    ("text", "now", "meant"),
    [
        ("14:00", "2026-03-10T15:00", "2026-03-11T14:00"),
        ("15:00", "2026-03-10T15:00", "2026-03-11T15:00"),
        ("15:01", "2026-03-10T15:00", "2026-03-10T15:01"),
        ("12:00", "2026-03-28T13:00", "2026-03-29T12:00"),  # the day on which summer time begins
        ("1h30m", "2026-03-10T15:00", "2026-03-10T16:30"),
        ("2026-07-01T14:00", "2026-01-15T10:00", "2026-07-01T14:00"),
    ],
)
def test_moments_to_come(zone, text, now, meant):
    assert spoken_moment(text, at(now), ahead=True) == at(meant)


@pytest.mark.parametrize("text", ["25:00", "12:60", "12:5", "noon", ""])
def test_what_is_no_moment(zone, text):
    with pytest.raises(ConfigError, match="is no moment: try 1h, 30d, 14:00"):
        spoken_moment(text, at("2026-03-10T15:00"))
