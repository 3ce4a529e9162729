"""Forms that add and change repositories: what they show, and what is meant by what they send."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from service.api.schemas.repositories import RepositoryCreate, RepositoryPatch, RepositoryRead, Reset
from service.contract.validation import problems_of
from service.errors import Problem

M = TypeVar("M", bound=BaseModel)

_LISTS = ("scopes", "environments", "pulse_actions")
"""Fields with one value a line."""

_NULLABLE = ("trust_domain", "route_project", "scopes", "contains", "environments")
"""Fields of which nothing is null: the default."""

_WORDS = ("level", "supersede", "actions")

_YES_OR_NO = ("graph", "enabled")

CHANGEABLE = (*_WORDS, *_NULLABLE, *_YES_OR_NO, "pulse_actions")
"""Fields that a form changes."""


def seen_of(repository: RepositoryRead) -> str:
    """Return what a form carries of the fields that it shows, so that nobody overwrites what they have not seen."""
    shown = repository.model_dump_json(include=set(CHANGEABLE))
    return hashlib.sha256(shown.encode()).hexdigest()


def _values(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a repository that a form has."""
    values: dict[str, Any] = {}
    for name in CHANGEABLE:
        if name not in form:
            continue
        text = form[name].strip()
        if name in _NULLABLE and not text:
            values[name] = None
        elif name in _LISTS:
            values[name] = [line.strip() for line in text.splitlines() if line.strip()]
        else:
            values[name] = {"yes": True, "no": False}.get(text, text) if name in _YES_OR_NO else text
    return values


def _cursor(form: Mapping[str, str]) -> int | None:
    text = form.get("last_push_id", "").strip()
    if text and not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise Problem(422, "Invalid request", f"last_push_id: {text[:100]!r} is no number")
    return int(text) if text else None


def _validated(model: type[M], values: dict[str, Any]) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise Problem(422, "Invalid request", problems_of(error, model, quote=True)) from None


def wanted_repository(form: Mapping[str, str]) -> RepositoryCreate:
    """Return the repository that a form adds. Raises a 422."""
    named = {name: form.get(name, "").strip() for name in ("alias", "url")}
    return _validated(RepositoryCreate, {**_values(form), **named, "last_push_id": _cursor(form)})


def wanted_change(form: Mapping[str, str], repository: RepositoryRead) -> RepositoryPatch:
    """Return what a form changes of a repository. Raises a 409 if it was changed meanwhile, and a 422."""
    if form.get("seen") != seen_of(repository):
        detail = f"{repository.alias} was changed since you loaded this form: load its page again, and change it there"
        raise Problem(409, "Changed meanwhile", detail)
    present = repository.model_dump(mode="json", include=set(CHANGEABLE))
    changed = {name: value for name, value in _values(form).items() if value != present[name]}
    if not changed:
        raise Problem(422, "Invalid request", "the form has what the repository has already: change something first")
    return _validated(RepositoryPatch, changed)


def seen_generation(form: Mapping[str, str]) -> int:
    """Return the generation that a form was made for. Raises a 422."""
    text = form.get("generation", "")
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise Problem(422, "Invalid request", f"generation: {text[:100]!r} is no number: load the page again")
    return int(text)


def wanted_reset(form: Mapping[str, str]) -> Reset:
    """Return the reset that a form asks for. Raises a 422."""
    if form.get("sure") != "yes":
        raise Problem(422, "Invalid request", "sure: tick that the repository was created anew, and send it again")
    return _validated(Reset, {"last_push_id": _cursor(form)})
