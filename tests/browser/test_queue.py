"""What waits to be sent, what could not be sent, and drafts, in a real browser against real gunicorn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, Route, expect

from tests.conftest import Server
from tests.server import badmodel
from tests.server.client import deadline

from .proxy import Proxy
from .talk import Visit, ask, box, is_over, reply, stored


def test_a_message_waits_for_the_reply_and_is_sent_once(visit: Visit, chat: Server, model: badmodel.Running) -> None:
    page = visit(chat.url)
    ask(page, "First", tag="queue first", tokens=4000, rate=20)
    expect(reply(page)).not_to_be_empty()
    ask(page, "Second", tag="queue second", text="Reply two")
    ask(page, "Third", tag="queue third", text="Reply three")
    ask(page, "Fourth", tag="queue fourth", text="Reply four")
    waiting = page.locator(".waiting")
    expect(waiting).to_have_count(3)
    expect(waiting.first).to_contain_text("Queued. It is sent when the reply has ended.")
    expect(box(page)).to_have_value("")
    waiting.nth(1).get_by_role("button", name="Withdraw").click()
    expect(waiting).to_have_count(2)
    waiting.first.get_by_role("button", name="Edit").click()
    area = page.get_by_label("Edit the waiting message")
    area.fill(f"Second, edited {json.dumps({'tag': 'queue edited', 'text': 'Edited two'})}")
    area.press("Enter")
    expect(waiting.first).to_contain_text("Second, edited")
    page.reload()
    expect(waiting).to_have_count(2)
    expect(reply(page)).not_to_be_empty()
    assert model.stats("queue edited")["posts"] == 0
    page.get_by_role("button", name="Stop").click()
    expect(waiting).to_have_count(0)
    expect(page.locator(".reply")).to_have_count(3)
    is_over(page)
    expect(page.locator(".reply .markdown").nth(1)).to_have_text("Edited two")
    expect(reply(page)).to_have_text("Reply four")
    page.reload()
    expect(page.locator(".reply")).to_have_count(3)
    expect(waiting).to_have_count(0)
    posts = {tag: model.stats(f"queue {tag}")["posts"] for tag in ("first", "edited", "second", "third", "fourth")}
    # Titles are asked for once more with the first question's words.
    assert {tag: posts[tag] for tag in ("edited", "second", "third", "fourth")} == {
        "edited": 1, "second": 0, "third": 0, "fourth": 1,
    }  # fmt: skip
    messages = stored(page)["messages"]
    assert [each["parent_id"] for each in messages] == [None, *(each["id"] for each in messages[:-1])]


def test_a_message_is_not_sent_while_its_writer_changes_it(visit: Visit, chat: Server, model: badmodel.Running) -> None:
    page = visit(chat.url)
    ask(page, "First", tokens=4000, rate=20)
    expect(reply(page)).not_to_be_empty()
    ask(page, "Second", tag="not yet changed", text="Too early")
    page.locator(".waiting").get_by_role("button", name="Edit").click()
    area = page.get_by_label("Edit the waiting message")
    area.fill(f"Second, changed {json.dumps({'text': 'As changed'})}")
    page.get_by_role("button", name="Stop").click()
    is_over(page)
    expect(area).to_have_value(re.compile("^Second, changed"))
    area.press("Enter")
    expect(reply(page)).to_have_text("As changed")
    expect(page.locator(".message")).to_have_count(4)
    assert model.stats("not yet changed")["posts"] == 0


def test_two_tabs_with_one_queue_send_it_once(visit: Visit, chat: Server, model: badmodel.Running) -> None:
    first = visit(chat.url)
    ask(first, "First", tokens=4000, rate=20)
    expect(reply(first)).not_to_be_empty()
    second = visit(first.url, first.context)
    expect(reply(second)).not_to_be_empty()
    ask(first, "Second", tag="two tabs", text="Once")
    expect(second.locator(".waiting")).to_have_count(1)
    second.get_by_role("button", name="Stop").click()
    for page in (first, second):
        expect(reply(page)).to_have_text("Once")
        is_over(page)
        expect(page.locator(".message")).to_have_count(4)
        expect(page.locator(".waiting")).to_have_count(0)
    assert len(stored(first)["messages"]) == 4
    assert model.stats("two tabs")["posts"] == 1


def test_what_another_tab_sends_takes_no_editor_away(visit: Visit, chat: Server) -> None:
    first = visit(chat.url)
    ask(first, "First", tokens=4000, rate=20)
    expect(reply(first)).not_to_be_empty()
    second = visit(first.url, first.context)
    expect(reply(second)).not_to_be_empty()
    ask(first, "Second", text="As it was")
    expect(second.locator(".waiting")).to_have_count(1)
    first.locator(".waiting").get_by_role("button", name="Edit").click()
    area = first.get_by_label("Edit the waiting message")
    area.fill(f"Second, changed {json.dumps({'text': 'As changed'})}")
    second.get_by_role("button", name="Stop").click()
    for page in (second, first):
        expect(reply(page)).to_have_text("As it was")
    expect(area).to_have_value(re.compile("^Second, changed"))
    area.press("Enter")
    expect(reply(first)).to_have_text("As changed")
    expect(first.locator(".message")).to_have_count(6)


def test_what_waits_for_a_reply_that_fails_is_held_back(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, "First", tokens=400, rate=20, fault="error", after=80, tag="held")
    ask(page, "Second", text="Reply two")
    expect(page.locator(".waiting")).to_have_count(1)
    expect(page.locator(".waiting")).to_contain_text("Held back")
    page.reload()
    expect(page.locator(".waiting")).to_contain_text("Held back")
    page.get_by_role("button", name="Send now").click()
    expect(reply(page)).to_have_text("Reply two")
    expect(page.locator(".waiting")).to_have_count(0)


def test_a_draft_survives_a_reload_in_its_conversation(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    box(page).fill("A thought for later")
    page.reload()
    expect(box(page)).to_have_value("A thought for later")
    ask(page, "First", text="Reply one")
    is_over(page)
    box(page).press_sequentially("A second thought")
    page.get_by_role("link", name="New conversation").click()
    expect(box(page)).to_have_value("")
    box(page).fill("Of the new one")
    page.go_back()
    expect(box(page)).to_have_value("A second thought")
    page.reload()
    expect(box(page)).to_have_value("A second thought")
    box(page).fill("")
    page.reload()
    expect(reply(page)).to_have_text("Reply one")
    expect(box(page)).to_have_value("")


def test_a_send_that_failed_is_kept_and_sent_once(
    visit: Visit, chat: Server, network: Proxy, model: badmodel.Running
) -> None:
    page = visit(network.url)
    ask(page, "First", text="Reply one")
    is_over(page)
    bodies: list[Any] = []

    def cut(route: Route) -> None:
        """The server gets the request, its answer is lost."""
        bodies.append(route.request.post_data_json)
        if len(bodies) == 1:
            route.fetch()
        route.abort()

    page.route("**/conversation", cut)
    ask(page, "Second", tag="failed send", text="Reply two")
    failed = page.locator(".waiting")
    expect(failed).to_contain_text("Not sent: no connection.")
    page.unroute("**/conversation")
    page.reload()
    expect(failed).to_contain_text("Not sent: no connection.")
    failed.get_by_role("button", name="Send again").click()
    expect(reply(page)).to_have_text("Reply two")
    is_over(page)
    expect(failed).to_have_count(0)
    expect(page.locator(".message")).to_have_count(4)
    assert len(stored(page)["messages"]) == 4
    assert model.stats("failed send")["posts"] == 1
    assert len({json.dumps(each) for each in bodies}) == 1


def test_a_reload_while_a_message_is_on_its_way_sends_it_again(
    visit: Visit, chat: Server, model: badmodel.Running
) -> None:
    page = visit(chat.url)
    tried: list[Route] = []
    loaded: list[str] = []

    def hold(route: Route) -> None:
        """The page that asks has no answer: its first attempt fails, the next one hangs. The page after it has one."""
        if loaded:
            return route.continue_()
        tried.append(route)
        if len(tried) == 1:
            route.abort()

    page.route("**/conversation", hold)
    ask(page, "First", tag="on its way", text="Reply one")
    expect(page.locator(".words", has_text="Not sent yet: no connection.")).to_be_visible()
    page.once("framenavigated", lambda frame: loaded.append(frame.url))
    page.reload()
    expect(reply(page)).to_have_text("Reply one")
    assert model.stats("on its way")["posts"] <= 2  # and one for the title
    expect(page).to_have_url(re.compile("/c/c_"))
    page.reload()
    expect(page.locator(".message")).to_have_count(2)


def begin_while_reloading(page: Page, chat: Server, between: Callable[[], None] = lambda: None) -> None:
    """Reload a page whose first message gets through only then, before the new document is there.

    :param between: called when the conversation has its id, and the new document is not there yet.
    """
    ways: list[Route] = []
    page.route("**/conversation", lambda route: route.abort())
    ask(page, "First", text="Reply one")
    expect(page.locator(".words", has_text="Not sent yet: no connection.")).to_be_visible()
    page.route(f"{chat.url}/", lambda route: ways.append(route))
    page.evaluate("window.before = true")
    page.context.new_cdp_session(page).send("Page.reload")  # page.reload() would wait for its end
    for _ in deadline(30, "the request for the new document"):
        page.wait_for_timeout(20)
        if ways:
            break
    page.unroute("**/conversation")
    for _ in deadline(30, "the conversation's address"):  # whatever looks into the page waits for the new document now
        page.wait_for_timeout(20)
        if "/c/c_" in page.url:
            break
    between()
    ways[0].continue_()
    page.unroute(f"{chat.url}/")
    page.wait_for_function("!window.before")


def test_a_conversation_that_began_while_its_page_was_reloaded_is_shown(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    begin_while_reloading(page, chat)
    expect(reply(page)).to_have_text("Reply one")
    expect(page).to_have_url(re.compile("/c/c_"))
    expect(page.locator(".message")).to_have_count(2)
    assert len(stored(page)["messages"]) == 2
    # a new conversation is one, loaded anew or not
    welcome = page.get_by_text("What would you like to know?")
    page.get_by_role("link", name="New conversation").click()
    expect(welcome).to_be_visible()
    page.reload()
    expect(welcome).to_be_visible()
    page.go_back()
    expect(reply(page)).to_have_text("Reply one")
    page.goto(chat.url)
    expect(welcome).to_be_visible()


def test_a_conversation_that_is_gone_after_the_reload_leaves_a_new_one(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)

    def delete() -> None:
        identifier = page.url.rsplit("/", 1)[1]
        assert page.request.delete(f"{chat.url}/conversations/{identifier}").ok

    begin_while_reloading(page, chat, delete)
    expect(page.get_by_text("What would you like to know?")).to_be_visible()
    expect(page).to_have_url(f"{chat.url}/")
    ask(page, "Second", text="Reply two")
    expect(reply(page)).to_have_text("Reply two")
    expect(page.locator(".message")).to_have_count(2)


def test_another_tab_asked_first_so_the_message_is_queued(visit: Visit, chat: Server) -> None:
    first = visit(chat.url)
    ask(first, "First", text="Reply one")
    is_over(first)
    second = visit(first.url, first.context)
    expect(reply(second)).to_have_text("Reply one")
    ask(first, "From the first tab", tokens=4000, rate=20)
    expect(reply(first)).not_to_be_empty()
    ask(second, "From the second tab", text="Both are here")
    expect(second.locator(".waiting")).to_contain_text("Queued.")
    expect(second.locator(".user .bubble").nth(1)).to_contain_text("From the first tab")
    first.get_by_role("button", name="Stop").click()
    expect(reply(second)).to_have_text("Both are here")
    assert len(stored(second)["messages"]) == 6


def test_nothing_of_a_deleted_conversation_is_kept_in_the_browser(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, "First", text="Reply one")
    is_over(page)
    box(page).fill("A draft")
    page.reload()
    expect(box(page)).to_have_value("A draft")
    kept = "() => Object.keys(localStorage).filter(key => key.startsWith('flaskchat:') && key.includes(':c_'))"
    assert page.evaluate(kept)
    page.get_by_role("button", name="Menu of this conversation").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.goto("about:blank")
    page.goto(chat.url)
    for _ in deadline(30, "an empty storage"):
        page.wait_for_timeout(20)
        if not page.evaluate(kept):
            break


def test_what_waits_is_sent_while_its_writer_is_elsewhere(visit: Visit, chat: Server, model: badmodel.Running) -> None:
    page = visit(chat.url)
    ask(page, "First", tokens=4000, rate=20)
    expect(reply(page)).not_to_be_empty()
    ask(page, "Second", tag="elsewhere queue", text="Reply two")
    expect(page.locator(".waiting")).to_have_count(1)
    (running,) = {each["run_id"] for each in stored(page)["running"]}
    page.locator(".waiting").get_by_role("button", name="Edit").click()
    editor = page.get_by_label("Edit the waiting message")
    expect(editor).to_be_focused()
    page.get_by_role("link", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator(".waiting")).to_have_count(0)
    expect(editor).to_have_count(0)
    assert page.request.post(f"{chat.url}/runs/{running}/stop", data={}).ok
    for _ in deadline(30, "the message that waited"):
        page.wait_for_timeout(20)
        if model.stats("elsewhere queue")["finished"] == 1:
            break
    expect(page.locator(".message")).to_have_count(0)
    page.go_back()
    expect(reply(page)).to_have_text("Reply two")
    expect(page.locator(".message")).to_have_count(4)
    assert model.stats("elsewhere queue")["posts"] == 1


def test_a_first_message_that_failed_is_kept_in_the_next_new_conversation(
    visit: Visit, chat: Server, network: Proxy
) -> None:
    page = visit(network.url)
    page.route("**/conversation", lambda route: route.abort())
    ask(page, "First", text="Reply one")
    expect(page.locator(".words", has_text="Not sent yet: no connection.")).to_be_visible()
    page.get_by_role("link", name="New conversation").click()
    failed = page.locator(".waiting")
    expect(failed).to_contain_text("Not sent: no connection.")
    page.unroute("**/conversation")
    failed.get_by_role("button", name="Send again").click()
    expect(reply(page)).to_have_text("Reply one")
    expect(failed).to_have_count(0)
    expect(page.locator(".message")).to_have_count(2)
