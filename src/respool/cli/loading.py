"""Which App a command is about: as -A says, else RESPOOL_APP, else [tool.respool] in pyproject.toml."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, suggest

if TYPE_CHECKING:
    from ..app import App


def load_app(spec: str | None = None, url: str | None = None) -> App:
    """Return the App that a command line means.

    Parameters:
        spec: `shop`, `shop.py`, `shop:app` or `pkg.mod:factory`; None: look where the App is named.
        url: takes the place of the App's own.

    Raises: ConfigError where none is named, or it is not there; AppImportError where its module fails.
    """
    from ..loading import AppImportError
    from ..loading import load_app as load

    try:
        return load(require_spec(spec), url)
    except ConfigError as error:
        if spec or isinstance(error, AppImportError) or not (found := os.environ.get("RESPOOL_APP")):
            raise
        raise ConfigError(f"RESPOOL_APP={found}: {error}") from None


def require_spec(given: str | None) -> str:
    """Return what names the App, as `find_spec`. Raises ConfigError where nothing does, or it cannot be."""
    found = find_spec(given)
    if found is None:
        raise ConfigError(
            "no app: name it with -A shop (or shop.py, shop:app), with RESPOOL_APP=shop, or in "
            'pyproject.toml: [tool.respool] app = "shop"'
        )
    _check_file(found)
    return found


def find_spec(given: str | None) -> str | None:
    """Return what names the App: -A's value, else RESPOOL_APP, else pyproject.toml's; None: nothing does."""
    if given:
        return given
    return os.environ.get("RESPOOL_APP") or _of_project()


def _of_project() -> str | None:
    here = Path.cwd()
    for folder in (here, *here.parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            spec = _read(path)
            return spec if spec is None or folder == here else _from_there(folder, spec)
    return None


def _read(path: Path) -> str | None:
    try:
        table: Any = tomllib.loads(path.read_text("utf-8")).get("tool", {}).get("respool", {})
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    unknown = [key for key in table if key != "app"]
    if unknown:
        raise ConfigError(
            f"{path}: [tool.respool] has no setting {unknown[0]!r}{suggest(unknown[0], ['app'])}"
        )
    spec = table.get("app")
    if spec is not None and (not isinstance(spec, str) or not spec):
        raise ConfigError(f'{path}: [tool.respool] app = {spec!r} is not text like "shop:app"')
    return spec


def _from_there(folder: Path, spec: str) -> str:
    """Make a name that holds beside pyproject.toml hold here, and in the processes that a worker starts."""
    place, colon, name = spec.partition(":")
    if place.endswith(".py"):
        return f"{folder / place}{colon}{name}"
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return spec


def _check_file(spec: str) -> None:
    """A file given where a module is meant, and the other way round, is what people do most."""
    place = spec.partition(":")[0]
    if not place.endswith(".py") and ("/" in place or os.sep in place):
        hint = f"; did you mean {place}.py?" if Path(f"{place}.py").is_file() else ""
        raise ConfigError(f"-A {spec}: {place!r} is neither a module's name nor a .py file{hint}")
    if not place:
        raise ConfigError(f"-A {spec}: give a module or a file before the colon, as in shop:app")
