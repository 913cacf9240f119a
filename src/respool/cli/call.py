"""`respool call`: send one call."""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .common import DURATION, HEADER, Failure, NotInTime, document_option
from .moments import AHEAD, echo_past

if TYPE_CHECKING:
    from datetime import datetime

    from ..result import AsyncResult

_HEAD = "Traceback (most recent call last)"
FIRST, AGAIN = 1.0, 2.0  # seconds until it is said what --wait waits for, and between looks from then on


class _WithNegatives(click.Command):
    """Takes -1 and -0.5 for arguments of the task, rather than for options of ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, dashes, rest = _split(args)
        options = [each for each in self.params if isinstance(each, click.Option) and not each.is_flag]
        valued = {flag for each in options for flag in each.opts}
        marked = [
            f"\0{arg}" if re.fullmatch(r"-\.?\d.*", arg) and before not in valued else arg
            for before, arg in zip(["", *own], own, strict=False)
        ]
        return super().parse_args(ctx, [*marked, *dashes, *rest])


def _split(args: list[str]) -> tuple[list[str], list[str], list[str]]:
    if "--" not in args:
        return args, [], []
    at = args.index("--")
    return args[:at], ["--"], args[at + 1 :]


@click.command(cls=_WithNegatives)
@click.argument("task")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--kw", "kwargs", multiple=True, metavar="NAME=VALUE", help="A keyword argument; repeatable.")
@click.option("--queue", metavar="NAME", help="Another queue than the task's.")
@click.option(
    "--priority",
    type=click.IntRange(0, 9),
    metavar="0-9",
    help="9 starts first; default: the task's, else 4.",
)
@click.option("--id", "task_id", metavar="ID", help="An id of your own: sending it again sends nothing.")
@click.option("--key", metavar="KEY", help="Calls of one key run in order, in an ordered queue.")
@click.option(
    "--header", "headers", multiple=True, type=HEADER, metavar="NAME=VALUE", help="Carried along; repeatable."
)
@click.option("--countdown", type=DURATION, metavar="TIME", help="Do not start before: 90s, 5m.")
@click.option("--eta", type=AHEAD, metavar="WHEN", help="Do not start before: 14:00, 2026-01-31T14:00.")
@click.option(
    "--expires", type=DURATION, metavar="TIME", help="Revoke it where it has not begun by then: 1h."
)
@click.option("--wait/--no-wait", help="Wait for the result and print it.")
@click.option(
    "--timeout", type=DURATION, metavar="TIME", help="With --wait: give up after so long (exit code 3)."
)
@document_option
def command(
    task: str,
    args: tuple[str, ...],
    kwargs: tuple[str, ...],
    queue: str | None,
    priority: int | None,
    task_id: str | None,
    key: str | None,
    headers: tuple[tuple[str, str], ...],
    countdown: float | None,
    eta: datetime | None,
    expires: float | None,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Send one call of TASK and print its id.

    Each argument is read as JSON where it is JSON, else as text: 2 is a number, hello is text, so is '"2"'.
    What the task declares is made of that: a date of 2026-01-31, a dataclass of an object.

    \b
    respool -A shop call add 2 3 --wait
    respool -A shop call fetch https://example.org --kw retries=5 --countdown 10m

    With --wait the exit code is 0 for a result, 1 where the task failed, 3 where --timeout was over first.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    from ..errors import BadArguments, UnknownName
    from .target import open_target

    app = open_target(code=True, creates=True, writes=True).app
    assert app is not None
    if task not in app.tasks:
        raise UnknownName("task", task, app.tasks, f"in app {app.name}")
    try:
        values, named = app.tasks[task].parameters.convert(
            [_value(text.removeprefix("\0")) for text in args], dict(map(_pair, kwargs))
        )
        result = app.tasks[task].apply_async(
            values,
            named,
            queue=queue,
            priority=priority,
            task_id=task_id,
            key=key,
            headers=dict(headers) or None,
            countdown=countdown,
            eta=eta,
            expires=expires,
        )
    except BadArguments as error:
        hint = _by_name(app.tasks[task], args) or _as_text(str(error), args, kwargs)
        raise BadArguments(f"{error}{hint}") from error
    echo_past("--eta", eta)
    if not wait:
        click.echo(json.dumps({"id": result.id}) if as_json else result.id)
        return
    if not as_json:
        click.echo(result.id)
    _wait(result, timeout, as_json)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _by_name(task: Any, args: tuple[str, ...]) -> str:
    """Say how arguments are given by name, where that is what somebody seems to have tried."""
    names = task.parameters.accepts or ()
    tried = next((text for text in args if "=" in text and text.partition("=")[0] in names), None)
    return "" if tried is None else f"; by name it is --kw {shlex.quote(tried)}"


def _as_text(told: str, args: tuple[str, ...], kwargs: tuple[str, ...]) -> str:
    """Say how text is given that can be read as JSON, where that was the mistake."""
    given = [*args, *(pair.partition("=")[2] for pair in kwargs)]
    for text in (each.removeprefix("\0") for each in given):
        value = _value(text)
        if not isinstance(value, str) and f"should be str, got {value!r} (" in told:
            return f"; as text it is written {shlex.quote(json.dumps(text))}"
    return ""


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--kw")
    return name, _value(value.removeprefix("\0"))


def _wait(result: AsyncResult[Any], timeout: float | None, as_json: bool) -> None:
    from ..errors import GetTimeout, ResultError, Revoked
    from .output import document, raised

    try:
        with _telling(result):
            value = result.get(timeout, propagate=False)
        if isinstance(value, Revoked):
            raise value
    except KeyboardInterrupt:
        click.echo(f"the call is not called off; see: respool show {shlex.quote(result.id)}", err=True)
        raise
    except GetTimeout as error:
        _end(result, as_json, str(error))
        raise NotInTime(str(error)) from None
    except ResultError as error:  # revoked, past its result_ttl, …
        _end(result, as_json, str(error))
        raise
    if isinstance(value, BaseException):
        trace = getattr(value, "remote_traceback", "") or ""
        told = raised(value)
        if _HEAD not in trace:  # nothing was raised: it was killed, say
            trace = ""
        _end(result, as_json, told, trace)
        raise Failure(f"the task failed: {told}" + (f"\n\n{trace.rstrip()}" if trace and not as_json else ""))
    if as_json:
        document({"id": result.id, "state": "SUCCESS", "result": value})
    else:
        click.echo(repr(value))


@contextmanager
def _telling(result: AsyncResult[Any]) -> Iterator[None]:
    """While the block waits for a call, say on stderr what for, and again when that is another thing."""
    over = threading.Event()

    def tell() -> None:
        from ..errors import RespoolError
        from ..result import why_unfinished

        said, wait = "", FIRST
        while not over.wait(wait):
            try:
                why = why_unfinished(result)
            except RespoolError:  # who waits meets it too, and says so
                return
            kind = re.sub(r"[\d.,]+", "", why or "")
            if why and kind != said and not over.is_set():
                click.echo(f"waiting: {why}", err=True)
            said, wait = kind, AGAIN

    thread = threading.Thread(target=tell, name="respool-telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _end(result: AsyncResult[Any], as_json: bool, error: str, trace: str = "") -> None:
    if as_json:
        from .output import document

        document({"id": result.id, "state": result.state, "error": error, "traceback": trace})
