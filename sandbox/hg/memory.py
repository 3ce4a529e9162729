"""Keep repositories in this process's memory: no process starts, and thousands of changesets cost milliseconds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sandbox.hg.pushlog import History, NewChangeset, Push, Pushlog, raw


@dataclass
class _Store:
    history: History = field(default_factory=History)
    changes: dict[str, dict[bytes, bytes | None]] = field(
        default_factory=dict
    )  # node to the files that it wrote or removed
    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    obsolete: set[str] = field(default_factory=set)
    contents: dict[tuple[str, bytes], bytes | None] = field(default_factory=dict)  # results of `find`

    def walk(self, node: str) -> Iterator[dict[bytes, bytes | None]]:
        """Yield the changes of a changeset and of all its ancestors, newest first.

        If both sides of a merge changed a file, the newer change therefore wins (with Mercurial, the first parent's).
        """
        ancestors = {node}
        for current in reversed(self.history.changesets):
            if current in ancestors:
                yield self.changes[current]
                ancestors.update(self.parents[current])

    def find(self, node: str, path: bytes) -> bytes | None:
        """Return a file's bytes as of a changeset, or None."""
        if (node, path) not in self.contents:
            content = next((changes[path] for changes in self.walk(node) if path in changes), None)
            self.contents[node, path] = content
        return self.contents[node, path]

    def hide(self) -> None:
        """Hide obsolete changesets, except those that have visible descendants."""
        needed: set[str] = set()
        self.history.hidden = set()
        for node in reversed(self.history.changesets):
            if node in self.obsolete and node not in needed:
                self.history.hidden.add(node)
            else:
                needed.update(self.parents[node])
        self.history.tip = self.history.find_tip()


class MemoryPushlog(Pushlog):
    """A pushlog for tests of load and faults, and for recorded answers (`load`)."""

    blocking: ClassVar[bool] = False

    def load(self, repository: str, answer: Mapping[str, Any], files: Mapping[str, str | bytes] | None = None) -> None:
        """Create a repository from a recorded version 2 answer, preferably with `full`; missing keys stay missing.

        A recording has no file contents: `files` exist in every changeset, and no other files do.
        """
        self.create(repository)
        with self._lock:
            store, log = self._stores[repository], self._repositories[repository]
            contents: dict[bytes, bytes | None] = {
                raw(k, "file name"): raw(v, "content") for k, v in (files or {}).items()
            }
            for push_id in sorted(answer["pushes"], key=int):
                recorded = answer["pushes"][push_id]
                hidden = [_fields(c, None) for c in recorded.get("obsoletechangesets", ())]
                git = iter(recorded.get("git_changesets", ()))
                changesets = [_fields(c, git) for c in recorded["changesets"]] + hidden
                for fields in changesets:
                    node = fields["node"]
                    if "tip" in (tags := fields.pop("tags", [])):
                        store.history.tip = node
                    if others := [tag for tag in tags if tag != "tip"]:
                        fields["tags"] = others
                    store.history.changesets[node] = fields
                    store.parents[node] = tuple(fields.get("parents", ()))
                    store.changes[node] = contents
                store.obsolete |= {fields["node"] for fields in hidden}
                store.history.hidden |= {fields["node"] for fields in hidden}
                nodes = tuple(fields["node"] for fields in changesets)
                log.pushes[int(push_id)] = Push(int(push_id), recorded["user"], recorded["date"], nodes, log.changed)
            log.last_push_id = answer["lastpushid"]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stores: dict[str, _Store] = {}

    def close(self) -> None:
        """Do nothing, because nothing is kept outside this process."""

    def _create(self, repository: str) -> None:
        self._stores[repository] = _Store()

    def _discard(self, repository: str) -> None:
        del self._stores[repository]

    def _commit(self, repository: str, new: NewChangeset, parents: Sequence[str], user: str, date: int) -> str:
        store = self._stores[repository]
        changes = {
            raw(path, "file name"): None if content is None else raw(content, "content")
            for path, content in new.files.items()
        }
        author, message = raw(new.author or user, "author"), _strip_message(raw(new.message, "message"))
        identity = repr(
            (sorted(parents), author, message, new.branch, date, sorted(changes.items(), key=lambda c: c[0]))
        )
        node = hashlib.sha1(identity.encode()).hexdigest()
        if node in store.history.changesets:
            raise ValueError(f"{node} is there already: change its message, files or date")
        store.history.changesets[node] = {
            "node": node,
            "author": _text(author),
            "branch": new.branch,
            "desc": _text(message),
            "files": [path.decode("utf-8", "surrogateescape") for path in sorted(changes)],
            "parents": list(parents),
            "git_node": None,
            "git_parents": [None] * len(parents),
        }
        store.parents[node] = tuple(parents)
        store.changes[node] = changes
        return node

    def _publish(self, repository: str, nodes: Sequence[str], replaced: Sequence[tuple[str, str]]) -> None:
        store = self._stores[repository]
        for old, new in replaced:
            store.history.changesets[new].setdefault("precursors", []).append(old)
            store.obsolete.add(old)
        if store.obsolete:
            store.hide()
        else:
            store.history.tip = nodes[-1]

    def _obsolete(self, repository: str, nodes: Sequence[str]) -> None:
        self._stores[repository].obsolete.update(nodes)
        self._stores[repository].hide()

    def _strip(self, repository: str, nodes: Sequence[str]) -> None:
        store = self._stores[repository]
        gone = set(nodes)
        for node in store.history.changesets:  # parents come before their children
            if gone.intersection(store.parents[node]):
                gone.add(node)
        for node in gone:
            del store.history.changesets[node], store.parents[node], store.changes[node]
        store.obsolete -= gone
        store.contents.clear()
        store.hide()

    def _history(self, repository: str) -> History:
        return self._stores[repository].history

    def _files(self, repository: str, node: str, path: bytes) -> dict[bytes, int]:
        store = self._stores[repository]
        if (content := store.find(node, path)) is not None:
            return {path: len(content)}
        folder = path + b"/" if path else b""
        below: dict[bytes, bytes | None] = {}
        for changes in store.walk(node):
            for name in changes:
                if name.startswith(folder):
                    below.setdefault(name, changes[name])
        return {name: len(content) for name, content in below.items() if content is not None}

    def _content(self, repository: str, node: str, path: bytes) -> bytes:
        return self._stores[repository].find(node, path) or b""


def _fields(changeset: Any, git: Any) -> dict[str, Any]:
    """Return the fields of a recorded changeset.

    That is an object with `full`, otherwise the node alone, with its git node in a list beside it.
    """
    if not isinstance(changeset, str):
        return dict(changeset)
    git_node = next(git, ...) if git is not None else ...
    return {"node": changeset} if git_node is ... else {"node": changeset, "git_node": git_node}


def _strip_message(message: bytes) -> bytes:
    """Strip white space at the end of lines, and empty lines around the text, as Mercurial's stripdesc does."""
    return b"\n".join(line.rstrip() for line in message.splitlines()).strip(b"\n")


def _text(stored: bytes) -> str:
    """Decode a message or author as UTF-8, or as latin-1 if it is not valid UTF-8, as Mercurial does."""
    try:
        return stored.decode("utf-8")
    except UnicodeDecodeError:
        return stored.decode("latin-1")
