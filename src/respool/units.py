"""Durations, rates, shares, moments and sizes, as users write them."""

from __future__ import annotations

import math
import re
import time as os_time
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo

from .clock import now as wall_clock
from .errors import ConfigError

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
LONGEST = 1000 * 365.25 * 86400  # seconds that a duration may have
_FIRST, _LAST = datetime(2, 1, 1, tzinfo=UTC).timestamp(), datetime(9998, 12, 31, tzinfo=UTC).timestamp()
_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d{2}(?::\d{2})?)\s*(Z|[+-]\d{2}:?\d{2})?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)")


def duration(value: float | timedelta | str, what: str = "duration") -> float:
    """Return a duration in seconds, from seconds, a timedelta, or text like "90s", "1h30m", "7d".

    Raises ConfigError for anything else, for NaN, for negative values and for more than a thousand years.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif (
        isinstance(value, str)
        and (parts := _DURATION.findall(value))
        and not _DURATION.sub("", value).strip()
    ):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    elif isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value):
        seconds = float(value)
    else:
        raise ConfigError(
            f'{what}: {value!r} is no duration; give seconds, a timedelta, or text like "90s" or "7d"'
        )
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{what}: {value!r} is negative or not a number")
    if seconds > LONGEST:
        raise ConfigError(f"{what}: {value!r} is more than a thousand years")
    return seconds


def rate(value: float | str, what: str = "rate") -> float:
    """Return a rate per second, from a number or text like "50/s", "600/m", "10/h".

    Raises ConfigError for anything else, and for what is not more than 0.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    else:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:/\s*(s|min|m|h|d))?", str(value).strip())
        if match is None:
            raise ConfigError(
                f'{what}: {value!r} is no rate; give a number a second, or text like "50/s", "600/m"'
            )
        found = float(match[1]) / _UNITS[match[2] or "s"]
    if not 0 < found < float("inf"):
        raise ConfigError(f"{what}: {value!r} must be more than 0")
    if found * LONGEST < 1:
        raise ConfigError(f"{what}: {value!r} is less than one in a thousand years")
    return found


def share(value: float | str, what: str = "share") -> float:
    """Return a part of 1, from a number or text like "5%". Raises ConfigError unless 0 < part <= 1."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip()) if isinstance(value, str) else None
    try:
        part = float(match[1]) / 100 if match else float(value)
    except ValueError:
        part = 0.0
    if isinstance(value, bool) or not 0 < part <= 1:
        raise ConfigError(f'{what}: {value!r} is no share; give text like "5%", or a number up to 1')
    return part


def moment(value: datetime | float, what: str = "moment") -> float:
    """Return an aware datetime as seconds since 1970. Raises ConfigError for a naive one."""
    if isinstance(value, datetime):
        if value.tzinfo is None or value.utcoffset() is None:
            raise ConfigError(
                f"{what}: {value.isoformat()} has no time zone; take datetime.now(UTC) or .astimezone()"
            )
        return value.timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ConfigError(f"{what}: {value!r} is not an aware datetime")


def coming_moment(value: datetime | float, what: str) -> float:
    """Return a moment that is waited for. Raises ConfigError as `moment`, and for one too far away."""
    seconds = moment(value, what)
    if seconds - wall_clock() > LONGEST:
        raise ConfigError(f"{what}: {value} is more than a thousand years away")
    return max(seconds, 0.0)  # what was due in another age is due now


def utc(seconds: float) -> datetime:
    """Return seconds since 1970 as a date; for those that have none in each zone, the first or the last."""
    return datetime.fromtimestamp(min(max(seconds, _FIRST), _LAST), UTC)


def spoken_moment(text: str, now: datetime, *, ahead: bool = False) -> datetime:
    """Return the moment that a command line names: `1h` (ago), `14:00` (the last), an ISO date or time.

    Without a zone (`14:00Z`, `14:00+02:00`, `14:00 Europe/Berlin`) it is this machine's local time. A time
    of day that is still to come today is yesterday's: what is asked for are records, and they are of the
    past.

    Parameters:
        now: the present, local.
        ahead: of what is to come: `1h` from now, the next `14:00`.

    Raises ConfigError.
    """
    text = text.strip()
    if text == "now":
        return now
    if _DURATION.findall(text) and not _DURATION.sub("", text).strip():
        away = timedelta(seconds=duration(text))
        return now + away if ahead else now - away
    told, zone = _with_zone(text)
    try:
        if (match := _TIME_OF_DAY.fullmatch(told)) is not None:
            hour, rest, offset = match.groups()
            at = time.fromisoformat(f"{hour:0>2}:{rest}{(offset or '').upper()}")
            zone = _one_zone(zone, at.tzinfo)
            today = datetime.combine(now.astimezone(zone).date(), at.replace(tzinfo=zone))
            found = today.astimezone()
            if ahead == (found > now):
                return found
            return (today + timedelta(days=1 if ahead else -1)).astimezone()
        parsed = datetime.fromisoformat(told)
        # At the offset that its own day has.
        return parsed.replace(tzinfo=_one_zone(zone, parsed.tzinfo)).astimezone()
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"{text!r} is no moment: try 1h, 30d, 14:00, 2026-01-31 or 2026-01-31T14:00Z"
        ) from error


def is_time_of_day(text: str) -> bool:
    """Say whether a moment is named by its time of day alone. Raises ConfigError for an unknown zone."""
    return _TIME_OF_DAY.fullmatch(_with_zone(text.strip())[0]) is not None


def _one_zone(named: tzinfo | None, offset: tzinfo | None) -> tzinfo | None:
    if named is not None and offset is not None:
        raise ValueError("two zones")
    return named or offset


def _with_zone(text: str) -> tuple[str, tzinfo | None]:
    """Return a moment less the name of a zone behind it, and that zone. Raises ConfigError for none such."""
    match = re.fullmatch(r"(.*[:-]\d\d)\s+([A-Za-z][\w/+-]*)", text)
    if match is None:
        return text, None
    told, name = match.groups()
    if name.upper() in ("Z", "UTC", "GMT"):
        return told, UTC
    # The names by which local times are shown; those of others have no one meaning.
    local = dict(zip(os_time.tzname, (-os_time.timezone, -os_time.altzone), strict=True))
    if name in local:
        return told, timezone(timedelta(seconds=local[name]))
    from zoneinfo import ZoneInfo  # which few need

    try:
        return told, ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ConfigError(
            f"{text!r}: there is no zone {name!r} here; give its offset, {told}+02:00, or its place, "
            f"{told} Europe/Berlin"
        ) from error


def size(value: int | str, what: str = "size") -> int:
    """Return a size in bytes, from a number or text like "64KiB", "1MB"."""
    units = {
        "": 1,
        "b": 1,
        "kb": 1000,
        "mb": 1000**2,
        "gb": 1000**3,
        "kib": 1024,
        "mib": 1024**2,
        "gib": 1024**3,
    }
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", value.lower()) if isinstance(value, str) else None
    if match is None or match[2] not in units or not int(match[1]):
        raise ConfigError(f'{what}: {value!r} is no size; give bytes or text like "1MiB"')
    return int(match[1]) * units[match[2]]
