"""Store what a Treeherder with REST submission stores, and refuse what it refuses; no HTTP in here.

The lengths and the required fields are those of Treeherder's REST submission API. Treeherder silently accepts some
things that make no sense on its page (a finished job without an end, a hash that is not the push's). This store refuses
them, so that a mistake is found in the sandbox and not in production.
"""

import hashlib
import re
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Literal

_HEX40 = re.compile(r"[0-9a-f]{40}")
_GUID = re.compile(r"[\w/+-]+", re.ASCII)  # pulse-job.yml: the pattern of a job guid

MAX_REVISIONS = 200
"""Treeherder keeps only the last 200 commits of a push."""

STATES = ("pending", "running", "completed")
RESULTS = ("success", "testfailed", "busted", "exception", "retry", "usercancel", "superseded", "unknown")
PARSE_STATUSES = ("pending", "parsed", "failed")

_RESULTSET_FIELDS = {"revision", "revision_hash", "push_timestamp", "author", "type", "active_status", "revisions"}
_REVISION_FIELDS = {"revision", "author", "comment", "files", "branch", "repository"}

Lengths = Mapping[str, tuple[int, int | None]]
"""A text field's shortest and longest length in characters; None is no limit."""

_JOB_TEXTS: Lengths = {
    "job_guid": (1, 50),
    "name": (1, 100),
    "job_symbol": (0, 25),
    "group_name": (1, 100),
    "group_symbol": (1, 25),
    "product_name": (1, 100),
    "reason": (1, 125),
    "who": (1, 50),
    "machine": (1, 100),
}
_PLATFORM_TEXTS: Lengths = {"platform": (1, 100), "os_name": (1, 25), "architecture": (1, 25)}
_ARTIFACT_TEXTS: Lengths = {"type": (1, None), "name": (1, None), "blob": (0, None)}
_LOG_TEXTS: Lengths = {"url": (1, 255), "name": (1, 50)}
_JOB_REQUIRED = {
    *_JOB_TEXTS,
    "state",
    "result",
    "submit_timestamp",
    "build_system_type",
    "build_platform",
    "machine_platform",
    "option_collection",
    "tier",
}
_JOB_OPTIONAL = {
    "desc",
    "start_timestamp",
    "end_timestamp",
    "log_references",
    "artifacts",
    # seen in the recorded jobs of a real Treeherder
    "taskcluster_task_id",
    "taskcluster_retry_id",
    "perfherder_data_references",
}


class SubmissionError(ValueError):
    """An error of a submission that breaks a rule of the API; the message names the field, the value, and the rule."""


class UnknownPushError(SubmissionError):
    """An error of jobs that were submitted before their push."""


@dataclass(frozen=True)
class Repository:
    """A project of this Treeherder; `url` is its Mercurial repository."""

    name: str
    url: str = ""


@dataclass
class Push:
    """One push, as described by the last submission of its resultset; times are epoch seconds."""

    id: int
    project: str
    body: dict[str, Any]
    first_posted: float
    last_posted: float
    posts: int = 1
    jobs: list["Job"] = field(default_factory=list)

    @property
    def revision(self) -> str:
        return str(self.body["revision"])


