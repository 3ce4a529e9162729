"""The monitored repositories, as the API shows and takes them."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from service.api.schemas.common import EXAMPLE_NODE, Bool, Cursor, Page, Schema, Text, example, storable_text
from service.contract.events import NAME, Alias
from service.contract.validation import named_pattern
from service.engine.render_actions import ACTION_NAME
from service.flow.tasks.action_kinds import ACTIONS, pressable
from service.store.models import PULSE_ACTIONS, Supersede, TreeActions

_SCOPE = named_pattern(r"^[ -~]+$", "scope (printable ASCII characters)")
_TRUST_DOMAIN = named_pattern(r"^[A-Za-z0-9_-]{1,30}$", "trust domain (1 to 30 of A-Z a-z 0-9 _ -)")
_ROUTE_PROJECT = named_pattern(r"^[^/\s]+/[^/\s]+$", "user/project, such as someone/project")

Scope = Annotated[str, Field(min_length=1, max_length=1_000, pattern=_SCOPE)]


MAX_SCOPES_LENGTH = 2_000
"""Characters of all scopes of a repository: each call carries them in a header, of which 4,096 bytes are read."""


def _sendable(scopes: list[str]) -> list[str]:
    if (length := sum(len(scope) + 3 for scope in scopes)) > MAX_SCOPES_LENGTH:
        raise ValueError(
            f"{length:,} characters of scopes: at most {MAX_SCOPES_LENGTH:,} fit into a call. Put them into a role in "
            "Taskcluster, and name that: assume:<role>"
        )
    return scopes


Scopes = Annotated[list[Scope], Field(max_length=100), AfterValidator(_sendable)]


TrustDomain = Annotated[str, Field(pattern=_TRUST_DOMAIN)]


RouteProject = Annotated[str, Field(pattern=_ROUTE_PROJECT, max_length=100), AfterValidator(storable_text)]


Level = Annotated[str, Field(pattern=NAME, description="1, 2, 3, or a name such as nss")]


Prefix = Annotated[str, Field(max_length=100), AfterValidator(storable_text)]


_ACTION = named_pattern(ACTION_NAME, "name of an action (1 to 100 of A-Z a-z 0-9 _ . -)")


def _about_tasks(names: list[str]) -> list[str]:
    for name in names:
        if name in ACTIONS and not pressable(name, names):
            raise ValueError(f"{name} is about a push, and a button about a task: leave it out")
    return names


PulseActions = Annotated[
    list[Annotated[str, Field(pattern=_ACTION)]], Field(max_length=100), AfterValidator(_about_tasks)
]


class RepositoryChange(Schema):
    """JSON Merge Patch: what is not named stays."""

    trust_domain: TrustDomain | None = Field(
        None, description="such as gecko: the scheduler of the project's tasks is <trust domain>-level-<level>"
    )
    route_project: RouteProject | None = Field(
        None, description="`user/project`: what the v2 routes of its tasks name, where that is not the alias"
    )
    scopes: Scopes | None = Field(None, description="null: assume:repo:<host>/<path>:branch:default")
    contains: Text | None = Field(None, description="a push gets a graph only if its tip's message contains this")
    graph: Bool = Field(True, description="create task graphs")
    environments: list[Prefix] | None = Field(None, description="route prefixes; null: all")
    supersede: Supersede = Field(
        Supersede.OFF,
        description="once the graph of a push is created, cancel what has not run yet of the graph before it. pusher: "
        "of the same pusher; all: of anybody",
    )
    actions: TreeActions = Field(
        TreeActions.COPIES,
        description="who carries out retrigger and cancel: copies: this service; in-tree: the tree, by its own actions "
        "of these names; auto: the tree where it offers them",
    )
    pulse_actions: PulseActions = Field(
        list(PULSE_ACTIONS),
        description="actions that a message from Pulse may name, which has nobody's credentials: our own, and the "
        "tree's",
    )
    enabled: Bool = Field(True, description="false: it is not polled")


class RepositoryPatch(RepositoryChange):
    """A change of a repository, by JSON Merge Patch."""

    model_config = example(
        level="3",
        contains=None,
    )

    level: Level = Field(default_factory=str)  # never read: only what is named is set, and null is no level

    @model_validator(mode="before")
    @classmethod
    def _immutable(cls, patch: Any) -> Any:
        named = sorted({"alias", "url", "last_push_id"} & patch.keys()) if isinstance(patch, dict) else []
        if named:
            raise ValueError(f"{', '.join(named)} cannot be changed: delete and add anew, or reset for the cursor")
        return patch


_REPOSITORY: dict[str, Any] = {
    "alias": "mozilla-central",
    "url": "https://hg.mozilla.org/mozilla-central",
    "level": "3",
    "trust_domain": "gecko",
    "route_project": None,
    "scopes": ["assume:repo:hg.mozilla.org/mozilla-central:branch:default"],
    "contains": None,
    "graph": True,
    "environments": ["tc-treeherder"],
    "supersede": "off",
    "actions": "copies",
    "pulse_actions": ["retrigger", "cancel"],
    "enabled": True,
    "last_push_id": 43210,
}


class RepositoryCreate(RepositoryChange):
    """A repository to be monitored."""

    model_config = example(**_REPOSITORY)

    alias: Alias = Field(examples=["mozilla-central"])
    url: Text = Field(
        description="https; its host must be among allowed_hosts", examples=["https://hg.mozilla.org/mozilla-central"]
    )
    level: Level
    last_push_id: Cursor | None = Field(None, description="where to begin; null: at the pushlog's present end")


class RepositoryRead(Schema):
    """A monitored repository, with the state of its poll."""

    model_config = example(
        **_REPOSITORY,
        last_changeset=EXAMPLE_NODE,
        generation=0,
        created_at="2026-01-01T00:00:00Z",
        shift_ends_at="2026-01-15T12:00:12Z",
        last_polled_at="2026-01-15T12:00:00Z",
        last_good_poll_at="2026-01-15T12:00:00Z",
        poll_error=None,
        poll_failures=0,
        reset_suspected_at=None,
    )

    alias: str
    url: str
    level: str
    trust_domain: str | None
    route_project: str | None
    scopes: list[str]
    contains: str | None
    graph: bool
    environments: list[str] | None
    supersede: Supersede
    actions: TreeActions
    pulse_actions: list[str]
    enabled: bool
    last_push_id: int = Field(description="the cursor: the newest push that was taken in")
    last_changeset: str | None = Field(description="the tip of that push")
    generation: int = Field(description="goes up when the repository was reset")
    created_at: datetime
    shift_ends_at: datetime | None = Field(
        description="until then a listener polls it, which renews that every few seconds; null: nobody does just now"
    )
    last_polled_at: datetime | None = Field(description="as of the listener's last renewal, some seconds ago")
    last_good_poll_at: datetime | None = Field(description="likewise, of polls that went well")
    poll_error: str | None = Field(description="what was wrong with the last poll")
    poll_failures: int = Field(description="polls in a row that failed")
    reset_suspected_at: datetime | None


class RepositoryPage(Page[RepositoryRead]):
    """A page of repositories."""


class Reset(Schema):
    """A reset of a repository."""

    model_config = example(
        last_push_id=0,
    )

    last_push_id: Cursor | None = Field(None, description="the new cursor; null: the pushlog's present end")
