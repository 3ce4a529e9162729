"""Continuation tokens lead through all pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.pages import paged


@given(ids=st.sets(st.text("abcXYZ09-_", min_size=1), max_size=20).map(sorted), limit=st.integers(1, 7))
def test_the_pages_together_are_the_whole_list(ids: list[str], limit: int) -> None:
    pages: list[str] = []
    token: str | None = None
    while True:
        page, rest = paged(ids, token, str(limit))
        assert len(page) <= limit
        pages += page
        token = rest.get("continuationToken")
        if token is None:
            break
    assert pages == ids


def test_a_page_continues_after_an_entry_that_was_removed() -> None:
    _, rest = paged(["a", "b", "c"], None, "2")
    assert paged(["a", "c"], rest["continuationToken"], None) == (["c"], {})


@pytest.mark.parametrize("token", ["", "b", "v1-", "v1-6", "v2-62"])
def test_a_token_of_another_form_is_refused(token: str) -> None:
    with pytest.raises(ApiError, match="continuationToken") as refused:
        paged(["a"], token, None)
    assert refused.value.code == "InvalidRequestArguments"
