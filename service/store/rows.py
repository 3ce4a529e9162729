"""New objects of tables, for hot paths.

SQLModel's constructor sets each attribute three times, which takes 30 to 40 µs an object. A session makes objects that
it loads without it, and so are these made, in 2 µs.
"""

from collections.abc import Set
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import inspect
from sqlalchemy.orm.state import InstanceState
from sqlmodel import SQLModel

M = TypeVar("M", bound=SQLModel)


def new_row(model: type[M], **values: Any) -> M:
    """Return what `model(**values)` returns, with the defaults of the columns that are not given.

    Raises TypeError for a value of no column, and for a column that has neither value nor default.
    """
    manager, defaults, factories, columns = _table(model)
    row: M = model.__new__(model)
    attributes = vars(row)
    attributes[manager.STATE_ATTR] = InstanceState(row, manager)  # as `new_instance` does by SQLModel's `__setattr__`
    attributes.update(defaults)
    attributes.update(values)
    for name, factory in factories:
        if name not in values:
            attributes[name] = factory()
    if not values.keys() <= columns <= attributes.keys():
        unknown, missing = sorted(values.keys() - columns), sorted(columns - attributes.keys())
        raise TypeError(f"{model.__name__}: no columns {unknown}, and no values of {missing}")
    return row


def set_values(row: SQLModel, **values: Any) -> None:
    """Set columns without SQLModel's `__setattr__`, which takes 3 µs each, and which tells a session of the change.

    So the row must be one that is not stored yet, or that no session has loaded.
    """
    vars(row).update(values)


@cache
def _table(model: type[SQLModel]) -> tuple[Any, dict[str, Any], list[tuple[str, Any]], Set[str]]:
    """Return the manager of a table's objects, the defaults, the factories of the other defaults, and all columns."""
    fields = model.model_fields
    factories: list[tuple[str, Any]] = [
        (name, field.default_factory) for name, field in fields.items() if field.default_factory
    ]
    made = {name for name, _ in factories}
    defaults = {name: field.default for name, field in fields.items() if not field.is_required() and name not in made}
    return inspect(model).class_manager, defaults, factories, fields.keys()
