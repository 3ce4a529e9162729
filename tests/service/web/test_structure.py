"""What holds for every page: structure for all readers, few statements, few bytes, no stranger."""

import itertools
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from service.clock import now
from service.store.models import AuditEntry, DeadLetter, Origin, PulseQueue
from service.web.install import page_routes
from tests.service.api.test_reports import report
from tests.service.api.test_tasks import OURS, stored
from tests.service.asgi import push_event
from tests.service.web.browser import Browser
from tests.service.web.support import statements, without_picture

VALUES = {"alias": "mc", "push_id": "101", "task_id": OURS, "action_id": "1", "letter_id": "1"}
PAGES = [
    route.path.format(**VALUES)
    for route in page_routes()
    if "GET" in (route.methods or ()) and not re.search("digest|/sign-in/|/live|/offers|/badge/", route.path)
]
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Outline(HTMLParser):
    """The elements of a page. Raises AssertionError for one that is not closed where it should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], str]] = []  # tag, attributes, and the tag around it
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs), self._open[-1] if self._open else ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag


@pytest.fixture
async def filled(admin: Browser) -> Browser:
    await stored(admin.api)
    async with admin.api.database.writing() as session:
        session.add(DeadLetter(kind="push-event", subject="s", reason="r", payload=b"{}"))
        session.add(PulseQueue(name="q", events="tasks"))
        session.add(AuditEntry(event="signed-in", caller="c", origin=Origin.PAGE))
        session.add(report(99))
    return admin


async def test_every_page_can_be_read_by_everybody(filled: Browser) -> None:
    assert len(PAGES) == 17
    for path in PAGES:
        answer = await filled.get(path)
        if path == "/sign-in":
            assert answer.status_code == 303
            continue
        assert answer.status_code == 200, path
        assert len(without_picture(answer.text)) < 60_000
        outline = Outline(answer.text)
        tags = [tag for tag, _, around in outline.elements if tag != "title" or around == "head"]
        for once in ("h1", "main", "title", "header", "footer", "nav"):
            assert tags.count(once) == 1, (path, once)
        levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), path
        ids = [attributes["id"] for _, attributes, _ in outline.elements if "id" in attributes]
        assert len(set(ids)) == len(ids), path
        labelled = {attributes.get("for") for tag, attributes, _ in outline.elements if tag == "label"} - {None}
        for tag, attributes, around in outline.elements:
            if tag in {"input", "select"} and attributes.get("type") != "hidden":
                by_id = attributes.get("id") in labelled
                assert around == "label" or by_id or attributes.get("aria-label"), (path, attributes)
            if tag == "th":
                assert attributes.get("scope") in {"row", "col"}, path
            if attributes.get("role") == "region":
                assert attributes.get("tabindex") == "0"
                assert attributes.get("aria-label") or attributes.get("aria-labelledby") in ids


async def test_no_page_answers_a_stranger(stranger: Browser) -> None:
    for path in PAGES:
        answer = await stranger.get(path)
        assert answer.status_code == (200 if path == "/sign-in" else 303), path
    for route in page_routes():
        if "POST" in (route.methods or ()):
            assert (await stranger.post(route.path.format(**VALUES), form_token="x")).status_code in {401, 403}


LISTS = [
    *(path for path in PAGES if path.count("/") == 1 and path != "/sign-in"),
    *("/repositories/mc", "/reports?state=any", "/waiting?work=push_step&lane=resultset%20tc-treeherder"),
    *("/waiting?work=job_report&lane=job%20tc-treeherder%20mc", "/audit?caller=c", "/audit?event=signed-in"),
]


async def test_a_list_costs_the_same_statements_however_long_it_is(filled: Browser) -> None:
    before = {}
    for path in LISTS:
        with statements(filled.api) as sent:
            await filled.page(path)
        before[path] = len(sent)
    await filled.api.push(*(push_event(number) for number in range(102, 140)))
    for number in range(10):
        await filled.api.add(f"r{number}")
    async with filled.api.database.writing() as session:
        for number in range(30):
            session.add(DeadLetter(kind="push-event", subject="s", reason="r", payload=b"{}"))
            session.add(PulseQueue(name=f"q{number}", events="tasks"))
            session.add(AuditEntry(event="signed-in", caller="c", origin=Origin.PAGE))
            session.add(report(number))
    for path in LISTS:
        with statements(filled.api) as sent:
            await filled.page(path)
        assert len(sent) <= before[path], path
        assert len(sent) <= 20, path


async def test_full_lists_stay_small(admin: Browser) -> None:
    await admin.api.add()
    changes = {name: ["x" * 1_000, "y" * 1_000] for name in "abcdef"}
    async with admin.api.database.writing() as session:
        for number in range(120):
            waits = {"error": "e" * 1_000, "attempts": 12, "no_push_since": now(), "environment": "e" * 40}
            session.add(report(number, project=f"{number}{'p' * 40}", lane="L", share="s" * 500, **waits))
            session.add(AuditEntry(event="repository-changed", caller="c" * 300, origin=Origin.PAGE,
                                   repository="r" * 50, subject="s" * 500, details={"changes": changes}))  # fmt: skip
    for path in ("/reports", "/waiting?work=job_report&lane=L", "/audit", "/waiting"):
        assert len(await admin.page(path)) < 60_000, path


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_contrast_in_light_and_dark() -> None:
    from service.web.rendering import static_file

    sheet = static_file("style.css")[0].decode()
    schemes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6});", block)) for block in re.findall(r":root \{(.*?)\}", sheet, re.S)
    ]
    assert len(schemes) == 2
    for colours in schemes:
        for back in ("back", "raised"):
            for name, least in {
                **dict.fromkeys(("text", "soft", "link", "good", "bad", "busy", "wait", "mute"), 4.5),
                **dict.fromkeys(("field", "focus"), 3),
            }.items():
                light, dark = sorted((luminance(colours[name]), luminance(colours[back])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= least, (name, back)
