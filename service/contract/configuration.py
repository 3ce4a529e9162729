"""Read the settings of the service and of the listeners.

Environment variables (`TC_TREEHERDER_…`, nested with `__`) override a YAML file, which `TC_TREEHERDER_CONFIG` names.
Lists and mappings in a variable are JSON. Durations are seconds or ISO 8601. Proxies come from the usual variables
(`proxy_for`).
"""

import base64
import binascii
import difflib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource
from pydantic_settings import SettingsError as PydanticSettingsError

PREFIX = "TC_TREEHERDER_"

_OTHERS = {"CONFIG", "TOKEN"}
"""Variables with this prefix that are not settings: the file's path, and the token of the commands."""


def proxy_for(url: str) -> str | None:
    """Return the proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY name for `url`; None: no proxy."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname or "") or proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


class SettingsError(Exception):
    """Invalid settings. The message names each of them, and never contains a secret's value."""


def _webhook_secret(secret: SecretStr) -> SecretStr:
    try:
        key = base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if len(key) < 24:
        raise ValueError("a webhook secret is whsec_ and base64 of at least 24 random bytes: openssl rand -base64 32")
    return secret


def _duration(value: Any) -> Any:
    """Convert seconds, which environment variables have as text; leave anything else to pydantic, such as PT5M."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return value
    if not 0 <= seconds < 1e9:
        raise ValueError(f"{value} is not a duration: give seconds, such as 30 or 0.5, or ISO 8601, such as PT5M")
    return timedelta(seconds=seconds)


WebhookSecret = Annotated[SecretStr, AfterValidator(_webhook_secret)]
Duration = Annotated[timedelta, BeforeValidator(_duration), Field(ge=timedelta())]


class Configuration(BaseSettings):
    """Base class of a program's settings. `file_source` may drop what the file has for another program."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", hide_input_in_errors=True)

    file_source: ClassVar[type[YamlConfigSettingsSource]] = YamlConfigSettingsSource

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        if path := os.environ.get("TC_TREEHERDER_CONFIG"):
            if not os.path.isfile(path):
                raise SettingsError(f"TC_TREEHERDER_CONFIG names {path}, which is not a file")
            sources += (cls.file_source(settings_cls, yaml_file=path),)
        return sources


AnyConfiguration = TypeVar("AnyConfiguration", bound=Configuration)


def problem_text(problem: Any, names: Collection[str] = ()) -> str:
    """Return the text of one of pydantic's errors, with the setting's name and the remedy, and without a secret value.

    `names` are those of all settings.
    """
    name = _setting_name(problem["loc"])
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            matches = difflib.get_close_matches(name, names, 1)
            suggestion = f"did you mean {matches[0]}? " if matches else ""
            return f"there is no setting {name}; {suggestion}`tc-treeherder settings` lists all settings"
        case "time_delta_parsing" | "time_delta_type":
            return f"{name}: {problem['input']!r} is no duration: give seconds, such as 5, or ISO 8601, such as PT5S"
        case "too_short" | "string_too_short" if context.get("field_type") not in {"List", "Set", "Dictionary"}:
            length, least = context.get("actual_length"), context["min_length"]
            has = "it is shorter" if length is None else f"it has {length}"
            return f"{name}: at least {least} characters are needed, and {has}"
        case "missing":
            return f"{name} is missing: set {variable_of(problem['loc'])}"
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}"


def _setting_name(location: tuple[str | int, ...]) -> str:
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return name.removeprefix(".") or "settings"


def variable_of(location: tuple[str | int, ...]) -> str:
    """Return the variable that sets what is at this place of the settings."""
    names = itertools.takewhile(lambda part: isinstance(part, str), location)
    return PREFIX + "__".join(str(name).upper() for name in names)


def setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the names of all settings of a model, and of the models in it."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                element = "" if inner is field.annotation else "[]" if get_origin(field.annotation) is list else ".…"
                yield from setting_names(inner, f"{prefix}{name}{element}.")


def read(
    settings: type[AnyConfiguration], text_of: Callable[[Any, Collection[str]], str] = problem_text, **overrides: Any
) -> AnyConfiguration:
    """Return the settings of this process. `text_of` makes the text of one of pydantic's errors.

    Raises SettingsError.
    """
    try:
        return settings(**overrides)
    except ValidationError as error:
        names = list(setting_names(settings))
        # a default that another wrong setting prevents is no error of its own
        problems = [it for it in error.errors(include_url=False) if it["type"] != "default_factory_not_called"]
        lines = [text_of(problem, names) for problem in problems]
        raise SettingsError(
            "invalid settings (environment TC_TREEHERDER_… or the file of TC_TREEHERDER_CONFIG):\n  "
            + "\n  ".join(lines)
        ) from None
    except SettingsError:
        raise
    except PydanticSettingsError as error:
        raise SettingsError(_unparsable(error)) from None
    except Exception as error:  # noqa: BLE001 - pydantic-settings and PyYAML have no common base
        # without the cause, which may contain a value
        raise SettingsError(f"{_place(error)}: {_yaml_problem(error)}") from None


_EXAMPLES = {
    "tokens": '[{"name": "release-engineering", "value": "A-LONG-RANDOM-TOKEN", "scopes": ["tc-treeherder:*"]}]',
    "environments": '{"tc-treeherder": {"url": "https://treeherder.mozilla.org", "pushes": "pulse"}}',
    "webhook_secrets": '["whsec_…"]',
}
"""Values of variables that are JSON, for people who wrote something else."""


def _unparsable(error: PydanticSettingsError) -> str:
    """Return what to write into a variable that is no JSON; pydantic-settings names only the setting."""
    name = re.search(r'field "(\w+)"', str(error))
    if name is None:
        return f"the settings cannot be read: {type(error).__name__}"
    example = _EXAMPLES.get(name[1], '["…"]')
    return f"{PREFIX}{name[1].upper()} is not JSON; for example: {PREFIX}{name[1].upper()}='{example}'"


def _place(error: Exception) -> str:
    """Return the file, and the line if the error has one."""
    mark = getattr(error, "problem_mark", None)
    file = os.environ.get(f"{PREFIX}CONFIG", "the settings")
    return f"{file}, line {mark.line + 1}" if mark else file


def _yaml_problem(error: Exception) -> str:
    """Return PyYAML's words for an error of syntax, which name only characters; those of others can quote a secret."""
    if type(error).__name__ in {"ScannerError", "ParserError"} and (problem := getattr(error, "problem", None)):
        return str(problem)
    return f"it cannot be read ({type(error).__name__})"


def unknown(*programs: type[Configuration]) -> dict[str, str]:
    """Return the variables that look like settings of these programs but are not, each with its remedy."""
    names = {name.upper() for program in programs for name in program.model_fields} | _OTHERS
    remedies = {}
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(PREFIX).partition("__")[0]
        if variable.upper().startswith(PREFIX) and name not in names:
            matches = difflib.get_close_matches(name, names, 1)
            suggestion = f"did you mean {PREFIX}{matches[0]}? " if matches else ""
            remedies[variable] = f"{suggestion}`tc-treeherder settings` lists all settings"
    return remedies
