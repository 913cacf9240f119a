"""The statements of `statements.sql`, by name."""

from __future__ import annotations

import os
import re
from typing import Any


def _read(name: str) -> str:
    """Return a file beside this one; importlib.resources would take longer to import than all the rest."""
    loader: Any = __spec__.loader
    text: bytes = loader.get_data(os.path.join(os.path.dirname(__file__), name))
    return text.decode()


def _load() -> dict[str, str]:
    text = _read("statements.sql")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name: _bare(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _bare(statement: str) -> str:
    lines = [line for line in statement.splitlines() if not line.lstrip().startswith("--")]
    return "\n".join(lines).strip().rstrip(";")


def schema() -> str:
    """Return the statements that create an empty database."""
    return _read("schema.sql")


SQL = _load()
