"""A relay that breaks TCP connections on demand."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self

import pytest


class TcpProxy:
    """Relays TCP connections from `port` of 127.0.0.1 to another host and port, and breaks them on demand.

    Runs on a thread of its own. Set `delay` (seconds) to hold every chunk back that long, in both directions.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.delay = 0.0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy")
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[Any]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    def __enter__(self) -> Self:
        self._thread.start()
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def connections(self) -> int:
        """Return the number of connected clients."""
        return len(self._relays)

    def cut(self) -> None:
        """Reset every connection; new ones are accepted."""
        self._do(self._cut())

    def refuse(self) -> None:
        """Reset every connection and refuse new ones, as a host without a listener does, until `accept`."""
        self._do(self._refuse())

    def accept(self) -> None:
        """Accept connections again, on the same port."""
        self._do(self._accept())

    def hold(self) -> None:
        """Keep and accept connections but forward nothing, as a network that drops packets, until `release`."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def release(self) -> None:
        """Forward everything that was held, and everything that follows."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _accept(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _cut(self) -> None:
        for _ in range(10):  # turns of the loop, in which it takes the connections that the kernel has taken already
            await asyncio.sleep(0)
        for writer in list(self._writers):
            _reset(writer)
        relays = list(self._relays)
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)

    async def _close(self) -> None:
        self._flowing.set()
        await self._refuse()
        await asyncio.sleep(0)  # transports report their end on the loop's next turn

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.current_task()
        assert relay is not None
        self._relays.add(relay)
        self._writers.add(writer)
        ends = {writer}
        try:
            onward_reader, onward = await asyncio.open_connection(*self.target)
            ends.add(onward)
            self._writers.add(onward)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, onward))
                both.create_task(self._pump(onward_reader, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            # The one end is gone, or cut() came: so goes the other. A cancelled relay is done, not to be reported.
            for end in ends:
                _reset(end)
        finally:
            for end in ends:
                end.close()
            self._writers -= ends
            self._relays.discard(relay)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(65536):
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._flowing.wait()
            sink.write(chunk)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()


class TlsProxy(TcpProxy):
    """Speaks TLS to its clients, and passes on what is in it."""

    def __init__(self, host: str, port: int, certificate: Path) -> None:
        super().__init__(host, port)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)

    async def _accept(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]


def make_certificate(folder: Path, *names: str) -> Path:
    """Return a file with a certificate for `names` (such as `IP:127.0.0.1`), its own authority, and its key."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("openssl is not installed, which makes the certificate")
    path = folder / "both.pem"
    command = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", f"subjectAltName={','.join(names)}", "-keyout", str(path), "-out", f"{path}.cert"]
    subprocess.run([openssl, *command], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.cert").read_text())
    return path


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a RST, so that the other end sees "connection reset" and not an orderly end."""
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
