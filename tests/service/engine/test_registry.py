"""The registry of leased work."""

from typing import Any

import pytest

from service.engine.registry import Registry, WorkTable
from service.store.models import Action, JobReport, PushStep, StepKind


async def run(_services: Any, _lease: Any) -> None:
    pass


def test_work_is_done_by_the_function_of_its_kind() -> None:
    registry = Registry()
    registry.add_kind(PushStep, StepKind.GRAPH, run)
    assert registry.run_of(PushStep(push_id=1, kind=StepKind.GRAPH, lane="x")) is run
    with pytest.raises(LookupError, match="nothing does resultset of PushStep"):
        registry.run_of(PushStep(push_id=1, kind=StepKind.RESULTSET, lane="x"))


def test_a_kind_and_a_table_are_registered_once() -> None:
    registry = Registry()
    registry.add_kind(PushStep, StepKind.GRAPH, run)
    with pytest.raises(ValueError, match="is registered already"):
        registry.add_kind(PushStep, StepKind.GRAPH, run)
    registry.add_table(WorkTable(Action, "x"))
    with pytest.raises(ValueError, match="Action is registered already"):
        registry.add_table(WorkTable(Action, "y"))


def test_the_worker_takes_pieces_of_tables_without_a_deliverer() -> None:
    deliverer: Any = object
    registry = Registry()
    registry.add_table(WorkTable(PushStep, "x"))
    registry.add_table(WorkTable(JobReport, "x", deliverer=deliverer))
    registry.add_table(WorkTable(Action, "x"))
    assert registry.worked == (PushStep, Action)
