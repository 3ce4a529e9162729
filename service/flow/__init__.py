"""The story, a file a step.

    shift ─▶ push ──┬─▶ resultset ─▶ Treeherder           who polls which repository, at which rate (rates); what polls
    poll            │                                     mean; a pushlog entry becomes a stored push with its steps
                    └─▶ graph ─▶ create ─▶ Taskcluster    a push becomes a plan; a plan becomes tasks
                          └────▶ show_error               ...or a task, or a job, that says why there are none

    a button, ──▶ action ──┬─▶ retrigger ─▶ create ─▶ Taskcluster    an action becomes a plan of copies
    or the API             ├─▶ cancel ─▶ Taskcluster
                           └─▶ notice ─▶ Pulse, Treeherder           who else is told how it ended

    a task    ──▶ report ──▶ deliver ──▶ Treeherder                  what is known of each run; jobs, in bulk
    event            ▲         └─▶ jobs, settle                      a run as a job; how batches are leased
                     └─ heal ─▶ Taskcluster                          what was not heard of is asked about

The listeners drive shift, poll, push, action and report over the API; `service.engine.reporter` runs deliver and heal;
the worker runs the others, each leased by `service.engine.leases`. definition, ids, routes and status say what a task's
definition, id, routes and status are; plan, what is stored of tasks that are to be created; template, what a
`.taskcluster.yml` is rendered with; urls, how a repository's url is spelled. preview tries a file without a push.
"""

import importlib
import pkgutil

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):  # each registers what it does
    importlib.import_module(_module.name)
