"""Facts that a task states in `extra.treeherder`, and how they are cut."""

from typing import Any

import pytest

from service.flow.tasks.facts import TaskFacts, UnshowableTaskError, cut
from tests.service.flow.jobs.report_factory import TASK, facts_of
from tests.service.flow.report_harness import definition


def test_defaults() -> None:
    facts = facts_of()
    assert (facts.group_symbol, facts.group_name, facts.product, facts.tier) == ("?", "unknown", "unknown", 1)
    assert (facts.reason, facts.job_kind, facts.options) == ("scheduled", None, ["opt"])
    platform = {"platform": "linux", "os_name": "-", "architecture": "-"}
    assert facts.machine == facts.build == platform


def test_machine_and_build_stand_in_for_each_other() -> None:
    facts = facts_of(
        machine={"platform": "android", "os": "linux"}, build={"platform": "linux64", "architecture": "arm"}
    )
    assert facts.machine == {"platform": "android", "os_name": "linux", "architecture": "arm"}
    assert facts.build == {"platform": "linux64", "os_name": "linux", "architecture": "arm"}
    assert facts_of(build={"platform": "win"}).machine["platform"] == "win"


@pytest.mark.parametrize(("symbol", "shown"), [(3, "3"), (3.0, "3"), (2.5, "2.5"), ("", ""), ("B", "B")])
def test_symbols_may_be_numbers(symbol: Any, shown: str) -> None:
    assert facts_of(symbol=symbol).symbol == shown


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({}, "no extra.treeherder"),
        ({"treeherder": None}, "no extra.treeherder"),
        ({"treeherder": []}, "no extra.treeherder"),
        ({"treeherder": {}}, "symbol"),
        ({"treeherder": {"symbol": None}}, "symbol"),
        ({"treeherder": {"symbol": True}}, "symbol"),
        ({"treeherder": {"symbol": "B", "tier": 4}}, "tier"),
        ({"treeherder": {"symbol": "B", "tier": "1"}}, "tier"),
        ({"treeherder": {"symbol": "B", "jobKind": "tea"}}, "jobKind"),
        ({"treeherder": {"symbol": "B", "labels": [""]}}, "labels"),
        ({"treeherder": {"symbol": "B", "machine": "linux"}}, "machine"),
        ({"treeherder": {"symbol": "B", "collection": {"opt": True, "debug": True}}}, "debug, opt"),
    ],
)
def test_sections_that_are_not_usable_and_why(extra: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnshowableTaskError, match=reason):
        TaskFacts(TASK, {**definition(extra=extra), "workerType": "linux"})


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("abcde", "abcde"),
        ("abcdef", "abcde"),
        ("abcd\N{FAMILY}f", "abcd\N{FAMILY}"),
        ("abcde\u0301", "abcd"),  # e with an accent is one character to a reader
        ("abcd\u2764\ufe0f", "abcd"),
        ("abc\N{MAN}\u200d\N{WOMAN}x", "abc"),
    ],
)
def test_cuts_leave_whole_characters(text: str, kept: str) -> None:
    assert cut(text, 5, TASK, "name") == kept
