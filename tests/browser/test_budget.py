"""What the page weighs, measured as it is loaded by a real browser: kilobytes of 1,000 bytes, as gzip -9 packs them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Response, expect

from tests.conftest import Server

from .frontend import HOOK, load_hook

Visit = Callable[..., Page]
SOURCES = HOOK.parent / "src"

SCRIPT = 30_000
STYLES = 5_000
MARKDOWN = 22_000  # with the first reply
HIGHLIGHTING = 22_000
MATHEMATICS = 60_000

CODE = {
    "python": "def f(): return 1  # note",
    "javascript": "const a = () => 1; // note",
    "bash": "ls -l | grep 'x' # note",
    "json": '{"a": [1, true, null]}',
    "html": '<p class="x">text</p>',
}


class Loads:
    """What a page asks for."""

    def __init__(self, page: Page) -> None:
        self.requests: list[str] = []
        self._responses: list[Response] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("response", lambda response: self._responses.append(response))

    def take(self) -> dict[str, bytes]:
        """The files of the front end since the last time, by name."""
        files = {each.url.rsplit("/", 1)[1]: each.body() for each in self._responses if "/assets/" in each.url}
        self._responses.clear()
        return files


def packed(*texts: bytes) -> int:
    return len(gzip.compress(b"\n".join(texts), 9))


@pytest.fixture(scope="module")
def styles(built: None) -> dict[str, str]:
    """The text of each stylesheet as the build puts it into a script."""
    node = load_hook().find_node()[0]
    program = """
        import { readdirSync, readFileSync } from "node:fs";
        import { transform } from "esbuild";
        const found = {};
        for (const name of readdirSync("src").filter((name) => name.endsWith(".css"))) {
          const { code } = await transform(readFileSync(`src/${name}`, "utf8"), { loader: "css", minify: true });
          found[name] = code.trim();
        }
        console.log(JSON.stringify(found));
    """
    done = subprocess.run(
        [node, "--input-type=module", "-e", program], cwd=HOOK.parent, env=dict(os.environ), capture_output=True,
        text=True, check=True, timeout=60,
    )  # fmt: skip
    found: dict[str, str] = json.loads(done.stdout)
    return found


def apart(script: bytes, styles: dict[str, str]) -> tuple[bytes, bytes]:
    """A script without the stylesheets in it, and those."""
    code, inside = script.decode(), []
    for text in styles.values():
        for written in {text, text.replace("\\", "\\\\"), json.dumps(text)[1:-1]}:
            if written in code:
                code = code.replace(written, "")
                inside.append(text)
    return code.encode(), "\n".join(inside).encode()


@pytest.fixture
def asked(browser: Browser, chat: Server) -> Iterator[tuple[Page, Loads]]:
    """The page as a new visitor loads it."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    loads = Loads(page)
    page.goto(chat.url)
    page.get_by_label("Your message").wait_for()
    page.wait_for_load_state("networkidle")
    yield page, loads
    context.close()
    hosts = {url.split("/")[2] for url in loads.requests if not url.startswith("data:")}
    assert hosts == {f"127.0.0.1:{chat.port}"}


def answer(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(f"Tell me {json.dumps({'text': text, 'size': 40})}")
    page.keyboard.press("Enter")
    expect(page.locator(".reply").last).to_have_attribute("aria-busy", "false")


def test_the_first_load_is_30_kb_of_script_and_5_of_styles(asked: tuple[Page, Loads], styles: dict[str, str]) -> None:
    _, loads = asked
    files = loads.take()
    scripts = [name for name in files if name.endswith(".js")]
    assert scripts == ["flaskchat.js"], "one script, which waits for no other"
    script, inside = apart(files["flaskchat.js"], styles)
    assert len(inside) > 3000, "the styles were not found in the script"
    sizes = {"script": packed(script), "styles": packed(inside, files["page.css"])}
    print(sizes)
    assert sizes["script"] <= SCRIPT, sizes
    assert sizes["styles"] <= STYLES, sizes
    pages = [url.split("/", 3)[3] for url in loads.requests]
    assert len(pages) <= 7, pages


def test_markdown_highlighting_and_mathematics_come_with_the_reply_that_needs_them(asked: tuple[Page, Loads]) -> None:
    page, loads = asked
    loads.take()
    answer(page, "Only *text* and `code`, for 5 $.")
    page.wait_for_load_state("networkidle")
    first = loads.take()
    assert "markdown.js" in first
    assert not {"highlight.js", "math.js"} & set(first)
    assert packed(first["markdown.js"]) <= MARKDOWN

    answer(page, "".join(f"```{name}\n{code}\n```\n\n" for name, code in CODE.items()))
    expect(page.locator(".reply").last.locator("pre [class^=hl-]").last).to_be_visible()
    expect(page.locator(".reply").last.locator("pre:has([class^=hl-])")).to_have_count(len(CODE))
    coloured = loads.take()
    assert "highlight.js" in coloured
    assert "math.js" not in coloured
    size = sum(packed(body) for name, body in coloured.items() if name.endswith(".js"))
    assert size <= HIGHLIGHTING, f"{size} for {len(coloured)} files"

    answer(page, "$$\nx^2\n$$\n")
    expect(page.locator(".reply").last.locator("math")).to_be_visible()
    size = sum(packed(body) for name, body in loads.take().items() if name.endswith(".js"))
    assert 0 < size <= MATHEMATICS, size


def test_no_language_is_dearer_than_the_budget(built: None) -> None:
    static: Path = load_hook().STATIC
    core = packed((static / "highlight.js").read_bytes())
    names: set[str] = set()
    for part in static.glob("part-*.js"):
        text = part.read_bytes()
        if f"./{part.name}".encode() in (static / "highlight.js").read_bytes():
            names.add(part.name)
            assert core + packed(text) <= HIGHLIGHTING, part.name
    assert len(names) >= 25


def test_the_page_is_usable_soon_and_with_few_requests(visit: Visit, chat: Server) -> None:
    page = visit(chat.url)
    timing: dict[str, Any] = page.evaluate(
        "() => { const [page] = performance.getEntriesByType('navigation');"
        "const files = performance.getEntriesByType('resource');"
        "return { loaded: page.domContentLoadedEventEnd, files: files.map((each) => each.name) } }"
    )
    assert timing["loaded"] < 5000  # on a machine that does much else; 0.1 s where it does not
    assert len(timing["files"]) <= 6, timing["files"]
