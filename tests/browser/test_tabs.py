"""Many tabs of one browser over plain HTTP/1.1, which gives them six connections together.

Ten of them; in the short form eight, of which two have none.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest
from playwright.sync_api import Page, expect

from tests.conftest import Server
from tests.server import badmodel
from tests.server.client import deadline

from .talk import ask, is_over, reload_and_compare, reply, stop_and_compare, stored, wait_for_text

Visit = Callable[..., Page]

LEADS = (
    "navigator.locks.query().then(({held}) => held.filter(({name}) => name.endsWith(' lead')).map((l) => l.clientId))"
)


def connections(server: Server) -> int:
    """Connections that the server's workers have now, those of idle keep-alive too."""
    total = 0
    for pid in server.workers():
        for connection in psutil.Process(pid).net_connections("tcp"):
            total += connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == server.port
    return total


@pytest.fixture
def tabs(long: bool) -> int:
    return 10 if long else 8


def length(page: Page) -> int:
    return len(reply(page).inner_text()) if reply(page).count() else 0


def leader(pages: list[Page]) -> Page:
    """The tab that holds the connections for all."""
    for _ in deadline(30, "a tab that leads"):
        for page in pages:
            # a client's id is told by the lock that it alone asks for
            mine = page.evaluate(
                "navigator.locks.request('who ' + Math.random(), async ({name}) => "
                "(await navigator.locks.query()).held.find((lock) => lock.name === name).clientId)"
            )
            if mine in page.evaluate(LEADS):
                return page
        pages[0].wait_for_timeout(20)
    raise AssertionError


def assert_all_grow(pages: list[Page], seconds: float = 40) -> None:
    before = [length(page) for page in pages]
    for _ in deadline(seconds, f"progress in all tabs after {before}"):
        pages[0].wait_for_timeout(20)
        if all(length(page) > was for page, was in zip(pages, before, strict=True)):
            return


def test_ten_tabs_watch_one_reply_over_few_connections(visit: Visit, chat: Server, tabs: int) -> None:
    first = visit(chat.url)
    directive = ask(first, tag="ten watch", tokens=4000, rate=25)
    wait_for_text(first, 20)
    pages = [first, *(visit(first.url, first.context) for _ in range(tabs - 1))]
    assert_all_grow(pages)
    assert connections(chat) <= 6
    for _ in deadline(30, "few streams"):  # a tab may have just handed its own over
        first.wait_for_timeout(20)
        if first.request.get(f"{chat.url}/readyz").json()["streams"] <= 2:
            break
    assert_all_grow(pages)
    stop_and_compare(pages, directive)


def test_ten_tabs_with_a_reply_each_all_live(visit: Visit, chat: Server, tabs: int) -> None:
    first = visit(chat.url)
    pages = [first, *(visit(chat.url, first.context) for _ in range(tabs - 1))]
    directives = [ask(page, tag=f"own {at}", tokens=4000, rate=20) for at, page in enumerate(pages)]
    assert_all_grow(pages)
    assert connections(chat) <= 6
    # other requests find a connection
    assert first.evaluate("fetch('/models').then((response) => response.status)") == 200
    assert_all_grow(pages)
    for page in pages:
        page.get_by_role("button", name="Stop").click()
    for page, directive in zip(pages, directives, strict=True):
        is_over(page)
        kept = stored(page)["messages"][-1]
        assert kept["status"] == "stopped"
        assert badmodel.text_of(directive).startswith(kept["text"])
    reload_and_compare(pages)


