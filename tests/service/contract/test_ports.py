"""Ports that are taken: named with what asks for them and what sets them."""

import socket

import pytest

from service.contract.ports import PortError, require_free


def test_a_free_port_is_none_of_its_business() -> None:
    for host in ("127.0.0.1", "localhost"):
        require_free(host, 0, "The API", "")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    require_free("127.0.0.1", port, "The API", "")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_taken_port_is_named(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortError) as error:
            require_free(host, port, "The API", "Set PORT.")
    assert str(error.value) == f"The API cannot listen on port {port} of {host} (Address already in use). Set PORT."


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("192.0.2.1", 0, "Cannot assign requested address"),
        ("no-such-host.invalid", 0, "."),
    ],
)
def test_what_is_no_address_of_this_machine_is_named_too(host: str, port: int, reason: str) -> None:
    with pytest.raises(PortError, match=rf"The API cannot listen on port {port} of {host} \(.*{reason}.*\)\. Set it\."):
        require_free(host, port, "The API", "Set it.")
