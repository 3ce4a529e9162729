"""Adjust mohawk, which signs requests with Hawk, for our own calls and inside Taskcluster's client; explain refusals.

mohawk has no option for either adjustment, and Taskcluster's client creates its signatures by itself. Two functions
replace names in mohawk's modules. These names are not part of its documented interface; they are those of mohawk 1.1.0.
`tests/service/clients/test_hawk.py` fails when an upgrade removes or stops using them.
"""

import re

import mohawk.base
import mohawk.util

from service.clock import now


def use_database_time() -> None:
    """Let mohawk stamp signatures with the database's time.

    Replaces `mohawk.base.utc_now`. Without that, a wrong wall clock makes Taskcluster and Treeherder refuse every
    signature.
    """
    mohawk.base.utc_now = _utc_now


def skip_payload_dumps() -> None:
    """Keep mohawk from formatting every payload for a DEBUG message that is never logged.

    Replaces `pprint` in `mohawk.base` and `mohawk.util`. Without that, formatting takes a quarter of the CPU time of a
    createTask.
    """
    mohawk.util.pprint = mohawk.base.pprint = _TypeNamePrinter


_MAC = re.compile(r"(MacMismatch: )?MACs do not match; ours: .*|\b(MacMismatch|Bad mac)\b", re.IGNORECASE | re.DOTALL)
_HASH = re.compile(r"(MisComputedContentHash: )?Our hash \S* \(\S*\) did not .*", re.IGNORECASE | re.DOTALL)


def explain_refusal(text: str) -> str:
    """Return a server's reason for refusing a signature, in words, and without the MACs and hashes that it quotes."""
    text = _MAC.sub("Bad mac: the key is not that of this client, or a proxy changed the request's address", text)
    return _HASH.sub("the body is not the one that was signed", text)


def _utc_now(offset_in_seconds: float = 0.0) -> int:
    return int(now().timestamp() + offset_in_seconds)


class _TypeNamePrinter:
    """Stand in for the module `pprint`, and name only a value's type."""

    @staticmethod
    def pformat(value: object) -> str:
        return f"<{type(value).__name__}>"
