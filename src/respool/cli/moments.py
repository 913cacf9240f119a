"""Moments on the command line: how they are read, and how one that may be misread is echoed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    from datetime import datetime

    _Moment = click.ParamType["Spoken"]
    _Ahead = click.ParamType[datetime]
else:
    _Moment = _Ahead = click.ParamType  # which older versions of click do not have as a generic class


def present() -> datetime:
    """Return the local time."""
    from datetime import datetime

    return datetime.now().astimezone()


class Spoken(float):
    """A moment in seconds since 1970, and how it was named."""

    text: str
    ago: float | None  # seconds, where it was named so
    is_yesterday: bool  # a time of day that is still to come today

    @classmethod
    def read(cls, text: str) -> Spoken:
        """Read a moment. Raises ConfigError, OverflowError."""
        from ..errors import ConfigError
        from ..units import duration, is_time_of_day, spoken_moment

        now = present()
        at = spoken_moment(text, now)
        spoken = cls(at.timestamp())
        spoken.text, spoken.ago = text, None
        spoken.is_yesterday = is_time_of_day(text) and at.date() < now.date()
        try:
            ago = 0.0 if text == "now" else duration(text)
        except ConfigError:  # it does not depend on when it is said
            return spoken
        # 20260131 would be a number of seconds too, but is a date.
        spoken.ago = ago if abs((now - at).total_seconds() - ago) < 5 else None
        return spoken


class Moment(_Moment):
    """A moment as people name it: 1h (ago), 14:00 (the last), an ISO date or time; local without a zone."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Spoken:
        """Return the moment."""
        if isinstance(value, Spoken):
            return value
        from ..errors import ConfigError

        try:
            return Spoken.read(value)
        except (ConfigError, OverflowError) as error:
            self.fail(str(error), param, ctx)


class Ahead(_Ahead):
    """A moment to come: 1h (from now), 14:00 (the next), an ISO date or time; local without a zone."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the moment, with its offset."""
        from ..errors import ConfigError
        from ..units import spoken_moment

        try:
            return spoken_moment(str(value), present(), ahead=True)
        except (ConfigError, OverflowError) as error:
            self.fail(str(error), param, ctx)


MOMENT = Moment()
AHEAD = Ahead()
since_option: Callable[[F], F] = click.option(
    "--since", type=MOMENT, metavar="WHEN", help="From: 1h, 30d, 14:00, 2026-01-31T14:00."
)
until_option: Callable[[F], F] = click.option(
    "--until", type=MOMENT, metavar="WHEN", help="Up to, likewise; itself not included."
)
between_option: Callable[[F], F] = click.option(
    "--between", nargs=2, type=MOMENT, metavar="FROM TO", help="From, and up to: both at once."
)


def echo_past(option: str, at: datetime | None) -> None:
    """Say on stderr that a moment before which nothing is to happen is over: a day begins at midnight."""
    from .output import moment

    if at is not None and (present() - at).total_seconds() > 1.0:
        click.echo(f"{option}: {moment(at.timestamp())} is over, so it may start at once", err=True)


def one_moment(text: str, option: str, others: str) -> Spoken:
    """Read the value of an option that may be something else too, and echo it where it may be misread.

    Parameters:
        others: what it may be instead, for the error.
    """
    try:
        found = MOMENT.convert(text, None, None)
    except click.BadParameter as error:
        raise click.BadParameter(f"{others}, or a moment: {error.message}", param_hint=option) from None
    _echo(option, found, found)
    return found


def window(
    since: Spoken | None, until: Spoken | None, between: tuple[Spoken, Spoken] | None = None
) -> tuple[float | None, float | None]:
    """Return the window that was given, either way; on stderr what of it may be misread.

    A time of day is the last one. The end of a window is that of today where else it would be before the
    beginning: at 10:00, from 23:00 up to 23:30 was last night, and from 09:00 up to 16:00 is today; that
    end is still to come.

    Raises: UsageError for a window that has no end after its beginning.
    """
    from ..units import spoken_moment

    names = ("--since", "--until")
    if between is not None:
        if since is not None or until is not None:
            raise click.UsageError("--between, or --since and --until, not both")
        (since, until), names = between, ("--between", "--between")
    end = None if until is None else float(until)
    if since is not None:
        if until is not None and until.is_yesterday and until <= since:
            end = spoken_moment(until.text, present(), ahead=True).timestamp()
        if end is not None and end <= since:
            raise click.UsageError(
                f"{since.text} up to {until.text}: the first moment must be before the second"  # type: ignore[union-attr]
            )
        _echo(names[0], since, since)
    if until is not None and end is not None:
        _echo(names[1], until, end, is_end=True)
    return since, end


def _echo(option: str, spoken: Spoken, at: float, *, is_end: bool = False) -> None:
    from ..clock import now as wall_clock
    from .output import moment

    if spoken.is_yesterday and at == spoken:
        click.echo(
            f"{option} {spoken.text}: still to come today, so yesterday's is taken, {moment(at)}",
            err=True,
        )
    elif spoken.is_yesterday:
        click.echo(
            f"{option} {spoken.text}: yesterday's is not after the beginning, so today's is taken, "
            f"{moment(at)}, which is still to come",
            err=True,
        )
    elif not is_end and at > wall_clock() + 1.0:
        click.echo(
            f"{option} {spoken.text}: {moment(at)} is still to come, so there is nothing from then on yet",
            err=True,
        )


def shown_window(since: float | None, until: float | None) -> str:
    """Return a window in words, with a blank before; nothing for none."""
    from .output import moment

    begin = "" if since is None else f" from {moment(since)}"
    return begin + ("" if until is None else f" up to {moment(until)}")
