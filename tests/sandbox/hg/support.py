"""A clock and changesets for tests of the hgweb stand-in."""

from typing import Any

from sandbox.hg import NewChangeset

PUSHES = "/r/json-pushes?version=2&startID=0"


class Clock:
    """A clock that tests move."""

    now = 1_795_461_448.25

    def __call__(self) -> float:
        return self.now


def change(message: str, *files: str, **options: Any) -> NewChangeset:
    return NewChangeset(message=message, files=dict.fromkeys(files, message), **options)
