"""Check the Dockerfile, without building it, and what bin/build-image asks of the engine."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions() -> list[tuple[str, str]]:
    """Yield each instruction with its arguments on one line, without comments."""
    lines = "\n".join(line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line]


def last_stage() -> list[tuple[str, str]]:
    every = instructions()
    begins = max(number for number, (name, _) in enumerate(every) if name == "FROM")
    return every[begins:]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")


def test_all_that_is_installed_is_locked() -> None:
    installs = re.findall(
        r"pip(?: --python \S+)? (?:install|wheel) .*?(?=&&|$)", "\n".join(map(" ".join, instructions())), re.M
    )
    assert len(installs) == 5
    for install in installs:
        assert "--no-index" in install or {"--require-hashes", "--only-binary"} <= set(install.split()), install


def test_the_build_tools_are_those_of_development() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^(\S+==\S+)", (ROOT / name).read_text(), re.M))

    assert pins("requirements-build.lock") <= pins("requirements-dev.lock")
    for requirement in PROJECT["build-system"]["requires"]:
        assert any(pin.startswith(f"{requirement}==") for pin in pins("requirements-build.lock"))


def test_the_build_gets_all_that_the_wheel_is_made_of_and_no_more() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    expected = {
        "pyproject.toml",
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
        *(path.removeprefix("/") for path in wheel["include"]),
    }
    copied = {
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from=" not in arguments
        for source in arguments.split()[:-1]
    }
    locks = {"requirements.lock", "requirements-build.lock"}
    of_the_sandbox = {"requirements-sandbox.lock", "sandbox"}
    assert copied == expected | locks | of_the_sandbox
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in ignored if line and not line.startswith("#")) == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def test_the_image_runs_the_command_as_nobody_in_particular() -> None:
    stage = last_stage()
    instructions_by_name = dict(stage)
    assert instructions_by_name["USER"] == "app"
    (accounts,) = [run for name, run in stage if name == "RUN"]
    assert re.search(r"\bgroupadd --gid 10001 app\b", accounts)
    assert re.search(r"\buseradd --uid 10001 --gid app .* app\b", accounts)
    assert json.loads(instructions_by_name["ENTRYPOINT"]) == ["tc-treeherder"]
    assert "tc-treeherder" in PROJECT["project"]["scripts"]
    assert json.loads(instructions_by_name["CMD"]) == ["serve"]
    assert [name for name, _ in stage].index("USER") > max(n for n, (name, _) in enumerate(stage) if name == "RUN")
    # nothing is installed into it: what builds stays in the stage before
    assert not [run for name, run in stage if name == "RUN" and re.search(r"\b(pip|apt-get|curl|wget)\b", run)]
    assert [arguments for name, arguments in stage if name == "COPY"] == [
        "--from=build /opt/tc-treeherder /opt/tc-treeherder",
        "--from=build /app /app",
    ]


def test_our_code_is_in_app_and_nowhere_else() -> None:
    """As Dockerflow wants; the libraries are beside it."""
    (install,) = [run for name, run in instructions() if name == "RUN" and "/dist/*.whl" in run]
    assert "--target /app /dist/*.whl" in install
    assert "echo /app >" in install
    assert dict(last_stage())["ENV"].startswith("PATH=/app/bin:/opt/tc-treeherder/bin:$PATH ")
    (version,) = [run for name, run in instructions() if name == "RUN" and "version.json" in run]
    assert version.endswith("> /app/version.json")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the project into a folder `app`, as the Dockerfile does, and return it."""
    folder = tmp_path_factory.mktemp("image")
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    wheel = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(ROOT)]
    subprocess.run(wheel, check=True, timeout=100)
    (built,) = (folder / "dist").glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", folder / "app", built], check=True, timeout=100)
    return folder / "app"


