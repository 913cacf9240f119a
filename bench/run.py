"""The benchmarks: Respool, Celery with Redis and Huey with SQLite, alternately, and the table of figures.

`make bench` runs it; `make bench ENGINE=postgres` on PostgreSQL, beside Procrastinate; `make bench
ARGS=--quick`, `ARGS='--only drain --only huey_sqlite'`, `ARGS=--readme`.
Results go to bench/results: those of a whole run (at least three rounds) to latest.json, others to
partial.json. The exit status is 1 if something could not be measured, not if a figure was missed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # started as a script: it is the root that `bench` is found in
    sys.path[0] = str(ROOT)

from bench import rows as table  # noqa: E402
from bench.cases.common import FULL, QUICK, Sizes  # noqa: E402
from bench.peers import common  # noqa: E402
from rich.box import SIMPLE_HEAD  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.table import Table  # noqa: E402

RESULTS = ROOT / "bench" / "results"
PEER_PYTHON = ROOT / "bench" / ".venv" / "bin" / "python"
README = ROOT / "README.md"
MARKS = "<!-- figures of {engine}: begin -->", "<!-- figures of {engine}: end -->"  # around a table
PEERS = ("celery_redis", "huey_sqlite", "procrastinate_postgres")
# The order of a round, every second round backwards: ours and theirs alternate.
STEPS = (
    "drain",
    "celery_redis",
    "results",
    "batch",
    "ordered",
    "delay_many",
    "publish",
    "subscription",
    "huey_sqlite",
    "delay",
    "baselines",
    "delay_os",
    "crowd",
    "get",
    "priority",
    "scheduled",
    "redrive",
    "replay",
    "between",
    "idle",
    "startup",
)
POSTGRES_STEPS = (
    "drain",
    "procrastinate_postgres",
    "results",
    "batch",
    "ordered",
    "delay_many",
    "delay",
    "enqueue_16",
    "get",
    "priority",
    "scheduled",
    "redrive",
    "replay",
    "old_transaction",
    "idle_queries",
)
KAFKA_STEPS = (
    "drain",
    "partitions",
    "results",
    "batch",
    "ordered",
    "publish",
    "bare_loop",
    "subscription",
    "delay_many",
    "delay",
    "get",
    "priority",
    "scheduled",
    "redrive",
    "replay",
    "many_workers",
)
ENGINES = {"sqlite": STEPS, "postgres": POSTGRES_STEPS, "kafka": KAFKA_STEPS}
QUIET = 0.2  # busy cores before a round, above which its figures are doubtful
TIMEOUT = 300.0


def measure(step: str, sizes: Sizes, peer_python: Path, *, quick: bool) -> dict[str, Any]:
    """One step, in processes of its own."""
    if step in PEERS:
        return common.run_peer(step, peer_python, sizes.peer_n, sizes.gets, TIMEOUT)
    if step == "baselines":
        return common.run_json([sys.executable, "-m", "bench.baselines", "--n", str(sizes.singles)], TIMEOUT)
    return common.run_json(
        [sys.executable, "-m", "bench.cases", step, *(["--quick"] if quick else [])], TIMEOUT
    )


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All rounds; what `latest.json` holds."""
    sizes = QUICK if args.quick else FULL
    steps = [step for step in ENGINES[args.engine] if not args.only or step in args.only]
    rounds: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    busy: list[float] = []
    started = datetime.datetime.now(datetime.UTC)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn only between steps: whatever draws takes time from what is measured.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        bar = progress.add_task("", total=args.rounds * len(steps))
        for number in range(args.rounds):
            busy.append(round(common.busy_cores(), 2))
            if busy[-1] > QUIET:
                console.print(
                    f"[yellow]{busy[-1]} cores are busy before round {number + 1}[/]", highlight=False
                )
            done: dict[str, Any] = {}
            rounds.append(done)
            for step in steps if number % 2 == 0 else reversed(steps):
                what = f"round {number + 1} of {args.rounds}: {step}"
                progress.update(bar, description=what)
                progress.refresh()
                began = time.monotonic()
                try:
                    done[step] = measure(step, sizes, args.peer_python, quick=args.quick)
                except (common.PeerError, OSError, ValueError) as error:
                    failures.setdefault(step, str(error))
                    console.print(f"[red]{what} failed:[/] {escape(shortened(str(error)))}", highlight=False)
                else:
                    console.print(f"{what}: {time.monotonic() - began:.1f} s", highlight=False)
                progress.advance(bar)
    return {
        "date": started.isoformat(timespec="seconds"),
        "complete": not (args.quick or args.only) and args.rounds >= 3,
        "quick": args.quick,
        "commit": commit(),
        "machine": machine(),
        "busy_cores_before": busy,
        "engine": args.engine,
        "table": table.lines(sizes, rounds, failures, args.engine),
        "failures": failures,
        "rounds": rounds,
    }


@contextlib.contextmanager
def server(engine: str) -> Iterator[None]:
    """A server of the run's own, whose URL the cases and peers find in their environment."""
    if engine == "sqlite":
        yield
        return
    from tests.services.postgres import PostgresServer

    with PostgresServer() as started:
        url = started.create_database("bench", "template0")
        started.address.execute(
            "CREATE TABLE bare (name text, body bytea, id bytea UNIQUE)", database="bench"
        )
        os.environ[common.DATABASE] = url
        if engine != "kafka":
            yield
            return
        from tests.services.kafka import KafkaServer

        with KafkaServer() as broker:
            os.environ[common.BROKER] = broker.url()
            yield


def shortened(message: str) -> str:
    kept = [line[:300] for line in message.splitlines() if line.strip()]
    return "\n".join(kept if len(kept) <= 6 else [kept[0], "…", *kept[-4:]])


