"""Copies of a preview as a tree."""

from service.api.schemas.actions import PlannedCopy
from service.web.copy_tree import MAX_DEPTH, Branch, tree_of


def copy(name: str, *dependencies: str) -> PlannedCopy:
    dates = dict.fromkeys(("created", "deadline", "expires"), "2026-01-15T12:30:01.000Z")
    return PlannedCopy(
        copy_of=f"old {name}", task_id=name, name=name, task_group_id="g", dependencies=list(dependencies), **dates
    )


def outline(branches: list[Branch]) -> list[object]:
    return [(branch.copy.name, branch.also_after, outline(branch.below)) for branch in branches]


def test_a_copy_stands_below_the_deepest_of_those_that_it_waits_for() -> None:
    copies = [
        copy("build", "a task that is no copy"),
        copy("test", "build"),
        copy("report", "build", "test"),
        copy("x"),
    ]
    assert outline(tree_of(copies)) == [("build", 0, [("test", 0, [("report", 1, [])])]), ("x", 0, [])]


def test_a_long_chain_stays_a_tree_that_can_be_shown() -> None:
    chain = [copy("0"), *(copy(str(number), str(number - 1)) for number in range(1, 500))]
    roots = tree_of(chain)
    assert sum(1 for _ in roots) == 500 - MAX_DEPTH + 1
    assert roots[-1].also_after == 1


def test_a_copy_that_waits_for_itself_ends() -> None:
    assert outline(tree_of([copy("a", "a")])) == [("a", 0, [])]
