"""What stands around a conversation: its menu and panels, the keys, the tab's title, light and dark, narrow screens."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Route, expect

from tests.conftest import Server
from tests.server.client import deadline

from .talk import Visit, ask, is_over, reply, rows, seed, stored, wait_for_focus


def test_the_system_prompt_is_kept_with_the_conversation(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    (identifier,) = seed(page, "With a prompt")
    rows(page).first.click()
    menu = page.get_by_role("button", name="Menu of this conversation")
    menu.click()
    page.get_by_role("menuitem", name="System prompt").click()
    area = page.get_by_role("textbox", name="System prompt")
    expect(area).to_be_focused()
    area.fill("Answer in rhymes.")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    wait_for_focus(page, "Menu of this conversation")
    assert page.request.get(f"{chat.url}/conversations/{identifier}").json()["system_prompt"] == "Answer in rhymes."
    page.reload()
    page.keyboard.press("F6")
    menu.click()
    page.get_by_role("menuitem", name="System prompt").click()
    expect(area).to_have_value("Answer in rhymes.")
    area.fill("x" * 6000)  # more than this server takes
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("It could not be saved. Not valid: system_prompt: longer than")
    expect(area).to_have_value("x" * 6000)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_selecting_text_beyond_the_dialog_s_edge_does_not_close_it(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    seed(page, "With a prompt")
    rows(page).first.click()
    page.get_by_role("button", name="Menu of this conversation").click()
    page.get_by_role("menuitem", name="System prompt").click()
    area = page.get_by_role("textbox", name="System prompt")
    area.fill("Answer in rhymes.")
    box = area.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 40, box["y"] + 12)
    page.mouse.down()
    page.mouse.move(5, box["y"] + 12, steps=5)
    page.mouse.up()
    expect(area).to_have_value("Answer in rhymes.")
    page.mouse.click(5, 5)
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_new_conversation_has_its_system_prompt_from_the_first_message(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    sent: list[Any] = []
    page.on("request", lambda each: sent.append(each.post_data_json) if each.method == "POST" else None)
    menu = page.get_by_role("button", name="Menu of this conversation")
    menu.click()
    page.get_by_role("menuitem", name="System prompt").click()
    area = page.get_by_role("textbox", name="System prompt")
    area.fill("Answer in rhymes.")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Your system prompt is set.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("Your system prompt is set.")).to_be_visible()
    ask(page, "In verse", text="So be it.")
    is_over(page)
    assert sent[0]["system_prompt"] == "Answer in rhymes."
    assert stored(page)["system_prompt"] == "Answer in rhymes."
    menu.click()
    page.get_by_role("menuitem", name="System prompt").click()
    expect(area).to_have_value("Answer in rhymes.")
    page.keyboard.press("Escape")
    page.get_by_role("link", name="New conversation").click()
    expect(page.get_by_text("What would you like to know?")).to_be_visible()
    expect(page.get_by_text("Your system prompt is set.")).to_have_count(0)


def test_one_of_many_models_is_found_by_typing(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    models = [{"id": f"p:model-{n}", "label": f"Model {n}", "default": n == 0} for n in range(20)]
    models.append({"id": "count", "label": "Counting", "default": False})
    page.route("**/models", lambda route: route.fulfill(json={"items": models}))
    page.reload()
    button = page.get_by_role("button", name="Model: Model 0")
    button.click()
    box = page.get_by_role("combobox", name="Find a model")
    expect(box).to_be_focused()
    expect(page.get_by_role("option")).to_have_count(21)
    box.fill("nonsense")
    expect(page.get_by_text("No model is called “nonsense”.")).to_be_visible()
    box.press("Escape")
    expect(button).to_be_focused()
    button.press("Enter")
    box.fill("coun")
    expect(page.get_by_role("option")).to_have_text(["Counting"])
    box.press("Enter")
    picked = page.get_by_role("button", name="Model: Counting")
    expect(picked).to_be_focused()
    page.get_by_label("Your message").fill("2 0")
    page.keyboard.press("Enter")
    expect(page.locator(".reply .markdown")).to_contain_text("word1")


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


def test_the_keys_are_listed_and_do_what_the_list_says(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    seed(page, "Copy this")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    rows(page).first.click()
    expect(page.locator(".reply .markdown")).to_contain_text("word0")
    page.get_by_label("Your message").press("?")
    expect(page.get_by_role("dialog")).to_have_count(0)  # where one writes it is a sign
    expect(page.get_by_label("Your message")).to_have_value("?")
    page.get_by_label("Your message").fill("")
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Alt+n")  # the page's keys rest meanwhile
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_label("Your message")).to_be_focused()
    expect(page.locator(".user")).to_contain_text("Copy this")
    page.keyboard.press("Alt+c")
    expect(page.locator(".notice")).to_contain_text("The last reply is copied.")
    assert page.evaluate("navigator.clipboard.readText()").startswith("word0 ü€😀")
    page.keyboard.press("Alt+l")
    expect(page.locator(".side")).to_be_hidden()
    page.keyboard.press("Alt+l")
    expect(page.locator(".side")).to_be_visible()
    page.locator(".scroll").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    wait_for_focus(page, "div.scroll")
    page.keyboard.press("/")
    wait_for_focus(page, "Search conversations")
    page.keyboard.press("Alt+n")
    expect(page.get_by_text("What would you like to know?")).to_be_visible()
    wait_for_focus(page, "Your message")
    ask(page, "Stop me", tokens=2000, rate=20)
    expect(page.locator(".reply .markdown")).not_to_be_empty()
    page.locator(".scroll").focus()
    page.keyboard.press("Escape")
    expect(page.locator(".reply .words")).to_contain_text("Stopped.")


def test_menus_are_walked_with_arrows_and_give_the_focus_back(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    seed(page, "One")
    rows(page).first.click()
    expect(page.locator(".user")).to_contain_text("One")
    page.get_by_role("button", name="Menu of this conversation").press("Enter")
    wait_for_focus(page, "Rename")
    page.keyboard.press("ArrowDown")
    wait_for_focus(page, "System prompt")
    page.keyboard.press("End")
    wait_for_focus(page, "Keys")
    page.keyboard.press("ArrowDown")
    wait_for_focus(page, "Rename")
    page.keyboard.press("d")
    wait_for_focus(page, "Delete")
    page.keyboard.press("Escape")
    wait_for_focus(page, "Menu of this conversation")
    expect(page.get_by_role("menu")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.get_by_role("menu")).to_have_count(1)
    page.mouse.click(500, 400)
    expect(page.get_by_role("menu")).to_have_count(0)


def test_the_tab_says_when_a_reply_is_ready_in_the_background(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    held: list[Route] = []
    page.route("**/conversation", lambda route: held.append(route))
    ask(page, "Background", text="Done soon. " * 10, rate=20, size=8)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    for _ in deadline(30, "the question on its way"):
        page.wait_for_timeout(20)
        if held:
            break
    hide = """hidden => {
      Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    held[0].continue_()
    expect(page).to_have_title(re.compile("^✓ Reply ready · "))
    page.evaluate(hide, False)
    expect(page).to_have_title(re.compile("^(Background|Done soon).* · Chat$"))


def test_light_and_dark_are_chosen_and_kept(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)

    def background() -> str:
        colour: str = page.locator("flask-chat .app").evaluate("e => getComputedStyle(e).backgroundColor")
        return colour

    light = background()
    page.get_by_role("button", name="Menu of this conversation").click()
    page.get_by_role("menuitemradio", name="Dark colours").click()
    dark = background()
    assert dark != light
    page.reload()
    page.get_by_label("Your message").wait_for()
    assert background() == dark
    page.emulate_media(color_scheme="dark")
    page.get_by_role("button", name="Menu of this conversation").click()
    page.get_by_role("menuitemradio", name="Light colours").click()
    assert background() == light


def test_on_a_narrow_screen_the_list_lies_over_the_conversation(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    seed(page, "Narrow")
    page.set_viewport_size({"width": 320, "height": 600})
    expect(page.locator(".side")).to_be_hidden()
    button = page.get_by_role("button", name="Conversations")
    expect(button).to_have_attribute("aria-expanded", "false")
    button.click()
    expect(button).to_have_attribute("aria-expanded", "true")
    wait_for_focus(page, "New conversation")
    for _ in range(8):  # what is covered cannot be reached
        page.keyboard.press("Tab")
        inside = page.evaluate("!!document.activeElement?.shadowRoot?.activeElement?.closest('.main')")
        assert not inside
    page.keyboard.press("Control+k")
    wait_for_focus(page, "Search conversations")
    page.keyboard.press("Escape")
    expect(page.locator(".side")).to_be_hidden()
    wait_for_focus(page, "button.plain menu")
    button.click()
    rows(page).first.click()
    expect(page.locator(".side")).to_be_hidden()
    expect(page.locator(".user")).to_contain_text("Narrow")
    wait_for_focus(page, "Your message")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_the_list_leads_to_earlier_conversations_and_the_address_follows(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, "First question", text="First reply", rate=0)
    is_over(page)
    first = page.url
    assert "/c/c_" in first
    page.get_by_role("link", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    ask(page, "Second question", tag="second", tokens=2000, rate=20)
    expect(reply(page)).not_to_be_empty()
    links = page.locator(".side li a")
    expect(links).to_have_count(2)
    expect(links.nth(0)).to_have_attribute("aria-current", "page")
    links.nth(1).click()
    expect(reply(page)).to_have_text("First reply")
    expect(page).to_have_url(first)
    expect(page).to_have_title(re.compile("^First .* · Chat$"))
    expect(links.nth(0)).to_contain_text("writing…")
    page.go_back()
    expect(page.locator(".user")).to_contain_text("Second question")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    is_over(page)
    expect(links.nth(0)).not_to_contain_text("writing…")
    page.go_forward()
    expect(reply(page)).to_have_text("First reply")


def test_a_new_visitor_is_one_visitor_from_the_first_moment(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.goto("about:blank")  # whose requests are still under way would be somebody else's without the cookie
    page.context.clear_cookies()
    cookies: list[str] = []
    page.on("response", lambda response: cookies.extend(filter(None, [response.header_value("set-cookie")])))
    page.goto(chat.url)
    ask(page, "Mine", text="Mine", rate=0)
    is_over(page)
    expect(page.locator(".side li a")).to_have_count(1)
    assert len(cookies) == 1


def test_words_say_when_the_list_cannot_be_loaded(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)

    def refuse(route: Route) -> None:
        route.abort()

    page.route("**/conversations?*", refuse)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_text("The list could not be loaded.")).to_be_visible()
    page.unroute("**/conversations?*")
    page.locator(".side").get_by_role("button", name="Try again").click()
    expect(page.get_by_text("The list could not be loaded.")).to_have_count(0)
