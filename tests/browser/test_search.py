"""Searching the conversations on the page: what is found, opened, renamed and deleted."""

from __future__ import annotations

import re

from playwright.sync_api import Route, expect

from tests.conftest import Server
from tests.server.client import deadline

from .talk import Visit, ask, exists, is_over, row, rows, search, seed, stop_the_clock, wait_for_focus


def test_search_looks_into_titles_and_texts_and_shows_the_hit(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.clock.install()
    filler = " ".join(["and so on"] * 12)
    seed(page, f"{filler} nightingales at dusk", "Bees and their dances", "Something else")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "q=" in request.url else None)
    stop_the_clock(page)
    search(page).press_sequentially("nightin")
    assert asked == [], "a key stroke was sent"
    page.clock.resume()
    expect(rows(page)).to_have_count(1)
    expect(page.locator(".hit mark")).to_have_text("nightin")
    expect(page.locator(".hit")).to_have_text(re.compile("and so on nightingales at dusk"))
    assert len(asked) == 1, "every key stroke was sent"
    expect(page.get_by_role("status")).to_have_text("1 found.")
    search(page).fill("bees")
    expect(row(page, "Bees and their dances")).to_have_count(1)
    expect(page.locator(".rows mark").first).to_have_text(re.compile("bees", re.IGNORECASE))
    search(page).fill("no such words")
    expect(page.get_by_text("Nothing found for “no such words”.")).to_be_visible()
    search(page).press("Escape")
    expect(search(page)).to_have_value("")
    expect(rows(page)).to_have_count(3)


def test_a_hit_is_opened_where_it_is(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    filler = "Nothing of it.\n\n" * 60
    ask(page, "First", text=f"{filler}The **nightjar** sleeps.\n\n{filler}A nightjar *flies* at dusk.\n\n{filler}")
    is_over(page)
    for _ in range(2):
        page.locator(".reply").get_by_role("button", name="Regenerate").click()
        is_over(page)
    ask(page, "Second", text=filler)
    is_over(page)
    page.locator(".message.user").first.hover()
    page.locator(".message.user").first.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill('Changed {"text": "Another branch."}')
    page.keyboard.press("Enter")
    is_over(page)
    page.get_by_role("link", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    search(page).fill("nightjar")
    expect(page.locator(".hit mark")).to_have_count(1)
    expect(page.locator(".hit")).to_contain_text("The nightjar sleeps.")
    read: list[str] = []
    page.on("request", lambda each: read.append(each.url) if "/conversations/c_" in each.url else None)
    rows(page).first.click()
    # the branch that was shown last is another one
    expect(page.locator(".reply").first).to_contain_text("The nightjar sleeps.")
    found = """() => {
      const [range] = CSS.highlights.get("flask-chat-found") ?? [];
      if (!range) return null;
      const box = range.getBoundingClientRect();
      const frame = range.startContainer.parentElement.closest(".scroll").getBoundingClientRect();
      const seen = box.height > 0 && box.top >= frame.top && box.bottom <= frame.bottom;
      return seen ? range.toString() : `unseen at ${box.top}`;
    }"""
    for _ in deadline(30, "the hit in sight"):
        page.wait_for_timeout(20)
        if page.evaluate(found) == "nightjar":
            break
    wait_for_focus(page, "article.message")
    expect(page.get_by_role("button", name="To the end")).to_be_visible()
    assert len(read) == 1, "a conversation is read once when it is opened"


def test_search_goes_by_keys_alone(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ids = seed(page, "Alpha bird", "Beta bird", "Gamma")
    page.keyboard.press("Control+k")
    wait_for_focus(page, "Search conversations")
    page.keyboard.type("bird")
    expect(rows(page)).to_have_count(2)
    page.keyboard.press("ArrowDown")
    wait_for_focus(page, "Beta bird")
    page.keyboard.press("ArrowDown")
    wait_for_focus(page, "Alpha bird")
    page.keyboard.press("ArrowDown")  # there is none below
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    wait_for_focus(page, "Search conversations")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(ids[0]))
    expect(page.locator(".user")).to_contain_text("Alpha bird")
    # Enter in the box opens the first, without waiting for the results to be shown
    search(page).fill("gamma")
    search(page).press("Enter")
    expect(page).to_have_url(re.compile(ids[2]))
    expect(page.locator(".user")).to_contain_text("Gamma")
    rows(page).first.focus()
    page.keyboard.press("Escape")
    wait_for_focus(page, "Search conversations")
    expect(rows(page)).to_have_count(3)


def test_a_search_that_fails_says_so_and_can_be_repeated(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    seed(page, "Alpha")

    def refuse(route: Route) -> None:
        route.abort()

    page.route("**/conversations?*q=*", refuse)
    search(page).fill("alpha")
    expect(page.get_by_text("The search failed. There is no connection.")).to_be_visible()
    page.unroute("**/conversations?*q=*")
    page.locator(".rows").get_by_role("button", name="Try again").click()
    expect(row(page, "Alpha")).to_have_count(1)


def test_what_was_found_is_renamed_and_deleted_as_in_the_list(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.clock.install()
    ids = seed(page, "Nightingale one", "Nightingale two", *(f"Filler {number}" for number in range(40)))
    search(page).fill("nightingale")
    expect(rows(page)).to_have_count(2)
    row(page, "Nightingale one").focus()
    page.keyboard.press("F2")
    title = page.get_by_label("Title of the conversation")
    title.fill("Thrush")
    title.press("Enter")
    expect(row(page, "Thrush")).to_have_count(1)
    wait_for_focus(page, "Thrush")
    page.keyboard.press("F2")
    expect(title).to_have_value("Thrush")
    title.press("Escape")
    stop_the_clock(page)
    row(page, "Nightingale two").focus()
    page.keyboard.press("Delete")
    wait_for_focus(page, "Undo")
    page.clock.fast_forward(7000)
    expect(rows(page)).to_have_count(1)
    expect(page.locator(".gone")).to_have_count(0)
    for _ in deadline(30, "the conversation gone at the server"):
        page.wait_for_timeout(20)
        if not exists(page, ids[1]):
            break
    assert exists(page, ids[0])
