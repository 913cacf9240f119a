"""The debugger that `rerun --trace` stops in."""

from __future__ import annotations

import pdb
from collections.abc import Callable
from types import FrameType
from typing import Any


class Debugger(pdb.Pdb):
    """Stops at the first line of a task's function, whatever leads there.

    `left`: whether it was left by `q` before the function came to its end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left = False
        self._code: Any = None  # of the function; None once it was reached, or where it has none

    def run_task(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call what `rerun` gives; return what that returns."""
        self._code = getattr(getattr(function, "__wrapped__", None), "__code__", None)
        return self.runcall(function, *args, **kwargs)

    def dispatch_call(self, frame: FrameType, arg: Any) -> Any:
        """Begin at the function's own frame. A coroutine's is entered by the event loop."""
        if self._code is None:
            return super().dispatch_call(frame, arg)
        if frame.f_code is not self._code:
            return None
        self._code, self.botframe = None, frame.f_back
        return self.trace_dispatch

    def set_quit(self) -> None:
        """Note it: what is quit so returns None, as if it had come to its end."""
        self.left = True
        super().set_quit()
