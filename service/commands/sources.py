"""Read the repositories to import, from a Treeherder or a `projects.yml` (fxci-config)."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import yaml

from service.commands import USAGE, Failed
from service.commands.client import checked
from service.store.models import Supersede, TreeActions

MAX_LISTING = 16 * 1024 * 1024
"""Largest accepted list of a Treeherder's repositories, in bytes: it has some hundred, of half a kilobyte each."""

_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,50}")  # events.Alias
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass
class Wanted:
    """A repository to monitor. `fields` are the API's fields that the source states."""

    alias: str
    url: str
    fields: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


@dataclass
class LeftOut:
    """An entry of a source that will not be monitored."""

    alias: str
    why: str


@dataclass
class Source:
    """Entries of a source, with and without a repository to monitor."""

    wanted: list[Wanted] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, alias: str, url: Any, **more: Any) -> None:
        """Add a repository, or leave it out if its alias or URL is not usable."""
        if not _ALIAS.fullmatch(alias):
            self.left_out.append(LeftOut(alias, "its name is not an alias: 1 to 50 of A-Z a-z 0-9 _ -"))
        elif not isinstance(url, str) or not url.strip():
            self.left_out.append(LeftOut(alias, "it has no url"))
        else:
            self.wanted.append(Wanted(alias, normal(url.strip()), **more))


def normal(url: str) -> str:
    """Return a URL for comparison with the service's. The service does its own, stricter normalization."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.lower(), path=parts.path.rstrip("/")))


# --- a Treeherder ------------------------------------------------------------------------------------------------


def from_treeherder(address: str) -> Source:
    """Return the active Mercurial repositories of `<address>/api/repository/`. Raises Failed."""
    url = f"{checked(address)}/api/repository/"
    source = Source()
    for entry in _listing(url):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise Failed(f"{url} lists an entry that is not a repository: {str(entry)[:80]!r}")
        name = entry["name"]
        if entry.get("dvcs_type") != "hg":
            source.left_out.append(LeftOut(name, f"it is {entry.get('dvcs_type')}, not hg"))
        elif entry.get("active_status") != "active":
            source.left_out.append(LeftOut(name, f"it is {entry.get('active_status')}, not active"))
        else:
            source.add(name, entry.get("url"))
    return source


def _listing(url: str) -> list[Any]:
    headers = {"User-Agent": "tc-treeherder", "Accept": "application/json; version=1.0"}
    try:
        with httpx.stream("GET", url, headers=headers, timeout=30, follow_redirects=False) as answer:
            if answer.status_code != httpx.codes.OK:
                target = f" ({answer.headers.get('location')})" if answer.is_redirect else ""
                raise Failed(f"{url} answers {answer.status_code}{target}: check the address of the Treeherder")
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > MAX_LISTING:
                    raise Failed(f"{url} answers more than {MAX_LISTING:,} bytes: check the address of the Treeherder")
    except httpx.HTTPError as error:
        raise Failed(f"{url} cannot be read: {error or type(error).__name__}") from None
    try:
        listing = json.loads(body)
        # a paged list has its items in `results`
        listing = listing.get("results") if isinstance(listing, dict) else listing
    except ValueError:
        listing = None
    if not isinstance(listing, list):
        raise Failed(f"{url} does not answer a list of repositories: check the address of the Treeherder")
    return listing


# --- a projects.yml ----------------------------------------------------------------------------------------------


def from_projects(path: Path) -> Source:
    """Return the repositories of a file `alias: {repo, repo_type, access, trust_domain, features, …}`.

    Unknown keys are listed in `ignored`. Raises Failed.
    """
    try:
        parsed = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror}", USAGE) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        position = f"line {mark.line + 1}" if mark else type(error).__name__
        raise Failed(f"{path} is not YAML ({position})", USAGE) from None
    if isinstance(parsed, dict) and set(parsed) == {"projects"}:
        parsed = parsed["projects"]
    if not isinstance(parsed, dict) or not parsed:
        raise Failed(
            f"{path} is not a mapping of aliases to {{repo, repo_type, access, trust_domain, features, …}}", USAGE
        )
    source = Source()
    for alias, entry in parsed.items():
        if isinstance(entry, dict):
            _project(source, str(alias), {str(key): value for key, value in entry.items()})
        else:
            source.left_out.append(LeftOut(str(alias), "it is not a mapping"))
    return source


def _project(source: Source, alias: str, entry: dict[str, Any]) -> None:
    kind, url, features = entry.pop("repo_type", "hg"), entry.pop("repo", None), entry.pop("features", None)
    fields: dict[str, Any] = {}
    ignored = []
    for key in sorted(entry, key="access".__eq__):  # `access` last, because an explicit level takes precedence
        name, read = _READERS.get(key, (key, None))
        try:
            if read is None:
                raise ValueError(key)
            fields.setdefault(name, read(entry[key]))
        except (ValueError, TypeError):
            ignored.append(key if read is None else f"{key}: {entry[key]!r}"[:80])
    if kind != "hg":
        source.left_out.append(LeftOut(alias, f"it is {kind}, not hg"))
    elif url is None:
        source.left_out.append(LeftOut(alias, "it has no repo, which is its URL"))
    elif not _has_hg_push(features):
        source.left_out.append(LeftOut(alias, "it is not monitored: features has no hg-push, or hg-push is false"))
    else:
        source.add(alias, url, fields=fields, ignored=ignored)


def _has_hg_push(features: Any) -> bool:
    value = features.get("hg-push") if isinstance(features, dict) else None
    return (value.get("enabled") if isinstance(value, dict) else value) is True


_ACCESS = re.compile(r"scm_level_([123])")
_LEVEL_3 = {"scm_autoland", "scm_nss", "scm_versioncontrol", "scm_allow_direct_push", "scm_firefoxci"}


def _access(value: Any) -> str:
    """Return the level that an access implies. Raises ValueError for an unknown access, because no level is assumed."""
    if value in _LEVEL_3:
        return "3"
    if (match := _ACCESS.fullmatch(value)) is None:
        raise ValueError(value)
    return match[1]


def _level(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(value)
    return str(value)


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _scopes(value: Any) -> list[str] | None:
    if value is None:
        return None
    scopes = [value] if isinstance(value, str) else value
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise ValueError(value)
    return scopes


def _contains(value: Any) -> str | None:
    text = value[0] if isinstance(value, list) and len(value) == 1 else value
    if text is not None and not isinstance(text, str):
        raise ValueError(value)  # a repository here has one text only, so several cannot be imported
    return text


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _supersede(value: Any) -> str:
    # a plain `off` is false in YAML 1.1
    return str(Supersede("off" if value is False else value))


def _environments(value: Any) -> list[str] | None:
    """Return the route prefixes, or None for all."""
    if value is None:
        return None
    prefixes = [value] if isinstance(value, str) else value
    if not isinstance(prefixes, list) or not all(
        isinstance(prefix, str) and _PREFIX.fullmatch(prefix) for prefix in prefixes
    ):
        raise ValueError(value)
    return prefixes


def _actions(value: Any) -> str:
    if value not in set(TreeActions):
        raise ValueError(value)
    return str(value)


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(value)
    return value


_READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "level": ("level", _level),
    "access": ("level", _access),
    "trust_domain": ("trust_domain", _name),
    "scopes": ("scopes", _scopes),
    "contains": ("contains", _contains),
    "graph": ("graph", _bool),
    "supersede": ("supersede", _supersede),
    "enabled": ("enabled", _bool),
    "environments": ("environments", _environments),
    "actions": ("actions", _actions),
    "pulse_actions": ("pulse_actions", _names),
}
