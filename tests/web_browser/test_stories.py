"""What people do with the page, in a real browser, with the whole system behind it."""

import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from sandbox.demo import REPOSITORY, WITHOUT_TESTS
from tests.web_browser.site import QUICK_YML, READER, Site

BROKEN_YML = "version: 1\ntasks:\n  - taskQueueId: [sandbox/linux\n    payload: {}\n"


def failed_test(site: Site, number: int) -> str:
    """Wait until the test of the demo's graph has failed, and return its id."""
    push = site.wait_for_graph(number)
    return str(next(task["task_id"] for task in push["graph"]["tasks"] if task["name"] == "test"))


def test_a_push_is_watched_from_commit_to_green(site: Site) -> None:
    with site.visitor() as page:
        page.goto("/")
        expect(page.locator("#live")).to_have_text("Live ·")
        number = site.push(QUICK_YML, "Bug 7 - it is green")
        link = page.get_by_role("link", name=f"{REPOSITORY}/{number}")
        expect(link).to_be_visible()
        link.click()
        expect(page.get_by_role("heading", level=1)).to_have_text(f"Push {number} of {REPOSITORY}")
        steps = page.get_by_role("region", name="Steps")
        expect(steps.get_by_role("row", name="Task graph")).to_contain_text("done")
        tasks = page.get_by_role("region", name="Tasks")
        for name in ("decision", "build", "lint", "test", "report"):
            expect(tasks.get_by_role("row", name=name, exact=False)).to_contain_text("completed")
        expect(page.locator("svg .lane .good").last).to_be_visible()
        page.locator("svg a.lane").first.focus()
        expect(page.locator("#live")).to_have_text("Live ·")


def test_whatever_one_has_at_hand_is_found(site: Site) -> None:
    number = site.push(QUICK_YML)
    push = site.wait_for_graph(number)
    with site.visitor() as page:
        for text in (push["revision"][:12], f"{REPOSITORY}/{number}", f"{site.url}/pushes/{REPOSITORY}/{number}"):
            page.goto("/")
            page.get_by_role("searchbox").fill(text)
            page.keyboard.press("Enter")
            expect(page.get_by_role("heading", level=1)).to_have_text(f"Push {number} of {REPOSITORY}")
        page.goto("/")
        page.get_by_role("searchbox").fill(push["graph"]["tasks"][0]["task_id"])
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Task decision")
        page.goto("/search?q=nobody@example.com")
        expect(page.get_by_role("main")).to_contain_text("Nothing is known of it")


def test_a_broken_file_explains_itself_live(site: Site) -> None:
    with site.visitor() as page:
        number = site.push(BROKEN_YML)
        page.goto("/")
        page.get_by_role("link", name=f"{REPOSITORY}/{number}").click()
        notice = page.locator("section.notice", has_text="No task graph")
        expect(notice).to_contain_text("cannot be used, so no task was created")
        expect(notice.locator("strong.wrong")).to_contain_text("▶")
        expect(notice).to_contain_text("What to do:")
        notice.get_by_role("button", name="Retry the failed steps").click()
        page.wait_for_url(f"**{site.path(number)}")


def test_a_failed_task_is_retriggered_with_a_preview(site: Site) -> None:
    task = failed_test(site, site.push())
    with site.visitor() as page:
        page.goto(f"/tasks/{task}")
        expect(page.locator("[data-live=state]")).to_contain_text("failed")
        page.get_by_role("button", name="Preview retrigger", exact=True).click()
        tree = page.locator("main > ul.tree")
        expect(tree.locator("> li > .row")).to_contain_text("test")
        expect(tree.locator("> li li .row")).to_contain_text("report")
        page.get_by_role("button", name="Do it").click()
        page.wait_for_url("**/actions/*")
        expect(page.locator("[data-live=facts]")).to_contain_text("done")
        expect(page.locator("[data-live=facts]")).to_contain_text("sheriff@example.com")
        expect(page.locator("[data-live=tasks] tr").first).to_contain_text("completed")


def test_an_action_of_the_tree_is_asked_for_by_its_form(site: Site) -> None:
    earlier = site.push(WITHOUT_TESTS)
    site.wait_for_graph(earlier)
    task = failed_test(site, site.push())
    with site.visitor() as page:
        page.goto(f"/tasks/{task}")
        page.get_by_role("link", name="What the tree offers").click()
        page.get_by_role("link", name="Backfill").click()
        page.get_by_label(re.compile("depth", re.IGNORECASE)).first.fill("2")
        page.get_by_role("button", name="Preview").click()
        expect(page.get_by_role("main")).to_contain_text("What the hook is told")
        expect(page.get_by_role("main")).to_contain_text('"depth": 2')
        page.get_by_role("button", name="Do it").click()
        page.wait_for_url("**/actions/*")
        expect(page.locator("[data-live=facts]")).to_contain_text("Action task")


def test_several_dead_letters_are_replayed(site: Site) -> None:
    for number in range(3):
        site.bury(f"event {number}")
    with site.visitor() as page:
        page.goto("/dead-letters")
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(3)
        for box in page.get_by_role("checkbox").all()[:2]:
            box.check()
        page.get_by_role("button", name="Replay what is chosen").click()
        expect(page.get_by_role("main").get_by_role("listitem")).to_have_count(2)
        page.goto("/dead-letters")
        for box in page.get_by_role("checkbox").all():
            box.check()
        page.get_by_role("button", name="Drop what is chosen").click()
        page.goto("/dead-letters")
        expect(page.get_by_role("main")).to_contain_text("There are none.")


