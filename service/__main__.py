"""`python -m service`, the command `tc-treeherder` in a checkout."""

from service.cli import main

main()
