"""The chat in a page that is somebody else's: strict policy, rude style sheet, keys and names of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import Server

from .talk import is_over, reply
from .test_axe import axe, violations

__all__ = ["axe"]  # a fixture

Visit = Callable[[str], Page]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, built: None) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("shop")
    settings: dict[str, object] = {"FLASKCHAT_MODEL": "parrot"}
    server = Server(folder, settings, workers=1, kind="gevent", app="tests.browser.shop.app:app", args=[])
    yield server
    server.close()
    print(f"--- log of the shop\n{server.log()}")


@pytest.fixture
def enter(browser: Browser, shop: Server) -> Iterator[Visit]:
    """Opens a page of the shop; at the end nothing may have gone wrong in it, and nobody else been asked."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    context.set_default_timeout(30_000)
    wrong: list[str] = []

    def open_page(path: str) -> Page:
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda r: None if r.url.startswith((shop.url, "data:")) else wrong.append(r.url))
        page.goto(shop.url + path)
        page.locator("flask-chat textarea").wait_for(state="attached")
        return page

    yield open_page
    context.close()
    assert wrong == []


def say(page: Page, words: str) -> None:
    page.get_by_label("Your message").fill(words)
    page.keyboard.press("Enter")
    expect(page.locator(".reply").last).to_have_attribute("aria-busy", "false")
    expect(page.locator(".reply .markdown").last).to_have_text(words)


def test_what_was_shown_in_somebody_else_s_page_is_shown_again_after_a_reload(enter: Visit) -> None:
    page = enter("/")
    address = page.url
    page.get_by_role("button", name="Ask", exact=True).click()
    say(page, "polly wants a cracker")
    page.reload()
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".reply .markdown").last).to_have_text("polly wants a cracker")
    assert page.url == address
    page.goto(address)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_text("What would you like to know?")).to_be_visible()


def test_in_a_corner_the_list_is_behind_a_button_and_everything_works(enter: Visit) -> None:
    page = enter("/")
    expect(page.locator("flask-chat .app")).to_be_hidden()
    page.get_by_role("button", name="Ask", exact=True).click()
    say(page, "polly wants a cracker")
    box = page.locator("flask-chat").bounding_box()
    assert box is not None
    assert box["width"] <= 400
    page.get_by_role("button", name="Conversations").click()
    expect(page.locator(".rows li a")).to_have_text([re.compile("polly wants a cracker")])
    page.locator(".rows li a").hover()
    page.get_by_role("button", name=re.compile("^Options for")).click()
    menu = page.get_by_role("menu").bounding_box()
    assert menu is not None
    assert menu["x"] >= box["x"]
    assert menu["y"] + menu["height"] <= box["y"] + box["height"]
    page.get_by_role("menuitem", name="Delete").click()
    page.get_by_role("button", name=re.compile("^Undo")).click()
    page.keyboard.press("Escape")
    expect(page.locator(".side")).to_be_hidden()
    # a wide element with `compact` keeps its list behind the button, too
    page.locator("flask-chat").evaluate("e => { e.style.width = '1050px' }")
    expect(page.locator(".side")).to_be_hidden()


def test_the_list_of_a_compact_chat_is_not_asked_for_until_it_is_opened(enter: Visit) -> None:
    page = enter("/")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_label("Your message").wait_for()
    page.wait_for_load_state("networkidle")
    assert not [url for url in asked if "/conversations" in url]
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_text("Your conversations will be listed here.")).to_be_visible()


def test_the_hosts_page_is_told_what_happens(enter: Visit) -> None:
    page = enter("/within")
    say(page, "tell my host")
    told = [line.split(" ", 2) for line in (page.locator("#told").text_content() or "").splitlines()]
    assert [(name, target) for name, target, _ in told] == [
        ("message-sent", "flask-chat"), ("conversationchange", "flask-chat"), ("run-finished", "flask-chat"),
    ]  # fmt: skip
    sent, changed, finished = (json.loads(detail) for _, _, detail in told)
    assert changed["id"].startswith("c_")
    assert sent["conversation"] == finished["conversation"] == changed["id"]
    assert sent["message"].startswith("m_")
    assert sent["run"] == finished["run"]
    assert finished["status"] == "done"
    assert finished["message"] != sent["message"]
    expect(page).to_have_title("Shop")
    assert page.url.endswith("/within")


def test_no_name_is_left_in_the_hosts_page(enter: Visit, shop: Server) -> None:
    page = enter("/within")
    before = page.context.new_page()
    before.goto(f"{shop.url}/healthz")
    say(page, "nothing global")
    page.get_by_role("button", name="Menu of this conversation").click()
    mine = set(page.evaluate("Object.getOwnPropertyNames(globalThis)"))
    plain = set(before.evaluate("Object.getOwnPropertyNames(globalThis)"))
    # lit notes its versions, so that two of them on one page can be told of; and elements with an id are the page's
    known = {"litHtmlVersions", "litElementVersions", "reactiveElementVersions", "litPropertyMetadata"}
    left = {name for name in mine - plain - known if not name.startswith("__playwright")}
    assert left == set()


