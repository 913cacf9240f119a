"""Whether a file can be used, and creating the tables where it is empty."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import apsw

from ...errors import ConfigError, EngineTooOld, SchemaTooNew
from .connection import Connection, path_of, roll_back
from .sql import schema

SCHEMA_VERSION = 1
APPLICATION_ID = 0x5265_7370  # "Resp"
SAFE_SQLITE = (3, 51, 3)
"""Versions 3.7.0 to 3.51.2 can corrupt a WAL database with two checkpointing connections (S2): see
https://sqlite.org/wal.html, "The WAL-reset bug"."""

_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "fuse.sshfs"}


def prepare(target: str, timeout: float, pragmas: dict[str, str] | None = None) -> Any:
    """Create the schema where the database is empty; refuse unsafe places, versions and other files.

    Returns what identifies the file.
    """
    path = path_of(target)
    version = apsw.sqlite_lib_version()  # of the library in use, which need not be the one built against
    if tuple(map(int, version.split("."))) < SAFE_SQLITE:
        raise EngineTooOld(
            f"SQLite {version} can corrupt a database that several processes write; "
            "at least 3.51.3 is needed: pip install -U apsw"
        )
    if path:
        refuse_network_file_system(Path(path))
    where = path or target
    connection = Connection(
        target, synced=True, timeout=timeout, pragmas=pragmas, look=lambda db: _look(db, where)
    )
    try:
        with connection.waiting() as db:
            _create_or_check(db, where)
    except apsw.Error as error:
        raise connection.not_opened(error) from error
    finally:
        connection.close()
    return connection.identity


def _look(db: apsw.Connection, where: str) -> None:
    db.execute("BEGIN")  # somebody may be creating it at this moment
    try:
        _check_whose(db, where)
    finally:
        if not db.get_autocommit():
            db.execute("COMMIT")


def _check_whose(db: apsw.Connection, where: str) -> None:
    """Raise ConfigError for somebody else's database, SchemaTooNew for one of a later Respool."""
    if not _check_version(db, where) and db.execute("SELECT count(*) FROM sqlite_schema").get:
        raise ConfigError(f"{where} is a database of something else; give Respool a file of its own")


def _create_or_check(db: apsw.Connection, where: str) -> None:
    if _check_version(db, where):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        if not _check_version(db, where):  # nobody was faster
            _check_whose(db, where)
            db.execute(schema())
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if not db.get_autocommit():
            roll_back(db)
        raise


def _check_version(db: apsw.Connection, where: str) -> bool:
    version = db.execute("PRAGMA user_version").get
    ours = db.execute("PRAGMA application_id").get == APPLICATION_ID
    if ours and version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{where} was written by a newer Respool (schema {version}, this one knows {SCHEMA_VERSION}): "
            "pip install -U respool"
        )
    return bool(ours and version == SCHEMA_VERSION)


def refuse_network_file_system(path: Path) -> None:
    """Raise ConfigError where the path lies on a file system whose locks cannot be trusted (S2)."""
    kind = file_system(path)
    if kind in _REMOTE:
        raise ConfigError(
            f"{path} is on a network file system ({kind}), where SQLite's locks are not safe; "
            "use a local disk, or another engine's URL"
        )


def file_system(path: Path) -> str | None:
    """Return the kind of file system a path lies on, None where the system does not tell."""
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists():
        return None
    real = os.path.realpath(path)
    best, kind = "", None
    for line in mounts.read_text("utf-8", "surrogateescape").split("\n"):
        left, _, right = line.partition(" - ")
        if not right:
            continue
        point = _unescaped(left.split(" ")[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def _unescaped(point: str) -> str:
    """Return a mount point as it is called: blanks and the like are given as octal bytes."""
    raw = os.fsencode(point)
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8) & 255]), raw))
