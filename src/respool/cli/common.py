"""What all commands share: -A, --url and --debug on either side of a command's name, and how they fail."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Common:
    """The common options as given, wherever on the command line."""

    app: str | None = None
    url: str | None = None
    debug: bool = False

    def require_app(self) -> str:
        """Return what names the App, for a command that hands it to other processes. Raises ConfigError."""
        from .loading import require_spec

        return require_spec(self.app)


class Failure(click.ClickException):
    """An error that is not one of usage: exit code 1."""

    exit_code = 1


class Misused(Failure):
    """A name or setting that cannot be: as for a command that was written wrongly."""

    exit_code = 2


class NotInTime(Failure):
    """A call was not finished within --timeout."""

    exit_code = 3


class RespoolGroup(click.Group):
    """A group that suggests the near name for a misspelt command, and whose `help X` is `X --help`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command to run. Raises UsageError with a suggestion."""
        name = args[0] if args else ""
        known = self.list_commands(ctx)
        if name == "help":
            if not args[1:]:
                click.echo(ctx.get_help())
                ctx.exit()
            return self.resolve_command(ctx, [*args[1:], "--help"])
        if name and not name.startswith("-") and name not in known:
            _refuse_celerys(name, ctx)
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


def _refuse_celerys(name: str, ctx: click.Context) -> None:
    """Raise UsageError with what to use instead of a command of Celery's."""
    from ..celery_names import COMMANDS, instead

    if ctx.parent is None and (told := instead(COMMANDS, name)):
        raise click.UsageError(f"no command {name!r}: {told}", ctx)


class CelerysOptions(click.Command):
    """A command that says what to use instead of an option that only Celery's worker has."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as usual. Raises UsageError, with what to use."""
        from ..celery_names import WORKER_FLAGS, instead

        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            told = instead(WORKER_FLAGS, error.option_name)
            if not told:
                raise
            raise click.UsageError(f"no option {error.option_name}: {told}", ctx) from None


def common(ctx: click.Context | None = None) -> Common:
    """Return the common options of the command that is running."""
    found: Common = (ctx or click.get_current_context()).find_root().ensure_object(Common)
    return found


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value:
            setattr(common(ctx), name, value)

    return keep


def _options() -> list[click.Option]:
    return [
        click.Option(
            ["-A", "--app"],
            metavar="APP",
            expose_value=False,
            callback=_keep("app"),
            help="shop, shop.py, shop:app",
        ),
        click.Option(
            ["--url"],
            metavar="URL",
            expose_value=False,
            callback=_keep("url"),
            help="Where the log is: sqlite:///…",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            callback=_keep("debug"),
            help="Show errors with tracebacks.",
        ),
    ]


def give_common_options(command: click.Command) -> None:
    """Add the common options that a command, or one of its own commands, does not have."""
    taken = {flag for param in command.params for flag in param.opts}
    command.params += [option for option in _options() if not taken & set(option.opts)]
    for each in getattr(command, "commands", {}).values():
        give_common_options(each)


json_option: Callable[[F], F] = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line, for scripts."
)
document_option: Callable[[F], F] = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document, for scripts."
)
resolve_option: Callable[[F], F] = click.option(
    "--resolve", is_flag=True, help="Fetch payloads from the blob store, however large."
)
yes_option: Callable[[F], F] = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def suggested(words: str) -> str:
    """Return a command to suggest: with -A and --url as they were given, or with -A as it must be."""
    import shlex

    from ..location import without_password
    from .loading import find_spec

    given, parts = common(), ["respool"]
    if given.app is not None or find_spec(None) is None:
        parts.append("-A …" if given.app is None else f"-A {shlex.quote(given.app)}")
    if given.url is not None:
        parts.append(f"--url {shlex.quote(without_password(given.url))}")
    return " ".join([*parts, words])


def confirm(question: str, yes: bool) -> None:
    """Ask, unless --yes was given. Raises Failure for a no, and where there is nobody to ask."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failure(f"{question} Nobody can be asked here, without a terminal: give --yes")
    if not click.confirm(question):
        raise Failure("nothing was changed")


def open_standard_files() -> None:
    """Open what the shell has closed (`>&-`).

    Else Python has None for it, and the next file that is opened gets its number, here and in the children.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115 - it stays open


def end_without_output(error: OSError) -> None:
    """End the command where it is standard output that cannot be written, and say so in one line."""
    try:
        sys.stdout.write("\n")  # nothing but this tells whether that is what failed
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nothing:  # or Python tries again as it ends, and complains
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        if error.errno != errno.EPIPE:  # who reads no further has what he wants
            click.echo(f"Error: standard output cannot be written: {error.strerror}", err=True)
        sys.exit(1)


if TYPE_CHECKING:
    _Seconds = click.ParamType[float]
    _Pair = click.ParamType[tuple[str, str]]
else:
    _Seconds = _Pair = click.ParamType  # which older versions of click do not have as a generic class


class Duration(_Seconds):
    """A duration: seconds, or text like 90s, 5m, 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        from ..errors import ConfigError
        from ..units import duration

        try:
            return duration(value, "duration")
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class Rate(_Seconds):
    """A rate: 50/s, 600/m, a number a second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return how many a second."""
        from ..errors import ConfigError
        from ..units import rate

        try:
            return rate(value, "rate")
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class Share(_Seconds):
    """A part of all: 5%, 0.05."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the part of 1."""
        from ..errors import ConfigError
        from ..units import share

        try:
            return share(value, "share")
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class Header(_Pair):
    """NAME=VALUE."""

    name = "header"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return the two."""
        if isinstance(value, tuple):
            return value
        name, found, text = str(value).partition("=")
        if not found or not name:
            self.fail(f"{value!r} is no header; one looks like tenant=acme", param, ctx)
        return name, text


DURATION = Duration()
RATE = Rate()
SHARE = Share()
HEADER = Header()
