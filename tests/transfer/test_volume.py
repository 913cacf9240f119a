"""Many records: memory does not grow with the log, and the rate is what it should be."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.engines.kits import KITS
from tests.services.fixtures import KafkaAddress

from respool.engines.moving import NOT_MOVED, STATE_TABLES, WITH_LOG

SOURCES = str(Path(sys.modules["respool"].__file__ or "").parents[1])
RECORDS = 200_000
SCRIPT = """
import os, resource, sys, time
from respool.location import parse_url
from respool.delivery.claim import Request, claim
from respool.delivery.model import Settlement
from respool.delivery.settle import settle
from respool.engines import open_engine
from respool.engines.base import Reads
from respool.record import new_head
from respool.transfer import transfer

source, target = (open_engine(parse_url(url), "os", 30.0) for url in sys.argv[1:3])
records, size = int(sys.argv[3]), int(sys.argv[4])
queue = source.create_stream("queue", "shop", "default", 1, {})
chunk = min(5000, 1_000_000 // size)
for n in range(0, records, chunk):
    bodies = [b"x" * size] * min(chunk, records - n)
    source.append_run(queue.logs[0], "add", bodies, None, new_head(n + 1.0), n + 1.0)
main = source.groups()[0]
for n in range(records // 8192):
    lease = source.transact(
        Reads(main.id, positions=True), lambda v, c: claim(v, c, Request(4096, 1, 0, n + 1, 1.0))
    )
    done = [(s.lo, s.hi) for s in lease.spans]
    results = [(p, b"r" * 20) for lo, hi in done for p in range(lo, hi)]
    said = Settlement(lease.id, 1, done, results=results)
    source.transact(Reads(main.id, (lease.id,)), lambda v, c: settle(v, c, said))

def rss():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")  # the peak is measured anew
before, began, spent = rss(), time.monotonic(), time.process_time()
done = transfer(source, target)
print(done.records, time.monotonic() - began, time.process_time() - spent, rss() - before)
"""


def move(source: str, target: str, records: int, size: int) -> tuple[int, float, float, int]:
    """Move so many records; return how many, the seconds, those of the processor, KiB that it grew by."""
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, source, target, str(records), str(size)],
        env={"PYTHONPATH": SOURCES, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stderr
    moved, seconds, spent, grown = ran.stdout.split()
    return int(moved), float(seconds), float(spent), int(grown)


@pytest.fixture
def urls(tmp_path: Path, session_database: str, kafka: KafkaAddress) -> dict[str, str]:
    server = f"{session_database}?schema=s{uuid.uuid4().hex[:12]}"
    state = quote(f"sqlite:///{tmp_path / 'state.db'}", safe="")
    return {
        "file": f"sqlite:///{tmp_path / 'a.db'}",
        "other": f"sqlite:///{tmp_path / 'b.db'}",
        "server": server,
        "kafka": f"{kafka.url()}?prefix=t{uuid.uuid4().hex[:12]}-&state={state}",
    }


WAYS = [("file", "server"), ("server", "file"), ("file", "other"), ("file", "kafka"), ("kafka", "file")]


@pytest.mark.parametrize("way", WAYS, ids="-to-".join)
def test_memory_does_not_grow_with_the_log(urls: dict[str, str], way: tuple[str, str]) -> None:
    """With half as many results besides. The rate is that of the processor: others use the machine too."""
    moved, seconds, spent, grown = move(urls[way[0]], urls[way[1]], RECORDS, 100)
    print(f"{way}: {moved / seconds:,.0f} records/s ({moved / spent:,.0f} busy), {grown / 1024:.1f} MiB more")
    assert moved == RECORDS
    on_kafka = "kafka" in way  # the client reads ahead; a header is packed for each record
    assert grown < (64 if on_kafka else 48) * 1024
    assert moved / spent > (25_000 if on_kafka else 50_000)


@pytest.mark.parametrize("way", [*WAYS[:2], *WAYS[3:]], ids="-to-".join)
def test_memory_does_not_grow_with_the_size_of_records(urls: dict[str, str], way: tuple[str, str]) -> None:
    """Without a bound in bytes a page would hold all that is moved here, 238 MiB, and that more than once."""
    moved, _, _, grown = move(urls[way[0]], urls[way[1]], 2500, 100_000)
    print(f"{way}: {grown / 1024:.1f} MiB more")
    assert moved == 2500
    on_kafka = "kafka" in way  # the client has what is on its way besides: 60 to 100 MiB were seen
    assert grown < (128 if on_kafka else 64) * 1024


@pytest.mark.parametrize("kit", ["sqlite-memory", "postgres"])
def test_every_table_is_moved_or_named(request: pytest.FixtureRequest, tmp_path: Path, kit: str) -> None:
    """A table or a column that is added later is not forgotten."""
    made: Any = KITS[kit](request, tmp_path, "full")
    engine: Any = made.open()
    if kit == "postgres":
        rows = engine._reader.read(
            lambda db: db.execute(
                "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
                "WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind IN ('r', 'p') "
                "AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped",
                (made.schema,),
            ).fetchall()
        )
    else:
        with engine._reader.lock, engine._reader.reading() as db:
            rows = db.execute(
                "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c "
                "WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
            ).fetchall()
    tables: dict[str, set[str]] = {}
    for table, column in rows:
        tables.setdefault(table, set()).add(column)
    assert set(tables) - set(STATE_TABLES) - NOT_MOVED - WITH_LOG == set()
    for name, table in STATE_TABLES.items():
        assert {"grp", *table.columns} == tables[name], name
    made.remove()