def test_somebody_signs_in_and_out_and_has_only_the_buttons_of_a_reader(site: Site) -> None:
    task = failed_test(site, site.push())
    with site.visitor(signed_in=False) as page:
        page.goto(f"/tasks/{task}")
        page.wait_for_url("**/sign-in?*")
        page.get_by_label("Token").fill(READER)
        page.get_by_role("main").get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"**/tasks/{task}")
        expect(page.get_by_role("button", name=re.compile("Preview"))).to_have_count(0)
        expect(page.get_by_role("main")).to_contain_text(f"tc-treeherder:action:retrigger:{REPOSITORY}")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/sign-in")
        page.goto("/pushes")
        page.wait_for_url("**/sign-in?*")


def test_somebody_signs_in_with_taskcluster_and_out(site: Site) -> None:
    """Taskcluster is another site here: the browser keeps a SameSite=Strict cookie to itself behind its answer."""
    with site.visitor(signed_in=False) as page:
        page.goto("/pushes?state=done")
        page.get_by_role("link", name="Sign in with Taskcluster").click()
        assert page.url.startswith(f"{site.taskcluster}/login/oauth/authorize?")
        page.get_by_role("button", name="sheriff").click()
        page.get_by_role("button", name="Grant").click()
        page.wait_for_url(f"{site.url}/pushes?state=done")
        expect(page.get_by_role("banner")).to_contain_text("Mozilla-LDAP|sheriff/tc-treeherder-")
        page.goto("/repositories")
        expect(page.locator("summary", has_text="Add a repository")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/sign-in")
        site.problems[:] = [problem for problem in site.problems if f"asks {site.taskcluster}/login/" not in problem]


def test_everything_works_without_javascript(site: Site) -> None:
    task = failed_test(site, site.push())
    with site.visitor(java_script_enabled=False) as page:
        page.goto("/pushes")
        page.get_by_role("link", name="Reload").click()
        page.goto(f"/tasks/{task}")
        page.get_by_role("button", name="Preview retrigger", exact=True).click()
        page.get_by_role("button", name="Do it").click()
        page.wait_for_url("**/actions/*")
        page.get_by_role("link", name="Reload").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("retrigger")


def test_the_keyboard_is_enough(site: Site) -> None:
    number = site.push(QUICK_YML)
    site.wait_for_graph(number)
    with site.visitor() as page:
        page.goto("/")
        page.keyboard.press("/")
        expect(page.get_by_role("searchbox")).to_be_focused()
        page.keyboard.type(f"{REPOSITORY}/{number}")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**{site.path(number)}")
        page.goto("/pushes")
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        expect(page.locator("tbody tr").first.get_by_role("link")).to_be_focused()
        page.keyboard.press("?")
        expect(page.locator("#keys")).to_have_attribute("open", "")
        page.goto("/")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()


PAGES = (
    *("/", "/pushes", "/actions", "/waiting", "/waiting?work=action&lane=x", "/reports?state=any", "/dead-letters"),
    *("/repositories", f"/repositories/{REPOSITORY}", "/pulse-queues", "/audit", "/search?q=x"),
)

EVERY_RULE = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
COLOURS = {"runOnly": ["color-contrast"]}


BLOCKS = 640
"""Width in pixels below which each row of a table is a block."""


def check(page: Page, path: str | None, rules: dict[str, list[str]]) -> None:
    """Look for what keeps people out, and for a page that is wider than the window; None: at the page that is open."""
    if path is not None:
        page.goto(path)
    results = Axe().run(page, options=rules)
    assert results.violations_count == 0, f"{page.url}: {results.generate_report()}"
    too_wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth "
        "&& !e.closest('.table, pre')).map(e => e.outerHTML.slice(0, 100))"
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{page.url} is too wide: {too_wide}"
    if page.evaluate("innerWidth") < BLOCKS:
        scrolled = "[...document.querySelectorAll('.table')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert page.evaluate(scrolled) == 0, f"{page.url}: a table scrolls sideways"


@pytest.mark.parametrize(
    ("width", "colours", "rules", "paths"),
    [(360, "light", EVERY_RULE, PAGES), (1_200, "dark", COLOURS, ("/dead-letters",))],
    ids=["narrow", "dark"],
)
def test_no_page_keeps_anybody_out(
    site: Site, width: int, colours: str, rules: dict[str, list[str]], paths: tuple[str, ...]
) -> None:
    number, broken = site.push(), site.push(BROKEN_YML)
    task = failed_test(site, number)
    site.wait_for_graph(broken, "failed")
    options: dict[str, Any] = {"viewport": {"width": width, "height": 900}, "color_scheme": colours, "bypass_csp": True}
    with site.visitor(**options) as page:
        for path in (*paths, site.path(number), site.path(broken), f"/tasks/{task}/offers/backfill", f"/tasks/{task}"):
            check(page, path, rules)
        page.get_by_role("button", name="Preview retrigger", exact=True).click()
        page.get_by_role("button", name="Do it").wait_for()
        check(page, None, rules)
        page.get_by_role("button", name="Do it").click()
        page.wait_for_url("**/actions/*")
        check(page, None, rules)
    with site.visitor(signed_in=False, **options) as page:
        check(page, "/sign-in", rules)
