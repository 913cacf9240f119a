"""`python -m tests.services`: get what is missing, start the services, and stop them on Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack
from typing import NoReturn

from tests.services.install import prepare
from tests.services.kafka import KafkaServer
from tests.services.pgbouncer import PgBouncer
from tests.services.postgres import PostgresServer
from tests.services.process import ServiceError
from tests.services.versions import OTHERS

SERVICES = ("postgres", *OTHERS, "pgbouncer", "kafka")


def services(text: str) -> list[str]:
    """Return the services of a list with commas."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = sorted(set(names) - set(SERVICES))
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"no such service: {', '.join(unknown) or text!r}; there are {', '.join(SERVICES)}"
        )
    return names


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.services", description=__doc__)
    parser.add_argument(
        "--only", type=services, default=list(SERVICES), metavar="A,B", help=f"of {', '.join(SERVICES)}"
    )
    parser.add_argument("--prepare", action="store_true", help="only get what is missing: nothing is started")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        prepare(chosen.only, lambda text: print(text, flush=True))
        if not chosen.prepare:
            with ExitStack() as stack:
                _start(chosen.only, stack)
                print("Ctrl-C stops them.", flush=True)
                signal.pause()
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def _start(names: list[str], stack: ExitStack) -> None:
    """Start services; print a line for each."""
    server: PostgresServer | None = None
    if "postgres" in names or "pgbouncer" in names:
        server = stack.enter_context(PostgresServer())
        _say("postgres", server.url())
    for name, version in OTHERS.items():
        if name in names:
            _say(name, stack.enter_context(PostgresServer(version.programs())).url())
    if "pgbouncer" in names and server is not None:
        _say("pgbouncer", stack.enter_context(PgBouncer(server.address)).url())
    if "kafka" in names:
        _say("kafka", stack.enter_context(KafkaServer()).url())


def _say(name: str, url: str) -> None:
    print(f"{name:<10} {url}", flush=True)


def _terminated(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
