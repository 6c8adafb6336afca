"""Whole conversations on the page: the list, renaming, deleting, export, keys."""

from __future__ import annotations

import json
import re
from pathlib import Path

from playwright.sync_api import Page, Request, Route, expect

from tests.conftest import Server
from tests.server.client import deadline

from .talk import Visit, ask, exists, is_over, row, rows, seed, stop_the_clock, wait_for_focus


def deletes(page: Page) -> list[str]:
    """The DELETE requests that the page sends from now on."""
    sent: list[str] = []

    def note(request: Request) -> None:
        if request.method == "DELETE":
            sent.append(request.url)

    page.on("request", note)
    return sent


def test_a_conversation_is_renamed_in_its_row(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ids = seed(page, "Old name")
    title = page.get_by_label("Title of the conversation")
    rows(page).first.focus()
    page.keyboard.press("F2")
    title.fill("Not this")
    title.press("Escape")
    expect(row(page, "Old name")).to_have_count(1)
    wait_for_focus(page, "Old name")
    page.keyboard.press("F2")
    title.fill("  A  <b>new</b> name ")
    title.press("Enter")
    expect(row(page, "A <b>new</b> name")).to_have_count(1)
    wait_for_focus(page, "new")
    for _ in deadline(30, "the title at the server"):
        if page.request.get(f"{chat.url}/conversations/{ids[0]}").json()["title"] == "A <b>new</b> name":
            break
        page.wait_for_timeout(20)
    page.reload()
    expect(row(page, "A <b>new</b> name")).to_have_count(1)


def test_a_phone_is_told_of_no_keys(visit: Visit, chat: Server) -> None:
    page = visit(chat.url, has_touch=True, is_mobile=True)
    seed(page, "bees")
    page.get_by_role("button", name="Menu of this conversation").tap()
    expect(page.get_by_role("menuitem", name="The wire")).to_be_visible()
    expect(page.get_by_role("menuitem", name="Keys")).to_have_count(0)
    assert page.locator("kbd:visible").count() == 0
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Options for").tap()
    expect(page.get_by_role("menuitem", name="Delete")).to_be_visible()
    assert page.locator("kbd:visible").count() == 0


def test_the_ring_around_the_first_name_in_the_list_is_whole(visit: Visit, chat: Server) -> None:
    page = visit(chat.url, has_touch=True, is_mobile=True)
    page.set_viewport_size({"width": 390, "height": 800})
    seed(page, "bees")
    page.get_by_role("button", name="Conversations").tap()
    page.get_by_role("button", name="Options for").tap()
    page.get_by_role("menuitem", name="Rename").tap()
    name = page.get_by_label("Title of the conversation")
    expect(name).to_be_focused()
    room = name.evaluate(
        """e => {
          const style = getComputedStyle(e);
          const ring = parseFloat(style.outlineWidth) + parseFloat(style.outlineOffset);
          return e.getBoundingClientRect().top - e.closest(".rows").getBoundingClientRect().top - ring;
        }"""
    )
    assert room >= 0


def test_a_conversation_is_renamed_in_the_header_and_keeps_its_name_if_that_fails(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ids = seed(page, "Old name")
    rows(page).first.click()
    page.get_by_role("button", name="Menu of this conversation").click()
    page.get_by_role("menuitem", name="Rename").click()
    title = page.get_by_label("Title of the conversation")
    expect(title).to_be_focused()
    title.fill("Header name")
    title.press("Enter")
    expect(page.get_by_role("heading", name="Header name")).to_be_visible()
    expect(row(page, "Header name")).to_have_count(1)
    expect(page).to_have_title(re.compile("^Header name"))
    wait_for_focus(page, "Menu of this conversation")

    def refuse(route: Route) -> None:
        if route.request.method == "PATCH":
            route.abort()
        else:
            route.continue_()

    page.route(f"**/conversations/{ids[0]}", refuse)
    page.keyboard.press("F2")
    title.fill("Lost name")
    title.press("Enter")
    expect(page.locator(".notice")).to_contain_text("“Header name” could not be renamed. There is no connection.")
    expect(page.get_by_role("heading", name="Header name")).to_be_visible()


def test_a_deleted_conversation_can_be_taken_back(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.clock.install()
    ids = seed(page, "Keep me", "Other")
    sent = deletes(page)
    row(page, "Keep me").click()
    expect(page.locator(".user")).to_contain_text("Keep me")
    stop_the_clock(page)
    row(page, "Keep me").focus()
    page.keyboard.press("Delete")
    expect(page.locator(".gone")).to_have_text(re.compile("Deleted.\\s*Undo"))
    expect(page.get_by_text("What would you like to know?")).to_be_visible()
    wait_for_focus(page, "Undo")
    page.keyboard.press("Enter")
    expect(row(page, "Keep me")).to_have_attribute("aria-current", "page")
    expect(page.locator(".user")).to_contain_text("Keep me")
    wait_for_focus(page, "Keep me")
    page.clock.fast_forward(7000)
    page.evaluate("fetch('/models')")  # what was sent before it has been seen
    assert sent == []
    assert exists(page, ids[0])


def test_a_deleted_conversation_is_gone_when_the_time_for_undo_is_over(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.clock.install()
    ids = seed(page, "First", "Second", "Third")
    sent = deletes(page)
    page.locator(".rows li").nth(1).hover()
    page.get_by_role("button", name=re.compile("Options for “.*Second”")).click()
    expect(page.get_by_role("menuitem", name="Delete")).to_be_visible()
    stop_the_clock(page)
    page.get_by_role("menuitem", name="Delete").click()
    wait_for_focus(page, "Undo")
    page.clock.fast_forward(4000)
    page.evaluate("fetch('/models')")
    assert sent == []
    assert exists(page, ids[1])
    page.clock.fast_forward(2500)
    expect(page.locator(".gone")).to_have_count(0)
    expect(rows(page)).to_have_count(2)
    for _ in deadline(30, "the conversation gone at the server"):
        page.wait_for_timeout(20)
        if not exists(page, ids[1]):
            break
    wait_for_focus(page, "First")  # the row that follows: the focus was on Undo
    page.reload()
    expect(rows(page)).to_have_count(2)


def test_a_page_that_is_left_sends_its_deletions_at_once(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.clock.install()
    first, second = seed(page, "First", "Second")
    stop_the_clock(page)
    for name in ("First", "Second"):
        row(page, name).focus()
        page.keyboard.press("Delete")
    expect(page.locator(".gone")).to_have_count(2)
    assert exists(page, first)
    page.goto("about:blank")
    page.goto(chat.url)
    for _ in deadline(30, "both gone at the server"):
        page.wait_for_timeout(20)
        if not exists(page, first) and not exists(page, second):
            break
    page.reload()
    expect(page.get_by_text("Your conversations will be listed here.")).to_be_visible()


def test_a_delete_that_fails_gives_the_row_back_with_words(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.clock.install()
    (identifier,) = seed(page, "Stays")

    def refuse(route: Route) -> None:
        if route.request.method == "DELETE":
            route.fulfill(
                status=503, content_type="application/problem+json",
                body=json.dumps({"detail": "The store cannot be written to."}),
            )  # fmt: skip
        else:
            route.continue_()

    page.route("**/conversations/*", refuse)
    row(page, "Stays").click()
    expect(page.locator(".user")).to_contain_text("Stays")
    page.get_by_role("button", name="Menu of this conversation").click()
    expect(page.get_by_role("menuitem", name="Delete")).to_be_visible()
    stop_the_clock(page)
    page.get_by_role("menuitem", name="Delete").click()
    expect(page.locator(".notice")).to_contain_text("is deleted.")
    wait_for_focus(page, "Undo")
    page.clock.fast_forward(6500)
    expect(page.locator(".notice")).to_have_text(
        re.compile("“1 0 Stays” could not be deleted. The store cannot be written to.")
    )
    expect(row(page, "Stays")).to_have_count(1)
    assert exists(page, identifier)


def test_a_conversation_is_exported_from_its_menu(visit: Visit, chat: Server, tmp_path: Path) -> None:
    page = visit(chat.url)
    seed(page, "Export me")
    page.locator(".rows li").first.hover()
    button = page.get_by_role("button", name=re.compile("Options for"))
    for name, ending, words in (("Markdown", ".md", "## You"), ("JSON", ".json", '"messages"')):
        button.click()
        with page.expect_download() as download:
            page.get_by_role("menuitem", name=f"Export as {name}").click()
        assert download.value.suggested_filename.endswith(ending)
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        assert words in file.read_text()
        assert "Export me" in file.read_text()
        wait_for_focus(page, "Options for")


def test_a_reply_begun_on_another_device_is_seen_while_it_is_written(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.clock.install()
    seed(page, "Here")
    other = visit(chat.url, storage_state=page.context.storage_state())
    ask(other, "Written elsewhere", tag="elsewhere", tokens=2000, rate=20)
    expect(other.locator(".reply .markdown")).not_to_be_empty()
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(row(page, "Written elsewhere").locator(".writing")).to_have_text("writing…")
    other.get_by_role("button", name="Stop").click()
    is_over(other)
    # nobody tells this page: it looks again by itself, and then no more
    page.clock.fast_forward(10_500)
    expect(row(page, "Written elsewhere").locator(".writing")).to_have_count(0)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.fast_forward(30_000)
    page.evaluate("fetch('/models')")
    assert [url.rsplit("/", 1)[1] for url in asked] == ["models"]


def test_a_tab_is_told_at_once_what_another_one_does(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.clock.install()
    seed(page, "Mine")
    page.clock.pause_at(page.evaluate("Date.now()") + 60_000)  # it does not look by itself
    other = visit(chat.url, page.context)
    ask(other, "Written elsewhere", tag="told", tokens=2000, rate=20)
    expect(row(page, "Written elsewhere").locator(".writing")).to_have_text("writing…")
    other.get_by_role("button", name="Stop").click()
    expect(row(page, "Written elsewhere").locator(".writing")).to_have_count(0)
    row(other, "Mine").focus()
    other.keyboard.press("F2")
    other.get_by_label("Title of the conversation").fill("There")
    other.keyboard.press("Enter")
    expect(row(page, "There")).to_have_count(1)


def test_a_better_title_that_comes_after_the_reply_is_shown(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    # noted in the page: who looks from outside may come when there is the better one
    page.evaluate(
        """() => {
          const heading = document.querySelector("flask-chat").shadowRoot.querySelector(".title");
          globalThis.titles = [];
          new MutationObserver(() => titles.push(heading.textContent)).observe(heading, {
            childList: true, characterData: true, subtree: true,
          });
        }"""
    )
    # this model takes as long for a title as for the reply, which begins first
    ask(page, "Whatever", text="A waggle dance. " * 12, rate=20, size=8)
    expect(page.get_by_role("heading", name=re.compile("^A waggle dance"))).to_be_visible()
    assert any(title.startswith("Whatever") for title in page.evaluate("titles"))
    expect(row(page, "A waggle dance")).to_have_count(1)
    expect(page).to_have_title(re.compile("^A waggle dance.* · Chat$"))


def test_the_list_goes_on_by_a_button_and_by_scrolling(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    seed(page, *(f"Number {n}" for n in range(65)))
    expect(rows(page)).to_have_count(30)
    page.locator(".rows").evaluate("e => e.scrollTo(0, e.scrollHeight)")
    expect(rows(page)).to_have_count(60)
    button = page.get_by_role("button", name="Earlier conversations")
    button.evaluate("e => e.focus({preventScroll: true})")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(65)
    expect(button).to_have_count(0)
    wait_for_focus(page, "Number 4")
    names = [text.splitlines()[0] for text in rows(page).all_inner_texts()]
    assert names == [f"1 0 Number {n}" for n in range(64, -1, -1)]
