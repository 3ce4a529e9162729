"""Views, their items, and what changes between two times."""

import pytest
from markupsafe import Markup

from service.errors import Problem
from service.web import install  # noqa: F401 - it imports all pages, and so all views are registered
from service.web.pushes import PushesView, PushView
from service.web.views import VIEWS, Items, differences, parse_view


def test_items_are_noted_as_they_are_shown() -> None:
    items = Items()
    assert items("rows", 7, lambda: Markup(" <tr></tr>\n")) == " <tr></tr>\n"
    assert items.lists == {"rows": {"7": "<tr></tr>"}}
    before = items.digest()
    items("rows", 7, lambda: Markup("<tr>x</tr>"))
    assert items.digest() != before


def test_only_what_changed_is_told() -> None:
    before = {"a": {"1": "x", "2": "y"}, "gone": {"1": "x"}, "same": {"1": "x"}}
    after = {"a": {"3": "z", "1": "x", "2": "Y"}, "same": {"1": "x"}, "new": {"1": "n"}}
    assert differences(before, after) == {
        "a": {"items": {"3": "z", "2": "Y"}, "keys": ["3", "1", "2"]},
        "gone": {"keys": []},
        "new": {"items": {"1": "n"}, "keys": ["1"]},
    }
    assert differences(after, after) == {}


def test_a_view_is_made_again_of_its_arguments() -> None:
    assert set(VIEWS) == {
        *("home", "pushes", "push", "actions", "action", "task", "waiting", "lane", "reports", "dead-letters"),
        *("repositories", "pulse-queues", "audit"),
    }
    for view in (PushView("mc", 7, None, 100, may_retry=True), PushesView("mc", "<b>", None, None)):
        assert parse_view(view.name, view.arguments()) == view


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nothing", "{}"),
        ("push", "{}"),
        ("push", "no JSON"),
        ("push", '{"alias": "mc", "push_id": "x", "generation": null, "first": 0, "may_retry": true}'),
        ("pushes", '{"after": 7}'),
        ("home", " " * 5_000 + "{}"),
    ],
)
def test_anything_else_is_no_view(name: str, arguments: str) -> None:
    with pytest.raises(Problem) as refused:
        parse_view(name, arguments)
    assert refused.value.status == 422
