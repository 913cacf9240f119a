"""Inputs and outcomes of calls, decoded for people and for scripts, without the app's code."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..codec import codec_for
from ..errors import RespoolError
from ..record import Meta
from ..refusals import brief
from ..remote import error_summary


class Input(NamedTuple):
    """What a record carries: a call's arguments, an event's value, or why it cannot be read."""

    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    value: Any = None
    error: str | None = None

    def data(self) -> dict[str, Any]:
        """Return it for JSON."""
        if self.error is not None:
            return {"error": self.error}
        return {"value": self.value} if self.args is None else {"args": self.args, "kwargs": self.kwargs}

    def text(self, task: str, limit: int = 80) -> str:
        """Return it as Python would write the call, cut at `limit`."""
        if self.error is not None:
            return f"({self.error})"
        if self.args is None:
            return brief(self.value, limit)
        parts = [brief(each, limit) for each in self.args]
        parts += [f"{name}={brief(each, limit)}" for name, each in (self.kwargs or {}).items()]
        text = f"{task}({', '.join(parts)})"
        return text if len(text) <= limit else text[: limit - 1] + "…"


def read_input(kind: str, body: bytes | None, size: int, meta: Meta, pickle_key: bytes | None) -> Input:
    """Decode a record's body. What cannot be decoded, or was not fetched, is said instead."""
    if body is None:
        return Input(error=f"{size:,} bytes")
    if meta.version != 1:
        return Input(error=f"written in a form of version {meta.version}, unknown here")
    try:
        codec = codec_for(meta.content_type or ("msgpack" if kind == "queue" else "json"), pickle_key)
        value = codec.decode(body)
    except RespoolError as error:
        return Input(error=f"cannot be decoded: {error}")
    if kind != "queue":
        return Input(value=value)
    if (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], list)
        and isinstance(value[1], dict)
    ):
        return Input(args=value[0], kwargs=value[1])
    return Input(error=f"no call: {brief(value)}")


def summary(error: bytes | None) -> tuple[str, str]:
    """Return an encoded error's type and message."""
    if error is None:
        return "", ""
    try:
        return error_summary(error)
    except RespoolError as damaged:
        return "CorruptBody", str(damaged)


def one_line(error: bytes | None) -> str:
    """Return an encoded error as one line."""
    kind, message = summary(error)
    return f"{kind}: {message}" if message else kind


def read_result(value: bytes | None) -> tuple[Any, str | None]:
    """Return (what was returned, None), or (None, why it cannot be read)."""
    if value is None:
        return None, None
    try:
        return codec_for("msgpack").decode(value), None
    except RespoolError as error:
        return None, f"cannot be decoded: {error}"
