"""One spelling for one repository."""

from hypothesis import given
from hypothesis import strategies as st

from service.flow.pushes.urls import canonical_url

pieces = st.sampled_from(
    ["try", "/", "//", ".", "..", "%2e", "%2F", "%2f", "%", "%25", "%C3%A9", "~", "%7E", "A", ":", "@", "\\", " "]
)


@given(st.lists(pieces, max_size=8))
def test_what_is_canonical_stays_as_it_is_and_hides_nothing(path: list[str]) -> None:
    try:
        url, host = canonical_url("https://hg.mozilla.org/" + "".join(path))
    except ValueError:
        return
    assert host == "hg.mozilla.org"
    assert canonical_url(url) == (url, host)
    segments = url.removeprefix("https://hg.mozilla.org/").split("/")
    assert not {"", ".", ".."} & set(segments)
    assert "%2F" not in url.upper()
    assert "%2E" not in url.upper()


def test_equal_urls_have_one_form() -> None:
    spellings = ["https://hg.mozilla.org/try", "HTTPS://HG.MOZILLA.ORG:443/try/", "https://hg.mozilla.org./%74r%79//"]
    assert {canonical_url(url) for url in spellings} == {("https://hg.mozilla.org/try", "hg.mozilla.org")}
