"""Who is signed out while the page stands open: it says so, and leads to where one signs in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.conftest import Server
from tests.server import badmodel

from .talk import Visit, ask, box, is_over, reply, wait_for_text

WORDS = "You are not signed in."


@pytest.fixture
def guarded(serve: Callable[..., Server], model: badmodel.Running, built: None) -> Server:
    """A host whose own way to sign in is not Flask-Login."""
    settings = {"FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": model.base_url, "GUARDED": "session"}
    return serve({**settings, "FLASKCHAT_DRAIN": "0.5"}, app="tests.server.guarded:app")


@pytest.fixture
def ada(browser: Browser, guarded: Server) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(30_000)
    assert context.request.get(f"{guarded.url}/login/ada").ok
    yield context
    context.close()


def note_events(page: Page) -> None:
    page.evaluate(
        "globalThis.told = []; document.addEventListener('signed-out', (event) => told.push(event.target.localName))"
    )


def test_who_is_signed_out_during_a_reply_is_led_to_sign_in(visit: Visit, guarded: Server, ada: BrowserContext) -> None:
    page = visit(guarded.url, ada)
    note_events(page)
    ask(page, tag="signed out", tokens=4000, rate=40)
    wait_for_text(page, 40)
    assert ada.request.get(f"{guarded.url}/logout").ok
    is_over(page)
    expect(page.locator(".problem", has_text=WORDS)).to_be_visible()
    expect(page.locator(".reply").get_by_role("button", name="Continue")).to_have_count(0)
    expect(page.locator(".reply").get_by_role("button", name="Try again")).to_have_count(0)
    assert page.evaluate("told") == ["flask-chat"]

    assert ada.request.get(f"{guarded.url}/login/ada").ok
    page.locator(".problem").get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator(".problem")).to_have_count(0)
    page.get_by_role("button", name="Stop").click()
    is_over(page)


def test_a_question_of_who_is_signed_out_is_kept_for_who_signs_in(
    visit: Visit, guarded: Server, ada: BrowserContext
) -> None:
    page = visit(guarded.url, ada)
    note_events(page)
    assert ada.request.get(f"{guarded.url}/logout").ok
    ask(page, "Keep this", text="Here I am.", rate=0)
    expect(page.locator(".problem", has_text=WORDS)).to_be_visible()
    written = box(page).input_value()
    assert written.startswith("Keep this")
    box(page).press("Enter")
    expect(box(page)).to_have_value(written)
    assert page.evaluate("told") == ["flask-chat"]
    assert ada.request.get(f"{guarded.url}/login/ada").ok
    page.get_by_role("button", name="Sign in").first.click()
    expect(page.locator(".problem")).to_have_count(0)
    expect(box(page)).to_have_value(written)
    box(page).press("Enter")
    expect(reply(page)).to_have_text("Here I am.")


def test_who_has_signed_in_elsewhere_goes_on(visit: Visit, guarded: Server, ada: BrowserContext) -> None:
    page = visit(guarded.url, ada)
    ask(page, text="Here I am.", rate=0)
    is_over(page)
    page.get_by_role("link", name="New conversation").click()
    expect(page.get_by_text("What would you like to know?")).to_be_visible()
    assert ada.request.get(f"{guarded.url}/logout").ok
    page.go_back()
    expect(page.get_by_role("heading", name="Not loaded")).to_be_visible()
    expect(page.locator(".problem", has_text=WORDS)).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    assert ada.request.get(f"{guarded.url}/login/ada").ok
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(reply(page)).to_have_text("Here I am.")
    expect(page.get_by_text(WORDS)).to_have_count(0)
