"""What a model says, on the page in a real Chromium: shown as what it means, never run, never loaded, never slow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Frame, Page, Request, Route, expect

from tests.conftest import Server
from tests.server import badmodel
from tests.server.client import deadline

from .hostile import LEAKS, MARKUP, corpus
from .talk import scrolled

Visit = Callable[..., Page]

RICH = r"""Some **bold** text, a [link](https://example.com/a) and a [paypal.com](https://evil.example/login).

It costs $5 and $6, and $E = mc^2$ and \(a_1^2\) too.

\[
x = \frac{-b \pm \sqrt{b^2-4ac}}{2a}
- y
\]

- [x] done
- [ ] open

```python
def f(n: int) -> str:
    return "a line that is far longer than the column is wide, so that it must scroll in its block: " + str(n) * 100
```

```nosuchlanguage
plain
```

| Name | A column | Another column | One more | And more | And another | The last of them |
|------|:--------:|---:|---|---|---|---|
| aaaaaaaaaaaaaaaa | bbbbbbbbbbbbbbbbbbbb | cccccccccccccccccc | dddddddddddddddd | eeeeeeeeeeeeeeeee | fffff | ggg |

![a cat](https://images.example/cat.png)
"""

ROOT = "document.querySelector('flask-chat').shadowRoot"
SCROLLER = f"{ROOT}.querySelector('.scroll')"

SHOW = (Path(__file__).parent / "hostile.js").read_text()

ALLOWED = """
    div p h2 h3 h4 h5 h6 ul ol li blockquote pre code span a strong em del br hr table thead tbody tr th td button
    math semantics annotation mrow mstyle mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup munder mover
    munderover mmultiscripts mprescripts none mtable mtr mlabeledtr mtd mpadded mphantom menclose merror
"""


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory, model: badmodel.Running, built: None) -> Iterator[Server]:
    """As for the other tests of the page, but questions may be long: they say what the model answers."""
    settings = {
        "FLASKCHAT_MODEL": "openai:fake",
        "FLASKCHAT_OPENAI_BASE_URL": f"{model.origin}/v1",
        "FLASKCHAT_TITLES": "no",
        "FLASKCHAT_MAX_TEXT_CHARS": 1_000_000,
        "FLASKCHAT_DRAIN": 0.5,
    }
    folder = tmp_path_factory.mktemp("chat")
    server = Server(folder, settings, workers=2, kind="gevent", app="tests.server.app:app", args=[])
    yield server
    server.close()
    print(f"--- log of the server at {server.port}\n{server.log()}")


@pytest.fixture
def guarded(visit: Visit, chat: Server) -> Iterator[Page]:
    """A page on which nothing may run, and from which nothing may go anywhere else."""
    page = visit(chat.url)
    asked: list[str] = []
    ran: list[str] = []

    def record(route: Route, request: Request) -> None:
        own = request.url.startswith((f"{chat.url.rstrip('/')}/",))
        if not own:
            asked.append(request.url)
        route.continue_() if own else route.abort()

    page.context.route("**/*", record)

    def dismiss(dialog: Dialog) -> None:
        ran.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.on("popup", lambda popup: ran.append(f"a window: {popup.url}"))

    def navigated(frame: Frame) -> None:
        if not frame.url.startswith(chat.url):
            ran.append(f"a way to {frame.url}")

    page.on("framenavigated", navigated)
    page.evaluate(
        "() => { window.refused = [];"
        "document.addEventListener('securitypolicyviolation',"
        " (each) => refused.push(each.violatedDirective + ' ' + each.blockedURI)) }"
    )
    yield page
    assert asked == []
    assert ran == []
    assert page.evaluate("refused") == [], "the policy had to refuse what should not have been tried"


def ask(page: Page, **directive: Any) -> None:
    page.get_by_label("Your message").fill(f"Tell me {json.dumps(directive)}")
    page.keyboard.press("Enter")


def is_over(page: Page) -> None:
    expect(page.locator(".reply").last).to_have_attribute("aria-busy", "false", timeout=90_000)


def reply(page: Page) -> Any:
    return page.locator(".reply .markdown").last


def test_no_hostile_text_runs_loads_or_leads_anywhere_else(guarded: Page) -> None:
    cases = corpus()
    assert len(cases) >= 200
    guarded.context.set_default_timeout(240_000)
    found = guarded.evaluate(
        f"async (given) => ({SHOW})([JSON.parse(given[0]), given[1]])", [json.dumps(cases), ALLOWED.split()]
    )
    assert found["wrong"][:5] == []
    assert found["slowest"]["time"] < 3000, found["slowest"]


def test_a_hostile_reply_that_streams_through_the_page_is_only_text(guarded: Page) -> None:
    text = "\n\n".join((*LEAKS, *MARKUP, *(f"$\\href{{javascript:alert(1)}}{{{n}}}$" for n in range(3))))
    ask(guarded, text=text, size=7, rate=2000)
    is_over(guarded)
    expect(reply(guarded)).to_contain_text("<portal src=https://evil.example></portal>")
    expect(reply(guarded)).to_contain_text(r"\href{javascript:alert(1)}{2}")
    assert reply(guarded).locator("img, script, iframe, svg, object, form, input, style, link, base, meta").count() == 0
    followed = reply(guarded).inner_html()
    guarded.reload()
    is_over(guarded)
    expect(reply(guarded)).to_contain_text(r"\href{javascript:alert(1)}{2}")
    for _ in deadline(30, "the text as it was followed"):
        guarded.wait_for_timeout(20)
        if reply(guarded).inner_html() == followed:
            break
    guarded.evaluate("window.refused = []")


def test_each_kind_of_block_is_shown_as_what_it_means(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    loaded: list[str] = []
    page.on("request", lambda request: loaded.append(request.url.rsplit("/", 1)[1]))
    ask(page, text="No code and no formula here.", size=10)
    is_over(page)
    assert "markdown.js" in loaded
    assert not {"highlight.js", "math.js"} & set(loaded), "loaded without need"
    ask(page, text=RICH, size=10)
    is_over(page)
    expect(reply(page).locator("math")).to_have_count(3)
    expect(reply(page)).to_contain_text("It costs $5 and $6, and")
    expect(reply(page).locator(".math.display math mfrac")).to_have_count(1)
    expect(reply(page).locator("li.task")).to_have_text(["☑ done", "☐ open"])
    block = reply(page).locator(".code").first
    expect(block.locator(".code-head span").first).to_have_text("python")
    expect(block.locator(".hl-k").first).to_have_text("def")
    colours = block.locator("pre").evaluate(
        "pre => [...new Set([...pre.querySelectorAll('span')].map((each) => getComputedStyle(each).color))].length"
    )
    assert colours >= 4
    assert reply(page).locator(".code").nth(1).locator("span[class^=hl]").count() == 0
    assert {"highlight.js", "math.js"} <= set(loaded)


def test_wide_code_and_tables_scroll_inside(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.set_viewport_size({"width": 360, "height": 700})
    ask(page, text=RICH, size=50)
    is_over(page)
    expect(reply(page).locator("a.image")).to_be_attached()  # which is drawn last
    for inside in (".code pre >> nth=0", ".table"):
        box = reply(page).locator(inside)
        assert box.evaluate("each => each.scrollWidth > each.clientWidth"), inside
        assert box.evaluate("each => each.tabIndex") == 0, "it cannot be scrolled by keyboard"
    assert page.locator(".scroll").evaluate("each => each.scrollWidth <= each.clientWidth")
    lines = (
        reply(page)
        .locator("td")
        .first.evaluate(
            "each => { const range = document.createRange(); range.selectNodeContents(each);"
            " return range.getClientRects().length }"
        )
    )
    assert lines == 1, "a word is broken although the table can scroll"


def test_code_is_copied_as_it_was_written(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    page.clock.install()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    code = "def f():\n\treturn '<b>&amp;'\n\n# end"
    ask(page, text=f"```python\n{code}\n```\n", size=5)
    is_over(page)
    expect(reply(page).locator(".hl-k").first).to_be_visible()
    page.clock.pause_at(page.evaluate("Date.now()") + 1000)  # the word stands for a moment only
    reply(page).get_by_role("button", name="Copy").click()
    expect(reply(page).get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == code


def test_links_and_images_say_where_they_lead(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, text=RICH, size=50)
    is_over(page)
    first, second = reply(page).locator("a").nth(0), reply(page).locator("a").nth(1)
    assert first.get_attribute("title") == first.get_attribute("href") == "https://example.com/a"
    expect(first).to_have_attribute("rel", "noopener noreferrer")
    expect(first).to_have_attribute("target", "_blank")
    expect(second).to_have_text("paypal.com (evil.example)")
    image = reply(page).locator("a.image")
    expect(image).to_have_text("Image: a cat (images.example)")
    assert "new tab" in (image.get_attribute("title") or "")
    page.context.route("https://images.example/**", lambda route: route.fulfill(body="a cat"))
    with page.context.expect_page() as opened:
        image.click()
    assert opened.value.url == "https://images.example/cat.png"
    assert opened.value.evaluate("opener === null && document.referrer === ''")


@pytest.mark.parametrize("name", ["markdown.js", "highlight.js", "math.js"])
def test_what_cannot_be_loaded_is_shown_as_it_was_written(visit: Visit, chat: Server, name: str) -> None:
    page = visit(chat.url)
    page.route(f"**/{name}", lambda route: route.abort())
    ask(page, text=RICH, size=50)
    is_over(page)
    expect(reply(page)).to_contain_text("def f(n: int) -> str:")
    if name == "markdown.js":
        expect(reply(page)).to_contain_text("**bold**")
        page.unroute(f"**/{name}")
        ask(page, text="Now *this*.")
        is_over(page)
        expect(reply(page).locator("em")).to_have_text("this")
    elif name == "math.js":
        expect(reply(page)).to_contain_text("$E = mc^2$")
        expect(reply(page)).to_contain_text(r"\frac{-b \pm \sqrt{b^2-4ac}}{2a}")
    else:
        expect(reply(page).locator("math")).to_have_count(3)


def test_a_selection_survives_what_follows_it(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    ask(page, text="Select *this* text.\n\n```js\nlet a = 1;\n```\n\n" + "More of it. " * 400, size=12, rate=200)
    expect(reply(page).locator("pre")).to_be_visible()
    chosen = (
        reply(page)
        .locator("p")
        .first.evaluate("each => { getSelection().selectAllChildren(each); return getSelection().toString() }")
    )
    is_over(page)
    assert page.evaluate("getSelection().toString()") == chosen == "Select this text."


def test_fifty_thousand_tokens_stream_without_holding_the_page(browser: Browser, visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    browser.start_tracing(page=page, categories=["toplevel"])
    ask(page, tag="long", tokens=50_000, rate=5_000)
    block = reply(page).locator("p, li, h3").first
    expect(block).to_be_visible()
    first = block.element_handle()
    page.evaluate("node => getSelection().selectAllChildren(node)", first)
    chosen = page.evaluate("getSelection().toString()")
    assert chosen.strip()
    page.mouse.move(600, 300)
    for _ in deadline(30, "a text that scrolls, and the reader leaves its end"):
        page.mouse.wheel(0, -300)
        page.wait_for_timeout(50)
        if page.evaluate(f"{SCROLLER}.scrollHeight > 5000 && !!{ROOT}.querySelector('button.end')"):
            break
    at = scrolled(page.locator(".scroll"))
    # In the page: whoever asks from outside walks over all nodes, again and again, and that is a long task.
    over = f"!!{ROOT}.querySelector('.reply[aria-busy=false]')"
    page.evaluate(f"new Promise((on) => {{ const look = () => {over} ? on() : setTimeout(look, 50); look() }})")
    tasks = main_thread_tasks(browser.stop_tracing())
    assert page.evaluate("getSelection().toString()") == chosen
    assert first is not None
    assert first.evaluate("node => node.isConnected"), "a settled block was made again"
    assert abs(page.evaluate(f"{SCROLLER}.scrollTop") - at) < 2, "the reader was moved"
    stored = badmodel.text_of({"tag": "long", "tokens": 50_000})
    for _ in deadline(30, "the whole text is shown"):
        page.wait_for_timeout(50)
        if reply(page).evaluate("each => each.textContent.split('日本語').length - 1") == stored.count("日本語"):
            break
    page.get_by_role("button", name="To the end").click()
    page.wait_for_function(f"{SCROLLER}.scrollHeight - {SCROLLER}.scrollTop - {SCROLLER}.clientHeight < 10")
    print(f"{len(tasks)} tasks, the longest {[round(task) for task in sorted(tasks)[-5:]]} ms")
    # The processor is shared with other tests, which makes a task dearer too: one or two are let pass, by a factor.
    assert len([task for task in tasks if task > 50]) <= 2
    assert max(tasks) < 200


def main_thread_tasks(trace: bytes) -> list[float]:
    """How long each task of the page's main thread had the processor, in milliseconds.

    Neither the time in which it waited for the processor counts, nor what this test asks for through the debugger.
    """
    events = json.loads(trace)["traceEvents"]
    threads = {
        (e["pid"], e["tid"]) for e in events if e["name"] == "thread_name" and e["args"]["name"] == "CrRendererMain"
    }
    own = [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) in threads]
    asked = [e["ts"] for e in own if "DevToolsSession" in json.dumps(e.get("args", {}))]
    tasks = [
        e["tdur"] / 1000
        for e in own
        if e["name"] == "ThreadControllerImpl::RunTask"
        and "tdur" in e
        and not any(e["ts"] <= at <= e["ts"] + e["dur"] for at in asked)
    ]
    assert sum(tasks) > 100, "the trace has no tasks, or not their processor time"
    return tasks
