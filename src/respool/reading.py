"""Inputs and outcomes of calls, decoded for people and for scripts, without the app's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .encoding.codec import codec_for
from .encoding.refusals import brief
from .encoding.remote import error_summary
from .errors import RespoolError
from .record import Meta
from .reference import is_reference, unpack

Load = Callable[[bytes], Any]
"""Fetches the payload that a reference stands for; None where it is larger than what is wanted."""


class Input(NamedTuple):
    """What a record carries: a call's arguments, an event's value, or why it cannot be read."""

    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    value: Any = None
    error: str | None = None
    blob: dict[str, Any] | None = None  # where it is, if it was not fetched

    def data(self) -> dict[str, Any]:
        """Return it for JSON."""
        if self.blob is not None:
            return {"blob": self.blob, "error": self.error}
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


def read_input(
    kind: str, body: bytes | None, size: int, meta: Meta, pickle_key: bytes | None, load: Load | None = None
) -> Input:
    """Decode a record's body. What cannot be decoded, or was not fetched, is said instead.

    Parameters:
        load: fetches a large payload from the blob store, where that is wanted.
    """
    if body is None:
        return Input(error=f"{size:,} bytes")
    if is_reference(body):
        payload, error = fetched(body, load)
        if payload is None:
            return Input(error=error, blob=where(body))
        body = payload
    if meta.damaged is not None:
        return Input(error=f"its attributes cannot be read: {meta.damaged}")
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


def fetched(body: bytes, load: Load | None) -> tuple[Any, str]:
    """Return (a large payload, ""), or (None, why it is not here)."""
    if load is None:
        return None, f"{unpack(body).size:,} bytes in the blob store"
    try:
        payload = load(body)
    except RespoolError as error:
        return None, str(error)
    return payload, f"{unpack(body).size:,} bytes in the blob store; --resolve shows them"


def where(body: bytes) -> dict[str, Any]:
    """Return where a large payload is, for JSON."""
    reference = unpack(body)
    return {"name": reference.name, "size": reference.size, "sha256": reference.digest.hex()}


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


def read_result(value: bytes | None, load: Load | None = None) -> tuple[Any, str | None]:
    """Return (what was returned, None), or (None, why it cannot be read)."""
    if value is None:
        return None, None
    if is_reference(value):
        payload, error = fetched(value, load)
        if payload is None:
            return None, error
        value = payload
    try:
        return codec_for("msgpack").decode(value), None
    except RespoolError as error:
        return None, f"cannot be decoded: {error}"
