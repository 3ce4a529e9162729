"""Parse the JSON of requests and write the JSON of answers."""

import json
import re
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(body: bytes) -> Any:
    """The body as JSON; HTTPException 400 when it is none, 500 when it has text that no database takes."""
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
    if not isinstance(parsed, dict):
        raise HTTPException(400, "send a JSON object")
    return parsed


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, "application/json")
