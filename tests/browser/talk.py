"""How a test talks to the page: a question whose JSON tells the model how to answer, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page, expect

Visit = Callable[..., Page]


def box(page: Page) -> Locator:
    return page.get_by_label("Your message")


def ask(page: Page, words: str, **directive: Any) -> None:
    """Send a question whose JSON tells the model how to answer."""
    box(page).fill(f"{words} {json.dumps(directive)}")
    box(page).press("Enter")


def reply(page: Page, at: int = -1) -> Locator:
    return page.locator(".reply .markdown").nth(at)


def is_over(page: Page) -> None:
    expect(page.locator(".reply").last).to_have_attribute("aria-busy", "false", timeout=30_000)


def stored(page: Page) -> dict[str, Any]:
    """The conversation as the server keeps it."""
    identifier = page.url.rsplit("/", 1)[1]
    response = page.request.get(f"{page.url.split('/c/')[0]}/conversations/{identifier}")
    assert response.ok, response.text()
    answer: dict[str, Any] = response.json()
    return answer
