"""Define the credentials of the sandbox, which are public: never use them elsewhere.

Both stand-ins are configured from here, and the ready file of `sandbox.run` contains them.
"""

from sandbox.taskcluster import Client, RegisteredClient

TRUST_DOMAIN, LEVEL = "sandbox", "3"
"""Of every repository here; with them, the roles below are those of a real project."""

SCHEDULER = f"{TRUST_DOMAIN}-level-{LEVEL}"

HOOKS = f"project-{TRUST_DOMAIN}/in-tree-action-{LEVEL}-"
"""What the names of hooks of in-tree actions begin with: `<hookGroupId>/<hookId>`."""

SERVICE = Client(
    "sandbox/tc-treeherder",
    "sandbox-service-token-that-is-no-secret-0000",
    (
        # createTask is called with `authorizedScopes` of a project: its role, and mail to the pusher; a copy of a task
        # may notify as its original does
        "assume:repo:*",
        "queue:route:notify.*",
        "queue:get-task:*",
        "queue:status:*",
        "queue:list-task-group:*",
        "queue:list-dependent-tasks:*",
        "queue:schedule-task:*",
        "queue:cancel-task:*",
        "auth:expand-scopes",  # for `tc-treeherder render`, which lists the scopes that a file's tasks lack
        # actions that a tree offers; a hook is triggered, and then it is looked up whether that took effect
        f"hooks:trigger-hook:{HOOKS}*",
        f"hooks:list-last-fires:{HOOKS}*",
        "auth:current-scopes",  # for `tc-treeherder doctor`, which checks all scopes
        "auth:get-client:mozilla-auth0/*",  # what people may do who have signed in to the page
    ),
)
"""The Taskcluster client of tc-treeherder itself."""

PERSON = Client(
    "sandbox/sheriff",
    "sandbox-person-token-that-is-no-secret-00000",
    ("tc-treeherder:repositories:write", "tc-treeherder:action:*", "tc-treeherder:render"),
)
"""A person's Taskcluster client: may call tc-treeherder's API, and nothing of Taskcluster's."""

PEOPLE = {
    "mozilla-auth0/ad|Mozilla-LDAP|sheriff": ("tc-treeherder:*",),
    "mozilla-auth0/ad|Mozilla-LDAP|developer": ("assume:sandbox:developers",),
    "mozilla-auth0/email|stranger": (),
}
"""Identities with which people may sign in to Taskcluster, and their scopes."""

SIGN_IN, SIGN_IN_PATH = "tc-treeherder", "/sign-in/taskcluster/done"
"""The page, as it is registered with Taskcluster: its id, and the path that people are led back to."""

ROLES = {
    # Of people: what a developer may do with pushes to try.
    "sandbox:developers": (
        "tc-treeherder:read",
        *(f"tc-treeherder:action:{name}:try" for name in ("retrigger", "cancel", "retrigger-failed", "cancel-push")),
    ),
    # What tasks of a push may use, as with real projects: no cancel scope, one scheduler, one provisioner of its own.
    "repo:*": (
        "queue:create-task:highest:sandbox/*",
        "queue:create-task:highest:built-in/*",
        "queue:create-task:project:none",
        f"queue:scheduler-id:{SCHEDULER}",
        "queue:route:tc-treeherder.v2.*",
        "queue:route:tc-treeherder-stage.v2.*",
        "queue:route:index.sandbox.*",
        # What the decision task's actions.json may offer.
        f"in-tree:hook-action:{HOOKS}*",
    ),
    # What an action task may do for a tree: what its repository may, and cancel and rerun tasks of its level.
    f"hook-id:{HOOKS}*": (
        "assume:repo:*",
        f"queue:cancel-task:{SCHEDULER}/*",
        f"queue:rerun-task:{SCHEDULER}/*",
    ),
    # As in the deployments of Mozilla: reads and the scopes of roles are public.
    "anonymous": (
        "auth:expand-scopes",
        "queue:get-artifact:public/*",
        "queue:get-task:*",
        "queue:list-artifacts:*",
        "queue:list-dependent-tasks:*",
        "queue:list-task-group:*",
        "queue:status:*",
    ),
}
"""Taskcluster's roles. Tasks run on task queues of the provisioner `sandbox`, or on `built-in/succeed` and `/fail`."""

TREEHERDER_ID = "tc-treeherder"
TREEHERDER_SECRET = "sandbox-treeherder-secret-that-is-no-secret"
"""The Hawk client that may submit to Treeherder."""


def registered_client(service_port: int) -> RegisteredClient:
    """Return the page of a service on this port, as it is registered."""
    redirects = tuple(f"http://{host}:{service_port}{SIGN_IN_PATH}" for host in ("127.0.0.1", "localhost"))
    return RegisteredClient(SIGN_IN, redirects, ("tc-treeherder:*",), max_expires="1 day", require_pkce=True)
