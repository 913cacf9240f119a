"""The statements of `statements.sql`, by name."""

from __future__ import annotations

import re
from importlib.resources import files


def _load() -> dict[str, str]:
    text = files(__package__).joinpath("statements.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name: _bare(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _bare(statement: str) -> str:
    lines = [line for line in statement.splitlines() if not line.lstrip().startswith("--")]
    return "\n".join(lines).strip().rstrip(";")


def schema() -> str:
    """Return the statements that create an empty database."""
    return files(__package__).joinpath("schema.sql").read_text("utf-8")


SQL = _load()
