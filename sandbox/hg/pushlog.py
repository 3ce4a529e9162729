"""Keep the pushlog of each repository, and render json-pushes and raw-file from it.

This module has everything that does not depend on where changesets are kept; `memory` and `mercurial` keep them.
"""

from __future__ import annotations

import bisect
import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

NULL = "0" * 40
PUSHES_PER_PAGE = 10  # json-pushes without any bound lists the last ten
ANSWERS_KEPT = 512  # rendered answers kept for a repository until it changes


class UnknownRepositoryError(LookupError):
    """An error of a path at which no repository is served, or not while it is being reset."""


class UnknownRevisionError(LookupError):
    """An error of a revision that does not exist or is hidden; `name` is the requested name."""

    def __init__(self, name: str, *, hidden: bool = False) -> None:
        super().__init__(f"{'hidden' if hidden else 'unknown'} revision '{name}'")
        self.name = name


class MissingFileError(LookupError):
    """An error of a path that is neither a file nor a folder in the revision `node`."""

    def __init__(self, path: bytes, node: str) -> None:
        super().__init__(f"{path!r} is not in {node}")
        self.path = path
        self.node = node


@dataclass(frozen=True, kw_only=True)
class NewChangeset:
    """A changeset to push.

    All text is stored as UTF-8, except that a lone surrogate U+DC80..U+DCFF stands for one raw byte (Python's
    `surrogateescape`): this is how to write messages, authors, file names and contents that are not UTF-8.
    """

    message: str = "Bug 1 - a change r=someone"
    files: Mapping[str, str | bytes | None] = field(default_factory=dict)  # path to content; None removes the file
    author: str = ""  # empty: the user who pushes
    branch: str = "default"
    parents: Sequence[
        str
    ] = ()  # one or two revisions, "." is the changeset before it in the push; default: that or tip
    precursors: Sequence[str] = ()  # nodes that this changeset replaces; they become obsolete


@dataclass(frozen=True)
class Push:
    """A row of the pushlog. `nodes` are in DAG order, tip last; `changed` is the time (epoch seconds) of the push."""

    id: int
    user: str
    date: int
    nodes: tuple[str, ...]
    changed: float