RUDE = """() => {
  const chat = document.querySelector("flask-chat");
  const root = chat.shadowRoot;
  const at = chat.getBoundingClientRect();
  const names = ["color", "background-color", "letter-spacing", "word-spacing", "font-family", "font-style",
    "line-height", "text-transform", "text-align", "text-indent", "white-space", "cursor", "display", "position",
    "margin-top", "padding-left", "border-top-width", "opacity", "list-style-type", "width", "height"];
  return [...root.querySelectorAll("*")].filter((e) => !e.closest("svg, .unseen")).map((e) => {
    const style = getComputedStyle(e);
    const box = e.getBoundingClientRect();
    const place = [box.left - at.left, box.top - at.top].map(Math.round);
    const values = names.map((name) => style.getPropertyValue(name));
    return [e.localName + "." + e.className, ...place, ...values].join(" | ");
  });
}"""


def test_nothing_of_a_rude_style_sheet_is_seen_inside(enter: Visit) -> None:
    looks = []
    for path in ("/", "/?rude=1"):
        page = enter(path)
        page.get_by_role("button", name="Ask", exact=True).evaluate("e => e.click()")
        # the element itself is the host's to style; what is inside has the same size then
        page.locator("flask-chat").evaluate("e => { e.style.cssText = 'display:block;width:380px;height:500px' }")
        say(page, "see me")
        page.get_by_role("button", name="Menu of this conversation").click()
        expect(page.get_by_role("menu")).to_be_visible()
        looks.append(page.evaluate(RUDE))
        page.context.clear_cookies()  # the next one is a new visitor, with an empty list
        page.close()
    assert len(looks[0]) > 40
    assert looks[1] == looks[0]


def test_the_hosts_looks_are_taken_over(enter: Visit) -> None:
    page = enter("/within")
    app = page.locator("flask-chat .app")
    assert app.evaluate("e => getComputedStyle(e).fontFamily") == "Georgia, serif"
    composer = page.locator(".composer")
    assert composer.evaluate("e => getComputedStyle(e).boxShadow") == "none"
    assert composer.evaluate("e => getComputedStyle(e).borderTopLeftRadius") == "12px"
    stop = page.get_by_role("button", name="Send")
    page.get_by_label("Your message").fill("x")
    assert stop.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(10, 88, 202)"


def test_keys_outside_the_element_are_the_hosts(enter: Visit) -> None:
    page = enter("/within")
    say(page, "mine")
    page.get_by_label("A note to us").focus()
    page.keyboard.press("Control+/")
    page.keyboard.press("Alt+n")
    page.locator("body").evaluate("() => document.activeElement.blur()")
    page.keyboard.press("?")
    page.keyboard.press("/")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".reply")).to_have_count(1)
    page.get_by_label("Your message").focus()
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()


@pytest.mark.parametrize("path", ["/", "/within"])
def test_axe_finds_nothing_in_the_hosts_page(browser: Browser, shop: Server, axe: str, path: str) -> None:
    context = browser.new_context(bypass_csp=True)
    try:
        page = context.new_page()
        page.goto(shop.url + path)
        if path == "/":
            page.get_by_role("button", name="Ask", exact=True).click()
        say(page, "look at me")
        assert violations(page, axe) == []
        page.get_by_role("button", name="Conversations").click()
        expect(page.locator(".rows li a")).to_have_count(1)
        assert violations(page, axe) == []
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Menu of this conversation").click()
        expect(page.get_by_role("menu")).to_be_visible()
        assert violations(page, axe) == []
    finally:
        context.close()


def test_the_widget_works_in_a_hosts_page(visit: Visit, serve: Callable[..., Server], built: None) -> None:
    server = serve({"FLASKCHAT_MODEL": "parrot"}, app="tests.browser.host:app")
    page = visit(server.url)
    page.set_viewport_size({"width": 700, "height": 800})
    page.get_by_label("Your message").fill("polly wants a cracker")
    page.keyboard.press("Enter")
    is_over(page)
    expect(reply(page)).to_have_text("polly wants a cracker")
    assert page.url == f"{server.url}/"
    expect(page).to_have_title("Shop")
    page.get_by_role("button", name="Conversations").click()
    expect(page.locator(".side li a")).to_have_attribute("href", re.compile(r"^/chat/c/c_"))
    page.keyboard.press("Escape")
    expect(page.locator(".side")).to_be_hidden()
