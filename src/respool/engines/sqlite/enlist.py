"""Connections of the caller's own, for appends within their transactions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import apsw

from ...errors import ConfigError


def checked(connection: Any, path: Path | None) -> apsw.Connection:
    """Return the connection, if it is apsw's, on the log's file, and in a transaction.

    Another driver has a copy of SQLite of its own, which would drop this one's locks when it closes (S1).
    """
    if not isinstance(connection, apsw.Connection):
        raise ConfigError(
            "the log is in SQLite, whose transactions take an apsw.Connection, not "
            f"{type(connection).__name__}: another driver in this process would break the file's locks; "
            "open the file with apsw"
        )
    theirs = connection.db_filename("main")
    if path is None or not theirs or not os.path.exists(theirs) or not os.path.samefile(theirs, path):
        raise ConfigError(
            f"the connection is on {theirs or 'a database in memory'}, "
            f"the log on {path or 'another in memory'}: a transaction can hold both only in one file"
        )
    if connection.get_autocommit():
        raise ConfigError("the connection is in no transaction: begin one first (BEGIN IMMEDIATE)")
    return connection
