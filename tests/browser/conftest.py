"""A real Chromium, and a server whose model does what the question says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.conftest import Server
from tests.server import badmodel

from .frontend import load_hook
from .proxy import Proxy

# Long, because the machine may be slow; only what fails waits as long.
expect.set_options(timeout=30_000)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]  # the sandbox cannot be had as root


@pytest.fixture(scope="package")
def built() -> None:
    """The page is built from the sources as they are now."""
    hook = load_hook()
    try:
        hook.build()
    except hook.BuildError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error).splitlines()[0])


# For a module, not for the session: while it is open, playwright has an event loop running in this thread.
@pytest.fixture(scope="module")
def browser(built: None) -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium")
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def network(chat: Server) -> Iterator[Proxy]:
    """The way from browser to server; it can be cut."""
    proxy = Proxy(chat.port)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory, model: badmodel.Running, built: None) -> Iterator[Server]:
    """Two gevent workers whose model is the misbehaving one."""
    settings = {
        "FLASKCHAT_MODEL": "openai:fake",
        "FLASKCHAT_OPENAI_BASE_URL": f"{model.origin}/v1",
        "FLASKCHAT_MAX_TEXT_CHARS": 5000,
        "FLASKCHAT_DRAIN": 0.5,  # replies that a test leaves behind hold nobody up at the end
    }
    folder = tmp_path_factory.mktemp("chat")
    server = Server(folder, settings, workers=2, kind="gevent", app="tests.server.app:app", args=[])
    yield server
    server.close()
    print(f"--- log of the server at {server.port}\n{server.log()}")


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages, each as a visitor of its own; at the end nothing may have gone wrong in any of them."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def open_page(url: str, context: BrowserContext | None = None, **options: object) -> Page:
        if context is None:
            context = browser.new_context(viewport={"width": 1200, "height": 800}, **options)  # type: ignore[arg-type]
            context.set_default_timeout(30_000)
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on(
            "console",
            # what the network does is the test's own doing; all else (a refusal by the policy, say) is a fault
            lambda message: (
                message.type == "error" and "Failed to load resource" not in message.text and wrong.append(message.text)
            ),
        )
        page.goto(url)
        page.get_by_label("Your message").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
