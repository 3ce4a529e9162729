"""The processing flow, in four packages. Read each from left to right.

    pushes     shift ─▶ push ──┬─▶ resultset ─▶ Treeherder          a pushlog entry becomes a stored push with its steps
               poll            │
                               └─▶ graph ─▶ tasks.create ─▶ Taskcluster     a push becomes a plan, a plan becomes tasks
                                     └────▶ show_error                      ...or a task or a job that says why not

    actions    receive ──┬─▶ retrigger ─▶ tasks.create ─▶ Taskcluster       a pressed button becomes copies of a task
                         ├─▶ cancel ─▶ Taskcluster
                         └─▶ notice ─▶ Pulse, Treeherder                    others are told how it ended

    jobs       events ──▶ deliver ──▶ Treeherder                            runs become jobs, in bulk
                 ▲          └─▶ rest, pulse                                 the two forms of a job
                 └─ reconcile ─▶ Taskcluster                                runs that no event told of are asked about

    tasks      definition, ids, routes, facts, status, plan, create         what a task is, and how tasks are created

`pushes`, `actions` and `jobs` use `tasks`, and never each other. The API calls `shift`, `push`, `receive` and `events`;
the worker and the reporter of `service.engine` run everything else. They know no step by name: each module says at its
end what kind of work it does, and importing any module of this package imports all of them.
"""

import importlib
import pkgutil

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
