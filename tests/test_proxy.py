import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.private_servers import free_ports
from tests.proxy import TcpProxy


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets; at the end of that, says goodbye and closes."""

    def handle(self) -> None:
        try:
            while chunk := self.request.recv(65536):
                self.request.sendall(chunk)
            self.request.sendall(b"goodbye")
        except ConnectionError:
            return  # what the tests of a cut want


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with TcpProxy("127.0.0.1", server.server_address[1]) as proxy:
            yield proxy
        server.shutdown()
        thread.join()


def connect(proxy: TcpProxy) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    connection.sendall(b"hello")
    return connection


def test_passes_on_in_both_directions_and_the_end_too(proxy: TcpProxy) -> None:
    big = bytes(range(256)) * 4096
    with connect(proxy) as connection, connection.makefile("rb") as answer:
        assert answer.read(5) == b"hello"
        sender = threading.Thread(target=connection.sendall, args=(big,))
        sender.start()
        assert answer.read(len(big)) == big
        sender.join()
        assert proxy.connections == 1
        connection.shutdown(socket.SHUT_WR)
        assert answer.read() == b"goodbye"


def test_cut_resets_what_is_open_and_takes_new_connections(proxy: TcpProxy) -> None:
    with connect(proxy) as first, connect(proxy) as second:
        assert first.recv(5) == second.recv(5) == b"hello"
        proxy.cut()
        for connection in (first, second):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    assert proxy.connections == 0
    with connect(proxy) as third:
        assert third.recv(5) == b"hello"


def test_refuses_until_it_accepts_again_on_the_same_port(proxy: TcpProxy) -> None:
    port = proxy.port
    with connect(proxy) as connection:
        assert connection.recv(5) == b"hello"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.accept()
    assert proxy.port == port
    with connect(proxy) as connection:
        assert connection.recv(5) == b"hello"


def test_holds_until_released(proxy: TcpProxy) -> None:
    proxy.hold()
    with connect(proxy) as connection:
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.release()
        connection.settimeout(5)
        assert connection.recv(5) == b"hello"


def test_what_is_held_can_be_cut(proxy: TcpProxy) -> None:
    proxy.hold()
    with connect(proxy) as connection:
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_delays_each_way(proxy: TcpProxy) -> None:
    proxy.delay = 0.05
    start = time.monotonic()
    with connect(proxy) as connection:
        assert connection.recv(5) == b"hello"
    assert time.monotonic() - start >= 2 * 0.05


def test_with_nothing_behind_it_clients_are_reset() -> None:
    def ask(proxy: TcpProxy) -> None:  # which of the calls sees the reset is chance
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as connection:
            connection.recv(1)

    with TcpProxy("127.0.0.1", free_ports(1)[0]) as proxy, pytest.raises(ConnectionResetError):
        ask(proxy)


def test_leaves_no_thread() -> None:
    before = set(threading.enumerate())  # one of an earlier test may end meanwhile
    with TcpProxy("127.0.0.1", 1):
        (own,) = set(threading.enumerate()) - before
    assert not own.is_alive()
