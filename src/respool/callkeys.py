"""A text made of a call's arguments: whose limit it counts against, what it is the only one of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import BadArguments, ConfigError, suggest

LONGEST = 200  # bytes


class CallKey:
    """A task's option that names a parameter, or is a function of the call's arguments.

    Parameters:
        what: the option, for messages: "task send: limit_key".
        given: a parameter's name, or a function that is called with a call's arguments.
        fn: the task's function, and whether its first parameter is `self`.

    Raises: ConfigError where there is no such parameter.
    """

    def __init__(
        self, what: str, given: str | Callable[..., Any], fn: Callable[..., Any], bound: bool
    ) -> None:
        self._what = what
        self._call: Callable[..., Any]
        if callable(given):
            self._call = given
            return
        parameters = list(inspect.signature(fn).parameters.values())[bound:]
        names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if given not in names:
            raise ConfigError(f"{what}: the function has no parameter {given!r}{suggest(given, names)}")
        signature = inspect.Signature(parameters)

        def pick(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs)
            arguments.apply_defaults()
            return arguments.arguments[given]

        self._call = pick

    def of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return a call's key. Raises BadArguments where there is none, and says why."""
        try:
            key = self._call(*args, **kwargs)
        except Exception as error:
            raise BadArguments(f"{self._what} raised {type(error).__name__}: {error}") from error
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise BadArguments(f"{self._what} gave {key!r:.80}, which is neither text nor a whole number")
        text = str(key)
        if len(text.encode("utf-8", "surrogatepass")) > LONGEST:
            raise BadArguments(f"{self._what} gave text of more than {LONGEST} bytes: {text[:40]!r}…")
        # What is no text (a lone surrogate), or none to each engine, is written out.
        return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
