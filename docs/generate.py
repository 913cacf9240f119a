"""Write those tables of the docs that are made from the code.

    python docs/generate.py            write them anew
    python docs/generate.py --check    exit 1 where they are not current

A table stands between `<!-- name:begin -->` and `<!-- name:end -->`; `TABLES` says which page has which.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import respool
from respool import App, AsyncResult, ResultSet, Task, errors
from respool.cli import COMMANDS
from respool.config import SETTINGS
from respool.dead import DeadLetter, DeadLetters
from respool.engines.base import CAPABILITIES
from respool.options import OPTIONS
from respool.result import Attempt
from respool.stream import Event, StreamHandle
from respool.worker.run import Request

DOCS = Path(__file__).parent

# What users call; the rest of these classes is for the package's own modules.
MEMBERS: dict[type, tuple[str, ...]] = {
    App: (
        "task",
        "queue",
        "stream",
        "send_task",
        "transaction",
        "AsyncResult",
        "dead_letters",
        "groups",
        "lag",
        "pressure",
        "close",
    ),
    Task: (
        *("delay", "adelay", "apply_async", "delay_many", "apply_many", "AsyncResult"),
        *("request", "retry", "update_state", "once", "aonce", "transaction"),
    ),
    AsyncResult: (
        *("id", "state", "ready", "successful", "failed", "get", "aget", "result", "traceback"),
        *("info", "of", "group", "history", "record", "find"),
    ),
    ResultSet: ("get", "iterate", "wait", "ready", "unfinished"),
    DeadLetters: ("oldest", "count", "by_task", "by_error", "redrive", "drop"),
    StreamHandle: ("publish", "apublish", "publish_many", "read", "subscribe"),
}
TITLES = {StreamHandle: "Streams (`app.stream`)", DeadLetters: "Dead letters (`app.dead_letters`)"}
LISTED = {
    Request: "`self.request`",
    Attempt: "`r.history()`",
    Event: "`stream.read()`",
    DeadLetter: "`app.dead_letters()`, each; also `id`, `task`, `died`, `error`, `record`, `history()`",
}


FUNCTIONS = {
    "respool.replay": (
        *("create_replay", "plan_replay", "create_group", "group_of", "how_far", "follow", "pause", "resume"),
        *("plan_seek", "seek", "resume_seek", "compare", "purge", "check"),
    ),
    "respool.replay.rerun": ("rerun",),
    "respool.replay.capture": ("capture",),
    "respool.replay.export": ("exported",),
    "respool.testing": ("work", "captured"),
}


def settings() -> str:
    """Return the table of an app's settings."""
    return table("setting", ((name, item.default, item.meaning) for name, item in SETTINGS.items()))


def options() -> str:
    """Return the table of a task's options."""
    return table("option", ((name, item.default, item.meaning) for name, item in OPTIONS.items()))


def commands() -> str:
    """Return the table of commands."""
    lines = ["| command | what it does |", "|---|---|"]
    for section in COMMANDS.values():
        lines += [f"| `respool {name}` | {short} |" for name, short in section.items()]
    return "\n".join(lines)


def members() -> str:
    """Return the classes that users hold, each with its methods."""
    parts = []
    for owner, names in MEMBERS.items():
        title = TITLES.get(owner, f"`{owner.__name__}`")
        parts += [f"### {title}\n", first_line(owner), "", "| | |", "|---|---|"]
        parts += [f"| `{shown(owner, name)}` | {first_line(getattr(owner, name))} |" for name in names]
        parts.append("")
    return "\n".join(parts).rstrip()