@dataclass
class Job:
    """One job; `history` has an entry for every submission: (epoch seconds, state, result, outcome)."""

    id: int
    push: Push
    body: dict[str, Any]
    history: list[tuple[float, str, str, Literal["stored", "updated", "ignored"]]]
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name, as they are kept and shown."""


class Store:
    """Repositories, pushes and jobs in memory; every look-up is by key, so that load tests measure the service."""

    def __init__(self, repositories: list[Repository]) -> None:
        self.repositories = {repository.name: repository for repository in repositories}
        self.clear()

    def clear(self) -> None:
        """Forget pushes and jobs; the repositories stay."""
        self.pushes: list[Push] = []
        self.jobs: dict[tuple[str, str], Job] = {}
        self.dropped_jobs = 0
        self._by_revision: dict[tuple[str, str], Push] = {}
        self._by_hash: dict[tuple[str, str], Push] = {}
        self._by_changeset: dict[tuple[str, str], Push] = {}
        self._job_count = 0

    def push(
        self,
        project: str,
        *,
        revision: str | None = None,
        revision_hash: str | None = None,
        any_changeset: bool = False,
    ) -> Push | None:
        """Return the push with that tip, or that has it as `any_changeset`; or the one with that hash."""
        if revision is None:
            return self._by_hash.get((project, revision_hash or ""))
        push = self._by_revision.get((project, revision))
        if push is None and any_changeset:
            push = self._by_changeset.get((project, revision))
        return push

    def newest(self, project: str, count: int) -> list[Push]:
        """Return the last pushes of a project, the newest first."""
        return [push for push in reversed(self.pushes) if push.project == project][:count]

    def store_resultsets(self, project: str, resultsets: Any) -> list[Push]:
        """Store a whole body or nothing of it; a resultset that exists already is replaced and keeps its jobs.

        Raises SubmissionError.
        """
        for position, resultset in enumerate(_list("the body", resultsets)):
            check_resultset(f"[{position}]", project, resultset)
        return [self._store_resultset(project, resultset) for resultset in resultsets]

    def _store_resultset(self, project: str, resultset: dict[str, Any]) -> Push:
        now = time.time()
        push = self._by_revision.get((project, resultset["revision"]))
        if push is None:
            push = Push(len(self.pushes) + 1, project, resultset, now, now)
            self.pushes.append(push)
            self._by_revision[project, push.revision] = push
        else:
            self._by_hash.pop((project, push.body["revision_hash"]), None)
            push.body, push.last_posted, push.posts = resultset, now, push.posts + 1
        self._by_hash[project, resultset["revision_hash"]] = push
        for changeset in resultset["revisions"]:
            self._by_changeset[project, changeset["revision"]] = push
        return push

    def store_jobs(
        self,
        project: str,
        jobs: Any,
        *,
        refuse: frozenset[str] = frozenset(),
        drop_unknown_push: bool = False,
        old: bool = False,
    ) -> None:
        """Store a whole bulk or nothing of it.

        An `old` Treeherder silently drops a job that names no revision_hash (until 2016-03-17), and keeps the first
        artifact of each name that a job has (until 2016-05-09).

        `refuse` has job guids that are never accepted. A job of an unknown push raises UnknownPushError, or is silently
        dropped with `drop_unknown_push`; both occur on real installations. Anything else that is wrong raises
        SubmissionError.
        """
        accepted: list[tuple[Push, dict[str, Any]]] = []
        dropped = 0
        for position, entry in enumerate(_list("the body", jobs)):
            where = f"[{position}]"
            check_job_entry(where, project, entry)
            job = entry["job"]
            if job["job_guid"] in refuse:
                raise SubmissionError(f"{where}.job.job_guid {job['job_guid']!r} is refused on request of a test")
            push = self._by_revision.get((project, entry["revision"]))
            if push is None:
                if not drop_unknown_push:
                    raise UnknownPushError(
                        f"{where}.revision {entry['revision']!r} is no push of {project!r}: post its resultset first"
                    )
                dropped += 1
                continue
            if old and "revision_hash" not in entry:
                dropped += 1
                continue
            claimed = entry.get("revision_hash", push.body["revision_hash"])
            if claimed != push.body["revision_hash"]:
                raise SubmissionError(
                    f"{where}.revision_hash {claimed!r} is not the push's, {push.body['revision_hash']!r}"
                )
            stored = self.jobs.get((project, job["job_guid"]))
            if stored is not None and stored.push is not push:
                raise SubmissionError(
                    f"{where}.revision {entry['revision']!r}: the job stands on push {stored.push.revision}"
                )
            accepted.append((push, job))
        self.dropped_jobs += dropped
        now = time.time()
        for push, job in accepted:
            self._store_job(now, push, job, keep_artifacts=old)

    def _store_job(self, now: float, push: Push, body: dict[str, Any], *, keep_artifacts: bool) -> None:
        key = push.project, body["job_guid"]
        job = self.jobs.get(key)
        if job is None:
            self._job_count += 1
            job = self.jobs[key] = Job(self._job_count, push, body, [(now, body["state"], body["result"], "stored")])
            push.jobs.append(job)
        else:
            before = job.body["state"]
            ignored = before == "completed" or (before == "running" and body["state"] == "pending")
            job.history.append((now, body["state"], body["result"], "ignored" if ignored else "updated"))
            if ignored:
                return
            job.body = body
        for artifact in body.get("artifacts", []):
            if not (keep_artifacts and artifact["name"] in job.artifacts):
                job.artifacts[artifact["name"]] = artifact


def revision_hash(revisions: list[dict[str, Any]]) -> str:
    """Return Treeherder's name of a push: SHA-1 hex over `node` then `branch` of each changeset, in push order."""
    return hashlib.sha1("".join(f"{entry['revision']}{entry['branch']}" for entry in revisions).encode()).hexdigest()


