"""The page where a network or a worker goes: it says so in words, and nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from playwright.sync_api import expect

from tests.conftest import Server
from tests.server import badmodel
from tests.server.checks import FAULTY
from tests.server.client import deadline

from .proxy import Proxy
from .talk import Visit, ask, assert_nothing_is_missing, is_over, reply, stop_and_compare, stored, wait_for_text


def test_a_cut_connection_is_said_in_words_and_nothing_is_lost(visit: Visit, chat: Server, network: Proxy) -> None:
    page = visit(network.url)
    directive = ask(page, tag="cut", tokens=4000, rate=40)
    for length in (40, 200):
        wait_for_text(page, length)
        network.cut()
        expect(page.locator(".words", has_text="Connection lost. Reconnecting, nothing is lost.")).to_be_visible()
        expect(page.get_by_role("status")).to_have_text("Connection lost. Reconnecting, nothing is lost.")
        before = network.refused
        for _ in deadline(30, "an attempt to come back"):
            page.wait_for_timeout(20)
            if network.refused > before:
                break
        network.mend()
        expect(page.locator(".words", has_text="Connection lost")).to_have_count(0)
        expect(page.get_by_role("status")).to_have_text("Connected again.")
    wait_for_text(page, 400)
    stop_and_compare([page], directive)


def test_a_page_that_goes_offline_says_so_and_goes_on(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    directive = ask(page, tag="offline", tokens=600, rate=40)
    wait_for_text(page, 40)
    page.context.set_offline(True)
    words = "You are offline. The reply goes on being written; nothing is lost."
    expect(page.locator(".words", has_text=words)).to_be_visible()
    shown, since = "", time.monotonic()
    for _ in deadline(20, "a reply that stands still for three seconds"):  # what had come before is shown yet
        if reply(page).inner_text() != shown:
            shown, since = reply(page).inner_text(), time.monotonic()
        if time.monotonic() - since > 3:
            break
        page.wait_for_timeout(50)
    page.context.set_offline(False)
    expect(page.locator(".words", has_text="You are offline")).to_have_count(0)
    wait_for_text(page, len(shown) + 100)
    is_over(page)
    assert_nothing_is_missing(page, directive)


def test_a_conversation_that_is_opened_offline_comes_with_the_network(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, text="Here I am.", rate=0)
    is_over(page)
    page.get_by_role("link", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    page.context.set_offline(True)
    page.go_back()
    expect(page.get_by_role("heading", name="Not loaded")).to_be_visible()
    page.context.set_offline(False)
    expect(reply(page)).to_have_text("Here I am.")
    expect(page.get_by_role("heading", name="Not loaded")).to_have_count(0)


def test_a_question_waits_for_the_connection(visit: Visit, chat: Server, network: Proxy) -> None:
    page = visit(network.url)
    network.cut()
    ask(page, text="Here I am.")
    expect(page.locator(".words", has_text="Not sent yet: no connection.")).to_be_visible()
    network.mend()
    is_over(page)
    expect(reply(page)).to_have_text("Here I am.")
    expect(page.locator(".user")).to_have_count(1)


def test_a_worker_that_dies_leaves_words_and_the_next_question_works(
    visit: Visit, serve: Callable[..., Server], model: badmodel.Running
) -> None:
    settings = {"FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": model.base_url, "FLASKCHAT_DRAIN": "0.5"}
    server = serve({**settings, "TEST_SWEEP_ROUND": "0.6"}, app=FAULTY)
    page = visit(server.url)
    ask(page, tag="dies", tokens=2000, rate=40)
    wait_for_text(page, 40)
    answer = page.request.get(f"{server.url}/healthz")
    assert answer.ok
    shown = reply(page).inner_text()
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)
    expect(page.locator(".reply .words.trouble")).to_be_visible(timeout=20_000)
    is_over(page)
    assert stored(page)["messages"][-1]["status"] == "interrupted"
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    assert reply(page).inner_text().startswith(shown.strip()[:30])
    ask(page, text="Back again.", rate=0)
    is_over(page)
    expect(reply(page)).to_have_text("Back again.")
