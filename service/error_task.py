"""Default of the setting `error_task`: the JSON-e template of the task that shows on a push why it has no graph.

The task is for the built-in queue that fails every task at once, so it needs no worker, no secrets and no image.
Context: `push`, `repository` (with `trust_domain`), `error`, `environments` (route prefixes), `owner` (the pusher, in
the form of `metadata.owner`), `notify` (that owner's address, or null), `now`, `taskcluster_root_url`, `ownTaskId`.
"""

from typing import Any

DEFAULT_ERROR_TASK: dict[str, Any] = {
    "taskQueueId": "built-in/fail",
    "schedulerId": {
        "$if": "repository.trust_domain",
        "then": "${repository.trust_domain}-level-${repository.level}",
        "else": "tc-treeherder",
    },
    "created": {"$fromNow": ""},
    "deadline": {"$fromNow": "1 day"},
    "expires": {"$fromNow": "90 days"},
    "retries": 0,
    "routes": {
        "$flatten": [
            {
                "$map": {"$eval": "environments"},
                "each(prefix)": "${prefix}.v2.${repository.project}.${push.revision}.${push.pushlog_id}",
            },
            {"$if": "notify", "then": ["notify.email.${notify}.on-failed"], "else": []},
        ]
    },
    "payload": {},
    "metadata": {
        "name": "taskcluster.yml error",
        "description": "No task graph was created for this push:\n\n${error}",
        "owner": "${owner}",
        "source": "${repository.url}/file/${push.revision}/.taskcluster.yml",
    },
    "extra": {
        "error": "${error}",
        "treeherder": {
            "symbol": "D",
            "groupSymbol": "?",
            "jobKind": "other",
            "tier": 1,
            "machine": {"platform": "taskcluster-decision"},
            "labels": ["opt"],
        },
    },
}
