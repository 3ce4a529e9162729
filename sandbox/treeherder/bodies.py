"""Parse the JSON of requests and write the JSON of answers."""

import json
import re
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(body: bytes) -> Any:
    """Parse a body; raise HTTPException 400 for invalid JSON, 500 for text that no database stores."""
    try:
        parsed = json.loads(body)
    except ValueError as error:
        raise HTTPException(400, f"JSON parse error - {error}") from None
    if _LONE_SURROGATE.search(body):
        try:
            json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise HTTPException(500, f"'utf-8' codec can't encode a lone surrogate: {error.reason}") from None
    return parsed


def require_object(parsed: Any) -> dict[str, Any]:
    """Return the value if it is a JSON object; raise HTTPException 400 otherwise."""
    if not isinstance(parsed, dict):
        raise HTTPException(400, "send a JSON object")
    return parsed


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(json.dumps(content), status, headers, "application/json")
