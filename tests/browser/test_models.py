"""Which model is asked, as the reader picks it."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.conftest import Server

from .talk import ask, is_over, reply

Visit = Callable[..., Page]


def test_the_reader_picks_a_model(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.get_by_label("Model").select_option("count")
    page.get_by_label("Your message").fill("3 0")
    page.get_by_role("button", name="Send").click()
    is_over(page)
    expect(reply(page)).to_have_text(re.compile("word0.*word1.*word2"))
    page.reload()
    expect(page.get_by_label("Model")).to_have_value("count")


def test_a_model_picked_for_one_conversation_is_not_asked_in_another(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, "First question", text="First reply", rate=0)
    is_over(page)
    before = page.get_by_label("Model").input_value()
    page.get_by_role("link", name="New conversation").click()
    page.get_by_label("Model").select_option("count")
    page.locator(".side li a").first.click()
    expect(reply(page)).to_have_text("First reply")
    expect(page.get_by_label("Model")).to_have_value(before)
