"""One case of Respool, as one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cases import again, appending, brokers, draining, server, starting, waiting
from bench.cases.common import FULL, QUICK, Sizes
from bench.peers import common

CASES: dict[str, Callable[[Path, Sizes], dict[str, Any]]] = {
    each.__name__: each
    for each in (
        draining.drain,
        draining.results,
        draining.batch,
        draining.ordered,
        draining.publish,
        draining.subscription,
        appending.delay_many,
        appending.delay,
        appending.delay_os,
        appending.crowd,
        waiting.get,
        waiting.priority,
        waiting.scheduled,
        waiting.idle,
        starting.startup,
        again.redrive,
        again.replay,
        again.between,
        server.enqueue_16,
        server.old_transaction,
        server.idle_queries,
        brokers.partitions,
        brokers.bare_loop,
        brokers.many_workers,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cases")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    args = parser.parse_args()
    common.leave_on_sigterm()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its byte code
    try:
        with common.temp_folder() as folder:
            done = CASES[args.case](folder, QUICK if args.quick else FULL)
    except common.PeerError as e:
        sys.exit(str(e))
    print(json.dumps(done))


if __name__ == "__main__":
    main()
