"""Define the credentials of the sandbox, which are public: never use them elsewhere.

Both stand-ins are configured from here, and the ready file of `sandbox.run` contains them.
"""

from sandbox.taskcluster import Client

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
    ),
)
"""The Taskcluster client of tc-treeherder itself."""

PERSON = Client(
    "sandbox/sheriff",
    "sandbox-person-token-that-is-no-secret-00000",
    ("tc-treeherder:repositories:write", "tc-treeherder:action:*", "tc-treeherder:render"),
)
"""A person's Taskcluster client: may call tc-treeherder's API, and nothing of Taskcluster's."""

ROLES = {
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
