"""Keep real repositories: each changeset is committed, pushed and read by Mercurial's own program."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from sandbox.hg.pushlog import NULL, History, NewChangeset, Pushlog, raw

HG = Path(sys.executable).parent / "hg"

# Only draft changesets (publish = no) can be obsoleted; real repositories have commits without files; no person merges.
_CONFIG = """\
[ui]
username = nobody
allowemptycommit = yes
merge = :local
[phases]
publish = no
[experimental]
evolution = all
[extensions]
strip =
rawbytes = {extension}
"""

_FIELDS = (
    rb"{dict(node=node, author=author, branch=branch, desc=desc, files=files,"
    rb" p1=p1.node, p2=p2.node, precursors=predecessors)|json}\n"
)


class CommandError(RuntimeError):
    """An error of an `hg` command; `code` is its exit status."""

    def __init__(self, arguments: Sequence[bytes], code: int, output: bytes) -> None:
        command, text = (part.decode(errors="replace") for part in (b" ".join(arguments), output))
        super().__init__(f"`hg {command}` ended with {code}: {text.strip()}")
        self.code = code


class CommandServer:
    """An `hg` process that runs many commands, because starting Python for each one costs a tenth of a second.

    The protocol is Mercurial's `hg serve --cmdserver pipe`: each message has a channel letter and a big-endian length.
    """

    def __init__(self, config: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HG")}
        environment |= {"HGRCPATH": str(config), "HGPLAIN": "1", "HGENCODING": "utf-8"}
        command = [str(HG), "serve", "--cmdserver", "pipe", "--cwd", str(config.parent)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._read()  # the server's greeting

    def run(self, *arguments: str | bytes) -> bytes:
        """Run a command and return its output. Raises CommandError."""
        encoded = [a if isinstance(a, bytes) else os.fsencode(a) for a in arguments]
        line = b"\0".join(encoded)
        assert self._process.stdin is not None
        self._process.stdin.write(b"runcommand\n" + struct.pack(">I", len(line)) + line)
        self._process.stdin.flush()
        outputs: dict[bytes, bytes] = {b"o": b"", b"e": b""}
        while True:
            channel, data = self._read()
            if channel == b"r":
                break
            if channel not in outputs:
                raise CommandError(encoded, -1, b"it asks for input on channel " + channel)
            outputs[channel] += data
        (code,) = struct.unpack(">i", data)
        if code:
            raise CommandError(encoded, code, outputs[b"e"] or outputs[b"o"])
        return outputs[b"o"]

    def _read(self) -> tuple[bytes, bytes]:
        assert self._process.stdout is not None
        header = self._process.stdout.read(5)
        if len(header) < 5:
            raise RuntimeError(
                f"hg's command server ended with {self._process.wait()}; run {HG} serve by hand to see why"
            )
        channel, length = header[:1], struct.unpack(">I", header[1:])[0]
        # on an input channel (capital letter) the length is how much may be sent, and nothing follows
        return channel, b"" if channel.isupper() else self._process.stdout.read(length)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class MercurialPushlog(Pushlog):
    """A pushlog of real repositories, for the demo and for tests of the stand-ins.

    Changesets are committed in a working repository and pushed from there into the one that is read ("served"). Close
    it, because it has a folder and a process.
    """

    blocking: ClassVar[bool] = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not HG.exists():
            raise RuntimeError(f"there is no {HG}: install this project's extra `sandbox`, or use MemoryPushlog")
        self._folder = Path(tempfile.mkdtemp(prefix="sandbox-hg-"))
        config = self._folder / "hgrc"
        config.write_text(_CONFIG.format(extension=Path(__file__).with_name("rawbytes.py")))
        self._hg = CommandServer(config)
        self._places: dict[str, Path] = {}
        self._made = 0
        self._histories: dict[str, History] = {}  # read from Mercurial, until the repository changes

    def close(self) -> None:
        with self._lock:
            self._hg.close()
            shutil.rmtree(self._folder)

    def served(self, repository: str) -> Path:
        """Return the folder of the served repository, for a real hgweb or a real `hg clone`."""
        return self._places[repository] / "served"

    def _work(self, repository: str) -> Path:
        return self._places[repository] / "work"

    def _create(self, repository: str) -> None:
        self._made += 1
        self._places[repository] = self._folder / str(self._made)
        for path in self.served(repository), self._work(repository):
            self._hg.run("init", str(path))

    def _discard(self, repository: str) -> None:
        shutil.rmtree(self._places.pop(repository))
        self._histories.pop(repository, None)

    def _commit(self, repository: str, new: NewChangeset, parents: Sequence[str], user: str, date: int) -> str:
        work = self._work(repository)

        def hg(*arguments: str | bytes) -> bytes:
            return self._hg.run("--cwd", str(work), *arguments)

        hg("update", "--clean", "--rev", parents[0])
        if len(parents) > 1:
            hg("merge", "--rev", parents[1])
        for name, content in new.files.items():
            path = os.path.join(os.fsencode(work), raw(name, "file name"))
            if content is None:
                os.unlink(path)
            else:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(raw(content, "content"))
        hg("branch", "--force", new.branch)
        message = self._folder / "message"
        message.write_bytes(raw(new.message, "message"))
        author = raw(new.author or user, "author")
        hg("commit", "--addremove", "--date", f"{date} 0", "--user", author, "--logfile", str(message))
        node = hg("log", "--rev", ".", "--template", "{node}").decode()
        if node in self._history(repository).changesets:
            raise ValueError(f"{node} is there already: change its message, files or date")
        return node

    def _publish(self, repository: str, nodes: Sequence[str], replaced: Sequence[tuple[str, str]]) -> None:
        self._histories.pop(repository, None)
        served = str(self.served(repository))
        revisions = [argument for node in nodes for argument in ("--rev", node)]
        self._hg.run("--cwd", str(self._work(repository)), "push", "--force", "--new-branch", *revisions, served)
        for old, new in replaced:
            self._hg.run("--cwd", served, "debugobsolete", old, new)

    def _obsolete(self, repository: str, nodes: Sequence[str]) -> None:
        self._histories.pop(repository, None)
        for node in nodes:
            self._hg.run("--cwd", str(self.served(repository)), "debugobsolete", node)

    def _strip(self, repository: str, nodes: Sequence[str]) -> None:
        self._histories.pop(repository, None)
        if nodes:
            self._hg.run("--cwd", str(self.served(repository)), "--hidden", "strip", "--no-backup", *nodes)

    def _history(self, repository: str) -> History:
        if repository not in self._histories:
            log = ["--cwd", str(self.served(repository)), "--hidden", "log", "--rev"]
            history = History()
            for line in self._hg.run(*log, "all()", "--template", _FIELDS).splitlines():
                fields = _fields(json.loads(line))
                history.changesets[fields["node"]] = fields
            history.hidden = set(self._hg.run(*log, "hidden()", "--template", r"{node}\n").decode().split())
            history.tip = history.find_tip()
            self._histories[repository] = history
        return self._histories[repository]

    def _files(self, repository: str, node: str, path: bytes) -> dict[bytes, int]:
        files = ["--cwd", str(self.served(repository)), "files", "--rev", node, "--template", r"{path}\0{size}\n"]
        try:
            lines = self._hg.run(*files, b"path:" + path).splitlines()
        except CommandError as error:
            if error.code == 1:  # no file matches
                return {}
            raise
        return {name: int(size) for name, _, size in (line.partition(b"\0") for line in lines)}

    def _content(self, repository: str, node: str, path: bytes) -> bytes:
        return self._hg.run("--cwd", str(self.served(repository)), "cat", "--rev", node, b"path:" + path)


def _fields(log_entry: dict[str, Any]) -> dict[str, Any]:
    """Return a changeset in the form of json-pushes; git nodes are null, as on servers without a git mirror."""
    first, second, precursors = log_entry.pop("p1"), log_entry.pop("p2"), log_entry.pop("precursors")
    parents = [first] if second == NULL else [first, second]
    fields = {**log_entry, "parents": parents, "git_node": None, "git_parents": [None] * len(parents)}
    return {**fields, "precursors": precursors} if precursors else fields
