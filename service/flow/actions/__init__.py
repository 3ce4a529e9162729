"""From a pressed button, or a call of the API, to an action on a task.

kinds            registry of the actions: name, input, plan and execution of each
receive          store presses as actions, once for each press however often it is delivered
subject          fetch the task that an action names, as it is now
retrigger        create copies of a task; `search` searches for what to copy and chooses the task group, `dependents`
                 finds what depends on the task, `copies` chooses the copies and builds their definitions
cancel           cancel a task
notice           announce the end of an action: a message on Pulse, a job in Treeherder
"""
