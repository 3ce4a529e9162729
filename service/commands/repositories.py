"""`tc-treeherder repositories`: the monitored repositories."""

from typing import Annotated, Any

import typer

from service.commands import USAGE, Failed, importing, output
from service.commands.client import DEFAULT_URL, Service, Url
from service.commands.output import AsJson, Yes, when

app = typer.Typer(no_args_is_help=True, help="The monitored repositories.")
app.command("import")(importing.run)

Alias = Annotated[str, typer.Argument(help="such as mozilla-central")]
Level = Annotated[str | None, typer.Option(help="1, 2, 3, or a name such as nss")]
Scopes = Annotated[list[str] | None, typer.Option("--scope", help="of its tasks; again for more", show_default=False)]
TrustDomain = Annotated[
    str | None, typer.Option(help="such as gecko: tasks have the scheduler <trust domain>-level-<level>")
]
RouteProject = Annotated[str | None, typer.Option(help="user/project, where the routes of its tasks name that")]
Contains = Annotated[str | None, typer.Option(help="a push gets a graph only if its tip's message contains this")]
Graph = Annotated[bool | None, typer.Option("--graph/--no-graph", help="Whether its pushes get task graphs.")]
Environments = Annotated[
    list[str] | None, typer.Option("--environment", help="route prefix of a Treeherder; again for more")
]
Enabled = Annotated[bool | None, typer.Option("--enabled/--disabled", help="Whether it is polled.")]
Cursor = Annotated[
    int | None, typer.Option("--last-push-id", min=0, help="where to begin; its pushlog's present end, if not given")
]


@app.command("list")
def list_repositories(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """The monitored repositories, in the order in which they were added."""
    with Service(url) as service:
        repositories = list(service.pages("repositories"))
    if as_json:
        output.document(repositories)
        return
    output.table(
        ("ALIAS", "URL", "LEVEL", "GRAPH", "ENABLED", "LAST PUSH", "LAST GOOD POLL", "PROBLEM"),
        (
            (
                each["alias"],
                each["url"],
                each["level"],
                each["graph"],
                each["enabled"],
                each["last_push_id"],
                when(each["last_good_poll_at"]),
                each["poll_error"] or "",
            )
            for each in repositories
        ),
        "no repository is monitored: `tc-treeherder repositories add` adds one",
    )


@app.command()
def show(alias: Alias, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """One repository, and where its poll stands."""
    with Service(url) as service:
        _show(service.get("repositories", alias), as_json)


@app.command()
def add(
    alias: Alias,
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY_URL", help="https; its host must be allowed")],
    level: Annotated[str, typer.Option(help="1, 2, 3, or a name such as nss: what its tasks are trusted with")],
    trust_domain: TrustDomain = None,
    route_project: RouteProject = None,
    scopes: Scopes = None,
    contains: Contains = None,
    graph: Graph = None,
    environments: Environments = None,
    enabled: Enabled = None,
    last_push_id: Cursor = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Monitor a repository from now on."""
    fields = _given(level, trust_domain, route_project, scopes, contains, graph, environments, enabled)
    body = {"alias": alias, "url": repository, "last_push_id": last_push_id, **fields}
    with Service(url) as service, output.waiting("asking its pushlog"):
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
        bool, typer.Option("--default-scopes", help="Those of its role, assume:repo:<host>/<path>:branch:default.")
    ] = False,
    contains: Contains = None,
    no_contains: Annotated[bool, typer.Option("--no-contains", help="A graph for each push.")] = False,
    graph: Graph = None,
    environments: Environments = None,
    all_environments: Annotated[bool, typer.Option("--all-environments", help="Shown in each Treeherder.")] = False,
    enabled: Enabled = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Change what is given; the rest stays."""
    patch = _given(level, trust_domain, route_project, scopes, contains, graph, environments, enabled)
    for name, wanted, option in (
        ("scopes", default_scopes, "--default-scopes"),
        ("contains", no_contains, "--no-contains"),
        ("environments", all_environments, "--all-environments"),
    ):
        if wanted and name in patch:
            raise Failed(f"{option} takes back what the same command sets: give one of them", USAGE)
        if wanted:
            patch[name] = None
    if not patch:
        raise Failed("nothing to change was given; --help lists what can be", USAGE)
    with Service(url) as service:
        changed = service.send("PATCH", "repositories", alias, body=patch)
    _show(changed, as_json)


def _given(
    level: str | None,
    trust_domain: str | None,
    route_project: str | None,
    scopes: list[str] | None,
    contains: str | None,
    graph: bool | None,
    environments: list[str] | None,
    enabled: bool | None,
) -> dict[str, Any]:
    names = {"level": level, "trust_domain": trust_domain, "route_project": route_project}
    values = {**names, "contains": contains, "graph": graph, "enabled": enabled}
    # an option that can be given again is an empty list without
    lists = {"scopes": scopes or None, "environments": environments or None}
    return {name: value for name, value in {**values, **lists}.items() if value is not None}


@app.command()
def remove(
    alias: Alias,
    force: Annotated[bool, typer.Option("--force", help="Bury its unfinished work as dead letters.")] = False,
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Monitor it no more. Its pushes can still be read."""
    work = " and give up its unfinished work" if force else ""
    output.confirm(f"remove {alias}{work}", yes)
    with Service(url) as service:
        service.send("DELETE", "repositories", alias, query={"force": "true" if force else None})
    if as_json:
        output.document({"removed": alias})
    else:
        output.say(f"{alias} is monitored no more")


@app.command()
def reset(
    alias: Alias, last_push_id: Cursor = None, yes: Yes = False, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Begin a new generation of a repository that was made anew, and set its cursor."""
    output.confirm(f"begin a new generation of {alias} and forget its cursor", yes)
    with Service(url) as service, output.waiting("asking its pushlog"):
        made = service.send("POST", "repositories", alias, "reset", body={"last_push_id": last_push_id})
    _show(made, as_json)


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
        ("enabled", repository["enabled"]),
        ("cursor", f"push {repository['last_push_id']} of generation {repository['generation']}"),
        ("tip there", repository["last_changeset"]),
        ("added", when(repository["created_at"])),
        ("last poll", when(repository["last_polled_at"])),
        ("last good poll", when(repository["last_good_poll_at"])),
    ]
    if repository["poll_error"]:
        pairs.append(("problem", f"{repository['poll_error']} ({repository['poll_failures']} polls in a row)"))
    if repository["reset_suspected_at"]:
        pairs.append(("reset suspected", when(repository["reset_suspected_at"])))
    output.fields(pairs)
