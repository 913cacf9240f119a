"""What the disk gives, and bare SQLite on it: syncs of a page, one-row commits into a table with a unique id.

No appender that syncs every row on its own can be faster, so `delay()` is judged against it. Run as
`python -m bench.baselines [--n N] [--folder DIR]`, with apsw; prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import apsw
from bench.peers import common

NAME = "send_newsletter"
BODY = b"\x92\x01\xa4mail\xc0\xcd\x01\x00\xce\x00\x01\x00\x00\xa3end"  # 20 bytes of MessagePack
INSERT = "INSERT INTO record (name, body, id) VALUES (?, ?, ?)"


def ids(n: int) -> list[bytes]:
    """16-byte ids that sort by time, as uuid7 does."""
    base = time.time_ns() // 1_000_000
    return [(base + i // 10).to_bytes(6, "big") + i.to_bytes(4, "big") + os.urandom(6) for i in range(n)]


def commit_rate(folder: Path, *, synced: bool, n: int = 5000) -> float:
    """One-row commits a second into a WAL database in `folder` (`synchronous` FULL, or OFF).

    The warm-up writes the WAL for more commits than are timed, then restarts it at its beginning: the
    timed commits overwrite blocks that exist. No checkpoint falls into the timed part.
    """
    db = apsw.Connection(str(folder / f"commits-{'synced' if synced else 'unsynced'}.db"))
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if synced else 'OFF'}")
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute(
            "CREATE TABLE record (pos INTEGER PRIMARY KEY, name TEXT, body BLOB, id BLOB UNIQUE) STRICT"
        )
        warm_up = n + n // 5
        rows = [(NAME, BODY, i) for i in ids(warm_up + n)]
        for row in rows[:warm_up]:
            db.execute(INSERT, row)
        busy, frames, copied = db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()  # type: ignore[misc]
        if busy or frames != copied:
            raise RuntimeError(f"the WAL did not restart: busy {busy}, {copied} of {frames} frames copied")
        start = time.perf_counter()
        for row in rows[warm_up:]:
            db.execute(INSERT, row)
        return n / (time.perf_counter() - start)
    finally:
        db.close()


def sync_rate(folder: Path, n: int = 5000) -> float:
    """How often a second this disk syncs a page that is written over: what no synced append can exceed."""
    size = 16 << 20
    fd = os.open(folder / "pages", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, bytes(size))
        os.fsync(fd)
        page = b"x" * 4096
        start = time.perf_counter()
        for i in range(n):
            os.pwrite(fd, page, i * 4096 % size)
            getattr(os, "fdatasync", os.fsync)(fd)
        return n / (time.perf_counter() - start)
    finally:
        os.close(fd)


def run(n: int = 5000, folder: Path | None = None) -> dict[str, Any]:
    """All rates, in a temporary folder inside `folder` (by default the system's)."""
    with common.temp_folder(folder) as temp:
        return {
            "baseline": "one_row_commits",
            "versions": {"apsw": apsw.apsw_version(), "sqlite": apsw.sqlite_lib_version()},
            "filesystem": common.filesystem(temp),
            "n": n,
            "syncs_per_s": round(sync_rate(temp, n), 1),
            "synced_per_s": round(commit_rate(temp, synced=True, n=n), 1),
            "unsynced_per_s": round(commit_rate(temp, synced=False, n=n), 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.baselines", description="Bare SQLite commits a second"
    )
    parser.add_argument("--n", type=int, default=5000, help="commits that are timed (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure (default: the system's)")
    args = parser.parse_args()
    if args.n < 1:
        parser.error("--n must be at least 1")
    try:
        print(json.dumps(run(args.n, args.folder), indent=2))
    except common.PeerError as e:
        sys.exit(str(e))


if __name__ == "__main__":
    main()
