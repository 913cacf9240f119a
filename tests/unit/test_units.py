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


@pytest.mark.parametrize(
    ("text", "now", "meant"),
    [
        ("14:00Z", "2026-03-10T16:00", "2026-03-10T14:00Z"),
        ("14:00 utc", "2026-03-10T16:00", "2026-03-10T14:00Z"),
        ("15:30Z", "2026-03-10T16:00", "2026-03-09T15:30Z"),  # which is 16:30 here
        ("9:00+0900", "2026-03-10T00:30", "2026-03-09T00:00Z"),  # of the day that it is there
        ("9:00 Asia/Tokyo", "2026-03-10T01:30", "2026-03-10T00:00Z"),
        ("12:00 America/New_York", "2026-03-09T10:00", "2026-03-08T16:00Z"),  # the day it was put forward
        ("12:00 America/New_York", "2026-03-08T10:00", "2026-03-07T17:00Z"),
        ("14:00 CET", "2026-07-10T18:00", "2026-07-10T13:00Z"),  # as our own times are shown
        ("14:00 CEST", "2026-07-10T18:00", "2026-07-10T12:00Z"),
        ("2026-07-01 CEST", "2026-01-15T10:00", "2026-06-30T22:00Z"),
        ("2026-07-01 14:00 Europe/Berlin", "2026-01-15T10:00", "2026-07-01T12:00Z"),
        ("2026-07-01T14:00-05:30", "2026-01-15T10:00", "2026-07-01T19:30Z"),
    ],
)
def test_moments_of_other_zones(zone, text, now, meant):
    assert spoken_moment(text, at(now)) == at(meant)


def test_the_next_time_of_day_in_another_zone(zone):
    assert spoken_moment("15:30Z", at("2026-03-10T16:00"), ahead=True) == at("2026-03-10T15:30Z")
    assert spoken_moment("14:30Z", at("2026-03-10T16:00"), ahead=True) == at("2026-03-11T14:30Z")


@pytest.mark.parametrize("name", ["EDT", "Europe", "Nowhere/Land"])
def test_a_zone_that_is_not_known(zone, name):
    with pytest.raises(ConfigError, match=f"there is no zone '{name}' here; give its offset, 14:00.02:00"):
        spoken_moment(f"14:00 {name}", at("2026-03-10T15:00"))


@pytest.mark.parametrize(
    "text",
    ["25:00", "12:60", "12:5", "noon", "", "5 moo", "14:00Z UTC", "14:00 ../x", "14:00+25:00", "0001-01-01"],
)
def test_what_is_no_moment(zone, text):
    with pytest.raises(ConfigError, match="is no moment: try 1h, 30d, 14:00"):
        spoken_moment(text, at("2026-03-10T15:00"))
