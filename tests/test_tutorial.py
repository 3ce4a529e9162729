"""Do what docs/tutorial.md says, command by command in real terminals, and compare what it shows with what is printed.

A block of commands begins with "```console N [with|without]": the number of the terminal, and who does it, if not
everybody: readers with a RabbitMQ, or without one. A block that begins with "```sh N" is one command that prints
nothing. What differs from machine to machine is listed in `VARYING` and `NAMED`.
"""

import contextlib
import os
import re
import secrets
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from tests.terminal import PATIENCE, Terminal

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"

PORTS = {"hg": 7801, "taskcluster": 7802, "treeherder": 7803, "service": 8080}
"""The ports on the page. The test takes others of as many digits, so that tables stay as wide."""

AMQP_URL = "amqp://guest:guest@127.0.0.1:5672/%2F"
"""The broker on the page."""

FOLDER = "/home/you/tc-treeherder"
"""The checkout on the page."""

VARYING = {
    "time": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ",
    "time of day": r"\d\d:\d\d:\d\d\.\d{6}",
    "process": r"(?<=\[)\d+(?=\])",
    "uuid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "user of the broker": r"(?<=sandbox-)[0-9a-f]{8}",
}
"""Patterns of what is other each time."""

NAMED = {
    "task id": r"(?<![\w-])[A-Za-f][\w-]{7}[Q-T][\w-][CGKOSWaeimquy26-][\w-]{10}[AQgw](?![\w-])",
    "revision": r"(?<!\w)[0-9a-f]{40}(?!\w)",
    "short revision": r"(?<!\w)[0-9a-f]{12}(?!\w)",
}
"""Patterns of what is other on each machine, and the same wherever the page repeats it."""

LOOKS = re.compile(r"tc-treeherder (\S+ (list|show)|doctor)\b|bin/sandbox jobs\b")
"""A command that only shows something. It is repeated until it shows what the page does."""

RUNS_ON = re.compile(r"tc-treeherder (serve|listen)\b|bin/sandbox --settings\b")
"""A command that runs until Ctrl-C. The page shows the begin of its output."""

_TOKEN = re.compile(
    "|".join(f"(?P<k{number}>{pattern})" for number, pattern in enumerate([*VARYING.values(), *NAMED.values()]))
)
_KINDS = [*VARYING, *NAMED]


@dataclass
class Step:
    """A command, what the page shows of it, and whether Ctrl-C ends it."""

    line: int
    terminal: str
    command: str
    output: list[str] = field(default_factory=list)
    interrupt: bool = False


def read_steps(page: str, variant: str) -> list[Step]:
    """Return the commands of a page for readers `with` or `without` a RabbitMQ."""
    steps: list[Step] = []
    inside, whole, terminal = False, False, ""
    for number, line in enumerate(page.splitlines(), 1):
        if line.startswith("```"):
            words = line.removeprefix("```").split()
            inside = not inside and words[:1] in (["console"], ["sh"]) and variant in [*words[2:], variant][:1]
            if inside:
                terminal, whole = words[1], words[0] == "sh"
                if whole:
                    steps.append(Step(number, terminal, ""))
        elif inside and whole:
            steps[-1].command += line + "\n"
        elif inside and line.startswith("$ "):
            steps.append(Step(number, terminal, line.removeprefix("$ ")))
        elif inside and line == "^C":
            steps.append(Step(number, terminal, "", interrupt=True))
        elif inside:
            steps[-1].output.append(line.rstrip())
    return steps


