"""What forms of repositories mean."""

import pytest

from service.api.schemas.repositories import RepositoryRead
from service.clock import now
from service.errors import Problem
from service.web.repository_forms import CHANGEABLE, seen_of, wanted_change, wanted_repository, wanted_reset

FORM = {
    "level": "3",
    "trust_domain": "gecko",
    "route_project": "",
    "scopes": "a:b\r\n\r\n  c:d  \r\n",
    "contains": "",
    "environments": "",
    "graph": "no",
    "supersede": "pusher",
    "actions": "auto",
    "pulse_actions": "retrigger\ncancel",
    "enabled": "yes",
}


def repository(**more: object) -> RepositoryRead:
    nothing = dict.fromkeys(set(RepositoryRead.model_fields), None)
    values = {**nothing, "alias": "mc", "url": "https://hg.mozilla.org/mc", "level": "3", "scopes": ["a:b", "c:d"]}
    values |= {"graph": False, "supersede": "pusher", "actions": "auto", "pulse_actions": ["retrigger", "cancel"]}
    values |= {"enabled": True, "last_push_id": 1, "generation": 0, "created_at": now(), "poll_failures": 0}
    return RepositoryRead.model_validate({**values, "trust_domain": "gecko", **more})


def test_a_form_adds_a_repository() -> None:
    added = wanted_repository({**FORM, "alias": " mc ", "url": "https://hg.mozilla.org/mc", "last_push_id": "7"})
    assert (added.alias, added.last_push_id, added.scopes, added.environments) == ("mc", 7, ["a:b", "c:d"], None)
    assert (added.graph, added.enabled, added.contains, added.supersede) == (False, True, None, "pusher")
    assert wanted_repository({"alias": "mc", "url": "https://x/", "level": "1"}).last_push_id is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"alias": "<b>"}, "alias"),
        ({"level": ""}, "level"),
        ({"graph": "maybe"}, "graph"),
        ({"supersede": "x"}, "supersede"),
        ({"last_push_id": "-1"}, "last_push_id: '-1' is no number"),
        ({"last_push_id": "٣"}, "last_push_id"),
        ({"contains": "\0"}, "contains"),
    ],
)
def test_what_is_no_repository_is_refused(change: dict[str, str], named: str) -> None:
    with pytest.raises(Problem, match=named) as refused:
        wanted_repository({**FORM, "alias": "mc", "url": "https://hg.mozilla.org/mc", **change})
    assert refused.value.status == 422


def test_a_change_has_only_what_is_different() -> None:
    present = repository()
    form = {**FORM, "seen": seen_of(present), "contains": "CI", "graph": "yes", "scopes": ""}
    change = wanted_change(form, present)
    assert change.model_fields_set == {"contains", "graph", "scopes"}
    assert (change.contains, change.graph, change.scopes) == ("CI", True, None)
    assert set(FORM) == set(CHANGEABLE)
    with pytest.raises(Problem, match="change something first"):
        wanted_change({**FORM, "seen": seen_of(present)}, present)


def test_nobody_overwrites_what_they_have_not_seen() -> None:
    form = {**FORM, "seen": seen_of(repository()), "contains": "CI"}
    assert wanted_change(form, repository(poll_failures=3, last_push_id=9)).contains == "CI"
    for name, value in {"graph": True, "scopes": [], "enabled": False, "level": "1"}.items():
        with pytest.raises(Problem, match="was changed since you loaded this form") as refused:
            wanted_change(form, repository(**{name: value}))
        assert refused.value.status == 409
    with pytest.raises(Problem, match="was changed since"):
        wanted_change(FORM, repository())


def test_a_reset_is_meant() -> None:
    assert wanted_reset({"sure": "yes", "last_push_id": ""}).last_push_id is None
    assert wanted_reset({"sure": "yes", "last_push_id": "5"}).last_push_id == 5
    with pytest.raises(Problem, match="tick that"):
        wanted_reset({"last_push_id": "5"})