@dataclass
class History:
    """All changesets of one repository in revision order, with the fields of `full` except the tag "tip"."""

    changesets: dict[str, dict[str, Any]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    tip: str | None = None

    def find_tip(self) -> str | None:
        """Return the newest changeset that is not hidden."""
        return next((node for node in reversed(self.changesets) if node not in self.hidden), None)

    def resolve(self, name: str) -> str:
        """Return the node that a node, a unique prefix of one, or "tip" names. Raises UnknownRevisionError."""
        if name == "tip":
            return self.tip or NULL
        node = name
        if node not in self.changesets:
            matches = [node for node in self.changesets if name and node.startswith(name)]
            if len(matches) != 1:
                raise UnknownRevisionError(name)
            node = matches[0]
        if node in self.hidden:
            raise UnknownRevisionError(name, hidden=True)
        return node

    def without(self, nodes: set[str]) -> History:
        """Return the same history as it was before these changesets arrived."""
        before = History({n: fields for n, fields in self.changesets.items() if n not in nodes}, self.hidden - nodes)
        before.tip = before.find_tip()
        return before


@dataclass(frozen=True, kw_only=True)
class Query:
    """Parameters of json-pushes."""

    version: int = 1
    full: bool = False
    tipsonly: bool = False
    start_id: int | None = None  # exclusive
    end_id: int | None = None  # inclusive
    fromchange: str | None = None  # exclusive, wins over start_id
    tochange: str | None = None  # inclusive, wins over end_id
    changesets: tuple[str, ...] = ()

    @classmethod
    def parse(cls, parameters: Sequence[tuple[str, str]]) -> Self:
        """Parse the pairs of a query string. Raises ValueError (hgweb: status 500) for an invalid number."""
        first: dict[str, str] = {}
        for key, value in parameters:
            first.setdefault(key, value)
        if unknown := first.keys() & {"startdate", "enddate", "user"}:
            raise ValueError(f"{', '.join(sorted(unknown))}: the stand-in does not know these parameters; use startID")

        def number(name: str) -> int | None:
            return int(first[name]) if name in first else None

        version = int(first.get("version", "1"))
        if version not in {1, 2}:
            raise ValueError(f"version is {version}; it is 1 or 2")
        fromchange, tochange = first.get("fromchange"), first.get("tochange")
        return cls(
            version=version,
            full="full" in first,  # by presence: full=0 is full
            tipsonly=first.get("tipsonly") == "1",
            start_id=None if fromchange is not None else number("startID"),
            end_id=None if tochange is not None else number("endID"),
            fromchange=fromchange,
            tochange=tochange,
            changesets=tuple(value for key, value in parameters if key == "changeset"),
        )


@dataclass
class Repository:
    """Data of a repository besides its changesets; `changed` and `away_until` (404 before then) are epoch seconds."""

    changed: float
    last_push_id: int = 0
    away_until: float = 0.0
    pushes: dict[int, Push] = field(default_factory=dict)  # in order of their ids
    answers: dict[tuple[Query, int | None, bool], bytes] = field(default_factory=dict)

    def push_of(self, node: str) -> int:
        """Return the id of the push that brought a changeset, or 0."""
        return next((push.id for push in reversed(self.pushes.values()) if node in push.nodes), 0)

    def window(self, query: Query, history: History) -> list[int]:
        """Return the push ids that a query selects, including pushes without any remaining changeset."""
        ids = list(self.pushes)
        if query.changesets:
            return sorted({self.push_of(history.resolve(name)) for name in query.changesets} - {0})
        if query.fromchange is not None:
            start = self.push_of(history.resolve(query.fromchange))
        elif query.start_id is not None:
            start = query.start_id
        else:  # an end without a start does not count, as in the extension
            return ids[-PUSHES_PER_PAGE:]
        if query.tochange is not None:
            end = self.push_of(history.resolve(query.tochange))
        else:
            end = ids[-1] if query.end_id is None and ids else query.end_id or 0
        return ids[bisect.bisect_right(ids, start) : bisect.bisect_right(ids, end)]


def describe(push: Push, query: Query, history: History) -> dict[str, Any] | None:
    """Return a push in the form of json-pushes, or None if all its changesets were stripped."""
    nodes = [node for node in push.nodes if node in history.changesets]
    if not nodes:
        return None
    if query.tipsonly:
        nodes = nodes[-1:]

    def changeset(node: str) -> Any:
        if not query.full:
            return node
        fields = history.changesets[node]
        return {**fields, "tags": [*fields.get("tags", ()), *(["tip"] if node == history.tip else [])]}

    visible = [node for node in nodes if node not in history.hidden]
    described: dict[str, Any] = {"changesets": [changeset(n) for n in visible], "date": push.date, "user": push.user}
    if git := [fields["git_node"] for n in visible if "git_node" in (fields := history.changesets[n])]:
        described["git_changesets"] = git
    if len(visible) < len(nodes):
        described["obsoletechangesets"] = [changeset(node) for node in nodes if node in history.hidden]
    return described


class Pushlog(ABC):
    """Repositories by path, each with its pushlog. Every method is safe to call from any thread.

    `clock` returns epoch seconds; it dates pushes and changes.
    """

    blocking: ClassVar[bool]  # True if reading can take long, so that an event loop must use a thread

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._lock = threading.RLock()
        self._repositories: dict[str, Repository] = {}

    # Writing

    def create(self, repository: str, *, last_push_id: int = 0) -> None:
        """Create an empty repository; the next push gets the id after `last_push_id`."""
        with self._lock:
            if repository in self._repositories:
                raise ValueError(f"{repository!r} exists already: reset it, or choose another path")
            self._create(repository)
            self._repositories[repository] = Repository(self.clock(), last_push_id)

    def push(
        self,
        repository: str,
        changesets: Sequence[NewChangeset] = (NewChangeset(),),
        *,
        user: str = "dev@example.com",
        date: int | None = None,
    ) -> Push:
        """Push changesets, each on top of the one before unless it names its parents.

        `date` (of the push and its changesets) is epoch seconds, by default now.
        """
        if not changesets:
            raise ValueError("a push needs one changeset at least")
        for new in changesets:
            _check(new)
        with self._lock:
            log = self._log(repository)
            date = int(self.clock()) if date is None else date
            history = self._history(repository)
            before = history.tip or NULL
            parents = [
                [p if p in {".", NULL} else history.resolve(p) for p in new.parents or "."] for new in changesets
            ]
            for old in (old for new in changesets for old in new.precursors):
                if old not in history.changesets:
                    raise UnknownRevisionError(old)
            nodes: list[str] = []
            for new, names in zip(changesets, parents, strict=True):
                before = self._commit(repository, new, [before if p == "." else p for p in names], user, date)
                nodes.append(before)
            replaced = [(old, node) for node, new in zip(nodes, changesets, strict=True) for old in new.precursors]
            self._publish(repository, nodes, replaced)
            log.last_push_id += 1
            push = Push(log.last_push_id, user, date, tuple(nodes), self._changed(log))
            log.pushes[push.id] = push
            return push

    def obsolete(self, repository: str, push_id: int) -> None:
        """Obsolete a push's changesets: those without visible descendants move to `obsoletechangesets`."""
        with self._lock:
            log = self._log(repository)
            self._obsolete(repository, self._push(log, push_id).nodes)
            self._changed(log)

    def strip(self, repository: str, push_id: int) -> None:
        """Strip a push's changesets and their descendants, as `hg strip` does: emptied pushes are no longer listed."""
        with self._lock:
            log = self._log(repository)
            changesets = self._history(repository).changesets
            self._strip(repository, [node for node in self._push(log, push_id).nodes if node in changesets])
            self._changed(log)

    def reset(self, repository: str, *, away: float = 0.0) -> None:
        """Recreate a repository: empty, with ids from 1 again, and 404 for `away` seconds."""
        with self._lock:
            if repository not in self._repositories:
                raise self._unknown(repository)
            self._discard(repository)
            self._create(repository)
            now = self.clock()
            self._repositories[repository] = Repository(now, away_until=now + away)

    @abstractmethod
    def close(self) -> None:
        """Free everything that the repositories keep outside this process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def repositories(self) -> list[str]:
        """Return the paths of all repositories."""
        with self._lock:
            return sorted(self._repositories)

    def changed(self, repository: str, *, upto: int | None = None) -> float:
        """Return the time (epoch seconds) of the last change, or of push `upto` for a mirror that stands there."""
        with self._lock:
            log = self._present(repository)
            if upto is None or upto >= log.last_push_id:
                return log.changed
            return max((push.changed for push in log.pushes.values() if push.id <= upto), default=0.0)

    def last_push_id(self, repository: str) -> int:
        """Return the id of the last push, or 0 if there was none."""
        with self._lock:
            return self._log(repository).last_push_id

    def json_pushes(self, repository: str, query: Query, *, upto: int | None = None, ahead: bool = False) -> bytes:
        """Return the body of json-pushes. Raises UnknownRepositoryError and UnknownRevisionError.

        `upto` is the push at which a lagging mirror stands. With `ahead`, `lastpushid` does not lag, because hgweb
        reads it after the list.
        """
        with self._lock:
            log = self._present(repository)
            key = (query, upto, ahead)
            if key not in log.answers:
                history = self._view(repository, upto)
                selected = [log.pushes[i] for i in log.window(query, history)]
                pushes = {
                    str(push.id): description for push in selected if (description := describe(push, query, history))
                }
                last = log.last_push_id if upto is None or ahead else min(upto, log.last_push_id)
                answer = pushes if query.version == 1 else {"lastpushid": last, "pushes": pushes}
                if len(log.answers) >= ANSWERS_KEPT:
                    log.answers.clear()
                log.answers[key] = json.dumps(answer, indent=1, sort_keys=True).encode("ascii")
            return log.answers[key]

    def raw_file(self, repository: str, revision: str, path: bytes, *, upto: int | None = None) -> tuple[bytes, bool]:
        """Return a file's bytes and False, or the listing of a folder and True.

        Raises UnknownRepositoryError, UnknownRevisionError and MissingFileError.
        """
        with self._lock:
            self._present(repository)
            node = self._view(repository, upto).resolve(revision)
            path = path.strip(b"/")
            if node == NULL:  # an empty repository: any path is an empty folder
                return _listing({}, b""), True
            sizes = self._files(repository, node, path)
            if path in sizes:
                return self._content(repository, node, path), False
            if not sizes and path:
                raise MissingFileError(path, node)
            return _listing(sizes, path), True

    # Helpers

    def _log(self, repository: str) -> Repository:
        if repository not in self._repositories:
            raise self._unknown(repository)
        return self._repositories[repository]

    def _unknown(self, repository: str) -> UnknownRepositoryError:
        names = ", ".join(self._repositories)
        return UnknownRepositoryError(f"no repository {repository!r}: {f'there is {names}' if names else 'create one'}")

    def _present(self, repository: str) -> Repository:
        log = self._log(repository)
        if self.clock() < log.away_until:
            raise UnknownRepositoryError(f"{repository!r} is being reset: ask again later")
        return log

    def _push(self, log: Repository, push_id: int) -> Push:
        if push_id not in log.pushes:
            raise ValueError(f"there is no push {push_id}: the ids are {list(log.pushes)}")
        return log.pushes[push_id]

    def _changed(self, log: Repository) -> float:
        log.answers.clear()
        log.changed = self.clock()
        return log.changed

    def _view(self, repository: str, upto: int | None) -> History:
        history = self._history(repository)
        if upto is None:
            return history
        return history.without({n for p in self._log(repository).pushes.values() if p.id > upto for n in p.nodes})

    # Storage of changesets, in the subclasses

    @abstractmethod
    def _create(self, repository: str) -> None: ...

    @abstractmethod
    def _discard(self, repository: str) -> None: ...

    @abstractmethod
    def _commit(self, repository: str, new: NewChangeset, parents: Sequence[str], user: str, date: int) -> str: ...

    @abstractmethod
    def _publish(self, repository: str, nodes: Sequence[str], replaced: Sequence[tuple[str, str]]) -> None: ...

    @abstractmethod
    def _obsolete(self, repository: str, nodes: Sequence[str]) -> None: ...

    @abstractmethod
    def _strip(self, repository: str, nodes: Sequence[str]) -> None: ...

    @abstractmethod
    def _history(self, repository: str) -> History: ...

    @abstractmethod
    def _files(self, repository: str, node: str, path: bytes) -> dict[bytes, int]:
        """Return the size of the file `path`, or of each file below it, by path."""

    @abstractmethod
    def _content(self, repository: str, node: str, path: bytes) -> bytes: ...


def raw(text: str | bytes, field: str) -> bytes:
    """Return the bytes that a text of a `NewChangeset` stands for."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{field} {text!r} holds a surrogate that stands for no byte: write a raw byte as U+DC80..U+DCFF"
        ) from error


