"""From a pushlog entry to a resultset in Treeherder and a task graph in Taskcluster.

shift, rates     which listener polls which repository, and how often
poll             what a poll means for the repository: good, failed, reset
push             store pushes, each with the steps to do for it
resultset        show the push in a Treeherder, or announce it on Pulse
graph            render `.taskcluster.yml` (`template`), store the plan, create the tasks
show_error       show on the push why it has no graph
preview          try a `.taskcluster.yml` without a push
urls             the one spelling of a repository's url
"""
