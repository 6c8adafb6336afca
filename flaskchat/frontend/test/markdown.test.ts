import assert from "node:assert/strict";
import { test } from "node:test";
import "./dom.ts";
import { decodeEntities } from "../src/entities.ts";
import { MarkdownView } from "../src/markdown-view.ts";

class View extends MarkdownView {
  show(text: string, final = false): this {
    this.update(text, final);
    return this;
  }
}

const whole = (text: string): string => new View().show(text, true).node.innerHTML;

const PIECES = [
  "Plain text with **bold**, _emphasis_, `code` and ~~gone~~.\n",
  "\n",
  "\n\n",
  "# A heading\n",
  "Setext\n---\n",
  "- one\n- two\n  - nested\n",
  "-",
  "- [ ] open\n- [x] done\n",
  "1. first\n\n   more of it\n2. second\n",
  "    indented code\n",
  "```python\ndef f():\n    return '- no list'\n```\n",
  "```\nnever closed\n",
  "~~~\n",
  "> quoted\nlazy\n> again\n",
  "> ",
  "| a | b |\n|---|:-:|\n| 1 | `x\\|y` |\n",
  "| 2 | 3 |\n",
  "***\n",
  "<div>\nraw\n</div>\n",
  "<a href='x'>inline <b>raw</b> https://example.com/?a=1&b=2\n",
  "Bare: https://example.com/bare\n",
  "[a link](https://example.com 'title') and [a name][ref] and [ref]\n",
  "[ref]: https://example.com/ref\n",
  "[ref]: https://example.com/second\n",
  "![picture](https://example.com/p.png)\n",
  "&lt;tag&gt; &amp; &#8364; \\*literal\\*\n",
  "two spaces  \nbreak\\\nbreak\n",
  "word ",
  "  two in\n",
  "\ttab\n",
  "\u2028 and 🦜 日本語\n",
];

/** A small seeded generator, so that a failure can be repeated. */
function random(seed: number): () => number {
  return () => {
    seed = (seed * 1664525 + 1013904223) >>> 0;
    return seed / 2 ** 32;
  };
}

test("text that grows ends as the same nodes as the whole text, wherever it was cut", () => {
  for (let seed = 1; seed <= 400; seed++) {
    const next = random(seed);
    const text = Array.from({ length: 2 + Math.floor(next() * 9) }, () => PIECES[Math.floor(next() * PIECES.length)]).join("");
    const view = new View();
    for (let at = 0; at < text.length; at += 1 + Math.floor(next() * (seed % 2 ? 3 : 25))) view.show(text.slice(0, at));
    view.show(text);
    assert.equal(view.node.innerHTML, whole(text), `seed ${seed}, before its end: ${JSON.stringify(text)}`);
    assert.equal(view.show(text, true).node.innerHTML, whole(text), `seed ${seed}: ${JSON.stringify(text)}`);
  }
});

test("every cut of one rich text gives the whole text's nodes", () => {
  const text = PIECES.join("");
  const expected = whole(text);
  for (let cut = 0; cut <= text.length; cut++) {
    const view = new View().show(text.slice(0, cut)).show(text, true);
    assert.equal(view.node.innerHTML, expected, `cut at ${cut}`);
  }
});

test("line ends of all kinds are the same, also when a CRLF is cut in two", () => {
  const text = "a\n\n- b\n- c\n\n```\nd\n\ne\n```\n";
  const crlf = text.replaceAll("\n", "\r\n");
  for (let cut = 0; cut <= crlf.length; cut++) {
    assert.equal(new View().show(crlf.slice(0, cut)).show(crlf, true).node.innerHTML, whole(text));
  }
  assert.equal(whole(text.replaceAll("\n", "\r")), whole(text));
});

test("a settled block keeps its node", () => {
  const view = new View().show("First *paragraph*.\n\nSecond");
  const first = view.node.querySelector("p");
  view.show("First *paragraph*.\n\nSecond, longer\n\n- list\n");
  assert.ok(view.node.querySelector("p") === first);
  assert.equal(view.settled, 2);
});

test("a growing code block keeps its text node", () => {
  const view = new View().show("```js\nlet a");
  const before = view.node.querySelector("code")!.firstChild;
  view.show("```js\nlet a = 1;\nlet b");
  assert.ok(view.node.querySelector("code")!.firstChild === before);
  assert.equal(before!.textContent, "let a = 1;\nlet b");
});

test("a growing list keeps its items", () => {
  const view = new View().show("- one\n- tw");
  const [first, second] = view.node.querySelectorAll("li");
  view.show("- one\n- two **and\n- three");
  const items = view.node.querySelectorAll("li");
  assert.equal(items.length, 3);
  assert.ok(items[0] === first);
  assert.ok(items[1] === second);
});

