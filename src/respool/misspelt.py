"""Options of our own methods that are misspelt, or Celery's: the error says what is meant."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from .celery_names import instead
from .errors import UnknownName

F = TypeVar("F", bound=Callable[..., Any])


def suggests(kind: str, celerys: Mapping[str, str] | None = None) -> Callable[[F], F]:
    """Have a method raise UnknownName, which suggests the near one, for an option that it does not have.

    Parameters:
        kind: what such a name is called: "queue option".
        celerys: names of Celery's, with what to use instead.
    """

    def decorated(method: F) -> F:
        known = frozenset(list(inspect.signature(method).parameters)[1:])

        @functools.wraps(method)
        def checked(self: Any, *args: Any, **given: Any) -> Any:
            if given and not known.issuperset(given):
                name = next(name for name in given if name not in known)
                raise UnknownName(kind, name, known, instead=instead(dict(celerys or {}), name))
            return method(self, *args, **given)

        return cast(F, checked)

    return decorated
