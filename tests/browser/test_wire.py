"""The panel that shows what came over the connection."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

from playwright.sync_api import Locator, Page, Route, expect

from tests.conftest import Server
from tests.server import badmodel
from tests.server.client import deadline

from .talk import ask, is_over, scrolled, show_the_same, stored, wait_for_text

Visit = Callable[..., Page]


def wire(page: Page) -> Locator:
    return page.get_by_role("region", name="The wire")


def ids(page: Page) -> list[int]:
    return [int(text) for text in wire(page).locator(".line .id").all_text_contents() if text]


def lines(page: Page, words: str | re.Pattern[str]) -> Locator:
    return wire(page).locator(".line").filter(has_text=words)


def test_pulling_the_plug_shows_a_cut_and_a_resume_and_loses_nothing(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    expect(wire(page)).to_have_count(0)
    directive = ask(page, tag="plug", tokens=4000, rate=40)
    wait_for_text(page, 40)
    held: list[Route] = []
    page.route("**/runs/*/events", lambda route: held.append(route))
    page.keyboard.press("Alt+w")
    expect(lines(page, "POST /conversation")).to_have_count(1)
    wire(page).get_by_role("button", name="Pull the plug").click()
    expect(lines(page, "Cut: you pulled the plug.")).to_have_count(1)
    expect(page.locator(".words", has_text="Connection lost. Reconnecting, nothing is lost.")).to_be_visible()
    resume = lines(page, "Resume after event")
    expect(resume).to_have_count(1)
    for _ in deadline(30, "the request that resumes"):
        page.wait_for_timeout(20)
        if held:
            break
    sent = [route.request.headers.get("last-event-id", "") for route in held]
    for route in held:
        route.continue_()
    page.unroute("**/runs/*/events")
    shown = len(ids(page))
    for _ in deadline(30, "events after the resume"):
        page.wait_for_timeout(20)
        if len(ids(page)) > shown + 5:
            break
    page.get_by_role("button", name="Stop").click()
    is_over(page)
    found = re.search(
        r"Resume after event (\d+): GET /runs/(run_[\w-]+)/events, Last-Event-ID: (\d+)", resume.text_content() or ""
    )
    assert found is not None
    assert [found[1]] == sent
    expect(lines(page, "End of the reply.")).to_have_count(1)
    seen = ids(page)
    assert seen == list(range(1, len(seen) + 1)), "the frames, each once and in order"
    lined = wire(page).locator(".line").all_text_contents()
    cut = next(at for at, text in enumerate(lined) if "you pulled the plug" in text)
    last, first = (re.search(r"\d\d\.\d{3} +(\d+) ", text) for text in (lined[cut - 1], lined[cut + 3]))
    assert (last and last[1], first and first[1]) == (found[1], str(int(found[1]) + 1)), lined[cut - 2 : cut + 5]
    kept = stored(page)["messages"][-1]["text"]
    assert kept
    assert badmodel.text_of(directive).startswith(kept)


def test_the_command_follows_the_same_run(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, tag="curl", tokens=4000, rate=40)
    wait_for_text(page, 40)
    page.get_by_role("button", name="Menu of this conversation").click()
    page.get_by_role("menuitem", name="The wire").click()
    wire(page).get_by_text("Follow the same run from a terminal").click()
    command = wire(page).locator("pre")
    expect(command).to_contain_text("Last-Event-ID")
    text = command.inner_text()
    cookies = "; ".join(f"{cookie['name']}={cookie['value']}" for cookie in page.context.cookies())
    assert "Cookie: …" in text
    command_line = text.replace("Cookie: …", f"Cookie: {cookies}")
    with subprocess.Popen(["bash", "-c", command_line], stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout is not None
        answer = curl.stdout.readline()
        page.get_by_role("button", name="Stop").click()
        is_over(page)
        answer += curl.stdout.read()
        assert curl.wait(60) == 0
    after = int(re.search(r"Last-Event-ID: (\d+)", text)[1])  # type: ignore[index]
    numbers = [int(number) for number in re.findall(r"^id: (\d+)$", answer, re.MULTILINE)]
    expect(lines(page, "End of the reply.")).to_have_count(1)
    last = ids(page)[-1]
    assert numbers == list(range(after + 1, last + 1))
    assert "event: stopped" in answer
    expect(command).not_to_contain_text("Last-Event-ID")


def test_heartbeats_and_what_came_before_are_shown(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, text="Short.", rate=0)
    is_over(page)
    page.keyboard.press("Alt+w")
    expect(lines(page, "done")).to_have_count(1)
    expect(lines(page, re.compile(r'delta\s+\{"text":"')).first).to_be_visible()
    size = int(lines(page, re.compile(r"\bstart\b")).locator(".size").all_text_contents()[0].split()[0])
    assert size > 100
    # another conversation has a wire of its own
    page.get_by_role("link", name="New conversation").click()
    expect(wire(page).locator(".line")).to_have_count(0)
    expect(wire(page)).to_contain_text("Nothing has come yet.")
    wire(page).get_by_role("button", name="Pull the plug").click()
    expect(wire(page)).to_contain_text("There is no connection now")
    wire(page).get_by_role("button", name="Close the wire").click()
    expect(wire(page)).to_have_count(0)
    expect(page.get_by_label("Your message")).to_be_focused()


def test_the_list_is_bounded_and_stays_where_it_is_read(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.keyboard.press("Alt+w")
    ask(page, tag="many", tokens=4000, rate=60)
    wait_for_text(page, 300)
    at_end = "e => e.scrollHeight - e.scrollTop - e.clientHeight < 30"
    box = wire(page).locator(".wire-list")
    for _ in deadline(30, "the list at its end"):
        if box.evaluate(at_end):
            break
    box.hover()
    page.mouse.wheel(0, -200)
    for _ in deadline(30, "the list away from its end"):
        if not box.evaluate(at_end):
            break
    top = scrolled(box)
    count = wire(page).locator(".line").count()
    for _ in deadline(30, "more lines"):
        page.wait_for_timeout(20)
        if wire(page).locator(".line").count() > count + 20:
            break
    assert abs(box.evaluate("e => e.scrollTop") - top) < 40
    # whoever comes back down is followed again
    box.evaluate("e => e.scrollTo(0, e.scrollHeight)")
    count = wire(page).locator(".line").count()
    for _ in deadline(30, "more lines, and the list at its end"):
        page.wait_for_timeout(20)
        if wire(page).locator(".line").count() > count + 20 and box.evaluate(at_end):
            break
    page.get_by_role("button", name="Stop").click()
    is_over(page)
    assert stored(page)["messages"][-1]["text"]


def test_whoever_writes_while_the_wire_is_being_loaded_goes_on_writing(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    held: list[Route] = []
    hold = [True]
    page.route("**/assets/*", lambda route: held.append(route) if hold[0] else route.continue_())
    box = page.get_by_label("Your message")
    box.press("Alt+w")
    for _ in deadline(30, "the panel asked for"):
        page.wait_for_timeout(20)
        if held:
            break
    page.keyboard.type("half a ")
    hold[0] = False
    for route in held:
        route.continue_()
    expect(wire(page)).to_be_visible()
    page.keyboard.type("sentence")
    expect(box).to_have_value("half a sentence")
    expect(box).to_be_focused()
    # but from a menu, which gives the focus back to a button, the panel gets it
    page.keyboard.press("Alt+w")
    expect(wire(page)).to_have_count(0)
    page.get_by_role("button", name="Menu of this conversation").click()
    page.get_by_role("menuitem", name="The wire").click()
    expect(wire(page).get_by_role("button", name="Pull the plug")).to_be_focused()


def test_a_tab_that_listens_shows_the_wire_and_can_pull_the_plug(visit: Visit, chat: Server) -> None:
    first = visit(chat.url)
    directive = ask(first, tag="plug of all", tokens=4000, rate=40)
    wait_for_text(first, 20)
    pages = [visit(first.url, first.context) for _ in range(2)]
    for page in pages:
        wait_for_text(page, 20)
        page.keyboard.press("Alt+w")
    wire(pages[1]).get_by_role("button", name="Pull the plug").click()
    expect(lines(pages[1], "Cut: you pulled the plug.")).to_have_count(1)
    expect(lines(pages[0], "Cut: the connection broke.")).to_have_count(1)
    for page in pages:
        expect(lines(page, "Resume after event")).to_have_count(1)
    pages[0].get_by_role("button", name="Stop").click()
    for page in [first, *pages]:
        is_over(page)
    for page in pages:
        seen = ids(page)
        assert seen == list(range(1, len(seen) + 1))
    show_the_same([first, *pages])
    kept = stored(pages[0])["messages"][-1]["text"]
    assert kept
    assert badmodel.text_of(directive).startswith(kept)
