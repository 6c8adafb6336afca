"""axe-core finds nothing on the page: empty, mid-stream, dark, with every panel open, narrow, and at 200 %."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import Server

from .frontend import HOOK, load_hook

Visit = Callable[..., Page]

RICH = """## A heading

Some **bold** text with `code`, a [link](https://example.org/) and ~~nothing~~.

> A quotation

1. one
2. two

- [x] done
- [ ] open

```python
print("hello")  # a comment
```

| a | b |
|---|--:|
| 1 | 2 |

Inline $a^2 + b^2 = c^2$ and

$$\\int_0^1 x\\,dx = \\frac{1}{2}$$

![a cat](https://images.example/cat.png)
"""


@pytest.fixture(scope="module")
def axe(built: None) -> str:
    """The source of axe-core, a development dependency of the front end."""
    path = Path(HOOK.parent) / "node_modules" / "axe-core" / "axe.min.js"
    if not path.is_file():
        load_hook().toolchain()
    return path.read_text()


def violations(page: Page, axe: str, *rules: str) -> list[str]:
    """What axe has against the page as it is now, one line per rule and node; of these rules only, or of all."""
    # `bypass_csp` of the context lets the source in; the chat's own script runs under its policy all the same.
    page.evaluate(axe)
    # a colour that changes slowly is measured when it has changed
    page.evaluate("Promise.all(document.getAnimations().map(a => a.finished.catch(() => 0)))")
    options: dict[str, Any] = {"resultTypes": ["violations", "incomplete"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": list(rules)}
    found: dict[str, Any] = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{rule['id']}: {node['target']} {node['html'][:160]} — {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


def check(page: Page, axe: str, what: str) -> None:
    """In light all rules, in dark those that the colours can break."""
    assert violations(page, axe) == [], what
    page.emulate_media(color_scheme="dark")
    assert violations(page, axe, "color-contrast", "link-in-text-block") == [], f"{what}, dark"
    page.emulate_media(color_scheme="light")


def ask(page: Page, words: str, **directive: Any) -> None:
    page.get_by_label("Your message").fill(f"{words} {json.dumps(directive)}")
    page.keyboard.press("Enter")


def is_over(page: Page) -> None:
    expect(page.locator(".reply").last).to_have_attribute("aria-busy", "false")


def header_menu(page: Page) -> None:
    page.get_by_role("button", name="Menu of this conversation").click()
    expect(page.get_by_role("menu")).to_be_visible()


@pytest.mark.parametrize("size", [(1200, 800), (320, 640)], ids=["wide", "narrow"])
def test_axe_finds_nothing(visit: Visit, chat: Server, axe: str, size: tuple[int, int]) -> None:
    page = visit(chat.url)  # a first visitor, who gets the cookie
    browser = page.context.browser
    assert browser is not None
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, bypass_csp=True, reduced_motion="reduce",
    )  # fmt: skip
    context.set_default_timeout(30_000)
    # what can be taken back can be so for as long as axe looks at it
    context.add_init_script(
        "const real = setTimeout;"
        "globalThis.setTimeout = (then, delay, ...rest) => real(then, delay === 6000 ? 600_000 : delay, ...rest)"
    )
    try:
        look_at_everything(visit(chat.url, context), axe, wide=size[0] > 1000)
    finally:
        context.close()


def look_at_everything(page: Page, axe: str, *, wide: bool) -> None:
    check(page, axe, "the empty page")
    header_menu(page)
    check(page, axe, "the menu without a conversation")
    page.keyboard.press("Escape")

    ask(page, "Everything", text=RICH, rate=0, reasoning=3)
    is_over(page)
    expect(page.locator(".reply math")).to_have_count(2)
    expect(page.locator(".reply code span").first).to_be_attached()
    check(page, axe, "a reply with every kind of block")
    page.get_by_role("button", name="Details").click()
    check(page, axe, "a reply's details")
    page.get_by_role("button", name="Edit").click()
    expect(page.get_by_label("Edit your message")).to_be_visible()
    check(page, axe, "a question being edited")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_role("button", name="Previous version")).to_be_visible()
    is_over(page)
    check(page, axe, "one of two versions")
    page.locator("summary").first.click()
    check(page, axe, "reasoning unfolded")

    ask(page, "Fails", fault="error", tokens=20, rate=0)
    expect(page.locator(".reply .trouble")).to_be_visible()
    check(page, axe, "a reply that failed")

    page.goto("/".join(page.url.split("/")[:3]))
    page.get_by_label("Your message").wait_for()
    ask(page, "Long", tag="axe", tokens=4000, rate=20)
    expect(page.locator(".reply .markdown")).not_to_be_empty()
    check(page, axe, "mid-stream")
    ask(page, "Waiting", text="later")
    expect(page.get_by_role("button", name="Withdraw")).to_be_visible()
    check(page, axe, "a message that waits")
    page.keyboard.press("Alt+w")
    wire = page.get_by_role("region", name="The wire")
    expect(wire).to_contain_text("delta")
    check(page, axe, "the wire")
    wire.get_by_role("button", name="Close the wire").click()
    expect(wire).to_have_count(0)

    if not wide:
        page.get_by_role("button", name="Conversations").click()
    expect(page.locator(".rows .writing")).to_be_visible()
    check(page, axe, "the list")
    search = page.get_by_label("Search conversations")
    search.fill("bold")
    expect(page.locator(".hit mark")).to_be_visible()
    check(page, axe, "search results")
    search.fill("nothing has this")
    expect(page.get_by_text("Nothing found for")).to_be_visible()
    check(page, axe, "no search results")
    search.press("Escape")
    page.locator(".rows li .dots").last.click()
    expect(page.get_by_role("menu")).to_be_visible()
    check(page, axe, "a row's menu")
    page.keyboard.press("Escape")
    page.locator(".rows a").last.press("F2")
    expect(page.get_by_label("Title of the conversation")).to_be_visible()
    check(page, axe, "a row being renamed")
    page.keyboard.press("Escape")
    page.locator(".rows a").last.press("Delete")
    expect(page.locator(".gone")).to_be_visible()
    check(page, axe, "a row that can be taken back")
    page.get_by_role("button", name="Undo").click()
    if not wide:
        page.keyboard.press("Escape")
        expect(page.locator(".side")).to_be_hidden()

    header_menu(page)
    check(page, axe, "the conversation's menu")
    page.get_by_role("menuitem", name="System prompt").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    check(page, axe, "the system prompt")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("F2")
    check(page, axe, "the title being renamed")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog")).to_be_visible()
    check(page, axe, "the keys")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    header_menu(page)
    page.get_by_role("menuitem", name="Delete").click()
    expect(page.locator(".notice")).to_be_visible()
    check(page, axe, "a conversation that can be taken back")

    models = [{"id": f"p:{n}", "label": f"Model {n}", "default": n == 0} for n in range(12)]
    page.route("**/models", lambda route: route.fulfill(json={"items": models}))
    page.goto("/".join(page.url.split("/")[:3]))
    page.get_by_role("button", name="Model: Model 0").click()
    expect(page.get_by_role("listbox")).to_be_visible()
    check(page, axe, "the choice of a model")
    page.keyboard.press("Escape")


def test_axe_would_find_something(visit: Visit, chat: Server, axe: str) -> None:
    """Without this, a run that looks at nothing would pass."""
    page = visit(chat.url)
    browser = page.context.browser
    assert browser is not None
    context = browser.new_context(bypass_csp=True)
    try:
        other = visit(chat.url, context)
        other.evaluate(
            """() => {
              const root = document.querySelector("flask-chat").shadowRoot;
              root.querySelector("header .menu").removeAttribute("aria-label");
              root.querySelector(".welcome p").style.color = "#ddd";
            }"""
        )
        found = "\n".join(violations(other, axe))
        assert "button-name" in found
        assert "color-contrast" in found
        other.evaluate(
            """() => {
              const root = document.querySelector("flask-chat").shadowRoot;
              root.querySelector(".welcome p").style.color = "#555";  // enough in light only
            }"""
        )
        assert "color-contrast" not in "\n".join(violations(other, axe))
        other.emulate_media(color_scheme="dark")
        assert "color-contrast" in "\n".join(violations(other, axe, "color-contrast"))
    finally:
        context.close()


def test_at_200_per_cent_nothing_is_cut_off(visit: Visit, chat: Server) -> None:
    """A window of 1280 pixels at 200 % has 640 of them (WCAG 1.4.10 goes down to 320)."""
    page = visit(chat.url)
    ask(page, "Zoomed", text=RICH, rate=0)
    is_over(page)
    for width, height in ((640, 400), (320, 256)):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for name in ("Send", "Conversations", "Menu of this conversation"):
            expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
        expect(page.get_by_label("Your message")).to_be_in_viewport(ratio=1)
        assert page.locator(".scroll").evaluate("e => e.clientHeight") >= 60, "no room is left for the messages"
        header_menu(page)
        items = page.get_by_role("menuitem").all()
        assert items
        for item in items:
            item.focus()
            expect(item).to_be_in_viewport()
        page.keyboard.press("Escape")
        expect(page.get_by_role("menu")).to_have_count(0)
    # text alone at 200 %, as Firefox can do it
    page.set_viewport_size({"width": 1000, "height": 800})
    page.evaluate("document.documentElement.style.fontSize = '32px'")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)


def test_a_screen_reader_hears_the_start_and_the_end_and_nothing_between(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.evaluate(
        """() => {
          const root = document.querySelector("flask-chat").shadowRoot;
          globalThis.heard = [];
          for (const region of root.querySelectorAll("[aria-live], [role=status], [role=alert], [role=log]")) {
            new MutationObserver(() => heard.push(region.textContent)).observe(region, {
              childList: true, characterData: true, subtree: true,
            });
          }
        }"""
    )
    assert page.locator(".scroll [aria-live], .scroll [role=log]").count() == 0
    ask(page, "Speak", tag="heard", tokens=40, rate=30)
    is_over(page)
    assert page.evaluate("heard.filter(Boolean)") == ["The reply has started.", "The reply is complete."]
