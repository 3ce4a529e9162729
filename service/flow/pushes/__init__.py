"""From a pushlog entry to a resultset in Treeherder and a task graph in Taskcluster.

shift, rates     lease repositories to listeners, and limit their rates of requests
poll             judge the polls of a repository: good, failed, reset
push             store pushes, each with the steps to do for it
ingest           read a push from the pushlog by hand, and store it
resultset        post the push to a Treeherder, or announce it on Pulse
graph            render `.taskcluster.yml` (`template`), store the plan, create the tasks
show_error       show on the push why it has no graph
preview          render a `.taskcluster.yml` without a push
urls             the canonical spelling of a repository's URL
"""
