"""What a task is, and how tasks are created. The other packages of the flow share it.

definition       what the queue makes of a definition: completed, checked, ordered by dependencies
ids              task ids derived with the key of this deployment
routes           what a `tc-treeherder` route says
facts            what a task says of itself for Treeherder
status           the states of tasks, and the scope for exactly one task
plan             the stored plan: definitions that are committed before the first `createTask`
create           create planned tasks, each as soon as its dependencies exist; give up what cannot be created
"""