test("a task is its box and its text", () => {
  const items = new View().show("- [x] done\n- [ ] open **soon**\n", true).node.querySelectorAll("li.task");
  assert.deepEqual([...items].map((item) => item.textContent), ["☑ done", "☐ open soon"]);
  assert.equal(new View().show("- [x] a\n\n- [ ] b\n", true).node.textContent, "☑ a☐ b");
});

test("text that is replaced starts over", () => {
  const view = new View().show("One\n\nTwo\n\nThree");
  assert.equal(view.show("Another\n\nText", true).node.innerHTML, whole("Another\n\nText"));
});

test("a definition that comes late makes links of earlier names", () => {
  const text = "See [docs].\n\nMore.\n\n[docs]: https://example.com/docs\n\nEnd.\n";
  const view = new View().show("See [docs].\n\nMore.\n\n").show(text);
  assert.equal(view.node.querySelector("a")!.getAttribute("href"), "https://example.com/docs");
});

test("links go to http, https and mailto only, and say nothing about this page", () => {
  const bad = ["javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", "vbscript:x", "/logout", "//example.com", "file:///etc/passwd", "&#106;avascript:alert(1)", "java\nscript:x", "\u0001javascript:x", "blob:https://x/1"];
  for (const href of bad) {
    for (const text of [`[x](${href})`, `[x](<${href}>)`, `<${href}>`, `![x](${href})`, `[x]\n\n[x]: ${href}`]) {
      assert.ok(!new View().show(text, true).node.querySelector("a"), text);
    }
  }
  for (const text of ["[x](https://example.com/a?b=1&amp;c=2)", "<https://example.com/>", "https://example.com", "[x](mailto:a@b.example)"]) {
    const link = new View().show(text, true).node.querySelector("a")!;
    assert.equal(link.getAttribute("rel"), "noopener noreferrer", text);
  }
  assert.equal(new View().show("[x](https://example.com/a?b=1&amp;c=2)", true).node.querySelector("a")!.getAttribute("href"), "https://example.com/a?b=1&c=2");
});

test("nothing of a model's text is loaded or becomes markup", () => {
  const view = new View().show(
    "<img src=x onerror=alert(1)>\n\n<script>alert(1)</script>\n\ninline <img src=x> <b>b</b>\n\n![a](https://evil.example/p.png?q=1)\n\n| <img src=y> |\n|---|\n| <iframe> |\n\n```<img>\n<script>\n```\n",
    true,
  );
  assert.equal(view.node.querySelectorAll("img, script, iframe, b, style, object, form").length, 0);
  assert.ok(view.node.textContent!.includes("<script>alert(1)</script>"));
  const image = view.node.querySelector(".image")!;
  assert.equal(image.textContent, "Image: a (evil.example)");
});

test("hostile nesting is shown as text, and soon", () => {
  const started = performance.now();
  for (const text of [">".repeat(20_000), "[".repeat(20_000), "*".repeat(20_000), "- ".repeat(5_000), "`".repeat(20_001), "<".repeat(20_000)]) {
    assert.ok(new View().show(text, true).node.firstChild, text.slice(0, 3));
  }
  assert.ok(performance.now() - started < 10_000);
});

test("character references are resolved in text and left alone in code", () => {
  assert.equal(new View().show("&lt;b&gt; &copy; &#x1F99C; &nosuch; &#xD800;", true).node.textContent, "<b> © 🦜 &nosuch; \ufffd");
  assert.equal(new View().show("`&lt;`\n\n```\n&lt;\n```", true).node.querySelector("pre")!.textContent, "&lt;");
  assert.equal(decodeEntities("&constructor;&toString;"), "&constructor;&toString;");
});

test("no heading skips a level, wherever the model began, and however the text came", () => {
  const levels = (view: MarkdownView): string =>
    [...view.node.querySelectorAll("h2,h3,h4,h5,h6")]
      .map((heading) => `${heading.tagName.toLowerCase()}:${heading.getAttribute("aria-level") ?? ""}`)
      .join(" ");
  const text = "### Deep first\n\na\n\n##### Deeper\n\n> ###### In a quotation\n\n## Up\n\n# Top\n\nb\n\n### Down\n\nc [x]\n\n[x]: https://example.com/\n";
  const expected = "h4:3 h6:4 h6:5 h3: h2: h4:3";
  assert.equal(levels(new View().show(text, true)), expected);
  const view = new View();
  for (let end = 1; end < text.length; end++) view.show(text.slice(0, end));
  assert.equal(levels(view.show(text, true)), expected);
});