def fields() -> str:
    """Return the small objects that are only read."""
    lines = ["| from | fields |", "|---|---|"]
    for owner, where in LISTED.items():
        names = getattr(owner, "_fields", None) or list(inspect.get_annotations(owner))
        lines.append(f"| {where} | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(lines)


def functions() -> str:
    """Return what `respool.replay` has for code: the library behind the commands."""
    lines = ["| from | function | |", "|---|---|---|"]
    for module, names in FUNCTIONS.items():
        found = importlib.import_module(module)
        for name in names:
            parameters = inspect.signature(getattr(found, name)).parameters.values()
            kept = ", ".join(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
            more = ", ".join(f"{p.name}=" for p in parameters if p.kind is p.KEYWORD_ONLY)
            text = f"{name}({', '.join(filter(None, (kept, more)))})"
            lines.append(f"| `{module}` | `{text}` | {first_line(getattr(found, name))} |")
    return "\n".join(lines)


def error_tree() -> str:
    """Return the tree at the top of errors.py, and which of it `respool` itself exports."""
    doc = inspect.getdoc(errors) or ""
    tree = doc.partition("\n\n")[2]
    known = set(re.findall(r"[A-Z]\w+(?= {2,}|\n|$)", tree)) & set(vars(errors))
    apart = sorted(known - set(respool.__all__))
    where = "All are in `respool.errors`, and in `respool` itself"
    if apart:
        where += f", but for these: {', '.join(f'`{name}`' for name in apart)}"
    return f"```text\n{tree}\n```\n\n{where}."


def capabilities() -> str:
    """Return what each engine can do."""
    questions = {
        "one_transaction": "log and state change in one transaction (P4)",
        "many_hosts": "workers on many machines",
        "id_index": "a record is found by any id",
        "durable": "survives the process",
        "enlists": "calls within a transaction of your own",
        "keeps_positions": "records that are moved here keep their offsets",
        "numbers_first": "records that are committed late appear behind others, and are looked for there",
        "joins_work": "a run's own database work commits with its settlement",
        "foreign": "streams that other programs write",
    }
    lines = [
        "| | " + " | ".join(f"`{url}`" for url in CAPABILITIES) + " |",
        "|---" * (len(CAPABILITIES) + 1) + "|",
    ]
    for name, question in questions.items():
        answers = ("yes" if getattr(engine, name) else "no" for engine in CAPABILITIES.values())
        lines.append(f"| {question} | " + " | ".join(answers) + " |")
    return "\n".join(lines)


def table(kind: str, rows: Iterable[tuple[str, Any, str]]) -> str:
    """Return a table of names, defaults and meanings."""
    lines = [f"| {kind} | default | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | `{default!r}` | {meaning} |" for name, default, meaning in rows]
    return "\n".join(lines)


def shown(owner: type, name: str) -> str:
    """Return a member as it is written in code: `get(timeout=None, *, propagate=True)`."""
    member = inspect.getattr_static(owner, name)
    if isinstance(member, property):
        return name
    signature = inspect.signature(getattr(owner, name))
    kept = [p.replace(annotation=p.empty) for p in list(signature.parameters.values())[1:]]
    kept = [p for p in kept if p.name != "unknown"]
    text = str(signature.replace(parameters=kept, return_annotation=signature.empty)).replace(", /", "")
    prefix = "await " if inspect.iscoroutinefunction(member) else ""
    return f"{prefix}{name}{text}".replace("|", "\\|")


def first_line(thing: Any) -> str:
    """Return the first paragraph of a docstring in one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "engines.md": {"capabilities": capabilities},
    "operations.md": {"settings": settings, "options": options},
    "reference.md": {
        "members": members,
        "fields": fields,
        "functions": functions,
        "errors": error_tree,
        "commands": commands,
    },
}


def current(page: str) -> str:
    """Return a page as it should be."""
    text = (DOCS / page).read_text("utf-8")
    for name, make in TABLES[page].items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"docs/{page} has no {begin} … {end}")
        text = f"{before}{begin}\n\n{make()}\n\n{end}{after}"
    return text


def main() -> int:
    """Write the tables, or say which are not current."""
    stale = [page for page in TABLES if current(page) != (DOCS / page).read_text("utf-8")]
    for page in stale:
        if "--check" in sys.argv:
            print(f"docs/{page} is not current: run python docs/generate.py", file=sys.stderr)
        else:
            (DOCS / page).write_text(current(page), "utf-8")
            print(f"wrote docs/{page}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
