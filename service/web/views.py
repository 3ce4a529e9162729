"""What a page shows, apart from whoever looks: read for a request, and again for everybody who watches the page.

The lists and facts of a page that may change are its items. A template puts each between

    {% call item("tasks", task.id) %}<tr data-key="…">…</tr>{% endcall %}

inside of an element with `data-live="tasks"`. An item is one element, and the same for everybody with the same view.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError

from service.api.marks import Watched
from service.errors import Problem
from service.services import Services

if TYPE_CHECKING:
    from service.web.pages import Site

MAX_ARGUMENTS = 4_000
"""Characters of a view's arguments."""

Lists = dict[str, dict[str, str]]
"""The HTML of each item, by the names of its list and itself."""


class Items:
    """The items of a page, noted while it is rendered."""

    def __init__(self) -> None:
        self.lists: Lists = {}

    def __call__(self, name: str, key: object, caller: Callable[[], str]) -> str:
        """Note an item, and return it for the page."""
        content = caller()
        self.lists.setdefault(name, {})[str(key)] = str(content).strip()
        return content

    def digest(self) -> str:
        """Return what differs as soon as an item does."""
        return hashlib.sha256(json.dumps(self.lists).encode()).hexdigest()[:24]


def differences(before: Lists, after: Lists) -> dict[str, Any]:
    """Return what has changed: of each list the new and changed items, and all keys if there are others than before."""
    changes: dict[str, Any] = {}
    for name in before.keys() | after.keys():
        old, new = before.get(name, {}), after.get(name, {})
        items = {key: html for key, html in new.items() if old.get(key) != html}
        change: dict[str, Any] = {"items": items} if items else {}
        if list(old) != list(new):
            change["keys"] = list(new)
        if change:
            changes[name] = change
    return changes


@dataclass
class Shown:
    """The values for a view's template, and when they change: with what is watched, and after `again` seconds."""

    values: dict[str, Any]
    watched: Watched = field(default_factory=Watched)
    again: float | None = None


@dataclass(frozen=True)
class View:
    """A page that changes. Its fields are its arguments, which every browser that watches it sends."""

    name: ClassVar[str]
    template: ClassVar[str]
    personal: ClassVar[dict[str, Any]] = {}
    """Values that depend on who looks, for when nobody in particular does. No item may use them."""
    scope: ClassVar[str | None] = None
    """The scope that whoever watches it needs, beside that to read."""

    async def read(self, services: Services, site: "Site") -> Shown:
        """Read what the page shows. Raises Problem."""
        raise NotImplementedError

    def arguments(self) -> str:
        """Return the arguments as JSON."""
        return json.dumps(asdict(self))


VIEWS: dict[str, TypeAdapter[Any]] = {}

_V = TypeVar("_V", bound=type[View])


def live(view: _V) -> _V:
    """Register a view, so that it can be watched."""
    VIEWS[view.name] = TypeAdapter(view)
    return view


def parse_view(name: str, arguments: str) -> View:
    """Return the view that a browser names. Raises a 422."""
    unknown = Problem(422, "Invalid request", "page, args: they name no page that changes: load the page again")
    if name not in VIEWS or len(arguments) > MAX_ARGUMENTS:
        raise unknown
    try:
        view: View = VIEWS[name].validate_json(arguments)
    except ValidationError:
        raise unknown from None
    return view
