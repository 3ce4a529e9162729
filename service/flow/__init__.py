"""The story, a file a step.

    poll ──▶ push ──┬─▶ resultset ─▶ Treeherder           which repository is asked next, and what its answer means
                    │                                     a pushlog entry becomes a stored push with its steps
                    └─▶ graph ─▶ create ─▶ Taskcluster    a push becomes a plan; a plan becomes tasks
                          └────▶ error_task               ...or a task that says why there are none

The listeners drive poll and push over the API; the worker runs the others, each leased by `service.work`.
"""
