"""Prefect's and MLflow's pages, used as a person uses them: by what is written on them.

Note: while Chromium is driven, this thread has an event loop, so nothing else may be run
with `asyncio.run`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.support.browser import CHROMIUM

WAIT_MILLISECONDS = 180_000.0
SPEC = "The job, one section per stage."
LEARNING_RATE = "Peak step size of AdamW; for adapters 1e-4 to 2e-4 is usual. [above 0]"


@contextmanager
def browsing(login: str) -> Iterator[Page]:
    """A page in a browser that nobody has used before, whose owner knows MLflow's login.

    Names that end in `.test` lead the browser to this machine.
    """
    expect.set_options(timeout=WAIT_MILLISECONDS)
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP *.test 127.0.0.1"]
    user, _, password = login.partition(":")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            context = browser.new_context(
                viewport={"width": 1440, "height": 1100},
                http_credentials={"username": user, "password": password},
            )
            page = context.new_page()
            page.set_default_timeout(WAIT_MILLISECONDS)
            yield page
        finally:
            browser.close()


def log_in(page: Page, prefect: str, login: str) -> None:
    """Logs in on Prefect's page."""
    page.goto(f"{prefect}/deployments")
    page.locator("input[type=password]").fill(login)
    page.get_by_role("button").first.click()
    expect(_deployment(page)).to_be_visible()


def open_form(page: Page, prefect: str) -> None:
    """Goes from the list of deployments to the form of a run with parameters of one's own."""
    page.goto(f"{prefect}/deployments")
    _deployment(page).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    expect(page.get_by_text(LEARNING_RATE)).to_be_visible()


def _deployment(page: Page) -> Locator:
    """The link to the flow's own deployment, in the list of those of all flows."""
    row = page.get_by_role("row").filter(has_text="distill")
    return row.get_by_role("link", name="process", exact=True)


def field(page: Page, description: str) -> Locator:
    """What one writes into below a description."""
    told = page.get_by_text(description)
    return told.locator("xpath=following::*[self::input or self::textarea][1]")


def choice(page: Page, description: str) -> Locator:
    """What one chooses with below a description."""
    return page.get_by_text(description).locator("xpath=following::button[1]")


def submit(page: Page) -> None:
    """Sends the form."""
    page.get_by_role("button", name="Submit").click()


def write_as_json(page: Page) -> None:
    """Has the form take the spec as a whole."""
    page.get_by_text(SPEC).locator("xpath=preceding::button[1]").click()
    page.get_by_text("Use JSON input").click()
    expect(page.get_by_text(LEARNING_RATE)).to_have_count(0)


def paste(page: Page, spec: object) -> None:
    """Gives the whole spec."""
    field(page, SPEC).fill(json.dumps(spec, indent=2))


def follow(link: Locator) -> Page:
    """The page that a link opens beside this one."""
    with link.page.context.expect_page() as opened:
        link.click()
    return opened.value


def retry(page: Page) -> None:
    """Clicks Retry, and says that it is meant."""
    page.get_by_role("button", name="Retry").click()
    asked = page.get_by_role("dialog")
    asked.get_by_role("button", name="Retry").click()
    expect(asked).to_have_count(0)
