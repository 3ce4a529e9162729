"""From a task event to a job in Treeherder.

events           keep the newest that is known of each run, for each environment
deliver          tell a Treeherder of a batch of runs, once their push and their task's facts are known
run              what a job says of its run: id, state, result, log, links
rest, pulse      the two forms of a job: an entry of the REST submission, a message on Pulse
reconcile        ask Taskcluster about runs that no event told of
queues           which Pulse queues are read, and what a deleted one may have lost
"""
