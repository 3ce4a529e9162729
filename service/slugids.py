"""Slugids: the form of a task id, and ids inside other texts.

The render child imports this too, so it imports nothing of ours.
"""

import base64
import re
from collections.abc import Container, Mapping
from typing import Any


def slugid_of(digest: bytes) -> str:
    """Return 16 bytes as a slugid: a v4 UUID in base64url, "nice" (the first character is a letter)."""
    bits = bytearray(digest)
    bits[0] &= 0x7F  # nice: the first of the 22 characters is A-Z or a-f
    bits[6] = bits[6] & 0x0F | 0x40  # version 4
    bits[8] = bits[8] & 0x3F | 0x80  # RFC 4122's variant
    return base64.urlsafe_b64encode(bits).decode().rstrip("=")


ID_LENGTH = 22

OWN_LABEL = "decision"
"""The label that a template's `ownTaskId` stands for."""

_RUN = re.compile(rf"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{{{ID_LENGTH},}}")
"""Whole runs of the characters of task ids, as long as an id or longer."""

_PLAIN = frozenset({int, float, bool, type(None)})


def replace_ids(value: Any, new_ids: Mapping[str, str]) -> Any:
    """Return `value`, as JSON has it, with every id of `new_ids` replaced, in keys and inside longer texts too.

    One pass: what it costs grows with the size of `value`, not with the number of ids.
    """

    def in_text(text: str) -> str:
        return _RUN.sub(lambda run: _replace_in(run[0], new_ids), text) if len(text) >= ID_LENGTH else text

    def in_any(item: Any) -> Any:
        kind = type(item)
        if kind is str:
            return in_text(item)
        if kind is dict:
            return {in_text(name): each if type(each) in _PLAIN else in_any(each) for name, each in item.items()}
        if kind is list:
            return [each if type(each) in _PLAIN else in_any(each) for each in item]
        return item

    return in_any(value)


def find_ids(text: str, ids: Container[str]) -> set[str]:
    """Return those of `ids` that stand in `text`, inside longer runs of their characters too."""
    return {
        part
        for run in _RUN.finditer(text)
        for at in range(len(run[0]) - ID_LENGTH + 1)
        if (part := run[0][at : at + ID_LENGTH]) in ids
    }


def _replace_in(run: str, new_ids: Mapping[str, str]) -> str:
    if len(run) == ID_LENGTH:
        return new_ids.get(run, run)
    # an id may begin anywhere, for what stands before it may be of the same characters
    pieces, kept = [], 0
    for at in range(len(run) - ID_LENGTH + 1):
        new_id = new_ids.get(run[at : at + ID_LENGTH]) if at >= kept else None
        if new_id is not None:
            pieces += [run[kept:at], new_id]
            kept = at + ID_LENGTH
    return "".join(pieces) + run[kept:] if pieces else run
