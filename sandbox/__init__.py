"""Stand-ins for Mercurial, Taskcluster and Treeherder, and the whole system around them: for demos and tests."""
