"""Tasks: their definitions, ids and status, how they are created, and the registry of what can be done to them.

The other packages of the flow share this one.

definition       validate, complete and move definitions as the queue does, and sort them by dependencies
ids              derive task ids with the key of this deployment
routes           parse `tc-treeherder` routes
facts            read what a task says of itself for Treeherder
status           the states of tasks, and the scope for exactly one task
plan             store plans: definitions that are committed before the first `createTask`
action_kinds     registry of the actions: name, input, plan and execution of each
subject          fetch the task or the push that an action names, as it is now
create           create planned tasks, each as soon as its dependencies exist; cancel those of a refused plan
"""
