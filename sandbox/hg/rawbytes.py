"""Store messages and authors as the bytes they are: an extension that `hg` itself loads.

Some repositories have messages that are not UTF-8, from before Mercurial recoded them. Today's `hg commit` would refuse
to make such a message.
"""

from mercurial import encoding  # type: ignore[import-untyped]  # Mercurial publishes no types

encoding.fromlocal = lambda text: text
