"""The statements of `statements.sql`, by name, for a schema."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any

DEFAULT_SCHEMA = "respool"
GROUP_LOCKS = 0x5265
"""The first half of a group's advisory lock; the second is its number."""
LIMITS_LOCK = 0x5269
"""That of the buckets of limits, taken after the group's."""
_OURS = re.compile(r"respool\.(?<!\wrespool\.)")
"""As \\brespool\\. is, which would be searched for letter by letter."""


def _read(name: str) -> str:
    """Return a file beside this one; importlib.resources would take longer to import than all the rest."""
    loader: Any = __spec__.loader
    text: bytes = loader.get_data(os.path.join(os.path.dirname(__file__), name))
    return text.decode()


@cache
def statements(schema: str) -> dict[str, bytes]:
    """Return every statement, with the schema's name in place of `respool`."""
    text = in_schema(_uncommented(), schema)
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {
        name: body.strip().rstrip(";").encode() for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def in_schema(text: str, schema: str) -> str:
    """Return statements that name the schema, quoted where it needs to be."""
    there = quoted(schema) + "."
    return text if schema == DEFAULT_SCHEMA else _OURS.sub(lambda _: there, text)


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL: whatever is not ours may be a word of SQL's."""
    return name if name == DEFAULT_SCHEMA else '"' + name.replace('"', '""') + '"'


def schema_text(schema: str) -> str:
    """Return the statements that create an empty schema."""
    text = in_schema(_read("schema.sql"), schema)
    return text.replace(
        "CREATE SCHEMA IF NOT EXISTS respool;", f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)};"
    )


def indexes(schema: str) -> dict[str, str]:
    """Return the statements that create the schema's indexes, by name."""
    each = re.finditer(r"^CREATE (?:UNIQUE )?INDEX (\w+) [^;]+;", _read("schema.sql"), flags=re.MULTILINE)
    return {found[1]: in_schema(found[0], schema) for found in each}


def grants_text(schema: str, role: str, owner: str) -> str:
    """Return the statements that give a role what it needs to send; `owner` is quoted where need be."""
    text = in_schema(_read("grants.sql"), schema).replace("SCHEMA respool", f"SCHEMA {quoted(schema)}")
    return text.replace("respool_owner", owner).replace("respool_role", quoted(role))


@cache
def _uncommented() -> str:
    """Return all statements without the lines that are comments, but for those that name them."""
    return re.sub(r"^[ \t]*--(?! name: ).*\n", "", _read("statements.sql"), flags=re.MULTILINE)
