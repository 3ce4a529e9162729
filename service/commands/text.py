"""What comes from outside, made harmless for a terminal."""


def visible(text: str, *, lines: bool = False) -> str:
    """`text` with control characters (but for line ends, if `lines`) and halves of surrogate pairs made visible."""
    return "".join(c if _harmless(c) or (lines and c == "\n") else _escaped(c) for c in text)


def _harmless(c: str) -> bool:
    # the marks that turn the writing direction can make a line read as another one
    turns = "\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069"
    return not (c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" or turns or c in "\u2028\u2029")


def _escaped(c: str) -> str:
    return " " if c in "\n\t" else c.encode("unicode_escape").decode()