def check_resultset(where: str, project: str, resultset: Any) -> None:
    """Raise SubmissionError, with the place, unless this is a valid resultset of `project`."""
    _keys(where, resultset, _RESULTSET_FIELDS)
    _hex40(f"{where}.revision", resultset["revision"])
    _hex40(f"{where}.revision_hash", resultset["revision_hash"])
    _epoch(f"{where}.push_timestamp", resultset["push_timestamp"])
    _text(f"{where}.author", resultset["author"], 1, 150)
    _one_of(f"{where}.type", resultset["type"], ("push",))
    _one_of(f"{where}.active_status", resultset["active_status"], ("active",))
    revisions = _list(f"{where}.revisions", resultset["revisions"])
    if not 1 <= len(revisions) <= MAX_REVISIONS:
        raise SubmissionError(
            f"{where}.revisions has {len(revisions)} entries: send 1 to {MAX_REVISIONS}, the last ones"
        )
    for position, revision in enumerate(revisions):
        _check_revision(f"{where}.revisions[{position}]", project, revision)
    if revisions[-1]["revision"] != resultset["revision"]:
        raise SubmissionError(
            f"{where}.revision {resultset['revision']!r} is not the last of its revisions: changesets come tip last"
        )
    if len(revisions) < MAX_REVISIONS and revision_hash(revisions) != resultset["revision_hash"]:
        raise SubmissionError(
            f"{where}.revision_hash {resultset['revision_hash']!r} is not {revision_hash(revisions)!r}, "
            "the SHA-1 over revision and branch of each changeset in order"
        )


def _check_revision(where: str, project: str, revision: Any) -> None:
    _keys(where, revision, _REVISION_FIELDS)
    _hex40(f"{where}.revision", revision["revision"])
    _text(f"{where}.author", revision["author"], 0, None)
    _text(f"{where}.comment", revision["comment"], 0, None)
    _text(f"{where}.branch", revision["branch"], 1, None)
    for name in _list(f"{where}.files", revision["files"]):
        _text(f"{where}.files", name, 1, None)
    _one_of(f"{where}.repository", revision["repository"], (project,))


def check_job_entry(where: str, project: str, entry: Any) -> None:
    """Raise SubmissionError, with the place, unless this is a valid entry of a jobs body of `project`."""
    _keys(where, entry, {"project", "revision", "superseded", "job"}, {"revision_hash"})
    _one_of(f"{where}.project", entry["project"], (project,))
    _hex40(f"{where}.revision", entry["revision"])
    if "revision_hash" in entry:
        _hex40(f"{where}.revision_hash", entry["revision_hash"])
    for guid in _list(f"{where}.superseded", entry["superseded"]):
        _text(f"{where}.superseded", guid, 1, 50)
    _check_job(f"{where}.job", entry["job"])


