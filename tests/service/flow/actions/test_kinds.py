"""The registry of actions."""

import pytest

from service.flow.actions.kinds import ACTIONS, ActionKind, known_names, pressable, register, scope_of


def test_each_action_has_a_scope_for_each_project_and_a_lane_of_its_own() -> None:
    assert scope_of("cancel", "mc") == ACTIONS["cancel"].scope("mc") == "tc-treeherder:action:cancel:mc"
    assert len({kind.lane for kind in ACTIONS.values()}) == len(ACTIONS)
    assert known_names().startswith("cancel, cancel-push")
    assert known_names().endswith(" and retrigger-failed")


def test_a_press_may_name_retrigger_and_cancel_alone() -> None:
    assert known_names(pressed=True) == "cancel and retrigger"
    assert [name for name in [*ACTIONS, "explode"] if pressable(name)] == ["cancel", "retrigger"]


def test_an_action_is_registered_once() -> None:
    cancel = ACTIONS["cancel"]
    with pytest.raises(ValueError, match="cancel of Action is registered already"):
        register(ActionKind("cancel", "Cancel twice.", cancel.run, cancel.plan))
    assert ACTIONS["cancel"] is cancel
