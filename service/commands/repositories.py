"""Implement `tc-treeherder repositories`, which manages the monitored repositories."""

from typing import Annotated, Any

import typer

from service.commands import USAGE, Failed, importing, output
from service.commands.client import DEFAULT_URL, Service, Url
from service.commands.output import AsJson, Yes, when
from service.store.models import Supersede

app = typer.Typer(no_args_is_help=True, help="Manage the monitored repositories.")
app.command("import")(importing.run)

Alias = Annotated[str, typer.Argument(help="Alias of the repository, such as mozilla-central.")]
Level = Annotated[str | None, typer.Option(help="Level: 1, 2, 3, or a name such as nss.")]
Scopes = Annotated[
    list[str] | None, typer.Option("--scope", help="Scope of its tasks. Repeat it for more.", show_default=False)
]
TrustDomain = Annotated[
    str | None,
    typer.Option(help="Trust domain, such as gecko. Its tasks have the scheduler <trust domain>-level-<level>."),
]
RouteProject = Annotated[
    str | None, typer.Option(help="The <user>/<project> in the routes of its tasks, if it is not the alias.")
]
Contains = Annotated[str | None, typer.Option(help="Text that the tip's message must contain for a task graph.")]
Graph = Annotated[bool | None, typer.Option("--graph/--no-graph", help="Create task graphs for its pushes, or none.")]
Environments = Annotated[
    list[str] | None, typer.Option("--environment", help="Route prefix of a Treeherder. Repeat it for more.")
]
SupersedeOption = Annotated[
    Supersede | None,
    typer.Option(
        "--supersede", help="Cancel what waits of the graph before a newer push: of its pusher, of all, or none."
    ),
]
Actions = Annotated[
    str | None,
    typer.Option(
        "--actions", help="Who retriggers and cancels: copies (this service), in-tree, or auto: in-tree where offered."
    ),
]
PulseActions = Annotated[
    list[str] | None,
    typer.Option("--pulse-action", help="Action that a button may name over Pulse. Repeat it for more."),
]
Enabled = Annotated[bool | None, typer.Option("--enabled/--disabled", help="Poll it, or do not.")]
Cursor = Annotated[
    int | None,
    typer.Option("--last-push-id", min=0, help="Push id to begin after. Default: the newest push in its pushlog."),
]


