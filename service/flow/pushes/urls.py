"""The canonical spelling of repository URLs, so that one repository cannot pass for another."""

from urllib.parse import quote, unquote_to_bytes, urlsplit

_DEFAULT_PORTS = {"https": 443, "http": 80}

_PLAIN = "~!$&'()*+,;=:@"
"""Characters beside letters, digits and -._ that need no percent-encoding in a path segment (RFC 3986)."""


def canonical_url(url: str) -> tuple[str, str]:
    """Return the URL as it is stored, and its host with the port if that is not the default.

    Raises ValueError, whose message continues after "url: '…' ". A URL is refused if servers or programs may take it
    for different resources: with an empty segment, `.` or `..`, also percent-encoded, or with an encoded slash or
    control character.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is no URL: {error}") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("has more than scheme, host and path: leave that out")
    name = (parts.hostname or "").rstrip(".")
    if parts.scheme not in _DEFAULT_PORTS or not name or not name.isascii():
        raise ValueError("is no https URL")
    host = f"[{name}]" if ":" in name else name
    if port is not None and port != _DEFAULT_PORTS[parts.scheme]:
        host = f"{host}:{port}"
    if not all("!" <= c <= "~" for c in parts.path):
        raise ValueError("has a character in its path that must be percent-encoded")
    segments = parts.path.rstrip("/").split("/")[1:]
    if not segments:
        raise ValueError("names no repository: it needs a path such as /mozilla-central")
    return f"{parts.scheme}://{host}/{'/'.join(map(_canonical_segment, segments))}", host


def _canonical_segment(segment: str) -> str:
    if not _is_encoded_well(segment):
        raise ValueError(f"has a broken percent-encoding in {segment!r}")
    plain = unquote_to_bytes(segment)
    if plain in {b"", b".", b".."}:
        raise ValueError("names no repository: its path has an empty segment, . or ..")
    if any(byte < 0x20 or byte == 0x7F or byte in b"/\\" for byte in plain):
        raise ValueError(f"hides a slash or a control character in {segment!r}")
    return quote(plain, safe=_PLAIN)


def _is_encoded_well(segment: str) -> bool:
    return all(len(code) >= 2 and set(code[:2]) <= set("0123456789abcdefABCDEF") for code in segment.split("%")[1:])
