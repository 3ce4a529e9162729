"""Tell which port a program cannot listen on, what asks for it, and how to choose another one."""

import os
import socket

EXIT_CODE = 5
"""Exit code of a program that cannot listen on its port."""


class PortError(Exception):
    """A port cannot be listened on. The message names it, what asks for it, and the setting or option that sets it."""

    def __init__(self, host: str, port: int, wanted_by: str, remedy: str, error: Exception) -> None:
        number = getattr(error, "errno", None)
        # not the error's own text, in which Python repeats the address
        reason = os.strerror(number) if number is not None and number > 0 else str(error)
        super().__init__(f"{wanted_by} cannot listen on port {port} of {host} ({reason}). {remedy}")


def require_free(host: str, port: int, wanted_by: str, remedy: str) -> None:
    """Raise PortError if a server could not listen on this port now; 0 is any free port."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
                probe.bind(address)
    except (OSError, OverflowError) as error:
        raise PortError(host, port, wanted_by, remedy, error) from error
