"""The command `respool`: one file a command, imported only when it is run.

`respool --help` has to come at once, so the names and short helps of all commands are in the table below,
and neither rich nor an engine is imported before a command needs it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from .common import (
    Failure,
    Misused,
    RespoolGroup,
    common,
    end_without_output,
    give_common_options,
    open_standard_files,
)

COMMANDS: dict[str, dict[str, str]] = {
    "Run": {
        "worker": "Run the calls of the app's queues.",
        "demo": "See it work on real files: kills, a replay, the proof.",
        "call": "Send one call of a task; --wait for what it returns.",
    },
    "Again": {
        "replay": "Run old calls again in a group of their own.",
        "rerun": "Execute one past call here, with its exact input.",
        "capture": "Write past calls as a test of the present code.",
        "compare": "What two groups made of the same calls, call by call.",
        "seek": "Move a group itself, back or forth: work is done again.",
        "dead": "List, show, give back and drop dead letters.",
        "groups": "List, create, pause and drop consumer groups.",
        "purge": "End what a queue has not started; the records stay.",
    },
    "Look": {
        "lag": "What waits, runs and failed, by queue and group.",
        "calls": "Calls on record, by time, task and state.",
        "tail": "Calls and events as they come.",
        "export": "Inputs and outcomes of a window as a file: the audit.",
        "show": "All about one call: input, attempts, outcomes.",
        "workers": "The workers, and what each of them runs.",
        "queues": "The queues and what they hold; how long that stays.",
        "streams": "The streams and what they hold; how long that stays.",
        "tasks": "The tasks that the app's code registers.",
        "check": "Prove that every record is in exactly one place.",
    },
    "Set up": {
        "migrate": "Make the schema on a server, or print it.",
        "transfer": "Move all that is on one URL to another.",
    },
}
_SHORT = {name: short for section in COMMANDS.values() for name, short in section.items()}


class LazyGroup(RespoolGroup):
    """The group of all commands, each imported by its name when it is asked for."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; standard output that cannot be written ends it with one line on stderr."""
        open_standard_files()
        try:
            try:
                return super().main(*args, **kwargs)
            finally:
                sys.stdout.flush()  # later there is nobody to tell of it
        except OSError as error:
            end_without_output(error)
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(_SHORT)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module and return its `command`."""
        if cmd_name not in _SHORT:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name}", __name__).command
        give_common_options(command)
        _hand_down(ctx, cmd_name, command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table: nothing is imported for that."""
        for section, commands in COMMANDS.items():
            with formatter.section(section):
                formatter.write_dl(list(commands.items()), col_max=12)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of ours is one line, unless --debug asks for all of it."""
        from ..errors import BadArguments, RespoolError
        from ..loading import is_misuse

        try:
            code = super().invoke(ctx)
        except RespoolError as error:
            sends = ctx.invoked_subcommand == "call"
            told = _explained(error, common(ctx).debug, sends=sends)
            gives = sends or ctx.invoked_subcommand == "dead"  # call's arguments, or --set's
            misused = is_misuse(error) or (gives and isinstance(error, BadArguments))
            raise (Misused if misused else Failure)(told) from error
        if isinstance(code, int) and code:  # click would end with 0, whatever a command returns
            ctx.exit(code)
        return code


def _hand_down(ctx: click.Context, name: str, command: click.Command) -> None:
    """Give `respool -A shop worker` to a command that reads -A itself."""
    given = {"-A": common(ctx).app, "--url": common(ctx).url}
    for param in command.params:
        for flag, value in given.items():
            if flag in param.opts and param.expose_value and param.name and value is not None:
                defaults: Any = ctx.default_map or {}
                ctx.default_map = {**defaults, name: {**defaults.get(name, {}), param.name: value}}


def _explained(error: BaseException, debug: bool, sends: bool) -> str:
    """Return an error's message; with the traceback where the app's own code is what failed.

    A command that does not send is not told that nothing was sent.
    """
    import traceback

    from ..errors import EngineUnavailable, LogMoved, unsent
    from ..loading import AppImportError

    told = str(error)
    if isinstance(error, EngineUnavailable | LogMoved) and not sends:
        told = unsent(error)
    if debug:
        return f"{told}\n\n{''.join(traceback.format_exception(error)).rstrip()}"
    if isinstance(error, AppImportError) and error.__cause__ is not None:
        return f"{told}\n\n{''.join(traceback.format_exception(error.__cause__)).rstrip()}"
    return told


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"respool {version('respool')}")
        except PackageNotFoundError:
            click.echo("respool (not installed)")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Try: respool demo. Help on a command: respool lag --help.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
def main() -> None:
    """Respool: a task queue on a durable log.

    -A names the app: a module (shop), a file (shop.py), or either with the App's name (shop:app). Without
    it RESPOOL_APP counts, then `app` under [tool.respool] in the nearest pyproject.toml.

    Exit codes, of a worker too: 0 done; 1 an error, or `check` found something; 2 the command or the app's
    settings are wrong: an unknown option, app, queue, group or task, arguments that do not fit a task; 3 a
    call was not finished in time.
    """


give_common_options(main)
