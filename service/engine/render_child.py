"""The child process that evaluates what strangers wrote: YAML and JSON-e. It has no secrets and little of anything.

It reads requests from standard input and writes answers to standard output, each behind its length (4 bytes,
big-endian). A request is a line of JSON, behind which a document may follow that is not in JSON once more. An answer is
a line of JSON, and a further line for each rendered task, so that the parent can parse them one by one.
`service.engine.render` starts it, sets its time limit and kills it when it exceeds any.

Task ids are the parent's secret: `as_slugid` and `ownTaskId` give placeholders, and the answer says which label each
stands for.
"""

import json
import math
import os
import re
import resource
import sys
import uuid
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

import jsone
import jsone.interpreter
import yaml

from service.engine.sized_cache import SizedCache
from service.sanitize import escape_unstorable
from service.slugids import OWN_LABEL, slugid_of
from service.yaml12 import EqualKeysError, as_number, compose, join_pairs, key_text, load

_MAX_ERROR = 10_000
"""Characters of an error: some quote the whole value that is wrong."""


class _InvalidTemplateError(Exception):
    """The template cannot be used; the message is for its author."""


NICE = 5
"""The nice value of a child: a template that computes as long as it may leaves the processor to the service."""


class _Placeholders:
    """Gives each label a random text of a task id's form."""

    def __init__(self) -> None:
        self._by_label: dict[str, str] = {}

    def as_slugid(self, label: Any) -> str:
        """JSON-e's `as_slugid`, of any scalar: JavaScript, which others render with, makes a text of it."""
        if isinstance(label, dict | list) or callable(label):
            raise jsone.JSONTemplateError("as_slugid takes a text or a number, such as as_slugid('build')")
        text = label if isinstance(label, str) else json.dumps(_finished(label))
        return self._by_label.setdefault(text, slugid_of(uuid.uuid4().bytes))

    def labels(self) -> dict[str, str]:
        """Return the label of each placeholder."""
        return {placeholder: label for label, placeholder in self._by_label.items()}


class _Interpreter(jsone.interpreter.Interpreter):  # type: ignore[misc]  # it publishes no types
    """JSON-e's, with JavaScript's numbers: 4 / 2 is 2, in texts too."""

    def visit(self, node: Any) -> Any:
        value = super().visit(node)
        return as_number(value) if isinstance(value, float) else value


