"""From a pressed button, or a call of the API, to an action on a task or a push.

`service.flow.tasks.action_kinds` is the registry of all actions.

receive          store presses as actions, once for each press however often it is delivered
push_tasks       collect the tasks of a push, and copies of them
retrigger        create copies of a task; `search` searches for what to copy and chooses the task group, `dependents`
                 finds what depends on the task, `copies` chooses the copies and builds their definitions
retrigger_failed create copies of all failed tasks of a push
cancel           cancel a task
cancel_push      cancel all unfinished tasks of a push; `cancels` cancels many tasks at once
supersede        cancel what has not run yet of a push, for a newer one; the graph of that stores it
decision         find the decision task whose in-tree actions are for a task or a push
offers           read which in-tree actions a decision task offers
in_tree          carry out what the tree offers; `trigger` triggers a hook at most once, `action_task` follows its task
notice           announce the end of an action: a message on Pulse, a job in Treeherder
"""
