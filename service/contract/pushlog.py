"""Cut entries of a pushlog to what a push event has. Listeners send that; the service reads single pushes itself."""

from collections.abc import Iterable
from typing import Any

from service.contract.events import MAX_CHANGESETS_IN_FULL, MAX_FILES

_CHANGESET_FIELDS = ("node", "branch", "author", "desc", "parents")


def trim_entry(push_id: int, entry: Any) -> Any:
    """Return an entry as a push event has it: with its id, and with the parts of its changesets that somebody uses.

    The last 200 changesets are in full, with at most 1,000 file names. The others keep node and branch, from which the
    revision_hash is made, and the first one its parents, which the push is based on. What does not look like an entry
    is returned unchanged, for a dead letter.
    """
    if not isinstance(entry, dict):
        return entry
    changesets = entry.get("changesets")
    if not isinstance(changesets, list) or not all(isinstance(changeset, dict) for changeset in changesets):
        return {**entry, "id": push_id}
    first_in_full = len(changesets) - MAX_CHANGESETS_IN_FULL
    trimmed = [
        _trim_changeset(changeset)
        if number >= first_in_full
        else _pick(changeset, ("node", "branch") if number else ("node", "branch", "parents"))
        for number, changeset in enumerate(changesets)
    ]
    return {**_pick(entry, ("user", "date")), "id": push_id, "changesets": trimmed}


def _trim_changeset(changeset: dict[str, Any]) -> dict[str, Any]:
    trimmed = _pick(changeset, _CHANGESET_FIELDS)
    files = changeset.get("files")
    if isinstance(files, list):
        trimmed["files"], trimmed["files_count"] = files[:MAX_FILES], len(files)
    elif files is not None:
        trimmed["files"] = files
    return trimmed


def _pick(value: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value[key] for key in keys if key in value}