def _check_job(where: str, job: Any) -> None:
    _keys(where, job, _JOB_REQUIRED, _JOB_OPTIONAL)
    _texts(where, job, _JOB_TEXTS)
    if not _GUID.fullmatch(job["job_guid"]):
        raise SubmissionError(f"{where}.job_guid {job['job_guid']!r} is not <uuid>/<runId>")
    _text(f"{where}.desc", job.get("desc", ""), 0, None)
    _one_of(f"{where}.state", job["state"], STATES)
    _one_of(f"{where}.result", job["result"], RESULTS)
    if (job["state"] == "completed") == (job["result"] == "unknown"):
        raise SubmissionError(
            f"{where}.result {job['result']!r} does not go with state {job['state']!r}: "
            "'unknown' is for a job that has not completed, and only for it"
        )
    _epoch(f"{where}.submit_timestamp", job["submit_timestamp"])
    if "start_timestamp" in job or job["state"] == "running":
        _epoch(f"{where}.start_timestamp", job.get("start_timestamp"))
    if "end_timestamp" in job or job["state"] == "completed":
        _epoch(f"{where}.end_timestamp", job.get("end_timestamp"))
    _one_of(f"{where}.build_system_type", job["build_system_type"], ("taskcluster",))
    for name in ("build_platform", "machine_platform"):
        _keys(f"{where}.{name}", job[name], _PLATFORM_TEXTS.keys())
        _texts(f"{where}.{name}", job[name], _PLATFORM_TEXTS)
    _check_options(f"{where}.option_collection", job["option_collection"])
    tier = job["tier"]
    if type(tier) is not int or not 1 <= tier <= 3:
        raise SubmissionError(f"{where}.tier {tier!r} is not 1, 2 or 3")
    for position, log in enumerate(_list(f"{where}.log_references", job.get("log_references", []))):
        here = f"{where}.log_references[{position}]"
        _keys(here, log, {"url", "name", "parse_status"})
        _texts(here, log, _LOG_TEXTS)
        _one_of(f"{here}.parse_status", log["parse_status"], PARSE_STATUSES)
    for position, artifact in enumerate(_list(f"{where}.artifacts", job.get("artifacts", []))):
        here = f"{where}.artifacts[{position}]"
        _keys(here, artifact, {"type", "name", "blob"}, {"job_guid"})
        _texts(here, artifact, _ARTIFACT_TEXTS)


def _check_options(where: str, options: Any) -> None:
    if not isinstance(options, dict) or not options or any(value is not True for value in options.values()):
        raise SubmissionError(f'{where} {_short(options)} is not an object like {{"opt": true}}')


def _texts(where: str, value: dict[str, Any], lengths: Lengths) -> None:
    for name, (shortest, longest) in lengths.items():
        text = value[name]
        # the path is built only for a refused value, because this runs a dozen times for each job
        if not isinstance(text, str) or len(text) < shortest or (longest is not None and len(text) > longest):
            _text(f"{where}.{name}", text, shortest, longest)


def _text(where: str, value: Any, shortest: int, longest: int | None) -> None:
    if not isinstance(value, str):
        raise SubmissionError(f"{where} {_short(value)} is not a string")
    if len(value) < shortest or (longest is not None and len(value) > longest):
        raise SubmissionError(f"{where} {_short(value)} has {len(value)} characters: {shortest} to {longest} are taken")


def _hex40(where: str, value: Any) -> None:
    if not isinstance(value, str) or not _HEX40.fullmatch(value):
        raise SubmissionError(f"{where} {_short(value)} is not 40 lower-case hex digits")


def _epoch(where: str, value: Any) -> None:
    if type(value) is not int or value <= 0:
        raise SubmissionError(f"{where} {_short(value)} is not a time in whole seconds since 1970")


def _one_of(where: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SubmissionError(f"{where} {_short(value)} is not one of: {', '.join(allowed)}")


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise SubmissionError(f"{where} {_short(value)} is not a list")
    return value


def _keys(where: str, value: Any, required: AbstractSet[str], optional: AbstractSet[str] = frozenset()) -> None:
    if not isinstance(value, dict):
        raise SubmissionError(f"{where} {_short(value)} is not an object")
    missing = required - value.keys()
    if missing:
        raise SubmissionError(f"{where} lacks {', '.join(sorted(missing))}")
    unknown = value.keys() - required - optional
    if unknown:
        raise SubmissionError(f"{where} has fields that the API does not know: {', '.join(sorted(unknown))}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
