"""Read the settings of the service and of the listeners.

Environment variables (`TC_TREEHERDER_…`, nested with `__`) override a YAML file, which `TC_TREEHERDER_CONFIG` names.
Lists and mappings in a variable are JSON. Durations are seconds or ISO 8601. Proxies come from the usual variables
(`proxy_for`).
"""

import base64
import binascii
import difflib
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any, ClassVar, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

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


def problem_text(problem: Any) -> str:
    """Return the text of one of pydantic's errors, without the value."""
    name = ".".join(str(part) for part in problem["loc"]) or "settings"
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}"


def read(
    settings: type[AnyConfiguration], text_of: Callable[[Any], str] = problem_text, **overrides: Any
) -> AnyConfiguration:
    """Return the settings of this process. `text_of` makes the text of one of pydantic's errors.

    Raises SettingsError.
    """
    try:
        return settings(**overrides)
    except ValidationError as error:
        lines = [text_of(problem) for problem in error.errors(include_input=False, include_url=False)]
        raise SettingsError(
            "invalid settings (environment TC_TREEHERDER_… or the file of TC_TREEHERDER_CONFIG):\n  "
            + "\n  ".join(lines)
        ) from None
    except SettingsError:
        raise
    except Exception as error:  # noqa: BLE001 - pydantic-settings and PyYAML have no common base
        # without the cause, which may contain a value
        raise SettingsError(f"the settings cannot be read: {type(error).__name__} ({_position(error)})") from None


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


def _position(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}" if mark else str(error).split("\n", 1)[0] if "field" in str(error) else "unreadable"