def commit() -> str:
    """The commit that is measured, marked where the sources differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run([*git, "status", "--porcelain", "--", "src"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        model = platform.processor()
    try:
        with common.temp_folder() as folder:
            kind = common.filesystem(folder)
    except common.PeerError as error:
        kind = str(error)
    return {
        "cores": os.cpu_count(),
        "model": model,
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "filesystem": kind,
    }


def heading(results: Mapping[str, Any]) -> str:
    at = results["machine"]
    count = len(results["rounds"])
    rounds = f"{count} round{'s' if count != 1 else ''}{', quick' if results['quick'] else ''}"
    processor = f"{at['cores']} cores" + (f" ({at['model']})" if at["model"] else "")
    return (
        f"{results['date'][:10]}, commit {results['commit']}, {rounds}; {processor}, "
        f"{at['system']}, {at['python']}, {at['filesystem']}"
    )


def peers_of(results: Mapping[str, Any]) -> str:
    """The versions that were measured, as far as any were."""
    found: dict[str, str] = {}
    for done in results["rounds"]:
        for step, names in (
            ("celery_redis", ("celery", "redis-server")),
            ("huey_sqlite", ("huey", "sqlite")),
            ("procrastinate_postgres", ("procrastinate",)),
        ):
            versions = done.get(step, {}).get("versions", {})
            found |= {name: versions[name] for name in names if name in versions}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def show(results: Mapping[str, Any], console: Console) -> None:
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=True)
    shown.add_column("work", ratio=1)
    for name in ("asked", "median", "min–max"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("reached", no_wrap=True)
    for line in results["table"]:
        colour = {True: "green", False: "red"}.get(line.get("reached"), "red" if line["failed"] else "")
        text = table.verdict(line)
        cells = (line["work"], line["asked"], line.get("median", "–"), table.spread(line))
        shown.add_row(*cells, f"[{colour}]{text}[/]" if colour and text else text)
    console.print(heading(results), highlight=False, style="dim")
    console.print(shown)
    if peers := peers_of(results):
        console.print(peers, highlight=False, style="dim")
    for step, why in results["failures"].items():
        console.print(f"[red]{step} failed:[/] {escape(shortened(why))}", highlight=False)


def markdown(results: Mapping[str, Any]) -> str:
    """What goes between the marks in the README."""
    at, engine = results["machine"], results["engine"]
    again = "make bench" if engine == "sqlite" else f"make bench ENGINE={engine}"
    peers = peers_of(results)
    lines = [
        f"Measured on {results['date'][:10]} at commit {results['commit']}, on {at['cores']} cores "
        f"({at['model'] or 'unknown'}), {at['system']}, {at['python']}, {at['filesystem']}"
        f"{peers and f'; beside it {peers}'}. Medians of {len(results['rounds'])} rounds; again: `{again}`.",
        "",
        "| work | asked | median | min–max | reached |",
        "|---|---:|---:|---:|---|",
    ]
    for line in results["table"]:
        work = line["work"]
        shown = f"&nbsp;&nbsp;{work.strip()}" if work.startswith(" ") else work
        cells = (shown, line["asked"], line.get("median", "–"), table.spread(line), table.verdict(line))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_readme(results: Mapping[str, Any], readme: Path) -> None:
    text = readme.read_text("utf-8")
    first, last = (mark.format(engine=results["engine"]) for mark in MARKS)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        sys.exit(f"{readme} has no {first} … {last} to write the table between")
    new = f"{before}{begin}\n{markdown(results)}\n{end}{after}"
    part = readme.with_name(readme.name + ".part")
    part.write_text(new, "utf-8")
    part.replace(readme)


def latest(engine: str) -> Path:
    """Where the last whole run on an engine is kept."""
    return RESULTS / ("latest.json" if engine == "sqlite" else f"latest-{engine}.json")


def keep(results: Mapping[str, Any]) -> Path:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = latest(results["engine"]) if results["complete"] else RESULTS / "partial.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    part.replace(path)
    return path


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description="Respool beside its peers")
    parser.add_argument("--rounds", type=int, help="default: 3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a first look")
    parser.add_argument("--only", action="append", metavar="CASE", help=f"again for more: {', '.join(STEPS)}")
    parser.add_argument("--engine", choices=ENGINES, default="sqlite", help="what the log is on")
    parser.add_argument(
        "--readme", action="store_true", help="measure nothing: the last whole runs into the README"
    )
    parser.add_argument("--peer-python", type=Path, default=PEER_PYTHON, help="has the peers installed")
    args = parser.parse_args(argv)
    if wrong := sorted(set(args.only or ()) - set(ENGINES[args.engine])):
        parser.error(f"--only {wrong[0]}: on {args.engine} there are {', '.join(ENGINES[args.engine])}")
    if args.rounds is None:
        args.rounds = 1 if args.quick else 3
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parsed(argv)
    if args.readme:
        measured = [path for path in map(latest, ENGINES) if path.exists()]
        if not measured:
            sys.exit(f"{latest('sqlite')} is not there yet: make bench")
        for path in measured:
            write_readme(json.loads(path.read_text("utf-8")), README)
            print(f"wrote the figures of {path.name} to {README}")
        return 0
    common.leave_on_sigterm()
    wide = Console()
    console = wide if wide.is_terminal and wide.width <= 100 else Console(width=100)
    try:
        with server(args.engine):
            results = run(args, console)
    except KeyboardInterrupt:
        print("interrupted; what was started is stopped", file=sys.stderr)
        return 130
    path = keep(results)
    show(results, console)
    console.print(f"[dim]{path.relative_to(ROOT)}[/]", highlight=False)
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
