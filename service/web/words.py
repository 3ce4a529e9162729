"""Say in words and colours what states mean, and explain failures."""

import re
from dataclasses import dataclass

TONES = {
    "good": ("done", "completed", "ok", "resolved", "read", "polled"),
    "bad": ("failed", "rejected", "error", "exception", "failing", "unread"),
    "busy": ("running", "working"),
    "wait": ("pending", "received", "planned", "warning", "waiting"),
}
"""The colours of states; all others are without one. A state is always told as a word, too."""

_TONE_OF = {state: tone for tone, states in TONES.items() for state in states}


def tone_of(state: str) -> str:
    """Return the class of the style sheet for a state."""
    return _TONE_OF.get(state, "mute")


@dataclass(frozen=True)
class Scope:
    """A missing scope, and the part of the task that needs it."""

    scope: str
    needed_for: str


@dataclass(frozen=True)
class Explanation:
    """A failure in plain words."""

    what: str
    reason: str  # as the service stored it
    remedy: str
    scopes: tuple[Scope, ...] = ()
    place: str = ""  # in the file
    line: int | None = None  # of the file


_LACKING = re.compile(r"^(.*?the project's scopes lack) (.*?)\. Add them to its role", re.DOTALL)
_NEEDED_FOR = re.compile(r" \(for ((?:its|the)[^()]*)\)(?:, |$)")
_PLACE = re.compile(r"line (\d{1,7})(?:, column \d+)?")
_FILE = ".taskcluster.yml"

_RETRY = "Then retry the push: tc-treeherder pushes retry {alias} {push_id}"


def explain_graph(reason: str, alias: str, push_id: int) -> Explanation:
    """Explain why a push has no graph."""
    retry = _RETRY.format(alias=alias, push_id=push_id)
    if lacking := _LACKING.search(reason):
        scopes = _scopes_of(lacking[2])
        what = (
            "The project may not create one of its tasks: Taskcluster misses scopes. They are the project's, not yours."
        )
        remedy = f"Add them to the project's role in Taskcluster, or remove from {_FILE} what needs them. {retry}"
        return Explanation(what, reason, remedy, scopes)
    if _FILE in reason or "taskId" in reason:
        place = _PLACE.search(reason)
        remedy = (
            f"Correct {_FILE} and push again. To try it before: tc-treeherder render shows what it renders to. "
            "A retry of this push reads the file of this push again, so it helps only if something else was wrong."
        )
        what = f"The file {_FILE} of this push cannot be used, so no task was created."
        if place is None:
            return Explanation(what, reason, remedy)
        return Explanation(what, reason, remedy, place=place[0], line=int(place[1]))
    if "Taskcluster refuses" in reason:
        what = "Taskcluster refuses one of the tasks for good, so those that were created have been cancelled."
        return Explanation(what, reason, f"Correct what Taskcluster names. {retry}")
    what = "The graph was given up after many attempts. It waits as a dead letter."
    return Explanation(what, reason, f"See that the system which it names works again. {retry}")


def _scopes_of(text: str) -> tuple[Scope, ...]:
    """Return the scopes of a list such as `a (for its route), and b (for its schedulerId)`.

    Strangers choose scopes, so the text is read once from its begin to its end.
    """
    scopes, begin = [], 0
    for match in _NEEDED_FOR.finditer(text):
        scopes.append(Scope(text[begin : match.start()].removeprefix("and "), match[1]))
        begin = match.end()
    return tuple(scopes)


def explain_resultset(reason: str, alias: str, push_id: int) -> Explanation:
    """Explain why Treeherder does not have a push."""
    what = "Treeherder does not have this push: it refused it, or did not answer for too long."
    remedy = "See that this Treeherder works, knows the repository, and takes our credentials: tc-treeherder doctor."
    return Explanation(what, reason, f"{remedy} {_RETRY.format(alias=alias, push_id=push_id)}")
