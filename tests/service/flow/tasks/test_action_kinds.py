"""The registry of actions."""

import pytest

from service.flow.tasks.action_kinds import (
    ACTIONS,
    ActionKind,
    is_of_tree,
    known_names,
    lane_of,
    listed_names,
    pressable,
    register,
    scope_of,
)
from service.store.models import PULSE_ACTIONS, TreeActions


def test_each_action_has_a_scope_for_each_project_and_a_lane_of_its_own() -> None:
    assert scope_of("cancel", "mc") == ACTIONS["cancel"].scope("mc") == "tc-treeherder:action:cancel:mc"
    assert len({kind.lane for kind in ACTIONS.values()}) == len(ACTIONS)
    assert known_names().startswith("cancel, cancel-push")
    assert known_names().endswith(" and retrigger-failed")


def test_a_press_may_name_what_the_repository_lists_and_what_is_about_a_task() -> None:
    names = [*ACTIONS, "backfill", "explode"]
    assert [name for name in names if pressable(name, PULSE_ACTIONS)] == ["cancel", "retrigger"]
    allowed = ["cancel-push", "backfill", "retrigger"]
    assert [name for name in names if pressable(name, allowed)] == ["retrigger", "backfill"]


@pytest.mark.parametrize(
    ("name", "setting", "of_tree"),
    [
        ("retrigger", TreeActions.COPIES, False),
        ("retrigger", TreeActions.IN_TREE, True),
        ("cancel", TreeActions.AUTO, True),
        ("cancel-push", TreeActions.IN_TREE, False),
        ("backfill", TreeActions.COPIES, True),
    ],
)
def test_which_actions_are_the_tree_s(name: str, setting: TreeActions, of_tree: bool) -> None:
    assert is_of_tree(name, setting) is of_tree
    assert lane_of(name, in_tree=of_tree) == ("action in-tree" if of_tree else f"action {name}")


def test_names_in_a_message() -> None:
    assert listed_names(["b", "a", "c"]) == "a, b and c"
    assert listed_names([]) == "none"


def test_an_action_is_registered_once() -> None:
    cancel = ACTIONS["cancel"]
    with pytest.raises(ValueError, match="cancel of Action is registered already"):
        register(ActionKind("cancel", "Cancel twice.", cancel.run, cancel.plan))
    assert ACTIONS["cancel"] is cancel
