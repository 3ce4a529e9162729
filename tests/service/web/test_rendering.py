"""Templates, addresses, times."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.web.rendering import HERE, format_duration, format_time, path_of, render

TEMPLATES = sorted((HERE / "templates").glob("*.html"))


def test_a_path_quotes_its_parts() -> None:
    assert path_of() == "/"
    assert path_of("pushes", 'a/"<b>?#%', 7) == "/pushes/a%2F%22%3Cb%3E%3F%23%25/7"
    assert path_of("pushes", user="a&b=c", state=None, after="") == "/pushes?user=a%26b%3Dc"
    assert path_of("x\udce9") == "/x%5Cudce9"


def test_times_are_read_by_people() -> None:
    at = datetime(2026, 1, 15, 12, 0, 2, tzinfo=UTC)
    assert format_time(at) == "2026-01-15 12:00:02"
    assert format_time(None) == format_duration(None, at) == "-"
    for seconds, shown in {0: "0 s", 59: "59 s", 61: "1 min 1 s", 3_600: "1 h", 90_061: "1 d 1 h", -5: "0 s"}.items():
        assert format_duration(at, at + timedelta(seconds=seconds)) == shown


def test_what_strangers_wrote_is_escaped() -> None:
    problem = {"title": "<script>alert(1)</script>", "detail": '"><img src=x onerror=alert(1)>\udce9', "status": 400}
    common: dict[str, Any] = {
        "caller": "<b>",
        "signed_in": True,
        "can_sign_in": True,
        "form_token": lambda: "t",
        "here": "/",
        "view": None,
        "reloads": True,
    }
    page = render("error.html", "", problem=problem, anchor="x", navigation=[], **common)
    text = bytes(page.body).decode()
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "<b>" not in text
    assert "\\udce9" in text


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_no_template_has_inline_code_or_unescaped_text(template: object) -> None:
    text = (HERE / "templates" / str(getattr(template, "name", ""))).read_text()
    assert not re.search(r"\bon\w+\s*=|\bstyle\s*=|<style|javascript:|\|\s*safe|autoescape", text, re.I)
    assert re.findall(r"<script[^>]*>", text) in ([], ["<script src=\"{{ static('page.js') }}\" defer>"])
    assert not re.search(r'(?:href|src|action)="(?!\{\{|#main"|")', text), "an address is made by url() or static()"
    assert not re.search(r"(?<!; url)=\{\{", text), "an attribute without quotes is not safe"