const LONG: Record<string, string> = {
  "a paragraph": "word **bold** `c`, [a link](https://example.com) and so on. ".repeat(400),
  "a paragraph of lines": "word **bold** and\nso on, line by line\n".repeat(500),
  "one word": "a".repeat(20_000),
  "a list": "- item **bold** `c`\n  more\n".repeat(800),
  "a loose list": "1. item\n\n   and more of it\n\n".repeat(700),
  "a table": "| a | b |\n|---|--:|\n" + "| cell **bold** | `c` |\n".repeat(900),
  "a quote": "> quoted **text** that goes on\n".repeat(700),
  "code": "```python\n" + "    x = call(y)  # $$ note\n\n".repeat(700) + "```\n\nafter\n",
  "code in a list": "1. do\n\n   ```python\n" + "   x = call(y)\n".repeat(1200) + "   ```\n\n2. then\n",
  "indented code": "    code\n".repeat(3000),
  "raw HTML": "<div>\n" + "<p>raw</p>\n".repeat(1500),
  "definitions": "See [a1], [A  2] and [b].\n\n" + Array.from({ length: 400 }, (_, n) => `[a${n}]: https://example.com/${n}\n`).join("") + "\n[a 2]: https://example.com\n",
  "formulas": "$$\nx\n$$\n\nand $x_1$ costs $5.\n\n".repeat(300),
  "formulas that never close": "$$\na\n- b\n".repeat(900),
  "everything": PIECES.join("").repeat(20),
};

for (const [name, text] of Object.entries(LONG)) {
  test(`${name} of ${text.length} characters ends as the same nodes, wherever it was cut`, () => {
    const expected = whole(text);
    for (const step of [997, 4099]) {
      const view = new View();
      for (let at = step; at < text.length; at += step) view.show(text.slice(0, at));
      assert.equal(view.show(text, true).node.innerHTML, expected);
    }
  });
}

test("what grows costs no more the longer it is, whatever it is", () => {
  // Far more than the text takes: what is quadratic in any of these would take minutes.
  const started = performance.now();
  for (const part of Object.values(LONG)) {
    const text = part.repeat(Math.ceil(60_000 / part.length));
    const view = new View();
    for (let at = 0; at < text.length; at += 2500) view.show(text.slice(0, at));
  }
  assert.ok(performance.now() - started < 30_000);
});

test("settled blocks keep their nodes while thousands follow", () => {
  const part = "A paragraph.\n\n- item\n\n```js\nlet a;\n```\n\n";
  const view = new View().show(part.repeat(20));
  const nodes = [...view.node.querySelectorAll("p, li, pre")].slice(0, -3);
  for (let n = 21; n < 200; n += 3) view.show(part.repeat(n));
  view.show(part.repeat(200), true);
  const after = view.node.querySelectorAll("p, li, pre");
  assert.ok(nodes.every((node, at) => after[at] === node));
});

test("a long text can be shown a slice at a time", () => {
  const text = PIECES.join("").repeat(60);
  const view = new MarkdownView();
  let calls = 1;
  while (!view.update(text, true, 0)) calls += 1;
  assert.ok(calls > 3);
  assert.equal(view.node.innerHTML, whole(text));
});

test("a definition changes the blocks that name it and no others", () => {
  const text = "See [docs].\n\nMore.\n\nAnd [Docs][].\n\nEnd.\n\n";
  const view = new View().show(text);
  const more = view.node.querySelectorAll("p")[1];
  view.show(`${text}[docs]: https://example.com/docs\n\nLast.\n\n`);
  assert.deepEqual([...view.node.querySelectorAll("a")].map((link) => link.textContent), ["docs", "Docs"]);
  assert.ok(view.node.querySelectorAll("p")[1] === more);
});

test("long code is kept in many text nodes, and is the same text", () => {
  const code = Array.from({ length: 2000 }, (_, n) => `line ${n}`).join("\n");
  const view = new View();
  for (let at = 0; at < code.length; at += 333) view.show(`\`\`\`\n${code.slice(0, at)}`);
  view.show(`\`\`\`\n${code}\n\`\`\`\n`, true);
  assert.equal(view.node.querySelector("code")!.textContent, code);
  assert.ok(view.node.querySelectorAll(".piece").length > 3);
});

test("a link says where it leads when its words say otherwise", () => {
  const shown = (text: string): string => new View().show(text, true).node.textContent!;
  for (const [text, host] of [
    ["[paypal.com](https://evil.example/x)", "evil.example"],
    ["[https://paypal.com](https://paypal.com.evil.example)", "paypal.com.evil.example"],
    ["[here](https://paypal.com@evil.example/)", "evil.example"],
    ["[apple](https://xn--80ak6aa92e.com)", "xn--80ak6aa92e.com"],
    ["[router](http://192.168.0.1/)", "192.168.0.1"],
    ["[ｐａｙｐａｌ.com](https://evil.example)", "evil.example"],
  ]) {
    assert.ok(shown(text!).includes(`(${host})`), text);
  }
  for (const text of ["[the docs](https://example.com)", "[example.com](https://www.example.com/a)", "https://example.com/a", "<https://example.com>"]) {
    assert.ok(!shown(text).includes("("), text);
  }
  assert.equal(new View().show("[x](https://example.com/a)", true).node.querySelector("a")!.getAttribute("title"), "https://example.com/a");
});
