"""The page in a real browser, against real gunicorn with two workers."""

from __future__ import annotations

import math
import re

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.conftest import Server
from tests.server import badmodel
from tests.server.client import deadline

from .talk import Visit, ask, is_over, reply, scrolled, stop_and_compare, stored, wait_for_text

RICH = """Some **bold** text with `code`.

- one
- two

```python
print("<b>")
```

| a | b |
|---|---|
| 1 | 2 |

<img src=x onerror=alert(1)> and ![a cat](https://images.example/cat.png)
"""


def test_a_reply_streams_and_is_shown_as_markdown(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    # noted in the page: who looks from outside may come when all is over
    page.evaluate(
        """() => {
          const root = document.querySelector("flask-chat").shadowRoot;
          new MutationObserver(() => {
            const reply = root.querySelector(".reply .markdown");
            if (!reply?.querySelector("strong") || reply.textContent.includes("print")) return;
            globalThis.streamed = reply.querySelector("strong").textContent;
            globalThis.stoppable = root.querySelector("button.stop") !== null;
          }).observe(root, { childList: true, characterData: true, subtree: true });
        }"""
    )
    ask(page, text=RICH, rate=20, fault="stall", after=6, hold=2)
    is_over(page)
    assert page.evaluate("[globalThis.streamed, globalThis.stoppable]") == ["bold", True], "the reply came in a lump"
    expect(reply(page).locator("li")).to_have_text(["one", "two"])
    expect(reply(page).locator("pre")).to_have_text('print("<b>")')
    expect(reply(page).locator("td")).to_have_text(["1", "2"])
    expect(reply(page)).to_contain_text("<img src=x onerror=alert(1)>")
    expect(reply(page).locator("a.image")).to_have_text("Image: a cat (images.example)")
    assert reply(page).locator("img").count() == 0
    assert hosts == {f"127.0.0.1:{chat.port}"}
    expect(page.get_by_role("status")).to_have_text("The reply is complete.")


def test_reasoning_is_folded_and_apart_from_the_text(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, text="The answer.", reasoning=3)
    is_over(page)
    expect(reply(page)).to_have_text("The answer.")
    thoughts = page.locator(".reasoning .thoughts")
    expect(thoughts).to_be_hidden()
    page.locator("summary").click()
    expect(thoughts).to_be_visible()
    expect(thoughts).to_have_text("thought 0 thought 1 thought 2")
    page.reload()
    page.locator("summary").click()
    expect(thoughts).to_be_visible()
    expect(thoughts).to_have_text("thought 0 thought 1 thought 2")


def test_a_reload_in_the_middle_misses_nothing(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    directive = ask(page, tag="reload", tokens=4000, rate=40)
    wait_for_text(page, 60)
    for _ in range(2):
        page.reload()
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        wait_for_text(page, 80)
    stop_and_compare([page], directive)


def test_a_tab_that_was_closed_is_no_loss(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    directive = ask(page, tag="closed", tokens=4000, rate=40)
    wait_for_text(page, 40)
    url, context = page.url, page.context
    page.close()
    again = visit(url, context)
    expect(again.get_by_role("button", name="Stop")).to_be_visible()
    wait_for_text(again, 80)
    stop_and_compare([again], directive)


def test_two_tabs_show_the_same_reply(visit: Visit, chat: Server) -> None:
    first = visit(chat.url)
    directive = ask(first, tag="tabs", tokens=4000, rate=40)
    wait_for_text(first, 40)
    second = visit(first.url, first.context)
    expect(second.get_by_role("button", name="Stop")).to_be_visible()
    wait_for_text(second, 60)
    stop_and_compare([first, second], directive)


def test_a_page_that_is_looked_at_again_shows_what_another_device_asked(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, text="Begun.", rate=0)
    is_over(page)
    # the same visitor elsewhere, of whom no other tab can tell
    for number, event in enumerate(["visibilitychange", "focus", "pageshow"], 2):
        message = {"id": f"00000000-0000-4000-8000-00000000000{number}", "text": 'Elsewhere {"text": "Done."}'}
        kept = stored(page)
        place = {"conversation_id": kept["id"], "parent_id": kept["current_leaf_id"]}
        answer = page.request.post(f"{chat.url}/conversation", data={"action": "send", "message": message, **place})
        assert answer.ok, answer.text()
        # some time later: whoever flicks through tabs does not read each time
        page.evaluate("(now => (Date.now = () => now() + 60_000))(Date.now)")
        page.evaluate(f"{'document' if number == 2 else 'window'}.dispatchEvent(new Event('{event}'))")
        expect(page.locator(".user")).to_have_count(number)
        expect(reply(page)).to_have_text("Done.")
    asked = [each.inner_text().split()[0] for each in page.locator(".user .bubble").all()]
    assert asked == ["Tell", "Elsewhere", "Elsewhere", "Elsewhere"]


def test_stop_before_the_server_has_answered_waits_for_the_run_and_stops_it(
    visit: Visit, chat: Server, model: badmodel.Running
) -> None:
    page = visit(chat.url)
    held: list[Route] = []
    page.route("**/conversation", lambda route: held.append(route))
    ask(page, tag="early stop", tokens=4000, rate=20)
    expect(page.get_by_text("Sending…")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopping…")).to_be_visible()
    for _ in deadline(30, "the question on its way"):
        page.wait_for_timeout(20)
        if held:
            break
    held[0].continue_()
    expect(page.locator(".reply .words")).to_have_text(re.compile("^Stopped."))
    is_over(page)
    assert stored(page)["messages"][-1]["status"] == "stopped"
    for _ in deadline(30, "the end of the model's connection"):
        page.wait_for_timeout(20)
        if model.stats("early stop")["live"] == 0:
            break


@pytest.mark.parametrize("moment", ["before the first token", "in the middle"])
def test_stop_closes_the_models_connection_and_says_so(visit: Visit, chat: Server, moment: str) -> None:
    page = visit(chat.url)
    if moment == "in the middle":
        ask(page, tokens=2000, rate=40)
        wait_for_text(page, 30)
    else:
        ask(page, fault="silent-before-first-token", hold=30)
        expect(page.get_by_text("Waiting for the first words…")).to_be_visible()
    with page.expect_response("**/stop") as answer:
        page.get_by_role("button", name="Stop").click()
    words = page.locator(".reply .words")
    # that these are less than 300 is the server's to keep, and its own tests see to that
    milliseconds = max(1, math.floor(answer.value.json()["upstream_closed_ms"] + 0.5))  # as JavaScript rounds
    expect(words).to_have_text(f"Stopped. The model's connection was closed in {milliseconds} ms.")
    is_over(page)
    kept = stored(page)["messages"][-1]
    assert kept["status"] == "stopped"
    page.reload()
    expect(words).to_have_text("Stopped.")
    assert bool(kept["text"]) == (moment == "in the middle")


def test_escape_stops_and_continue_goes_on(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, tag="go on", tokens=4000, rate=40)
    wait_for_text(page, 30)
    page.get_by_label("Your message").press("Escape")
    expect(page.locator(".reply .words")).to_contain_text("Stopped.")
    before = stored(page)["messages"][-1]["text"]
    shown = len(reply(page).inner_text())
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".reply .words")).to_have_count(0)
    wait_for_text(page, shown + 40)
    page.get_by_label("Your message").press("Escape")
    is_over(page)
    messages = stored(page)["messages"]
    assert len(messages) == 2
    assert messages[-1]["text"].startswith(before)
    assert len(messages[-1]["text"]) > len(before)


def test_a_reply_that_fails_is_kept_and_can_be_tried_again(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, tokens=20, rate=0, fault="error", after=5, tag="fails")
    expect(page.locator(".reply .words")).to_have_text(re.compile("reported an error. What it had written is kept."))
    expect(reply(page)).not_to_be_empty()
    page.reload()
    expect(page.locator(".reply .words")).to_have_text(re.compile("reported an error. What it had written is kept."))
    page.get_by_role("button", name="Try again").click()
    is_over(page)
    for _ in deadline(30, "a sibling of the reply"):
        replies = [message for message in stored(page)["messages"] if message["role"] == "assistant"]
        if len(replies) == 2:
            break
    assert replies[0]["parent_id"] == replies[1]["parent_id"]
    expect(page.locator(".reply")).to_have_count(1)


def test_a_refused_message_comes_back_with_the_servers_words(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    text = "x" * 5001
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_have_text("Not valid: message.text: longer than 5000 characters.")
    expect(page.get_by_label("Your message")).to_have_value(text)
    expect(page.locator(".message")).to_have_count(0)


def test_enter_sends_but_not_with_shift_and_not_within_a_composition(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    box = page.get_by_label("Your message")
    box.press_sequentially("one")
    box.press("Shift+Enter")
    box.press_sequentially('two {"text": "ok"}')
    box.evaluate("e => e.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))")
    expect(page.locator(".message")).to_have_count(0)
    box.press("Enter")
    is_over(page)
    expect(page.locator(".user .bubble")).to_have_text('one\ntwo {"text": "ok"}')
    expect(box).to_have_value("")


def test_a_reply_goes_on_while_its_reader_is_elsewhere(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    directive = ask(page, tag="elsewhere", tokens=4000, rate=30)
    wait_for_text(page, 20)
    page.get_by_role("link", name="New conversation").click()
    expect(page.get_by_text("What would you like to know?")).to_be_visible()
    page.go_back()
    wait_for_text(page, 40)
    stop_and_compare([page], directive)


def test_without_javascript_the_first_thing_seen_says_so(browser: Browser, chat: Server) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 700}, java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(chat.url)
        notice = page.locator("noscript p")
        expect(notice).to_be_in_viewport(ratio=1)
        expect(page.locator("main")).to_be_hidden()
    finally:
        context.close()


def test_somebody_elses_conversation_is_not_there(visit: Visit, chat: Server) -> None:
    mine = visit(chat.url)
    ask(mine, text="Secret", rate=0)
    is_over(mine)
    other = visit(mine.url)
    expect(other.get_by_text("There is no such conversation, or it belongs to somebody else.")).to_be_visible()
    assert "Secret" not in other.locator("flask-chat").inner_text()


@pytest.mark.parametrize("way", ["button", "message"])
def test_where_no_conversation_is_a_new_one_is_begun(visit: Visit, chat: Server, way: str) -> None:
    page = visit(f"{chat.url}/c/c_unknown")
    expect(page.get_by_role("heading", name="Not here")).to_be_visible()
    buttons = page.locator(".welcome").get_by_role("button")
    expect(buttons).to_have_text(["New conversation", "Try again"])
    if way == "button":
        buttons.first.click()
        expect(page.get_by_text("What would you like to know?")).to_be_visible()
        assert page.url == f"{chat.url}/"
        expect(page.get_by_label("Your message")).to_be_focused()
    ask(page, text="A new one.", rate=0)
    is_over(page)
    expect(reply(page)).to_have_text("A new one.")
    expect(page.get_by_role("heading", name="Not here")).to_have_count(0)
    assert stored(page)["messages"][-1]["text"] == "A new one."


def test_the_end_is_followed_only_while_the_reader_is_there(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, tag="scrolls", tokens=40_000, rate=100)
    scroller = page.locator(".scroll")
    gap = "e => e.scrollHeight - e.scrollTop - e.clientHeight"
    for _ in deadline(30, "more text than fits, and its end in sight"):
        page.wait_for_timeout(20)
        if scroller.evaluate(f"e => e.scrollHeight > e.clientHeight + 400 && ({gap})(e) < 60"):
            break
    scroller.hover()
    page.mouse.wheel(0, -150)
    expect(page.get_by_role("button", name="Follow the reply")).to_be_visible()
    held = scrolled(scroller)
    height = scroller.evaluate("e => e.scrollHeight")
    page.wait_for_function("([e, height]) => e.scrollHeight > height + 300", arg=[scroller.element_handle(), height])
    assert scroller.evaluate("e => e.scrollTop") == held
    page.get_by_role("button", name="Follow the reply").click()
    for _ in deadline(30, "the end"):
        page.wait_for_timeout(20)
        if scroller.evaluate(gap) < 60:
            break
    page.get_by_role("button", name="Stop").click()
    is_over(page)


def test_on_a_touch_screen_enter_breaks_the_line_and_the_button_sends(visit: Visit, chat: Server) -> None:
    page = visit(chat.url, has_touch=True, is_mobile=True)
    box = page.get_by_label("Your message")
    box.press_sequentially("one")
    box.press("Enter")
    box.press_sequentially("two")
    expect(box).to_have_value("one\ntwo")
    expect(box).to_have_attribute("enterkeyhint", "enter")
    expect(page.locator(".message")).to_have_count(0)
    page.get_by_role("button", name="Send").tap()
    expect(page.get_by_role("article", name="You")).to_contain_text("two")


def test_a_message_can_be_copied_where_the_browser_does_not_give_the_clipboard_away(
    visit: Visit, chat: Server
) -> None:
    page = visit(chat.url)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    box = page.get_by_label("Your message")
    box.fill('hello {"text": "what is copied"}')
    box.press("Enter")
    reply = page.locator(".reply")
    expect(reply).to_contain_text("what is copied")
    reply.get_by_role("button", name="Copy").click()
    expect(reply).to_contain_text("Copied")
    box.focus()
    box.press("Control+v")
    expect(box).to_have_value("what is copied")