@dataclass
class Names:
    """What stands on the page, and what it is called on this machine."""

    fixed: dict[str, str]
    learnt: dict[str, str] = field(default_factory=dict)

    def localize(self, text: str) -> str:
        """Return a text of the page with the names of this machine."""
        for names in (self.fixed, self.learnt):
            for name, local in names.items():
                text = text.replace(name, local)
        return text

    def learn(self, shown: list[str], printed: list[str]) -> bool:
        """Return True if the page shows what was printed, and keep what its ids are on this machine."""
        pattern = ""
        tokens: list[str] = []
        text = self.localize("\n".join(shown))
        end = 0
        for token in _TOKEN.finditer(text):
            pattern += re.escape(text[end : token.start()])
            end = token.end()
            kind = _KINDS[int(str(token.lastgroup)[1:])]
            if kind in VARYING:
                pattern += VARYING[kind]
            elif token[0] in self.learnt.values():
                pattern += re.escape(token[0])
            elif token[0] in tokens:
                pattern += rf"(?P=t{tokens.index(token[0])})"
            else:
                pattern += f"(?P<t{len(tokens)}>{NAMED[kind]})"
                tokens.append(token[0])
        match = re.fullmatch(pattern + re.escape(text[end:]), "\n".join(printed))
        if match is None:
            return False
        self.learnt |= {name: match[f"t{number}"] for number, name in enumerate(tokens)}
        return True


class Reader:
    """A person who does what the page says."""

    def __init__(self, folder: Path, environment: dict[str, str], names: Names) -> None:
        self._folder, self._environment, self._names = folder, environment, names
        self._terminals: dict[str, Terminal] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def do(self, step: Step) -> None:
        """Do one step. Fails if the page shows something else than is printed."""
        terminal = self._terminals.get(step.terminal)
        if terminal is None:
            terminal = self._stack.enter_context(Terminal(self._folder, self._environment))
            self._terminals[step.terminal] = terminal
        if step.interrupt:
            terminal.interrupt()
            return
        command, end = self._names.localize(step.command).rstrip() + "\n", time.monotonic() + PATIENCE
        terminal.send(command)
        while not self._is_shown(step, terminal):
            ended = terminal.idle and not self._is_shown(step, terminal)  # it may have ended in between
            if ended and LOOKS.search(step.command) and time.monotonic() < end:
                time.sleep(0.3)
                terminal.send(command)
            elif ended or time.monotonic() > end:
                if LOOKS.search(step.command):
                    terminal.wait()
                pytest.fail(self._explain(step, terminal), pytrace=False)
            time.sleep(0.05)

    def _is_shown(self, step: Step, terminal: Terminal) -> bool:
        """Return True if a command has printed what the page shows, and has ended unless it runs on."""
        if RUNS_ON.search(step.command):
            return not terminal.idle and self._names.learn(step.output, terminal.lines[: len(step.output)])
        return terminal.idle and self._names.learn(step.output, terminal.lines)

    def _explain(self, step: Step, terminal: Terminal) -> str:
        shown = "\n".join(["", *self._names.localize("\n".join(step.output)).splitlines()])
        printed = "\n".join(["", *terminal.lines])
        return f"{PAGE.name}:{step.line}: $ {step.command}\nthe page shows:{shown}\nthis was printed:{printed}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder in which the page's commands work as in a checkout, without leaving something in ours."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sandbox").write_text(f'#!/bin/sh\nexec "{ROOT}/bin/sandbox" "$@"\n')
    (tmp_path / "bin" / "sandbox").chmod(0o755)
    return tmp_path


def free_ports() -> dict[str, int]:
    """Return a free port for each on the page."""
    with contextlib.ExitStack() as stack:
        free: list[int] = []
        while len(free) < len(PORTS):
            with contextlib.suppress(OSError):
                probe = stack.enter_context(socket.create_server(("127.0.0.1", 2_000 + secrets.randbelow(8_000))))
                free.append(probe.getsockname()[1])
    return dict(zip(PORTS, free, strict=True))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("variant", [pytest.param("without", marks=pytest.mark.long), "with"])
