"""The command `tc-treeherder`, in a checkout `python -m service`."""

import sys

from service import listen


def main() -> None:
    """Run the command line, or a listener without it."""
    match sys.argv[1:]:
        case ["listen", listener] if listener in listen.LIBRARIES:
            sys.exit(listen.run(listener))
    from service.cli import app  # noqa: PLC0415 - a listener needs nothing of it

    app()


if __name__ == "__main__":
    main()
