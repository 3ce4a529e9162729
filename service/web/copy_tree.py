"""Arrange the copies of a preview as a tree: each below a copy that it depends on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.api.schemas.actions import PlannedCopy

MAX_DEPTH = 12
"""Levels of the tree; what is deeper stands on the last one."""


@dataclass
class Branch:
    """A copy, and the copies below it."""

    copy: PlannedCopy
    depth: int
    also_after: int  # further copies that it depends on
    below: list["Branch"] = field(default_factory=list)


def tree_of(copies: Sequence[PlannedCopy]) -> list[Branch]:
    """Return the copies that depend on no other copy, with the others below them.

    `copies` are in dependency order. One that depends on several stands below the deepest of them.
    """
    branches: dict[str, Branch] = {}
    roots: list[Branch] = []
    for copy in copies:
        above = [branches[task_id] for task_id in copy.dependencies if task_id in branches]
        if not above:
            branch = Branch(copy, 1, 0)
            roots.append(branch)
        else:
            parent = max(above, key=lambda each: each.depth)
            if parent.depth < MAX_DEPTH:
                branch = Branch(copy, parent.depth + 1, len(above) - 1)
                parent.below.append(branch)
            else:
                branch = Branch(copy, parent.depth, len(above))
                roots.append(branch)
        branches[copy.task_id] = branch
    return roots