def test_the_program_in_app_runs_its_own_code(installed: Path, tmp_path: Path) -> None:
    """The .pth file of the Dockerfile leads there, also for the child that renders, which ignores variables."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    (site,) = (venv / "lib").glob("python*/site-packages")
    libraries = Path(pytest.__file__).parents[1]
    (site / "app.pth").write_text(f"{installed}\n{libraries}\n")
    code = (
        "import service, service.engine.render_child, service.store.database as d; print(service.__file__, d.__file__)"
    )
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [Path(word).is_relative_to(installed) for word in done.stdout.split()] == [True, True]
    version = subprocess.run(
        [python, installed / "bin" / "tc-treeherder", "--version"], capture_output=True, text=True, check=True
    )
    assert version.stdout == f"tc-treeherder {PROJECT['project']['version']}\n"
    upgrade = subprocess.run(
        [python, installed / "bin" / "tc-treeherder", "db", "upgrade"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert upgrade.stdout.endswith("the schema is at head\n"), upgrade.stderr


def test_the_base_is_a_slim_python_that_the_project_takes() -> None:
    (base,) = [arguments for name, arguments in instructions() if name == "ARG" and arguments.startswith("BASE_IMAGE=")]
    version = re.search(r"python:3\.(\d+)-slim$", base)
    assert version is not None
    assert int(version[1]) >= int(PROJECT["project"]["requires-python"].removeprefix(">=3."))
    assert {arguments.split()[0] for name, arguments in instructions() if name == "FROM"} == {
        "${BASE_IMAGE}",
        "build",
    }


def test_the_image_has_nothing_of_the_sandbox() -> None:
    named = [
        number for number, (name, arguments) in enumerate(instructions()) if name == "FROM" and " AS " in arguments
    ]
    targets = [instructions()[number][1].split(" AS ")[1] for number in named]
    assert targets == ["build", "sandbox", "service"], "the last one is what is built by default"
    assert not [arguments for name, arguments in last_stage() if "sandbox" in arguments]


def test_labels_are_those_of_oci() -> None:
    labels = set(re.findall(r'org\.opencontainers\.image\.(\w+)="', dict(last_stage())["LABEL"]))
    assert labels == {"title", "description", "licenses", "version", "revision", "source"}
    assert f'licenses="{PROJECT["project"]["license"]}"' in DOCKERFILE


# --- bin/build-image -------------------------------------------------------------------------------------------------


class Engine:
    """A stand-in for docker: it writes down what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "engine"
        self._asked = folder / "asked"
        self.program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {self._asked}\n')
        self.program.chmod(0o755)

    def asked(self, *arguments: str, **variables: str) -> list[str]:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment = inherited | {"CONTAINER_ENGINE": str(self.program)} | variables
        subprocess.run([ROOT / "bin" / "build-image", *arguments], env=environment, check=True)
        return self._asked.read_text().splitlines()


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


def build_arguments(command: list[str]) -> dict[str, str]:
    pairs = [command[number + 1] for number, word in enumerate(command) if word == "--build-arg"]
    return dict(pair.split("=", 1) for pair in pairs)


def test_the_image_is_told_what_it_is_made_of(engine: Engine) -> None:
    command = engine.asked(
        SOURCE_URL="https://git.example.com/tc-treeherder",
        BUILD_URL="https://ci.example.com/7",
    )
    passed = build_arguments(command)
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", passed.pop("COMMIT"))
    version = PROJECT["project"]["version"]
    assert passed == {
        "VERSION": version,
        "SOURCE": "https://git.example.com/tc-treeherder",
        "BUILD": "https://ci.example.com/7",
    }
    assert set(passed) | {"COMMIT"} <= set(re.findall(r'^ARG (\w+)=""$', DOCKERFILE, re.M))
    assert command[0] == "build"
    assert command[-1] == "."
    assert command[command.index("--tag") + 1] == f"tc-treeherder:{version}"
    assert "--secret" not in command


def test_a_password_in_gits_url_is_not_told(engine: Engine) -> None:
    command = engine.asked(
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0="remote.origin.url",
        GIT_CONFIG_VALUE_0="https://user:password@git.example.com/tc-treeherder",
    )
    assert build_arguments(command)["SOURCE"] == "https://git.example.com/tc-treeherder"
    assert "password" not in " ".join(command)


def test_pips_settings_are_secrets_of_the_build(engine: Engine) -> None:
    command = engine.asked(PIP_CONFIG_FILE="/my/pip.conf", PIP_CERT="/my/ca.pem")
    secrets = [command[number + 1] for number, word in enumerate(command) if word == "--secret"]
    assert secrets == ["id=pip,src=/my/pip.conf", "id=ca,src=/my/ca.pem"]
    mounted = set(re.findall(r"--mount=type=secret,id=(\w+)", DOCKERFILE))
    assert mounted == {"pip", "ca"}
    for name in mounted:
        assert f"/run/secrets/{name}" in DOCKERFILE


@pytest.mark.parametrize("tag", [["--tag", "mine"], ["-t", "mine"], ["--tag=mine"]])
def test_options_go_to_the_engine_and_a_tag_of_ones_own_is_the_only_one(engine: Engine, tag: list[str]) -> None:
    command = engine.asked(*tag, "--platform", "linux/arm64")
    assert not [word for word in command if word.startswith("tc-treeherder:")]
    assert command[-1 - len(tag) - 2 :] == [*tag, "--platform", "linux/arm64", "."]


def test_without_an_engine_it_says_what_to_do(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "env", "dirname", "sed", "git"):
        where = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        (programs / name).symlink_to(where)
    answer = subprocess.run(
        [ROOT / "bin" / "build-image"], env={"PATH": str(programs)}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert "CONTAINER_ENGINE" in answer.stderr
