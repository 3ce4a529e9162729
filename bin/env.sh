# shellcheck shell=bash
# Sourced by the other commands: creates .venv, installs requirements-dev.lock and this project into it, again only after
# the lock or pyproject.toml changed, and puts .venv/bin first in PATH. PYTHON names another interpreter to use.

# Prints the first Python that is new enough and can create a virtual environment; without one, says what to install.
_env_python() {
    local candidate without_venv=""
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
        # It has to be run: version managers leave shims of interpreters that are not installed.
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
        if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "$candidate"
            return 0
        fi
        without_venv=$candidate
    done
    if [ -n "$without_venv" ]; then
        local version
        version=$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        echo "bin/env.sh: $without_venv (Python $version) has no 'venv' or 'ensurepip', which make the virtual environment." >&2
        echo "  Debian, Ubuntu: sudo apt-get install python$version-venv" >&2
        echo "  elsewhere: install a complete Python >= 3.11 and name it, as in PYTHON=/path/to/python3 $0" >&2
        return 1
    fi
    echo "bin/env.sh: no Python >= 3.11 among ${PYTHON:+$PYTHON, }python3.13, python3.12, python3.11, python3." >&2
    echo "  Debian 12, Ubuntu 24.04 or newer: sudo apt-get install python3 python3-venv" >&2
    echo "  Fedora: sudo dnf install python3.13          macOS: brew install python@3.13" >&2
    echo "  or name one that you have: PYTHON=/path/to/python3 $0" >&2
    return 1
}

_env_prepare() {
    local root python wanted stamp
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P) || return 1
    stamp=$root/.venv/.installed
    # The folder is part of the stamp, because the scripts in a virtual environment contain its path.
    wanted=$({ echo "$root" && cat "$root/requirements-dev.lock" "$root/pyproject.toml"; } | cksum) || return 1

    if [ ! -x "$root/.venv/bin/python" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        if ! "$root/.venv/bin/python" -m pip --version >/dev/null 2>&1; then
            python=$(_env_python) || return 1
            echo "bin/env.sh: making .venv with $("$python" --version 2>&1)" >&2
            if ! "$python" -m venv --clear "$root/.venv"; then
                echo "bin/env.sh: $python could not make $root/.venv: its own words are above." >&2
                echo "  Is the disk full, or the folder owned by someone else? Then 'rm -rf .venv' and run this again." >&2
                return 1
            fi
        fi
        echo "bin/env.sh: installing requirements-dev.lock, which may take some minutes" >&2
        if ! "$root/.venv/bin/python" -m pip install --quiet --quiet --no-input --disable-pip-version-check \
            --require-hashes --requirement "$root/requirements-dev.lock"; then
            echo "bin/env.sh: pip could not install requirements-dev.lock: its own words are above." >&2
            echo "  Without a way to a package index: set HTTPS_PROXY to your proxy or PIP_INDEX_URL to an index that you reach." >&2
            echo "  When a hash does not match: the lock is old or the download was changed on its way; see bin/lock." >&2
            return 1
        fi
        if ! "$root/.venv/bin/python" -m pip install --quiet --quiet --no-input --disable-pip-version-check \
            --no-deps --no-build-isolation --editable "$root"; then
            echo "bin/env.sh: pip could not install this project from $root: its own words are above." >&2
            echo "  Most often pyproject.toml is wrong: compare it with 'git diff pyproject.toml'." >&2
            return 1
        fi
        echo "$wanted" >"$stamp" || return 1
    fi

    case ":$PATH:" in
    *":$root/.venv/bin:"*) ;;
    *) PATH=$root/.venv/bin:$PATH ;;
    esac
    export PATH VIRTUAL_ENV="$root/.venv"
    unset PYTHONHOME
}

_env_prepare
