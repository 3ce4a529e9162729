"""From a pressed button, or a call of the API, to what is done about a task.

kinds            the registry of actions: what each is called, needs, would do, and does
receive          store what was pressed, once for each press however often it is delivered
subject          the task that an action names, as it stands now
retrigger        create copies; `search` looks for what to copy, `dependents` for what depends on the task,
                 `copies` chooses and builds the definitions
cancel           cancel a task
notice           tell others how it ended: a message on Pulse, a job in Treeherder
"""
