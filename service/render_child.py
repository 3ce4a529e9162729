"""The child process that evaluates what strangers wrote: YAML and JSON-e. It has no secrets and little of anything.

It reads requests from standard input and writes answers to standard output, each a JSON text behind its length (4
bytes, big-endian). `service.render` starts it, sets its time limit and kills it when it exceeds any.
"""

import base64
import hashlib
import hmac
import json
import re
import resource
import sys
import uuid
from typing import Any, NoReturn

import jsone
import yaml
from yaml.resolver import Resolver

from service.door import storable, visible

_MAX_ERROR = 10_000
"""Characters of an error: some quote the whole value that is wrong."""

_TIMESTAMP, _BOOL = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:bool"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml where it is there
    """YAML as the tools around `.taskcluster.yml` have it (1.2): a date stays text, and so do `on`, `yes` and `no`."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in {_TIMESTAMP, _BOOL}]
        for first, resolvers in Resolver.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


class _UnusableError(Exception):
    """The template cannot be used; the message is for whoever wrote it."""


def slugid(key: bytes, label: str) -> str:
    """The id of the task `label`: an HMAC shaped as a v4 UUID, "nice" (it begins with a letter), base64url."""
    digest = bytearray(hmac.digest(key, label.encode(errors="backslashreplace"), hashlib.sha256)[:16])
    digest[0] &= 0x7F  # nice: the first of the 22 characters is A-Z or a-f
    digest[6] = digest[6] & 0x0F | 0x40  # version 4
    digest[8] = digest[8] & 0x3F | 0x80  # RFC 4122's variant
    return base64.urlsafe_b64encode(uuid.UUID(bytes=bytes(digest)).bytes).decode().rstrip("=")


def _plain(value: Any) -> Any:
    """JSON's types alone. A key that is no text becomes what JSON would write."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else json.dumps(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise _UnusableError(f"a value of type {type(value).__name__} has no place in JSON: {str(value)[:100]}")


def _parse(text: str) -> Any:
    try:
        return _plain(yaml.load(text, _Loader))  # noqa: S506 - a subclass of the safe loader
    except yaml.YAMLError as error:
        raise _UnusableError(f"not YAML: {error}") from None


def _tasks(template: Any, context: dict[str, Any]) -> Any:
    """The rendered `tasks` of a `.taskcluster.yml` of version 1."""
    if not isinstance(template, dict):
        raise _UnusableError("not a mapping: it needs `version: 1` and `tasks`")
    if template.get("version") != 1 or isinstance(template["version"], bool):
        raise _UnusableError(f"version is {template.get('version')!r}: only version 1 is understood")
    rendered = _render(template, context)
    tasks = rendered.get("tasks", []) if isinstance(rendered, dict) else None
    if not isinstance(tasks, list):
        raise _UnusableError(f"`tasks` is rendered as {type(tasks).__name__}: it must be a list of tasks")
    return tasks


def _render(template: Any, context: dict[str, Any]) -> Any:
    try:
        return jsone.render(template, context)
    except jsone.JSONTemplateError as error:
        raise _UnusableError(f"does not render: {error}") from None


def _answer(request: dict[str, Any], output_limit: int) -> bytes:
    key = base64.b64decode(request["key"])

    def as_slugid(label: str) -> str:
        return slugid(key, label)

    context = {**request["context"], "as_slugid": as_slugid}
    try:
        if "yaml" in request:
            result = _tasks(_parse(request["yaml"]), context)
        else:
            result = _render(request["template"], context)
        answer = json.dumps({"result": storable(result)}).encode()
    except _UnusableError as error:
        return _error(str(error))
    except RecursionError:
        return _error("nested too deeply")
    except MemoryError:
        return _error("needs more memory than it may have", spent=True)
    except Exception as error:  # noqa: BLE001 - JSON-e raises whatever Python does; the child answers, never dies of it
        return _error(f"does not render: {type(error).__name__}: {error}")
    if len(answer) > output_limit:
        return _error(f"renders to {len(answer):,} bytes: more than {output_limit:,} are not taken")
    return answer


def _error(why: str, *, spent: bool = False) -> bytes:
    return json.dumps({"error": visible(why[:_MAX_ERROR]), "spent": spent}).encode()


def main(memory_mib: int, output_limit: int, seconds: float) -> NoReturn:
    memory = memory_mib * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while len(head := requests.read(4)) == 4:
        # ends a render that goes on after the parent was killed, when nobody is left to end it
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime + seconds) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        answer = _answer(json.loads(requests.read(int.from_bytes(head, "big"))), output_limit)
        answers.write(len(answer).to_bytes(4, "big") + answer)
        answers.flush()
    sys.exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