def test_the_tutorial_is_true(checkout: Path, variant: str, request: pytest.FixtureRequest) -> None:
    ports = free_ports()
    names = Names({FOLDER: str(checkout)})
    if variant == "with":
        names.fixed[AMQP_URL] = request.getfixturevalue("amqp_url")
    names.fixed |= {f"127.0.0.1:{port}": f"127.0.0.1:{ports[name]}" for name, port in PORTS.items()}
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TC_TREEHERDER_", "SANDBOX_"))
    }
    environment |= {f"SANDBOX_{name.upper()}_PORT": str(port) for name, port in ports.items()}
    environment |= {f"SANDBOX_{name.upper()}_URL": f"http://127.0.0.1:{ports[name]}" for name in ("hg", "treeherder")}
    environment |= {"TC_TREEHERDER_POLL__INTERVAL": "0.5", "TC_TREEHERDER_POLL__MAX_BACKOFF": "1"}  # no need to wait
    environment |= {"TC_TREEHERDER_SERVICE_URL": f"http://127.0.0.1:{ports['service']}"}
    steps = read_steps(PAGE.read_text(), variant)
    assert len(steps) > 30
    with Reader(checkout, environment, names) as reader:
        for step in steps:
            reader.do(step)
    assert sorted(path.name for path in checkout.iterdir()) == [".venv", "bin"]


ONE, OTHER = "UoJ0_jOiTKu1-412aO_DZQ", "ARlLO6A-SOia6twdqrgUhw"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (f"{ONE}  done", f"{OTHER}  done", True),
        (f"{ONE}  done", f"{OTHER}  failed", False),
        (f"{ONE}  copy of {ONE}", f"{OTHER}  copy of {OTHER}", True),
        (f"{ONE}  copy of {ONE}", f"{OTHER}  copy of {ONE}", False),
        ("ended  2026-11-29 13:24:22Z", "ended  2026-12-01 00:00:00Z", True),
        ("ended  2026-11-29 13:24:22Z", "ended  -", False),
        ("attempts  1", "attempts  2", False),
        ("one line", "one line\nanother", False),
    ],
)
def test_what_varies_is_told_from_what_is_wrong(shown: str, printed: str, same: bool) -> None:
    assert Names({}).learn(shown.splitlines(), printed.splitlines()) == same


def test_an_id_stays_the_same_on_the_whole_page() -> None:
    names = Names({})
    assert names.learn([f"task {ONE}"], [f"task {OTHER}"])
    assert names.localize(f"--task mine/{ONE}") == f"--task mine/{OTHER}"
    assert not names.learn([ONE], [ONE])
    assert names.learn([ONE], [OTHER])


def test_blocks_are_for_readers_with_or_without_a_broker() -> None:
    page = "```console 1\n$ a\nb\n```\n\n```console 2 with\n$ c\n```\n```sh 1 without\nd\ne\n```\n```yaml\n$ f\n```\n"
    assert [(step.terminal, step.command, step.output) for step in read_steps(page, "with")] == [
        ("1", "a", ["b"]),
        ("2", "c", []),
    ]
    assert [step.command for step in read_steps(page, "without")] == ["a", "d\ne\n"]


def names_in(steps: list[Step]) -> dict[str, list[set[str]]]:
    """Return the names of values in each output, by the kind of command, such as `pushes show`."""
    names: dict[str, list[set[str]]] = {}
    for step in steps:
        kind = " ".join(step.command.split()[1:3]).replace("repositories add", "repositories show")
        lines = [re.match(r"([a-z_]+(?: [a-z_]+)*) {2,}", line) for line in step.output]
        names.setdefault(kind, []).append({match[1] for match in lines if match})
    return names


FORMS = {"repositories show", "pushes show", "actions run", "actions list", "dead-letters list"}
"""Kinds of commands whose outputs have the same names in other pages."""


def test_other_pages_show_outputs_of_the_same_form() -> None:
    tutorial = names_in(read_steps(PAGE.read_text(), "with"))
    compared = set()
    for page in (ROOT / "docs" / "how-to").glob("*.md"):
        text = re.sub(r"^ {3}", "", page.read_text(), flags=re.M)
        text = re.sub(r"^```(console|sh)$", r"```\1 1", text, flags=re.M)
        shown = [step for step in read_steps(text, "with") if step.output]
        for kind, outputs in names_in(shown).items():
            if kind in FORMS:
                always = set[str].intersection(*tutorial[kind])
                assert not [always - names for names in outputs if always - names], f"{page.name}: {kind}"
                compared.add(kind)
    assert compared == FORMS
