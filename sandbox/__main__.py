"""`python -m sandbox`, which `bin/sandbox` calls."""

from sandbox.cli import app

app(prog_name="bin/sandbox")