@app.command("list")
def list_repositories(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the monitored repositories, in the order in which they were added."""
    with Service(url) as service:
        repositories = list(service.pages("repositories"))
    if as_json:
        output.document(repositories)
        return
    output.table(
        ("ALIAS", "URL", "LEVEL", "GRAPH", "ENABLED", "LAST PUSH", "LAST GOOD POLL", "PROBLEM"),
        (
            (
                repository["alias"],
                repository["url"],
                repository["level"],
                repository["graph"],
                repository["enabled"],
                repository["last_push_id"],
                when(repository["last_good_poll_at"]),
                repository["poll_error"] or "",
            )
            for repository in repositories
        ),
        "no repository is monitored: add one with `tc-treeherder repositories add`",
    )


@app.command()
def show(alias: Alias, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a repository, and the state of its poll."""
    with Service(url) as service:
        _show(service.get("repositories", alias), as_json)


@app.command()
def add(
    alias: Alias,
    repository: Annotated[
        str, typer.Argument(metavar="REPOSITORY_URL", help="URL of the repository, with https and an allowed host.")
    ],
    level: Annotated[str, typer.Option(help="Level of trust in its tasks: 1, 2, 3, or a name such as nss.")],
    trust_domain: TrustDomain = None,
    route_project: RouteProject = None,
    scopes: Scopes = None,
    contains: Contains = None,
    graph: Graph = None,
    environments: Environments = None,
    supersede: SupersedeOption = None,
    actions: Actions = None,
    pulse_actions: PulseActions = None,
    enabled: Enabled = None,
    last_push_id: Cursor = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Start to monitor a repository."""
    fields = _given_fields(
        level, trust_domain, route_project, scopes, contains, graph, environments, supersede, enabled
    )
    fields |= _action_fields(actions, pulse_actions)
    body = {"alias": alias, "url": repository, "last_push_id": last_push_id, **fields}
    with Service(url) as service, output.waiting("reading its pushlog"):
        added = service.send("POST", "repositories", body=body)
    _show(added, as_json)


@app.command("set")
def change(
    alias: Alias,
    level: Level = None,
    trust_domain: TrustDomain = None,
    route_project: RouteProject = None,
    scopes: Scopes = None,
    default_scopes: Annotated[
        bool, typer.Option("--default-scopes", help="Only the scope assume:repo:<host>/<path>:branch:default.")
    ] = False,
    add_scopes: Annotated[
        list[str] | None,
        typer.Option("--add-scope", help="Scope to add to those that it has. Repeat it for more.", show_default=False),
    ] = None,
    remove_scopes: Annotated[
        list[str] | None,
        typer.Option("--remove-scope", help="Scope to take away. Repeat it for more.", show_default=False),
    ] = None,
    contains: Contains = None,
    no_contains: Annotated[bool, typer.Option("--no-contains", help="Create a task graph for each push.")] = False,
    graph: Graph = None,
    environments: Environments = None,
    all_environments: Annotated[bool, typer.Option("--all-environments", help="Show it in each Treeherder.")] = False,
    supersede: SupersedeOption = None,
    actions: Actions = None,
    pulse_actions: PulseActions = None,
    enabled: Enabled = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Change the given fields of a repository."""
    patch = _given_fields(level, trust_domain, route_project, scopes, contains, graph, environments, supersede, enabled)
    patch |= _action_fields(actions, pulse_actions)
    for name, reset_to_default, option in (
        ("scopes", default_scopes, "--default-scopes"),
        ("contains", no_contains, "--no-contains"),
        ("environments", all_environments, "--all-environments"),
    ):
        if reset_to_default and name in patch:
            raise Failed(f"{option} contradicts another option of the command: give one of them", USAGE)
        if reset_to_default:
            patch[name] = None
    if (add_scopes or remove_scopes) and "scopes" in patch:
        raise Failed("--add-scope and --remove-scope change the scopes that it has: leave out the other option", USAGE)
    if not (patch or add_scopes or remove_scopes):
        raise Failed("no field to change was given: --help lists them", USAGE)
    with Service(url) as service:
        if add_scopes or remove_scopes:
            current = service.get("repositories", alias)["scopes"]
            patch["scopes"] = _changed_scopes(alias, current, add_scopes or [], remove_scopes or [])
        changed = service.send("PATCH", "repositories", alias, body=patch)
    _show(changed, as_json)


def _changed_scopes(alias: str, current: list[str], added: list[str], removed: list[str]) -> list[str]:
    """Return the scopes with some added and some removed. Raises Failed for one that is both or cannot be removed."""
    if both := sorted(set(added) & set(removed)):
        raise Failed(f"{', '.join(both)} cannot be added and removed at once: give one of the options", USAGE)
    if missing := [scope for scope in removed if scope not in current]:
        has = ", ".join(current) or "none"
        raise Failed(f"{alias} does not have the scope {', '.join(missing)}; it has {has}", USAGE)
    return [scope for scope in dict.fromkeys([*current, *added]) if scope not in removed]


def _given_fields(
    level: str | None,
    trust_domain: str | None,
    route_project: str | None,
    scopes: list[str] | None,
    contains: str | None,
    graph: bool | None,
    environments: list[str] | None,
    supersede: Supersede | None,
    enabled: bool | None,
) -> dict[str, Any]:
    names = {"level": level, "trust_domain": trust_domain, "route_project": route_project}
    values = {**names, "contains": contains, "graph": graph, "supersede": supersede, "enabled": enabled}
    # an option that can be repeated is an empty list if it is not given
    lists = {"scopes": scopes or None, "environments": environments or None}
    return {name: value for name, value in {**values, **lists}.items() if value is not None}


def _action_fields(actions: str | None, pulse_actions: list[str] | None) -> dict[str, Any]:
    """Return the given fields that are about actions."""
    values = {"actions": actions, "pulse_actions": pulse_actions or None}
    return {name: value for name, value in values.items() if value is not None}


@app.command()
def remove(
    alias: Alias,
    force: Annotated[
        bool, typer.Option("--force", help="Remove it although it has unfinished work, which becomes dead letters.")
    ] = False,
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Stop to monitor a repository. Its pushes can still be read."""
    abandoning = " and abandon its unfinished work" if force else ""
    output.confirm(f"remove {alias}{abandoning}", yes)
    with Service(url) as service:
        service.send("DELETE", "repositories", alias, query={"force": "true" if force else None})
    if as_json:
        output.document({"removed": alias})
    else:
        output.say(f"{alias} is not monitored any more")


@app.command()
def reset(
    alias: Alias, last_push_id: Cursor = None, yes: Yes = False, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Begin a new generation of a repository that was recreated upstream, and set its cursor."""
    output.confirm(f"begin a new generation of {alias} and replace its cursor", yes)
    with Service(url) as service, output.waiting("reading its pushlog"):
        repository = service.send("POST", "repositories", alias, "reset", body={"last_push_id": last_push_id})
    _show(repository, as_json)


@app.command()
def poll(alias: Alias, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Have a repository polled at once: a listener does it within seconds."""
    with Service(url) as service:
        repository = service.send("POST", "repositories", alias, "poll")
    if as_json:
        output.document(repository)
        return
    last = when(repository["last_good_poll_at"])
    output.say(
        f"{alias} is polled within seconds (the last good poll: {last}); "
        f"`tc-treeherder repositories show {alias}` says what came of it"
    )


def _show(repository: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.document(repository)
        return
    environments = "all" if repository["environments"] is None else repository["environments"] or "none"
    pairs = [
        ("alias", repository["alias"]),
        ("url", repository["url"]),
        ("level", repository["level"]),
        ("trust domain", repository["trust_domain"]),
        ("route project", repository["route_project"]),
        ("scopes", repository["scopes"]),
        ("contains", repository["contains"]),
        ("graph", repository["graph"]),
        ("environments", environments),
        ("supersede", repository["supersede"]),
        ("actions", repository["actions"]),
        ("pulse actions", repository["pulse_actions"] or "none"),
        ("enabled", repository["enabled"]),
        ("cursor", f"push {repository['last_push_id']} of generation {repository['generation']}"),
        ("tip at cursor", repository["last_changeset"]),
        ("added", when(repository["created_at"])),
        ("last poll", when(repository["last_polled_at"])),
        ("last good poll", when(repository["last_good_poll_at"])),
    ]
    if repository["poll_error"]:
        pairs.append(("problem", f"{repository['poll_error']} ({repository['poll_failures']} polls in a row)"))
    if repository["reset_suspected_at"]:
        pairs.append(("reset suspected", when(repository["reset_suspected_at"])))
    output.fields(pairs)
