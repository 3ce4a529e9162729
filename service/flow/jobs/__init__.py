"""From a task event to a job in Treeherder.

events           record the newest state of each run, for each environment
deliver          send a batch of runs to one Treeherder, with what these four look up and decide:
facts_lookup       the facts of tasks, from their definitions
push_lookup        the pushes, which must exist before a job of them is posted
artifacts          the artifacts of ended runs
retries            when a report is tried again, and when it is given up
run              derive from a run the id, state, result, log and links of its job
rest, pulse      the two forms of a job: an entry of the REST submission, a message on Pulse
reconcile        look up runs without a recent event in Taskcluster
queues           record which Pulse queues are read, and that one was deleted
lru              a cache of the most recently used values
"""
