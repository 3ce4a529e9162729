"""Make slugids, the form of task ids, and find or replace them in texts.

The render child imports this module too, so it imports nothing else of ours.
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
"""A maximal run of characters that task ids consist of, at least as long as an id."""

FEW = 10
"""Ids that are looked for one by one in a long run: for so few, that takes a hundredth of the time."""

_PLAIN = frozenset({int, float, bool, type(None)})


def replace_ids(value: Any, new_ids: Mapping[str, str]) -> Any:
    """Return a JSON value with every id of `new_ids` replaced, also in keys and within longer texts.

    It takes one pass, so its cost grows with the size of `value`, and not with the number of ids.
    """

    def in_text(text: str) -> str:
        return _RUN.sub(lambda run: _replace_in(run[0], new_ids), text) if len(text) >= ID_LENGTH else text

    def in_any(item: Any) -> Any:
        kind = type(item)
        if kind is str:
            return in_text(item)
        if kind is dict:
            return {in_text(name): value if type(value) in _PLAIN else in_any(value) for name, value in item.items()}
        if kind is list:
            return [value if type(value) in _PLAIN else in_any(value) for value in item]
        return item

    return in_any(value)


def find_ids(text: str, ids: Container[str]) -> set[str]:
    """Return the ids that occur in `text`, also within longer runs of their characters."""
    return {
        part
        for run in _RUN.finditer(text)
        for at in range(len(run[0]) - ID_LENGTH + 1)
        if (part := run[0][at : at + ID_LENGTH]) in ids
    }


def _replace_in(run: str, new_ids: Mapping[str, str]) -> str:
    if len(run) == ID_LENGTH:
        return new_ids.get(run, run)
    if len(new_ids) <= FEW and not any(old_id in run for old_id in new_ids):
        return run
    # an id may begin anywhere, because the characters before it may be ones that ids consist of
    pieces, kept = [], 0
    for at in range(len(run) - ID_LENGTH + 1):
        new_id = new_ids.get(run[at : at + ID_LENGTH]) if at >= kept else None
        if new_id is not None:
            pieces += [run[kept:at], new_id]
            kept = at + ID_LENGTH
    return "".join(pieces) + run[kept:] if pieces else run
