"""Messages, their versions and details, Stop and the composer, in a real browser against real gunicorn."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.conftest import Server
from tests.server.client import deadline

from .talk import Visit, ask, box, is_over, reply, stored, wait_for_focus


def edit(page: Page, at: int, text: str) -> None:
    """Change a question."""
    question = page.locator(".message.user").nth(at)
    question.hover()
    question.get_by_role("button", name="Edit").click()
    area = page.get_by_label("Edit your message")
    expect(area).to_be_focused()
    area.fill(text)
    area.press("Enter")


def waits_for_leaf(page: Page, text: str) -> None:
    """Until the server shows the branch that ends with this reply."""
    for _ in deadline(30, f"the branch of {text!r}"):
        page.wait_for_timeout(20)
        now = stored(page)
        leaf = next(each for each in now["messages"] if each["id"] == now["current_leaf_id"])
        if leaf["text"] == text:
            return


def test_an_edit_is_a_branch_and_everything_is_kept(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, "First", text="Reply one")
    is_over(page)
    ask(page, "Second", text="Reply two")
    is_over(page)
    edit(page, 0, 'First, changed {"text": "Reply three"}')
    expect(page.locator(".message")).to_have_count(2)
    is_over(page)
    expect(reply(page)).to_have_text("Reply three")
    messages = stored(page)["messages"]
    assert [each["parent_id"] for each in messages if each["text"].startswith("First")] == [None, None]
    assert len(messages) == 6

    group = page.locator(".user .walk")
    expect(group).to_have_text(re.compile(r"2\s*/\s*2"))
    group.get_by_role("button", name="Previous version").click()
    expect(page.locator(".message")).to_have_count(4)
    expect(reply(page)).to_have_text("Reply two")
    expect(page.locator(".user .walk")).to_have_attribute("aria-label", "Version 1 of 2")
    expect(page.locator(".user .walk").get_by_role("button", name="Previous version")).to_be_focused()
    waits_for_leaf(page, "Reply two")
    page.reload()
    expect(reply(page)).to_have_text("Reply two")
    page.get_by_role("button", name="Next version").press("Enter")
    expect(reply(page)).to_have_text("Reply three")
    waits_for_leaf(page, "Reply three")
    page.reload()
    expect(reply(page)).to_have_text("Reply three")
    ask(page, "Third", text="Reply four")
    is_over(page)
    expect(reply(page)).to_have_text("Reply four")
    assert stored(page)["messages"][-2]["parent_id"] == messages[-1]["id"]


def test_a_choice_of_a_version_is_told_again_until_the_server_has_it(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, "Say it", tokens=8, rate=0, tag="choice")
    is_over(page)
    page.locator(".reply").get_by_role("button", name="Regenerate").click()
    expect(page.locator(".reply .walk")).to_have_attribute("aria-label", "Version 2 of 2")
    is_over(page)
    first, second = (each["id"] for each in stored(page)["messages"] if each["role"] == "assistant")
    tried: list[str] = []

    def refuse(route: Route) -> None:
        tried.append(route.request.method)
        route.abort()

    pattern = re.compile(r"/conversations/c_[^/]*$")
    page.route(pattern, refuse)
    page.locator(".reply").get_by_role("button", name="Previous version").click()
    for _ in deadline(30, "a second attempt"):
        page.wait_for_timeout(20)
        if len(tried) == 2:
            break
    assert stored(page)["current_leaf_id"] == second
    page.unroute(pattern)
    for _ in deadline(30, "the choice at the server"):
        page.wait_for_timeout(20)
        if stored(page)["current_leaf_id"] == first:
            break
    page.route(
        pattern,
        lambda route: route.fulfill(status=422, content_type="application/problem+json", json={"detail": "No."}),
    )
    page.locator(".reply").get_by_role("button", name="Next version").click()
    expect(page.get_by_role("alert")).to_contain_text("The choice of this version could not be kept")


def test_an_edit_in_the_middle_follows_what_it_followed(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, "First", text="Reply one")
    is_over(page)
    ask(page, "Second", text="Reply two")
    is_over(page)
    edit(page, 1, 'Second, changed {"text": "Reply three"}')
    expect(reply(page)).to_have_text("Reply three")
    is_over(page)
    messages = stored(page)["messages"]
    assert messages[4]["parent_id"] == messages[2]["parent_id"] == messages[1]["id"]


def test_an_edit_that_is_left_changes_nothing(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, "First", text="Reply one")
    is_over(page)
    page.locator(".message.user").hover()
    page.get_by_role("button", name="Edit").click()
    area = page.get_by_label("Edit your message")
    area.fill("Something else")
    area.press("Escape")
    expect(page.get_by_role("button", name="Edit")).to_be_focused()
    expect(page.locator(".bubble")).to_contain_text("First")
    assert len(stored(page)["messages"]) == 2


def test_an_edit_that_was_not_sent_is_there_again_when_the_message_is_edited(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, "First", text="Reply one")
    is_over(page)
    edit_button = page.get_by_role("button", name="Edit")
    area = page.get_by_label("Edit your message")
    page.locator(".message.user").hover()
    edit_button.click()
    area.fill("A long thought")
    page.keyboard.press("Alt+n")
    expect(page.get_by_text("What would you like to know?")).to_be_visible()
    page.go_back()
    page.locator(".message.user").hover()
    edit_button.click()
    expect(area).to_have_value("A long thought")
    area.press("End")
    area.press_sequentially(", and more")
    page.reload()
    page.locator(".message.user").hover()
    edit_button.click()
    expect(area).to_have_value("A long thought, and more")
    area.press("Escape")
    edit_button.click()
    expect(area).to_have_value(re.compile("^First "))


def test_regenerating_makes_a_sibling_and_the_arrows_lead_back(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, "Say it", tokens=8, rate=0)
    is_over(page)
    for count in (2, 3):
        page.locator(".reply").get_by_role("button", name="Regenerate").click()
        expect(page.locator(".reply .walk")).to_have_attribute("aria-label", f"Version {count} of {count}")
        is_over(page)
    messages = stored(page)["messages"]
    assert len({each["parent_id"] for each in messages[1:]}) == 1
    assert len(messages) == 4
    for at in (2, 1):
        page.locator(".reply").get_by_role("button", name="Previous version").click()
        expect(page.locator(".reply .walk")).to_have_attribute("aria-label", f"Version {at} of 3")
    for _ in deadline(30, "the first reply's branch"):
        page.wait_for_timeout(20)
        if stored(page)["current_leaf_id"] == messages[1]["id"]:
            break
    page.reload()
    expect(page.locator(".reply .walk")).to_have_attribute("aria-label", "Version 1 of 3")


def test_the_words_about_thinking_go_with_the_first_word_of_the_reply(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, "Think", tokens=4000, rate=20, reasoning=3, tag="thinks")
    expect(reply(page)).not_to_be_empty()
    expect(page.locator(".reply .words")).to_have_count(0)
    expect(page.locator("summary")).to_have_text(re.compile("^Thought for"))
    page.get_by_role("button", name="Stop").click()
    is_over(page)


def test_the_details_of_a_reply_are_there_on_demand(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, "Think", tokens=30, rate=30, reasoning=3, delay=0.3)
    is_over(page)
    expect(page.locator("summary")).to_have_text(re.compile(r"Thought for (a moment|[\d.]+ s)"))
    button = page.get_by_role("button", name="Details")
    button.click()
    details = page.locator(".details")
    expect(details).to_contain_text("openai:fake")
    expect(details).to_contain_text("Tokens written30")
    expect(details).to_contain_text("First token after")
    expect(details).to_contain_text("tokens/s")
    shown = details.inner_text()
    page.reload()
    expect(page.locator("summary")).to_have_text(re.compile(r"Thought for"))
    button.click()
    assert details.inner_text() == shown
    button.click()
    expect(details).to_have_count(0)


@pytest.mark.parametrize(("finish", "words"), [("length", "its longest length"), ("content_filter", "content filter")])
def test_a_reply_that_was_cut_short_says_why(visit: Visit, chat: Server, finish: str, words: str) -> None:
    page = visit(chat.url)
    ask(page, "Tell", text="Not all of", finish=finish)
    expect(page.locator(".reply .words")).to_contain_text(words)
    page.reload()
    expect(page.locator(".reply .words")).to_contain_text(words)


def test_a_message_can_be_copied(visit: Visit, chat: Server) -> None:
    page = visit(chat.url, permissions=["clipboard-read", "clipboard-write"])
    ask(page, "Copy me", text="**Reply** one")
    is_over(page)
    page.locator(".message.user").hover()
    page.locator(".message.user").get_by_role("button", name="Copy").click()
    expect(page.get_by_role("status")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("Copy me {")
    first = page.get_by_role("status").text_content()
    page.locator(".reply").get_by_role("button", name="Copy").click()
    expect(page.get_by_role("status")).not_to_have_text(re.compile(f"^{first}$"))
    expect(page.get_by_role("status")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "**Reply** one"


@pytest.mark.parametrize("moment", ["before the first token", "in the middle"])
def test_stop_is_immediate_in_the_page(visit: Visit, chat: Server, moment: str) -> None:
    page = visit(chat.url)
    held: list[Route] = []
    page.route("**/stop", lambda route: held.append(route))
    if moment == "in the middle":
        ask(page, "Stream", tokens=4000, rate=40)
        expect(reply(page)).not_to_be_empty()
    else:
        ask(page, "Wait", fault="silent-before-first-token", hold=30)
        expect(page.get_by_text("Waiting for the first words…")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped. Closing the model's connection…")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    shown = reply(page).inner_text()
    since = page.evaluate("performance.now()")
    page.wait_for_function("since => performance.now() - since > 300", arg=since)
    assert reply(page).inner_text() == shown, "the reply goes on after Stop"
    ask(page, "At once", text="Asked while it closes")
    expect(page.locator(".waiting")).to_have_count(1)
    held[0].continue_()
    expect(page.locator(".reply .words").first).to_have_text(re.compile(r"closed in \d+ ms\."))
    expect(page.locator(".waiting")).to_have_count(0)
    expect(page.locator(".reply")).to_have_count(2)


def test_the_focus_goes_where_one_writes_when_the_pressed_button_goes(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)

    def press(name: str, next_button: str) -> None:
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("button", name=next_button)).to_be_visible()
        wait_for_focus(page, "Your message")

    box(page).fill(f"Stream {json.dumps({'tokens': 4000, 'rate': 40, 'tag': 'focus'})}")
    press("Send", "Stop")
    expect(reply(page)).not_to_be_empty()
    press("Stop", "Continue")
    press("Continue", "Stop")
    press("Stop", "Try again")
    press("Try again", "Stop")
    box(page).fill("Next")
    press("Queue", "Withdraw")
    press("Withdraw", "Stop")
    press("Stop", "Continue")
    # a button that can be pressed no more holds the keys as well
    ask(page, "Fail", tokens=400, rate=20, fault="error", after=60, tag="focus fails")
    ask(page, "Wait", text="Later")
    expect(page.locator(".waiting")).to_contain_text("Held back")
    box(page).fill("Third")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator(".waiting")).to_have_count(2)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    wait_for_focus(page, "Your message")
    page.keyboard.type("Fourth")
    expect(box(page)).to_have_value("Fourth")


def test_on_paper_there_is_the_whole_conversation_and_nothing_else(visit: Visit, chat: Server) -> None:
    page = visit(chat.url, color_scheme="dark")
    ask(page, "Much", text="A line of text.\n\n" * 200 + "The last line.", size=100)
    is_over(page)
    page.keyboard.press("Alt+w")
    expect(page.get_by_role("region", name="The wire")).to_be_visible()
    page.emulate_media(media="print")
    for name in (".composer", ".side", ".wire", "header .dots", ".reply .actions"):
        expect(page.locator(name).first).to_be_hidden()
    expect(page.locator(".title")).to_be_visible()
    bottom = page.get_by_text("The last line.", exact=True).evaluate("e => e.getBoundingClientRect().bottom + scrollY")
    top = page.locator(".bubble").evaluate("e => e.getBoundingClientRect().top + scrollY")
    assert 0 < top < 200, "what was scrolled away is missing"
    assert 5000 < bottom <= page.evaluate("document.documentElement.scrollHeight")
    assert page.locator(".app").evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(253, 252, 250)"
    sheets = len(re.findall(rb"/Type\s*/Page\b", page.pdf()))
    assert sheets >= 5, sheets


def test_the_composer_grows_to_a_third_and_takes_a_long_text(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    before = box(page).bounding_box()
    assert before is not None
    box(page).fill("line\n" * 3)
    three = box(page).bounding_box()
    assert three is not None
    assert three["height"] > 2 * before["height"]
    text = "A very long text. " * 20_000
    since = page.evaluate("performance.now()")
    box(page).evaluate("(area, text) => { area.focus(); document.execCommand('insertText', false, text) }", text)
    assert page.evaluate("performance.now()") - since < 12_000  # a second where nothing else runs
    full = box(page).bounding_box()
    assert full is not None
    assert 200 < full["height"] <= 800 / 3 + 1
    assert box(page).input_value().endswith("A very long text. ")
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport()


@pytest.mark.parametrize("width", [320, 420, 1200])
def test_text_and_composer_are_in_line(visit: Visit, chat: Server, width: int) -> None:
    page = visit(chat.url)
    page.set_viewport_size({"width": width, "height": 700})
    ask(page, "Much", text="A line of text.\n\n" * 60)
    is_over(page)
    lines = page.evaluate(
        """() => [".messages", "footer .column"].map(each => {
            const box = document.querySelector("flask-chat").shadowRoot.querySelector(each).getBoundingClientRect();
            return [box.left, box.right];
        })"""
    )
    assert lines[0] == lines[1]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_moves_while_text_streams(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.evaluate(
        """() => {
            window.moved = 0;
            new PerformanceObserver(list => {
                for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.moved += entry.value;
            }).observe({type: "layout-shift", buffered: true});
        }"""
    )
    ask(page, "Stream", text="Some **text** in a few paragraphs. " * 12, rate=60)
    expect(reply(page)).not_to_be_empty()
    page.wait_for_function("performance.now() > 0")
    before = page.evaluate("window.moved")
    is_over(page)
    assert page.evaluate("window.moved") - before < 0.01


def test_a_keyboard_on_the_screen_leaves_the_composer_in_sight(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.set_viewport_size({"width": 390, "height": 800})
    # As Safari has it: the window stays, what is seen of it becomes less.
    page.evaluate(
        """() => {
            Object.defineProperty(visualViewport, "height", {configurable: true, value: 450});
            visualViewport.dispatchEvent(new Event("resize"));
        }"""
    )
    bottom = page.locator(".composer").evaluate("e => e.getBoundingClientRect().bottom")
    assert bottom <= 450


def test_the_buttons_fit_on_the_smallest_phone(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.set_viewport_size({"width": 320, "height": 568})
    ask(page, "First", tokens=4000, rate=20)
    box(page).fill("Next")
    expect(page.get_by_role("button", name="Queue")).to_be_visible()
    frame = page.locator(".composer").bounding_box()
    stop = page.get_by_role("button", name="Stop").bounding_box()
    assert frame is not None
    assert stop is not None
    assert stop["x"] + stop["width"] < frame["x"] + frame["width"]
    page.get_by_role("button", name="Queue").click()
    expect(page.locator(".waiting")).to_have_count(1)
    page.get_by_role("button", name="Withdraw").click()
    expect(page.locator(".waiting")).to_have_count(0)
    page.get_by_role("button", name="Stop").click()
    is_over(page)