def _guarded(function: Callable[..., Any], what: Callable[..., str]) -> Callable[..., Any]:
    """Return `function`, whose Python errors become JSON-e's own: those say where in the template they happened."""

    def guarded(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (jsone.JSONTemplateError, RecursionError, MemoryError):
            raise
        except Exception:  # noqa: BLE001 - JSON-e raises whatever Python does for what it does not expect
            raise jsone.JSONTemplateError(what(*arguments)) from None

    return guarded


def _broken_expression(source: Any, *_: Any) -> str:
    return f"the expression {str(source)[:200]!r} cannot be evaluated"


_EXPRESSIONS = SizedCache(24 * 1024)
"""Parsed expressions by their text, up to so many characters of them: 5 MB at most.

JSON-e parses an expression each time that it is evaluated, which is most of the time that a loop takes.
"""


def _adapt_json_e() -> None:
    module: Any = import_module("jsone.render")  # the package's attribute of that name is the function in it

    def parse(source: str) -> tuple[Any, Any]:
        """Return the syntax tree of the expression at the beginning of `source`, and the token behind it."""
        parsed: tuple[Any, Any] | None = _EXPRESSIONS.get(source)
        if parsed is None:
            parser = module.Parser(source, module.tokenizer)
            parsed = parser.parse(), parser.current_token
            _EXPRESSIONS.put(source, parsed, len(source))
        return parsed

    def evaluate(source: str, context: dict[str, Any]) -> Any:
        tree, following = parse(source)
        if following is not None:
            raise module.SyntaxError.unexpected(following)
        return _Interpreter(context).interpret(tree)

    def evaluate_until(source: str, context: dict[str, Any], terminator: str) -> tuple[Any, int]:
        tree, following = parse(source)
        if following is None:
            raise module.SyntaxError("unterminated ${..} expression")
        if following.kind != terminator:
            raise module.SyntaxError.unexpected(following)
        return _Interpreter(context).interpret(tree), following.start

    module.parse = _guarded(evaluate, _broken_expression)
    module.parse_until_terminator = _guarded(evaluate_until, _broken_expression)
    for name, operator in module.operators.items():
        module.operators[name] = _guarded(operator, lambda *_, name=name: f"{name} is used in a wrong way")


_adapt_json_e()


def _plain(value: Any) -> Any:
    """JSON's types alone. A key that is no text becomes what JSON would write."""
    if isinstance(value, dict):
        return {join_pairs(key_text(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return join_pairs(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise _InvalidTemplateError(f"a value of type {type(value).__name__} has no place in JSON: {str(value)[:100]}")


def _finished(value: Any) -> Any:
    """Return what was rendered with the numbers and texts that JSON and our database take."""
    if isinstance(value, str):
        return escape_unstorable(join_pairs(value))
    if isinstance(value, dict):
        return {escape_unstorable(join_pairs(str(key))): _finished(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finished(item) for item in value]
    if isinstance(value, float):
        return as_number(value) if math.isfinite(value) else str(value)
    return value


_VERSION_0 = re.compile(r"^version:[ \t]*0[ \t]*(?:#.*)?$", re.MULTILINE)


_TEMPLATES = SizedCache(512 * 1024)
"""Parsed files by their text, up to so many characters of both: most pushes to a repository have the same file."""


def _parse(text: str) -> Any:
    template = _TEMPLATES.get(text)
    if template is None:
        template = _parse_anew(text)
        _TEMPLATES.put(text, template, len(text) + len(json.dumps(template)))
    return template


def _parse_anew(text: str) -> Any:
    # by its text: before its mustache is rendered, such a file need not be YAML
    if _VERSION_0.search(text):
        raise _InvalidTemplateError(
            "version is 0: only version 1 is understood; see docs/taskcluster-yml.md for its form"
        )
    try:
        return _plain(load(text))
    except EqualKeysError as error:
        raise _InvalidTemplateError(f"cannot be read: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"in line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise _InvalidTemplateError(f"not YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise _InvalidTemplateError(f"not YAML: {error}") from None


def _place(text: str, location: list[str]) -> str:
    """Return the line of a file at which JSON-e failed, or where the operator begins behind which it lost its way."""
    node, line = compose(text), None
    for step in location:
        child = None
        if isinstance(node, yaml.MappingNode):
            name = step[1:] if step.startswith(".") else step[2:-2]
            child = next(((key, value) for key, value in node.value if key.value == name), None)
        elif isinstance(node, yaml.SequenceNode) and step[1:-1].isdigit() and int(step[1:-1]) < len(node.value):
            child = (node.value[int(step[1:-1])],) * 2
        if child is None:
            return "" if line is None else f" (in what begins in line {line})"
        line, node = child[0].start_mark.line + 1, child[1]
    return "" if line is None else f" (line {line})"


def _tasks(text: str, context: dict[str, Any]) -> Any:
    """Return the rendered `tasks` of a `.taskcluster.yml` of version 1."""
    template = _parse(text)
    if not isinstance(template, dict):
        raise _InvalidTemplateError("not a mapping: it needs `version: 1` and `tasks`")
    if template.get("version") != 1 or isinstance(template["version"], bool):
        raise _InvalidTemplateError(f"version is {template.get('version')!r}: only version 1 is understood")
    rendered = _render(template, context, text)
    tasks = rendered.get("tasks", []) if isinstance(rendered, dict) else None
    if not isinstance(tasks, list):
        raise _InvalidTemplateError(f"`tasks` is rendered as {type(tasks).__name__}: it must be a list of tasks")
    return tasks


def _render(template: Any, context: dict[str, Any], text: str | None = None) -> Any:
    """Return what a template renders to; `text` is the file that it was read from."""
    try:
        return jsone.render(template, context)
    except jsone.JSONTemplateError as error:
        where = "".join(error.location).lstrip(".")
        if where and text is not None:
            where += _place(text, error.location)
        raise _InvalidTemplateError(f"does not render: {f'at {where}: ' if where else ''}{error.args[0]}") from None


class _Limits:
    """Limits of an answer."""

    def __init__(self, output: int, tasks: int, nodes: int) -> None:
        self.output, self.tasks, self.nodes = output, tasks, nodes

    def check(self, result: Any, labels: int, *, tasks: bool) -> None:
        """Raise _InvalidTemplateError unless `result` is within the limits; it is not copied or encoded before."""
        if tasks and len(result) > self.tasks:
            raise _InvalidTemplateError(
                f"renders to {len(result):,} tasks: at most {self.tasks:,} are taken for one push"
            )
        nodes, waiting = labels, [result]
        while waiting:
            value = waiting.pop()
            inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            nodes += 1
            # what waits is counted too: one value may stand in a list millions of times
            if nodes + len(waiting) + len(inside) > self.nodes:
                raise _InvalidTemplateError(
                    f"renders to more than {self.nodes:,} values: so many are not taken for one push"
                )
            waiting.extend(inside)


def _actions(request: dict[str, Any], document: bytes, limits: _Limits, placeholders: _Placeholders) -> Any:
    """Return all actions of an `actions.json`, or one of them rendered."""
    from service.engine import render_actions  # noqa: PLC0415 - most children never need it

    try:
        wanted = request.get("action")
        if wanted is None:
            return render_actions.list_actions(document, limits.nodes)
        if wanted["context"].get("task") is not None:
            wanted["context"]["ownTaskId"] = placeholders.as_slugid(OWN_LABEL)
        return render_actions.render_action(document, limits.nodes, wanted, _render)
    except render_actions.InvalidActionsError as error:
        raise _InvalidTemplateError(str(error)) from None


def _answer(request: dict[str, Any], document: bytes, limits: _Limits) -> bytes:
    placeholders = _Placeholders()
    try:
        tasks = "yaml" in request
        if "actions" in request:
            result = _actions(request, document, limits, placeholders)
        else:
            own = placeholders.as_slugid(OWN_LABEL)
            context = {**request["context"], "ownTaskId": own, "as_slugid": placeholders.as_slugid}
            result = _tasks(request["yaml"], context) if tasks else _render(request["template"], context)
        labels = placeholders.labels()
        limits.check(result, len(labels), tasks=tasks)
        head = json.dumps({"labels": labels})
        answer = "\n".join(
            [head, *(json.dumps(_finished(value)) for value in (result if tasks else [result]))]
        ).encode()
    except _InvalidTemplateError as error:
        return _error(str(error))
    except RecursionError:
        return _error("nested too deeply")
    except MemoryError:
        return _error("needs more memory than it may have", spent=True)
    except Exception:  # noqa: BLE001 - the child answers, it never dies of a template
        return _error("does not render: it holds something that JSON-e does not expect")
    if len(answer) > limits.output:
        return _error(f"renders to {len(answer):,} bytes: more than {limits.output:,} are not taken")
    return answer


def _error(why: str, *, spent: bool = False) -> bytes:
    return json.dumps({"error": escape_unstorable(why[:_MAX_ERROR]), "spent": spent}).encode()


def main(memory_mib: int, seconds: float, limits: _Limits) -> NoReturn:
    """Limit this process, then answer requests until the input ends."""
    memory = memory_mib * 1024 * 1024
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while len(head := requests.read(4)) == 4:
        # ends a render that goes on after the parent was killed, when nobody is left to end it
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime + seconds) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        request, _, document = requests.read(int.from_bytes(head, "big")).partition(b"\n")
        answer = _answer(json.loads(request), document, limits)
        answers.write(len(answer).to_bytes(4, "big") + answer)
        answers.flush()
    sys.exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), _Limits(*map(int, sys.argv[3:])))