def _check(new: NewChangeset) -> None:
    """Refuse what Mercurial would refuse, before anything is stored. Raises ValueError."""
    if not raw(new.message, "message").strip():
        raise ValueError("the message is empty: Mercurial refuses such a commit, give it one")
    if b"\n" in raw(new.author, "author"):
        raise ValueError(f"author {new.author!r} has more than one line: Mercurial refuses it, give one")
    if len(new.parents) > 2:
        raise ValueError(f"parents are {new.parents!r}: name two at most")
    for name, content in new.files.items():
        path = raw(name, "file name")
        if not {b"", b".", b"..", b".hg"}.isdisjoint(path.split(b"/")) or set(b"\0\r\n") & set(path):
            raise ValueError(f"file name {name!r} cannot be tracked: give a path within the repository")
        raw(content or b"", "content")


def _listing(sizes: Mapping[bytes, int], folder: bytes) -> bytes:
    """Return a folder in the form of hgweb's raw style: folders first, then files with their sizes."""
    below = len(folder) + 1 if folder else 0
    folders = {path[below:].split(b"/")[0] for path in sizes if b"/" in path[below:]}
    files = {path[below:]: size for path, size in sizes.items() if b"/" not in path[below:]}
    lines = [b"drwxr-xr-x %s\n" % name for name in sorted(folders)]
    lines += [b"-rw-r--r-- %d %s\n" % (files[name], name) for name in sorted(files)]
    return b"\n" + b"".join(lines) + b"\n\n"
