"""Each status has an error code."""

import doctest

from sandbox.taskcluster import errors
from sandbox.taskcluster.errors import STATUS, ApiError, code_for


def test_the_examples_in_docstrings_hold() -> None:
    outcome = doctest.testmod(errors)
    assert (outcome.attempted > 0, outcome.failed) == (True, 0)


def test_a_code_for_each_status_has_that_status() -> None:
    assert {STATUS[code_for(status)] for status in STATUS.values()} == set(STATUS.values())
    assert code_for(400) == "InputError"
    assert code_for(503) == "InternalServerError"


def test_an_error_has_the_status_of_its_code() -> None:
    error = ApiError("RequestConflict", "in use")
    assert (error.status, str(error)) == (409, "RequestConflict: in use")
