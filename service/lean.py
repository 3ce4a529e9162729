"""Imports that leave out what a library takes along for its own command line; the first import of `service.cli`.

httpx brings a command, and structlog tracebacks in colour, wherever rich and click are installed. Commands of ours
print tables with rich, so they are; a service or a listener would hold 7 MB of it for nothing.
"""

import sys

_HIDDEN = ("rich", "pygments", "click")

_there = {name: sys.modules.get(name) for name in _HIDDEN}
for _name in _HIDDEN:
    sys.modules[_name] = None  # type: ignore[assignment]  # importing it raises ImportError, which both expect
try:
    import httpx
    import structlog
finally:
    for _name, _module in _there.items():
        if _module is None:
            del sys.modules[_name]
        else:
            sys.modules[_name] = _module

__all__ = ["httpx", "structlog"]
