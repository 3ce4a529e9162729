"""Define the errors that Taskcluster's services answer.

Codes and their statuses are those of Taskcluster's `lib-api`. A body is `{"code", "message", "requestInfo"}`; the HTTP
layer adds `requestInfo` and the footer of the message, because only it has the request.
"""

STATUS = {
    "MalformedPayload": 400,
    "InvalidRequestArguments": 400,
    "InputValidationError": 400,
    "InputError": 400,
    "AuthenticationFailed": 401,
    "InsufficientScopes": 403,
    "ResourceNotFound": 404,
    "RequestConflict": 409,
    "ResourceExpired": 410,
    "TooManyRequests": 429,
    "InternalServerError": 500,
}
"""HTTP status of each error code."""


class ApiError(Exception):
    """An answer other than success: `code` is one of `STATUS`, `message` is for the caller."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = STATUS[code]


def footer(method: str, code: str, status: int, moment: str) -> str:
    """Return what every error message ends with."""
    return f"\n\n---\n\n* method:     {method}\n* errorCode:  {code}\n* statusCode: {status}\n* time:       {moment}"


def code_for(status: int) -> str:
    """Return the error code for an HTTP status, for faults that name a status.

    >>> code_for(409)
    'RequestConflict'
    """
    preferred = {400: "InputError"}
    if status in preferred:
        return preferred[status]
    return next((code for code, code_status in STATUS.items() if code_status == status), "InternalServerError")
