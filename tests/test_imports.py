"""Check who imports whom: imports point downwards, and go in no circle. `docs/architecture.md` says why."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("service", "listeners", "sandbox", "benchmarks")

BASE = frozenset({"service.clock", "service.contract", "service.error_task", "service.errors", "service.lean",
                  "service.log", "service.metrics", "service.sanitize", "service.slugids",
                  "service.yaml12"})  # fmt: skip
"""Packages that know nothing of databases, upstreams or the flow."""

LOW = BASE | {"service.settings"}
STORE = LOW | {"service.store"}
CLIENTS = LOW | {"service.clients"}
ENGINE = STORE | {"service.engine"}
SERVICES = ENGINE | CLIENTS | {"service.services"}
TASKS = SERVICES | {"service.flow.tasks"}
FLOW = TASKS | {"service.flow", "service.flow.pushes", "service.flow.actions", "service.flow.jobs"}
TOP = FLOW | {"service.auth", "service.api"}

MAY_IMPORT: dict[str, frozenset[str]] = {
    **dict.fromkeys(BASE, BASE),
    "service.contract": frozenset({"service.contract"}),
    "service.settings": LOW,
    "service.store": STORE,
    "service.clients": CLIENTS,
    "service.engine": ENGINE,
    "service.services": SERVICES,
    "service.flow.tasks": TASKS,
    "service.flow.pushes": TASKS | {"service.flow.pushes"},
    "service.flow.actions": TASKS | {"service.flow.actions"},
    "service.flow.jobs": TASKS | {"service.flow.jobs"},
    "service.flow": frozenset(),  # it imports all of its modules by their names
    "service.auth": CLIENTS | STORE,
    "service.api": TOP,
    "service.commands": TOP | {"service.commands", "listeners"},
    "service.describe": LOW,
    "service.server": BASE,
    "service.web": TOP | {"service.web"},
    "service.app": TOP | {"service.web"},
    "service.listen": BASE | {"listeners"},
    "service.cli": TOP
    | {"service.app", "service.commands", "service.describe", "service.listen", "service.server", "listeners"},
    "service.__main__": frozenset({"service.cli", "service.listen"}),
    "listeners": frozenset({"listeners", "service.contract"}),
    # of the clients, the names that the service publishes under
    "sandbox": frozenset({"sandbox", "listeners", "service.clients", "service.contract"}),
    "benchmarks": frozenset({"benchmarks", "sandbox", "listeners", "service.cli", "service.app"}) | TOP,
}
"""Each package, or module of its own, and what it may import. What is not here may be imported by nobody."""


def modules() -> dict[str, Path]:
    """Return all modules of ours by their dotted names."""
    found = {}
    for top in OURS:
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(path: Path, *, deferred: bool) -> Iterator[str]:
    """Yield the modules of ours that a module imports; with `deferred`, also those that a function of it imports."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if deferred else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield full if full in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def package_of(module: str) -> str:
    """Return the entry of `MAY_IMPORT` that a module belongs to. Raises KeyError."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in MAY_IMPORT:
            return name
    raise KeyError(f"{module} has no place in MAY_IMPORT: say what it may import")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_downwards(module: str) -> None:
    if module == "service":
        return
    package = package_of(module)
    for imported in imports_of(MODULES[module], deferred=True):
        if imported.partition(".")[0] in OURS and imported != "service":
            target = package_of(imported)
            assert target in MAY_IMPORT[package], f"{module} imports {imported}: {package} may not import {target}"


def test_imports_go_in_no_circle() -> None:
    graph = {
        module: {name for name in imports_of(path, deferred=False) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


WITHOUT_TESTS = {
    "service.api.deps": "each endpoint's tests go through it",
    "service.engine.process": "a protocol without logic",
    "sandbox.credentials": "values alone",
    "sandbox.hg.rawbytes": "Mercurial loads it: test_client makes such a commit",
}
"""Modules that have no test file of their name, with the reason."""


def test_each_module_has_a_test_file_of_its_name() -> None:
    without = {
        name
        for name, path in MODULES.items()
        if path.stem not in {"__init__", "__main__"}
        and "schemas" not in path.parts  # declarations, which the tests of their nouns use
        and not (ROOT / "tests" / path.relative_to(ROOT)).with_name(f"test_{path.name}").is_file()
    }
    assert without == WITHOUT_TESTS.keys()
