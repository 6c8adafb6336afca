"""How a test talks to the page: a question whose JSON tells the model how to answer, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.server import badmodel
from tests.server.client import deadline

Visit = Callable[..., Page]


def box(page: Page) -> Locator:
    return page.get_by_label("Your message")


def ask(page: Page, words: str = "Tell me", **directive: Any) -> dict[str, Any]:
    """Send a question whose JSON tells the model how to answer."""
    box(page).fill(f"{words} {json.dumps(directive)}")
    box(page).press("Enter")
    return directive


def reply(page: Page, at: int = -1) -> Locator:
    """The text of a reply."""
    return page.locator(".reply .markdown").nth(at)


def wait_for_text(page: Page, characters: int) -> None:
    for _ in deadline(30, f"{characters} characters of a reply"):
        page.wait_for_timeout(20)
        if reply(page).count() and len(reply(page).inner_text()) >= characters:
            return


def scrolled(scroller: Locator) -> float:
    """How far it is scrolled down, once it stands still: a wheel that is turned moves it over several frames."""
    top: float = scroller.evaluate(
        """e => new Promise(done => {
          let before = e.scrollTop, frames = 0;
          const look = () => {
            frames = e.scrollTop === before ? frames + 1 : 0;
            before = e.scrollTop;
            if (frames < 10) requestAnimationFrame(look);
            else done(before);
          };
          look();
        })"""
    )
    return top


def is_over(page: Page) -> None:
    expect(page.locator(".reply").last).to_have_attribute("aria-busy", "false")


def stored(page: Page) -> dict[str, Any]:
    """The conversation as the server keeps it."""
    identifier = page.url.rsplit("/", 1)[1]
    response = page.request.get(f"{page.url.split('/c/')[0]}/conversations/{identifier}")
    assert response.ok, response.text()
    answer: dict[str, Any] = response.json()
    return answer


def texts(pages: list[Page]) -> list[str]:
    return [reply(page).inner_html() for page in pages]


def show_the_same(pages: list[Page]) -> None:
    """Until all show one text: a long one is drawn over several frames."""
    for _ in deadline(30, "the same text in all tabs"):
        pages[0].wait_for_timeout(20)
        if len(set(texts(pages))) == 1:
            return


def reload_and_compare(pages: list[Page]) -> None:
    """What was followed is what is shown when all of it is loaded at once."""
    followed = texts(pages)
    for page in pages:
        page.reload()
        is_over(page)
    for _ in deadline(30, "the text as it was followed"):
        pages[0].wait_for_timeout(20)
        if texts(pages) == followed:
            return


def assert_nothing_is_missing(page: Page, directive: dict[str, Any]) -> None:
    """The reply is whole in the store, and the page shows what it shows when all of it is loaded at once."""
    assert stored(page)["messages"][-1]["text"] == badmodel.text_of(directive)
    reload_and_compare([page])


def stop_and_compare(pages: list[Page], directive: dict[str, Any]) -> None:
    """Stop the reply in the last tab: all end with the same text, and it is what the server has.

    A reply that is long enough for any machine, and is stopped, is over sooner than one that is only just long enough.
    """
    pages[-1].get_by_role("button", name="Stop").click()
    for page in pages:
        is_over(page)
    show_the_same(pages)
    kept = stored(pages[0])["messages"][-1]
    assert kept["status"] == "stopped"
    assert kept["text"]
    assert badmodel.text_of(directive).startswith(kept["text"])
    reload_and_compare(pages[:1])


def seed(page: Page, *texts: str) -> list[str]:
    """Conversations with these questions, the last one newest; each is answered with one word. Returns their ids."""
    origin = "/".join(page.url.split("/")[:3])
    for number, text in enumerate(texts):
        message = {"id": f"00000000-0000-4000-8000-{hash((text, number)) & 0xFFFFFFFFFFFF:012x}", "text": f"1 0 {text}"}
        answer = page.request.post(
            f"{origin}/conversation", data={"action": "send", "message": message, "model": "count"}
        )
        assert answer.ok, answer.text()
    items = page.request.get(f"{origin}/conversations?limit=100").json()["items"]
    page.reload()
    if texts:
        expect(rows(page).first).to_be_attached()
    return [str(item["id"]) for item in items[: len(texts)]][::-1]


def rows(page: Page) -> Locator:
    return page.locator(".rows li > a")


def row(page: Page, text: str) -> Locator:
    return rows(page).filter(has_text=text)


def search(page: Page) -> Locator:
    return page.get_by_label("Search conversations")


def focused(page: Page) -> str:
    """What has the focus within the element, in few words."""
    words: str = page.evaluate(
        """() => {
          const e = document.activeElement?.shadowRoot?.activeElement ?? document.activeElement;
          const name = e.getAttribute("aria-label") ?? e.textContent;
          return `${e.localName}.${e.className} ${name}`.replace(/\\s+/g, " ").trim();
        }"""
    )
    return words


def wait_for_focus(page: Page, words: str) -> None:
    for _ in deadline(30, f"the focus on {words!r}, not on {focused(page)!r}"):
        page.wait_for_timeout(20)
        if words in focused(page):
            return


def exists(page: Page, identifier: str) -> bool:
    origin = "/".join(page.url.split("/")[:3])
    status = page.request.get(f"{origin}/conversations/{identifier}").status
    assert status in (200, 404)
    return status == 200


def stop_the_clock(page: Page) -> None:
    """From now on the page's time, where it is installed, goes on by `fast_forward` alone."""
    page.clock.pause_at(page.evaluate("Date.now()") + 1000)
