"""An egress proxy: CONNECT for https, absolute URLs for http."""

import asyncio
import contextlib

from tests.proxy import TcpProxy


class ConnectProxy(TcpProxy):
    """Sends whatever is asked of it to one server, so that names which no resolver knows lead there too.

    `asked` has the first line of each connection, such as `CONNECT hg.test:443 HTTP/1.1`. With `refusal`, a status
    line such as `502 Bad Gateway`, it lets nobody through.
    """

    def __init__(self, host: str, port: int, *, refusal: str | None = None) -> None:
        super().__init__(host, port)
        self.asked: list[str] = []
        self._refusal = refusal

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError):
            writer.close()
            return
        self.asked.append(head.partition(b"\r\n")[0].decode())
        if self._refusal is not None:
            with contextlib.suppress(OSError):
                writer.write(f"HTTP/1.1 {self._refusal}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
            writer.close()
            return
        passed_on = asyncio.StreamReader()
        if self.asked[-1].startswith("CONNECT "):
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            passed_on.feed_data(head)
        await super()._relay(_Joined(passed_on, reader), writer)


class _Joined(asyncio.StreamReader):
    """A reader that first returns what one reader holds, and then what another one reads."""

    def __init__(self, first: asyncio.StreamReader, then: asyncio.StreamReader) -> None:
        super().__init__()
        first.feed_eof()
        self._first, self._then = first, then

    async def read(self, n: int = -1) -> bytes:
        return await self._first.read(n) or await self._then.read(n)
