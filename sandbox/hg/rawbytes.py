"""A Mercurial extension, loaded by `hg` itself: stores messages and authors as the bytes they are.

Repositories in the wild hold messages that are not UTF-8, from times before Mercurial recoded them; today's `hg commit`
would refuse to make such a thing.
"""

from mercurial import encoding  # type: ignore[import-untyped]  # Mercurial publishes no types

encoding.fromlocal = lambda text: text
