"""A TCP proxy on 127.0.0.1 whose network breaks when told to: cut, silent, slow, or at a certain message."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from tests.services.process import free_port

T = TypeVar("T")
_PATIENCE = 20.0
_OVERLAP = 256  # bytes: what is looked for may arrive in two pieces


Pattern = bytes | re.Pattern[bytes]


class _Trap(NamedTuple):
    patterns: tuple[Pattern, ...]
    answered: bool
    refuse: bool
    sprung: threading.Event


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.tail = b""
        self.trap: _Trap | None = None  # sprung, and waiting for the answer

    def cut(self) -> None:
        """End it: the client is told by a reset; the server reads what it got, then its end."""
        self.client.transport.abort()
        self.server.close()


class Proxy:
    """Passes connections on to a server, as a context manager; all methods may be called from any thread.

    Attributes:
        delay: Seconds that each piece of data takes, each way.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self.port = free_port()
        self.delay = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._links: set[_Link] = set()
        self._traps: list[_Trap] = []
        self._breaks_off: bytes | None = None
        self._listener: asyncio.Server | None = None
        self._flows = asyncio.Event()

    def url(self, url: str) -> str:
        """Return a server's URL through the proxy."""
        parts = urlsplit(url)
        userinfo = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{userinfo}@127.0.0.1:{self.port}").geturl()

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._open())
        self._call(self._flows.set)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self.thaw()
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()

    # Breaking

    def cut(self) -> None:
        """End all connections."""
        self._call(self._cut)

    def refuse(self) -> None:
        """Take no more connections, and end those that are there."""
        self._call(self._refuse)

    def accept(self) -> None:
        """Take connections again."""
        self._run(self._open())

    def break_off(self, answer: bytes) -> None:
        """End all connections; from now on answer each at its first message, and end it.

        As a balancer does whose servers are away; with b"S" in the midst of agreeing on TLS.
        """
        self._breaks_off = answer
        self.cut()

    def freeze(self) -> None:
        """Let nothing through, and say nothing: as where packets vanish."""
        self._call(self._flows.clear)

    def thaw(self) -> None:
        """Let all through that was on its way."""
        self._call(self._flows.set)

    def heal(self) -> None:
        """Be a network as it should be again."""
        self.delay = 0.0
        self._breaks_off = None
        self._call(self._traps.clear)
        self.thaw()
        self.accept()

    def cut_at(
        self, patterns: Pattern | tuple[Pattern, ...], *, answered: bool, refuse: bool = False
    ) -> threading.Event:
        """Cut the next connection that sends one of these, before the server gets it or when it has answered.

        Returns: what is set when that has happened. With `refuse` no more connections are taken then.
        """
        some = patterns if isinstance(patterns, tuple) else (patterns,)
        trap = _Trap(some, answered, refuse, threading.Event())
        self._call(lambda: self._traps.append(trap))
        return trap.sprung

    # In the loop

    async def _open(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._cut()

    def _cut(self) -> None:
        for link in list(self._links):
            link.cut()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._breaks_off is not None:
            await self._answer(self._breaks_off, reader, writer)
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, server_writer)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pump(link, reader, server_writer, self._caught),
                self._pump(link, server_reader, writer, self._answered),
            )
        finally:
            self._links.discard(link)
            link.cut()

    async def _answer(
        self, answer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await reader.read(65536)
            writer.write(answer)
            await reader.read(65536)  # what it says to the answer: unread, it would be told by a reset
        except ConnectionError:
            pass
        writer.close()

    async def _pump(
        self,
        link: _Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stops: Callable[[_Link, bytes], bool],
    ) -> None:
        try:
            while data := await reader.read(65536):
                await self._flows.wait()
                if stops(link, data):
                    return
                if self.delay:
                    self._loop.call_later(self.delay, _write, writer, data)
                else:
                    writer.write(data)
                    await writer.drain()
        except ConnectionError:
            pass
        if self.delay:
            await asyncio.sleep(self.delay)
        link.cut()

    def _caught(self, link: _Link, data: bytes) -> bool:
        """Say whether what the client has sent is to be kept from the server."""
        seen = link.tail + data
        link.tail = seen[-_OVERLAP:]
        for trap in self._traps:
            if any(_holds(seen, pattern) for pattern in trap.patterns):
                self._traps.remove(trap)
                if trap.answered:
                    link.trap = trap
                    return False
                self._spring(link, trap)
                return True
        return False

    def _answered(self, link: _Link, data: bytes) -> bool:
        """Say whether what the server has sent is to be kept from the client."""
        if link.trap is None:
            return False
        self._spring(link, link.trap)
        return True

    def _spring(self, link: _Link, trap: _Trap) -> None:
        link.cut()
        if trap.refuse:
            self._refuse()
        trap.sprung.set()

    # From other threads

    def _run(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(_PATIENCE)

    def _call(self, what: Callable[[], object]) -> None:
        async def called() -> None:
            what()

        self._run(called())


def _holds(data: bytes, pattern: Pattern) -> bool:
    return pattern in data if isinstance(pattern, bytes) else pattern.search(data) is not None


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)
