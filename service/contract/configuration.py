"""Read the settings of the service and of the listeners.

Environment variables (`TC_TREEHERDER_…`, nested with `__`) override a YAML file, which `TC_TREEHERDER_CONFIG` names.
Lists and mappings in a variable are JSON. Durations are seconds or ISO 8601. Proxies come from the usual variables
(`proxy_for`).
"""

import base64
import binascii
import itertools
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource
from pydantic_settings import SettingsError as PydanticSettingsError

from service.contract.validation import closest, explain, keys_at, path_of, root_causes

PREFIX = "TC_TREEHERDER_"

PULSE_URL, PULSE_USER = f"{PREFIX}PULSE__URL", f"{PREFIX}PULSE__USER"
"""The variables of the broker's URL and the Pulse user that service and listeners share."""

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
        raise ValueError(
            f"a webhook secret is whsec_ and base64 of at least 24 random bytes, and this one has {len(secret)} "
            "characters: whsec_ and what `openssl rand -base64 32` prints"
        )
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


def problem_text(problem: Any, model: type[BaseModel]) -> str:
    """Return the text of one of pydantic's errors, with the setting's name and the remedy, and without a secret value.

    `model` has the settings.
    """
    location, source = problem["loc"], _source_of(problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            match = _probable_setting(model, location)
            suggestion = f"did you mean {match}? " if match else ""
            text = f"there is no setting {path_of(location)}; {suggestion}`tc-treeherder settings` lists all settings"
        case "missing" if source is None:
            text = f"{path_of(location)} is missing: set {variable_of(location)}"
        case _:
            text = explain(problem, model, quote=True)
    return text if source is None else f"{text} ({source})"


def _probable_setting(model: type[BaseModel], location: tuple[str | int, ...]) -> str | None:
    """Return the setting that was probably meant by an unknown one: beside it, or of its name at another place."""
    name = str(location[-1])
    if (match := closest(name, keys_at(model, location[:-1]))) is not None:
        return path_of((*location[:-1], match))
    return next((it for it in setting_names(model) if it.endswith(f".{name}")), None)


def _source_of(location: tuple[str | int, ...]) -> str | None:
    """Return the variable, or the file and the line, that set what is at this place or around it."""
    variables = {name.upper(): name for name in os.environ}
    for length in range(len(location), 0, -1):
        if (name := variables.get(variable_of(location[:length]))) is not None:
            return name
    path = os.environ.get(f"{PREFIX}CONFIG")
    line = None if path is None else _line_of(path, location)
    return None if line is None else f"{path}, line {line}"


def _line_of(path: str, location: tuple[str | int, ...]) -> int | None:
    """Return the line of the deepest part of this place that the file has; None if it has none of it."""
    try:
        with open(path, encoding="utf-8") as file:
            root = yaml.compose(file, yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):  # the file was read before
        return None
    # what only the listeners have
    return _line_below(root, ("listeners", *location), at_least=2) or _line_below(root, location, at_least=1)


def _line_below(node: Any, location: tuple[str | int, ...], at_least: int) -> int | None:
    line = None
    for depth, part in enumerate(location):
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value}
        elif isinstance(node, yaml.SequenceNode):
            pairs = dict(enumerate((element, element) for element in node.value))
        else:
            pairs = {}
        if part not in pairs:
            return line if depth >= at_least else None
        key, node = pairs[part]
        line = int(key.start_mark.line) + 1
    return line


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
    settings: type[AnyConfiguration],
    text_of: Callable[[Any, type[BaseModel]], str] = problem_text,
    **overrides: Any,
) -> AnyConfiguration:
    """Return the settings of this process. `text_of` makes the text of one of pydantic's errors.

    Raises SettingsError.
    """
    try:
        return settings(**overrides)
    except ValidationError as error:
        lines = [text_of(problem, settings) for problem in root_causes(error)]
        raise SettingsError(
            "invalid settings (environment TC_TREEHERDER_… or the file of TC_TREEHERDER_CONFIG):\n  "
            + "\n  ".join(lines)
        ) from None
    except SettingsError:
        raise
    except PydanticSettingsError as error:
        raise SettingsError(_unparsable(error, settings)) from None
    except Exception as error:  # noqa: BLE001 - pydantic-settings and PyYAML have no common base
        # without the cause, which may contain a value
        raise SettingsError(f"{_place(error)}: {_file_problem(error)}") from None


_EXAMPLES = {
    "tokens": '[{"name": "release-engineering", "value": "A-LONG-RANDOM-TOKEN", "scopes": ["tc-treeherder:*"]}]',
    "environments": '{"tc-treeherder": {"url": "https://treeherder.mozilla.org", "pushes": "pulse"}}',
    "webhook_secrets": '["whsec_…"]',
    "allowed_hosts": '["hg.mozilla.org"]',
}
"""Values of variables that are JSON, for people who wrote something else."""


def _unparsable(error: PydanticSettingsError, settings: type[BaseModel]) -> str:
    """Return what to write into a variable that is no JSON; pydantic-settings names only the setting."""
    name = re.search(r'field "(\w+)"', str(error))
    if name is None or name[1] not in settings.model_fields:
        return f"the settings cannot be read: {type(error).__name__}"
    variable = PREFIX + name[1].upper()
    if variable not in {name.upper() for name in os.environ}:
        nested = sorted(name for name in os.environ if name.upper().startswith(f"{variable}__"))
        return f"one of {', '.join(nested)} is not JSON: lists and mappings in a variable are JSON"
    field = settings.model_fields[name[1]].annotation
    example = _EXAMPLES.get(name[1], '["…"]' if get_origin(field) is list else '{"…": "…"}')
    return f"{variable} is not JSON; for example: {variable}='{example}'"


def _place(error: Exception) -> str:
    """Return the file, and the line if the error has one."""
    mark = getattr(error, "problem_mark", None)
    file = os.environ.get(f"{PREFIX}CONFIG", "the settings")
    return f"{file}, line {mark.line + 1}" if mark else file


def _file_problem(error: Exception) -> str:
    """Return why the file cannot be read.

    PyYAML's words for an error of syntax name only characters; those of others can quote a secret.
    """
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror}"
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8"
    if isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError) and error.problem:
        return f"it is no YAML: {error.problem}"
    if isinstance(error, ValueError | TypeError):
        return "it is no mapping of settings, such as `port: 8080`"
    return f"it cannot be read ({type(error).__name__})"


def unknown(*programs: type[Configuration]) -> dict[str, str]:
    """Return the variables that look like settings of these programs but are not, each with its remedy."""
    names = {name.upper() for program in programs for name in program.model_fields} | _OTHERS
    remedies = {}
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(PREFIX).partition("__")[0]
        if variable.upper().startswith(PREFIX) and name not in names:
            match = closest(name, names)
            suggestion = f"did you mean {PREFIX}{match}? " if match else ""
            remedies[variable] = f"{suggestion}`tc-treeherder settings` lists all settings"
    return remedies
