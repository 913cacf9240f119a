"""Finding the App that a command names: `shop`, `shop.py`, `shop:app`, or a function that returns one."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import FunctionType, ModuleType, TracebackType
from typing import Any

from .app import App
from .errors import ConfigError, UnknownName, suggest
from .location import parse_url
from .why import remember_spec


class AppImportError(ConfigError):
    """The app's module raised while it was imported; the cause is what it raised."""


def is_misuse(error: BaseException) -> bool:
    """Say whether a name or setting cannot be: the command was written wrongly, and ends with exit code 2.

    So does an app whose settings cannot be. One whose code fails at import is an error like any other: 1.
    """
    return isinstance(error.__cause__ if isinstance(error, AppImportError) else error, ConfigError)


def load_app(spec: str, url: str | None = None) -> App:
    """Import the App that `spec` names; `url` takes the place of its own.

    `spec` is `module`, `module:name`, `path/to/file.py` or `path/to/file.py:name`; the name may be that
    of a function without arguments that returns an App. Without a name the module's only App is meant.

    Raises: ConfigError where there is no such module or no single App; AppImportError where the module
        itself fails.
    """
    place, _, name = spec.partition(":")
    module = _module(place)
    app = _named(module, name) if name else _only(module)
    if url is not None and url != app.url:
        app.close()
        app.url, app.location = url, parse_url(url)
    remember_spec(app.name, spec, url)
    return app


def _module(place: str) -> ModuleType:
    if place.endswith(".py"):
        path = Path(place)
        if not path.exists():
            raise ConfigError(
                f"there is no file {place}; give a module or a file with an App, as in -A shop"
                f"{_near(path.stem)}"
            )
        folder, place = str(path.parent.resolve()), path.stem
    else:
        folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise ConfigError(
                f"there is no module {place!r} here ({os.getcwd()}) nor among the installed ones; -A takes "
                f"shop, shop.py or shop:app{_near(place)}"
            ) from None
        trim(error)
        raise AppImportError(f"{place} could not be imported: {error}") from error
    except SystemExit as error:
        raise _exits(place, error) from error
    except Exception as error:
        trim(error)
        if isinstance(error, ImportError) and (told := _of_a_package(error, Path(folder, f"{place}.py"))):
            raise ConfigError(told) from None
        raise AppImportError(f"{place} could not be imported: {type(error).__name__}: {error}") from error


def _of_a_package(error: ImportError, file: Path) -> str | None:
    """Say how a file is named that imports its neighbours, where that is why it could not be imported."""
    frames = _frames(error.__traceback__)
    if "relative import" not in str(error) or not frames or error.name is not None:
        return None
    if Path(frames[-1].tb_frame.f_code.co_filename).resolve() != file.resolve():
        return None
    folder = file.resolve().parent
    parts = [folder.name, file.stem]
    while (folder / "__init__.py").exists() and (folder.parent / "__init__.py").exists():
        folder = folder.parent
        parts.insert(0, folder.name)
    here = "" if folder.parent == Path.cwd() else f", where {folder.parent} is the working directory"
    return (
        f"{file.name} has relative imports, so it is part of a package: name it as a module, "
        f"-A {'.'.join(parts)}{here}"
    )


def _near(place: str) -> str:
    """Return a question after a module of a like name that is here."""
    here = Path.cwd()
    modules = [path.stem for path in here.glob("*.py")]
    modules += [path.parent.name for path in here.glob("*/__init__.py")]
    found = suggest(place, modules)
    return found if "did you mean" in found else ""


def _exits(place: str, error: SystemExit) -> AppImportError:
    trim(error)
    return AppImportError(
        f"{place} called sys.exit({error.code!r}) on import; put what is to run as a program under "
        'if __name__ == "__main__":'
    )


def trim(error: BaseException) -> None:
    """Take the frames of Respool and of Python's import system out of an error's traceback.

    What its author can mend is in the frames that are left; those of a SyntaxError are in the error itself.
    """
    kept = [tb for tb in _frames(error.__traceback__) if not _is_ours(tb.tb_frame.f_code.co_filename)]
    trimmed: TracebackType | None = None
    for tb in reversed(kept):
        trimmed = TracebackType(trimmed, tb.tb_frame, tb.tb_lasti, tb.tb_lineno)
    for other in (error.__cause__, error.__context__ if error.__context__ is not error.__cause__ else None):
        if other is not None:
            trim(other)
    error.__traceback__ = trimmed


def _frames(tb: TracebackType | None) -> list[TracebackType]:
    found = []
    while tb is not None:
        found.append(tb)
        tb = tb.tb_next
    return found


_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_IMPORTING = os.path.dirname(os.path.abspath(importlib.__file__)) + os.sep


def _is_ours(file: str) -> bool:
    return file.startswith(("<frozen importlib", _OURS, _IMPORTING))


def _named(module: ModuleType, name: str) -> App:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UnknownName("App", part, _candidates(found), f"in {module.__name__}")
        found = getattr(found, part)
    if isinstance(found, FunctionType):
        try:
            found = found()
        except SystemExit as error:
            raise _exits(f"{module.__name__}:{name}()", error) from error
        except Exception as error:
            trim(error)
            raise AppImportError(
                f"{module.__name__}:{name}() failed: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(found, App):
        raise ConfigError(f"{module.__name__}:{name} is {type(found).__name__}, not an App")
    return found


def _candidates(place: Any) -> list[str]:
    """Return what there is that is an App, or may return one."""
    return [
        name
        for name, value in vars(place).items()
        if isinstance(value, App)
        or (isinstance(value, FunctionType) and value.__module__ == getattr(place, "__name__", None))
    ]


def _only(module: ModuleType) -> App:
    found = {id(value): name for name, value in vars(module).items() if isinstance(value, App)}
    if len(found) == 1:
        return getattr(module, next(iter(found.values())))  # type: ignore[no-any-return]
    if not found:
        raise ConfigError(f"module {module.__name__} has no App; it needs: app = App({module.__name__!r})")
    names = ", ".join(f"{module.__name__}:{name}" for name in found.values())
    raise ConfigError(f"module {module.__name__} has several Apps; say which: {names}")