def test_a_tab_that_is_alone_keeps_the_stream_of_its_question(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    ask(page, text="Here I am.", rate=20)
    is_over(page)
    expect(reply(page)).to_have_text("Here I am.")
    assert not [url for url in urls if "/events" in url]
    assert page.evaluate("navigator.locks.query().then(({held}) => held.length)") == 1


def test_when_the_tab_that_holds_the_connections_closes_another_takes_over(visit: Visit, chat: Server) -> None:
    first = visit(chat.url)
    directive = ask(first, tag="takes over", tokens=4000, rate=40)
    wait_for_text(first, 20)
    pages = [first, *(visit(first.url, first.context) for _ in range(3))]
    assert_all_grow(pages)
    for _ in range(2):
        leads = leader(pages)
        pages.remove(leads)
        leads.close()
        assert_all_grow(pages)
    for page in pages:
        expect(page.get_by_text("Connection lost")).to_have_count(0)
    stop_and_compare(pages, directive)


def test_a_tab_that_hangs_does_not_hold_up_the_others(visit: Visit, chat: Server) -> None:
    first = visit(chat.url)
    directive = ask(first, tag="hangs", tokens=4000, rate=40)
    wait_for_text(first, 20)
    pages = [first, *(visit(first.url, first.context) for _ in range(3))]
    assert_all_grow(pages)
    hangs = leader(pages)
    others = [page for page in pages if page is not hangs]
    session = hangs.context.new_cdp_session(hangs)
    session.send("Debugger.enable")
    session.send("Debugger.pause")
    assert_all_grow(others)
    assert leader(others) in others
    session.send("Debugger.disable")
    stop_and_compare(pages, directive)


def test_a_tab_that_is_frozen_hands_over_and_catches_up_when_it_wakes(visit: Visit, chat: Server) -> None:
    first = visit(chat.url)
    directive = ask(first, tag="frozen", tokens=4000, rate=40)
    wait_for_text(first, 20)
    pages = [first, *(visit(first.url, first.context) for _ in range(2))]
    assert_all_grow(pages)
    frozen = leader(pages)
    others = [page for page in pages if page is not frozen]
    # Chromium freezes hidden tabs only, and here is none hidden: it is told, and then it is stopped.
    frozen.evaluate("document.dispatchEvent(new Event('freeze'))")
    for _ in deadline(30, "another tab that leads, to which the lock was given back"):
        if leader(pages) in others:
            break
    session = frozen.context.new_cdp_session(frozen)
    session.send("Debugger.enable")
    session.send("Debugger.pause")
    assert_all_grow(others)
    session.send("Debugger.disable")
    frozen.evaluate("document.dispatchEvent(new Event('resume'))")
    assert_all_grow(pages)
    stop_and_compare(pages, directive)


def test_two_tabs_in_one_conversation_ask_at_once(visit: Visit, chat: Server) -> None:
    first = visit(chat.url)
    ask(first, text="Begun.", rate=0)
    is_over(first)
    second = visit(first.url, first.context)
    expect(reply(second)).to_have_text("Begun.")
    directive = ask(first, "One", tag="one", tokens=4000, rate=40)
    wait_for_text(first, 20)
    # at that moment: the second tab may know nothing of it yet, and the server tells it
    ask(second, "Two", text="Second.", rate=0)
    expect(second.locator(".user").filter(has_text="One")).to_be_visible()
    assert_all_grow([first, second])
    expect(first.locator(".user").filter(has_text="One")).to_have_count(1)
    first.get_by_role("button", name="Stop").click()
    expect(reply(second)).to_have_text("Second.")
    is_over(first)
    asked = [each["text"] for each in stored(first)["messages"] if each["role"] == "user"]
    assert [text.split()[0] for text in asked] == ["Tell", "One", "Two"]
    kept = stored(first)["messages"][3]["text"]
    assert kept
    assert badmodel.text_of(directive).startswith(kept)


def test_a_question_asked_in_one_tab_is_shown_in_the_others(visit: Visit, chat: Server) -> None:
    first = visit(chat.url)
    ask(first, text="Begun.", rate=0)
    is_over(first)
    second = visit(first.url, first.context)
    expect(reply(second)).to_have_text("Begun.")
    box = second.get_by_label("Your message")
    box.fill("I write something")
    directive = ask(first, "One", tag="shown there", tokens=4000, rate=40)
    expect(second.locator(".user").filter(has_text="One")).to_be_visible()
    assert_all_grow([first, second])
    expect(box).to_have_value("I write something")
    stop_and_compare([first, second], directive)
    first.get_by_role("button", name="Continue").click()
    expect(second.get_by_role("button", name="Stop")).to_be_visible()
    second.get_by_role("button", name="Stop").click()
    is_over(first)
    first.get_by_role("button", name="Try again").click()
    expect(second.locator(".reply").last).to_contain_text("1 / 2")


def test_without_locks_each_tab_follows_by_itself(visit: Visit, chat: Server) -> None:
    first = visit(chat.url)
    first.context.add_init_script("Object.defineProperty(navigator, 'locks', { value: undefined })")
    first.reload()
    directive = ask(first, tag="no locks", tokens=4000, rate=40)
    wait_for_text(first, 20)
    second = visit(first.url, first.context)
    assert second.evaluate("navigator.locks") is None
    assert_all_grow([first, second])
    first.close()
    stop_and_compare([second], directive)
