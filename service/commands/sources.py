"""Where repositories are imported from: a Treeherder, or a `projects.yml` (fxci-config)."""

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

MAX_LISTING = 16 * 1024 * 1024
"""Bytes of a Treeherder's list of repositories; it has some hundred, of half a kilobyte each."""

_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,50}")  # events.Alias
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass
class Wanted:
    """A repository to be monitored. `fields` are those of the API that the source says something about."""

    alias: str
    url: str
    fields: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


@dataclass
class LeftOut:
    """What a source has and is not to be monitored."""

    alias: str
    why: str


@dataclass
class Source:
    wanted: list[Wanted] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def want(self, alias: str, url: Any, **more: Any) -> None:
        """Take in a repository, unless it has no usable alias and url."""
        if not _ALIAS.fullmatch(alias):
            self.left_out.append(LeftOut(alias, "its name is no alias: 1 to 50 of A-Z a-z 0-9 _ -"))
        elif not isinstance(url, str) or not url.strip():
            self.left_out.append(LeftOut(alias, "it has no url"))
        else:
            self.wanted.append(Wanted(alias, normal(url.strip()), **more))


def normal(url: str) -> str:
    """The form in which the service keeps a url, as far as that can be told here: it judges by itself."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.lower(), path=parts.path.rstrip("/")))


# --- a Treeherder ------------------------------------------------------------------------------------------------


def from_treeherder(address: str) -> Source:
    """The active Mercurial repositories of `<address>/api/repository/`. Raises Failed."""
    url = f"{checked(address)}/api/repository/"
    source = Source()
    for entry in _listing(url):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise Failed(f"{url} lists something that is no repository: {str(entry)[:80]!r}")
        name = entry["name"]
        if entry.get("dvcs_type") != "hg":
            source.left_out.append(LeftOut(name, f"it is {entry.get('dvcs_type')}, not hg"))
        elif entry.get("active_status") != "active":
            source.left_out.append(LeftOut(name, f"it is {entry.get('active_status')}, not active"))
        else:
            source.want(name, entry.get("url"))
    return source


def _listing(url: str) -> list[Any]:
    headers = {"User-Agent": "tc-treeherder", "Accept": "application/json; version=1.0"}
    try:
        with httpx.stream("GET", url, headers=headers, timeout=30, follow_redirects=False) as answer:
            if answer.status_code != httpx.codes.OK:
                where = f" ({answer.headers.get('location')})" if answer.is_redirect else ""
                raise Failed(f"{url} answers {answer.status_code}{where}: is that a Treeherder's address?")
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > MAX_LISTING:
                    raise Failed(f"{url} answers more than {MAX_LISTING:,} bytes: is that a Treeherder's address?")
    except httpx.HTTPError as error:
        raise Failed(f"{url} cannot be read: {error or type(error).__name__}") from None
    try:
        listing = json.loads(body)
        # one that pages has its items in `results`
        listing = listing.get("results") if isinstance(listing, dict) else listing
    except ValueError:
        listing = None
    if not isinstance(listing, list):
        raise Failed(f"{url} answers no list of repositories: is that a Treeherder's address?")
    return listing


# --- a projects.yml ----------------------------------------------------------------------------------------------


def from_projects(path: Path) -> Source:
    """Return the repositories of a file `alias: {repo, repo_type, access, trust_domain, features, …}`. Raises Failed.

    Every key that is not read is named.
    """
    try:
        parsed = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror}", USAGE) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else type(error).__name__
        raise Failed(f"{path} is no YAML ({where})", USAGE) from None
    if isinstance(parsed, dict) and set(parsed) == {"projects"}:
        parsed = parsed["projects"]
    if not isinstance(parsed, dict) or not parsed:
        raise Failed(f"{path} is no mapping alias -> {{repo, repo_type, access, trust_domain, features, …}}", USAGE)
    source = Source()
    for alias, entry in parsed.items():
        if isinstance(entry, dict):
            _project(source, str(alias), {str(key): value for key, value in entry.items()})
        else:
            source.left_out.append(LeftOut(str(alias), "it is no mapping"))
    return source


def _project(source: Source, alias: str, entry: dict[str, Any]) -> None:
    kind, url, features = entry.pop("repo_type", "hg"), entry.pop("repo", None), entry.pop("features", None)
    fields: dict[str, Any] = {}
    ignored = []
    for key in sorted(entry, key="access".__eq__):  # last: a level that is stated counts
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
        source.left_out.append(LeftOut(alias, "it has no repo: nothing says where it is"))
    elif not _hg_push(features):
        source.left_out.append(LeftOut(alias, "it is not monitored: features has no hg-push, or hg-push is false"))
    else:
        source.want(alias, url, fields=fields, ignored=ignored)


def _hg_push(features: Any) -> bool:
    value = features.get("hg-push") if isinstance(features, dict) else None
    return (value.get("enabled") if isinstance(value, dict) else value) is True


_ACCESS = re.compile(r"scm_level_([123])")
_LEVEL_3 = {"scm_autoland", "scm_nss", "scm_versioncontrol", "scm_allow_direct_push", "scm_firefoxci"}


def _access(value: Any) -> str:
    """Return the level that an access stands for. Raises ValueError for any other: no level is assumed."""
    if value in _LEVEL_3:
        return "3"
    if (found := _ACCESS.fullmatch(value)) is None:
        raise ValueError(value)
    return found[1]


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
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(scope, str) for scope in found):
        raise ValueError(value)
    return found


def _contains(value: Any) -> str | None:
    found = value[0] if isinstance(value, list) and len(value) == 1 else value
    if found is not None and not isinstance(found, str):
        raise ValueError(value)  # of several words we know no more than the first of what is meant
    return found


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _environments(value: Any) -> list[str] | None:
    """Route prefixes; nothing: all."""
    if value is None:
        return None
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) and _PREFIX.fullmatch(each) for each in found):
        raise ValueError(value)
    return found


_READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "level": ("level", _level),
    "access": ("level", _access),
    "trust_domain": ("trust_domain", _name),
    "scopes": ("scopes", _scopes),
    "contains": ("contains", _contains),
    "graph": ("graph", _bool),
    "enabled": ("enabled", _bool),
    "environments": ("environments", _environments),
}
